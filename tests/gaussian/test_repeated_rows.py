"""Rows that repeat few vectors against the same rows written out."""

import pytest
import torch
from torch.autograd import gradcheck

from fgp_gpytorch.gaussian import RepeatedRows, mean_field_factor

F64 = torch.float64


def make_rows(num_rows=40, objects=7, views=4, left=3, right=2, seed=0):
    """Some objects and views come twice or never, as in a ragged design."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.randint(objects, (num_rows,), generator=g), torch.randint(views, (num_rows,), generator=g)
    a, b = torch.randn(objects, left, generator=g, dtype=F64), torch.randn(views, right, generator=g, dtype=F64)
    return RepeatedRows(a, b, *indices)


def written_out(rows):
    pairs = zip(rows.left_index.tolist(), rows.right_index.tolist(), strict=True)
    return torch.stack([torch.kron(rows.left[p], rows.right[v]) for p, v in pairs])


def test_dense_rows_are_kronecker_products_of_their_vectors():
    rows = make_rows()
    torch.testing.assert_close(rows.dense(), written_out(rows), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(40, 7, 4), (5, 7, 4), (9, 1, 1), (1, 1, 1)])
def test_products_are_those_of_the_rows_written_out(shape):
    rows = make_rows(*shape)
    phi = written_out(rows)
    torch.testing.assert_close(rows.gram(), phi.mT @ phi, rtol=1e-12, atol=1e-12)
    cholesky = torch.linalg.cholesky(torch.eye(6, dtype=F64) + phi.mT @ phi)
    wanted = torch.linalg.solve(torch.eye(6, dtype=F64) + phi.mT @ phi, phi.mT).mul(phi.mT).sum(0)
    torch.testing.assert_close(rows.whitened_norms(cholesky), wanted, rtol=1e-11, atol=1e-12)


def test_the_same_factor_with_and_without_repeated_rows():
    rows = make_rows()
    g = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(3, 40, generator=g, dtype=F64), 0.1 + torch.rand(3, 40, generator=g, dtype=F64)
    noise = torch.tensor(0.2, dtype=F64)
    dense = mean_field_factor(rows.dense(), noise, mean, variance)
    repeated = mean_field_factor(rows, noise, mean, variance)
    torch.testing.assert_close(repeated.cholesky, dense.cholesky, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(repeated.weights, dense.weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(repeated.kl(), dense.kl(), rtol=1e-12, atol=0)


def test_gradients_pass_gradcheck():
    rows = make_rows(12, 4, 3, 2, 2)
    g = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(2, 12, generator=g, dtype=F64), 0.1 + torch.rand(2, 12, generator=g, dtype=F64)

    def kl(left, right, noise, mean, variance):
        return mean_field_factor(rows._replace(left=left, right=right), noise, mean, variance).kl()

    inputs = [rows.left, rows.right, torch.tensor(0.4, dtype=F64), mean, variance]
    assert gradcheck(kl, [t.requires_grad_() for t in inputs])


def test_it_pays_where_rows_outnumber_pairs_of_a_view_and_an_entry():
    assert make_rows(13, views=4, left=3).pays
    assert not make_rows(12, views=4, left=3).pays
