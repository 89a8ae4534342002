"""The operator: linear_operator's own contract, gradients, and exactness where GPyTorch would approximate."""

import itertools
import unittest

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from grouped_reference import DenseLocalKernel, grouped_rows
from linear_operator.operators import DiagLinearOperator
from linear_operator.test.linear_operator_test_case import (
    LinearOperatorTestCase,
    RectangularLinearOperatorTestCase,
)
from linear_operator.utils.errors import NotPSDError

from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from fgp_gpytorch.kernels._group_layout import group_layouts
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator

RAGGED = (4, 1, 7, 3, 6, 10)  # 6 and 7 share a stack: one of them is padded


def random_operator(labels, col_labels=None, batch=()):
    rows, cols = group_layouts(labels, col_labels)
    blocks = []
    for count, height, width in zip(rows.counts, rows.widths, cols.widths, strict=True):
        block = torch.randn(*batch, count, height, width)
        if col_labels is None:
            block = block @ block.mT + 2 * torch.eye(height)
        blocks.append(block.requires_grad_(True))
    return GroupBlockLinearOperator(*blocks, rows=rows, cols=cols)


def entry_by_entry(operator):
    """Write the matrix out with loops over its entries, each found by counting through the stacks."""
    rows, cols = operator.rows, operator.cols

    def home(layout, slot):
        for k, (count, width) in enumerate(zip(layout.counts, layout.widths, strict=True)):
            if slot < count * width:
                return k, slot // width, slot % width
            slot -= count * width
        raise AssertionError

    def entry(b, i, j):
        k, g, p = home(rows, int(rows.slot.expand(*operator.batch_shape, -1)[b][i]))
        m, h, q = home(cols, int(cols.slot.expand(*operator.batch_shape, -1)[b][j]))
        return operator.blocks[k][b][g, p, q] if (k, g) == (m, h) else torch.zeros(())

    batches = itertools.product(*map(range, operator.batch_shape))
    n, m = operator.matrix_shape
    return torch.stack([entry(b, i, j) for b in batches for i in range(n) for j in range(m)]).view(operator.shape)


@pytest.mark.filterwarnings("ignore")  # the contract tests provoke performance and jitter warnings
class Contract:
    seed = 0
    should_call_cg = False
    should_call_lanczos = False

    def evaluate_linear_op(self, linear_op):
        return entry_by_entry(linear_op)


class TestContractOfEqualGroups(Contract, LinearOperatorTestCase, unittest.TestCase):
    def create_linear_op(self):
        return random_operator(torch.tensor([1, 1, 2, 2, 3, 3]))


class TestContractOfRaggedUnsortedGroups(Contract, LinearOperatorTestCase, unittest.TestCase):
    def create_linear_op(self):
        return random_operator(torch.tensor([1, 5, 1, 1, 2, 5, 1, 1, 1, 2, 1, 5, 5, 5, 5, 5]))


class TestContractOfABatch(Contract, LinearOperatorTestCase, unittest.TestCase):
    def create_linear_op(self):
        return random_operator(torch.tensor([1, 2, 2, 1, 3, 7, 1, 1, 1]), batch=(2,))


class TestContractOfACrossCovariance(Contract, RectangularLinearOperatorTestCase, unittest.TestCase):
    def create_linear_op(self):
        return random_operator(torch.tensor([1, 2, 2, 1, 3]), torch.tensor([2, 2, 1, 9, 9, 8, 2]))


def local_kernel():
    kernel = LocalKernel(ScaleKernel(RBFKernel(ard_num_dims=2))).double()
    kernel.base_kernel.outputscale = 1.7
    return kernel


def dense_kernel():
    kernel = DenseLocalKernel(ScaleKernel(RBFKernel(ard_num_dims=2))).double()
    kernel.base_kernel.outputscale = 1.7
    return kernel


@pytest.mark.parametrize("sizes", [(6, 6), (4, 1, 7)])
def test_gradients_of_blocks_pass_gradcheck(sizes):
    x = grouped_rows(sizes, shuffle=True)
    n = len(x)
    rows, cols = group_layouts(x[:, 0].long())
    y = torch.randn(n, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(n, dtype=torch.float64).add(0.5).requires_grad_(True)
    blocks = []
    for count, width in zip(rows.counts, rows.widths, strict=True):
        root = torch.randn(count, width, width, dtype=torch.float64)
        blocks.append((root @ root.mT).requires_grad_(True))

    def results(y, noise, *blocks):
        symmetric = [0.5 * (b + b.mT) for b in blocks]
        noisy = GroupBlockLinearOperator(*symmetric, rows=rows, cols=cols) + DiagLinearOperator(noise)
        quad, logdet = noisy.inv_quad_logdet(y, logdet=True)
        root = noisy.root_decomposition().root @ y
        return noisy.solve(y), noisy @ y, quad, logdet, noisy.diagonal(), noisy.cholesky().to_dense(), root

    assert torch.autograd.gradcheck(results, (y, noise, *blocks))


def test_gradients_of_hyperparameters_and_inputs_equal_dense_autograd():
    x = grouped_rows(RAGGED, shuffle=True)
    y = torch.randn(31, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.linspace(0.1, 1, 31).double()
    gradients = []
    for kernel in (local_kernel(), dense_kernel()):
        leaf = x.clone().requires_grad_(True)
        if isinstance(kernel, LocalKernel):
            noisy = kernel(leaf) + DiagLinearOperator(noise)
            quad, logdet = noisy.inv_quad_logdet(y, logdet=True)
            solved = noisy.solve(y)
        else:
            noisy = kernel(leaf).to_dense() + torch.diag(noise)
            solved = torch.linalg.solve(noisy, y)
            quad, logdet = (y * solved).sum(), torch.logdet(noisy)
        value = quad + logdet + solved.sin().sum() + (noisy @ y).cos().sum()
        gradients.append(torch.autograd.grad(value, [leaf, *kernel.parameters()]))
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_factor_made_without_gradients_does_not_rob_a_later_call_of_them():
    kernel = local_kernel()
    noisy = kernel(grouped_rows(RAGGED)).add_diagonal(torch.ones(31).double())
    with torch.no_grad():
        noisy.logdet()
        noisy.zero_mean_mvn_samples(1)
    assert noisy.logdet().requires_grad
    assert noisy.zero_mean_mvn_samples(1).requires_grad


def test_answers_are_exact_and_repeatable_above_the_size_where_gpytorch_turns_to_conjugate_gradients():
    x = grouped_rows([1 + g % 9 for g in range(220)], shuffle=True)
    n = len(x)
    assert n > gpytorch.settings.max_cholesky_size.value()
    noise = torch.linspace(1e-3, 1, n).double()
    y = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = dense_kernel()(x).to_dense() + torch.diag(noise)
    for noisy in (
        local_kernel()(x).add_diagonal(noise),
        local_kernel()(x) + DiagLinearOperator(noise),
        gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)(
            gpytorch.distributions.MultivariateNormal(torch.zeros(n).double(), local_kernel()(x))
        ).lazy_covariance_matrix,
    ):
        assert isinstance(noisy, GroupBlockLinearOperator)
        torch.testing.assert_close(noisy.solve(y), torch.linalg.solve(dense, y), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(noisy.logdet(), torch.logdet(dense))
        torch.testing.assert_close(noisy.cholesky().to_dense(), torch.linalg.cholesky(dense))
        root = noisy.root_decomposition().root.to_dense()
        torch.testing.assert_close(root @ root.mT, dense)
        inverse_root = noisy.root_inv_decomposition().root.to_dense()
        torch.testing.assert_close(inverse_root @ inverse_root.mT, dense.inverse(), rtol=1e-7, atol=1e-7)
        assert torch.equal(noisy.logdet(), noisy.logdet())


def test_triangular_factor_solves_by_substitution():
    noisy = local_kernel()(grouped_rows(RAGGED, shuffle=True)).add_diagonal(torch.ones(31).double())
    dense = torch.linalg.cholesky(noisy.to_dense())
    y = torch.randn(31, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(noisy.cholesky().solve(y), torch.linalg.solve(dense, y))
    torch.testing.assert_close(noisy.cholesky(upper=True).solve(y), torch.linalg.solve(dense.mT, y))


def test_samples_of_a_global_channel_are_equal_within_a_group():
    x = grouped_rows(RAGGED, shuffle=True)
    torch.manual_seed(0)
    prior = gpytorch.distributions.MultivariateNormal(torch.zeros(31).double(), GlobalKernel()(x))
    samples = prior.sample(torch.Size([2000]))
    for label in x[:, 0].unique():
        rows = samples[:, x[:, 0] == label]
        assert (rows - rows[:, :1]).abs().max() < 1e-6  # square root of the rounding of rank one
    # 4 standard errors of a correlation estimate from 2000 draws is 0.09
    torch.testing.assert_close(torch.cov(samples.T), GlobalKernel()(x).to_dense(), rtol=0, atol=0.15)


def test_sample_covariance_of_a_local_channel_is_the_kernel():
    x = grouped_rows((3, 5, 3), shuffle=True)
    torch.manual_seed(0)
    samples = local_kernel()(x).add_jitter(1e-3).zero_mean_mvn_samples(20_000).detach()
    torch.testing.assert_close(torch.cov(samples.T), local_kernel()(x).to_dense().detach(), rtol=0, atol=0.1)


def test_padding_costs_at_most_the_square_of_a_rung():
    for sizes in ([1] * 1000 + [900], list(range(1, 100))):
        layout, _ = group_layouts(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
        stored = sum(c * w * w for c, w in zip(layout.counts, layout.widths, strict=True))
        assert stored <= (4 / 3) ** 2 * sum(s * s for s in sizes)


def test_runs_of_equal_size_are_not_moved_whatever_their_labels():
    layout, _ = group_layouts(torch.tensor([9, 9, 2, 2, 5, 5]))
    assert layout.in_order
    assert (layout.counts, layout.widths) == ((3,), (2,))


def test_product_of_two_operators_on_the_same_rows_is_the_product_of_their_matrices():
    x = grouped_rows(RAGGED, shuffle=True)
    noisy = local_kernel()(x).add_diagonal(torch.ones(31).double())
    delta = GlobalKernel()(x).evaluate_kernel()
    product = noisy @ delta
    assert isinstance(product, GroupBlockLinearOperator)
    torch.testing.assert_close(product.to_dense(), noisy.to_dense() @ delta.to_dense())


def test_a_cross_covariance_has_no_factorization():
    cross = local_kernel()(grouped_rows(RAGGED), grouped_rows((3,) * 9, seed=1)).evaluate_kernel()
    words = r"Expected a covariance, got a cross-covariance of shape \(31, 27\)"
    for factorize in (cross._cholesky, cross.root_decomposition, cross.root_inv_decomposition, cross.inv_quad_logdet):
        with pytest.raises(NotPSDError, match=words):
            factorize()


def test_ragged_sizes_of_these_tests_do_need_padding():
    layout, _ = group_layouts(grouped_rows(RAGGED)[:, 0].long())
    assert layout.occupied is not None
