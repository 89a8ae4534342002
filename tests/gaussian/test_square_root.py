"""The symmetric square root: S S = K, and dS solving dS S + S dS = dK even where eigenvalues repeat or vanish."""

import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.gaussian import symmetric_square_root

F64 = torch.float64


def _rotation(q: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(q, q, generator=torch.Generator().manual_seed(1), dtype=F64)).Q


def _with_eigenvalues(*values: float) -> torch.Tensor:
    v = _rotation(len(values))
    k = (v * torch.tensor(values, dtype=F64)) @ v.mT
    return (k + k.mT) / 2


@pytest.mark.parametrize(
    "covariance",
    [
        2 * torch.eye(3, dtype=F64),
        _with_eigenvalues(1.0, 1.0, 3.0),
        _with_eigenvalues(0.5, 1.0, 3.0, 3.0),
        _with_eigenvalues(0.0, 1.0, 2.0),
        torch.ones(4, 4, dtype=F64),
        torch.zeros(2, 2, dtype=F64),
        _with_eigenvalues(1e-12, 1.0, 1e6),
    ],
    ids=["2I", "repeated", "two_alike", "singular", "rank_one", "zero", "wide"],
)
def test_square_is_the_covariance(covariance):
    root = symmetric_square_root(covariance)
    scale = float(covariance.abs().max())
    torch.testing.assert_close(root @ root, covariance, rtol=0, atol=1e-14 * max(scale, 1e-300) * len(covariance))
    torch.testing.assert_close(root, root.mT, rtol=0, atol=1e-14 * max(scale, 1e-300) ** 0.5 * len(covariance))


def test_root_equals_scipy():
    covariance = _with_eigenvalues(0.3, 1.0, 2.5, 7.0)
    wanted = torch.from_numpy(scipy.linalg.sqrtm(covariance.numpy()))
    torch.testing.assert_close(symmetric_square_root(covariance), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eigenvalues", [(2.0, 2.0), (2.0, 2.0, 2.0), (0.4, 1.0, 1.0), (0.1, 0.5, 2.0, 7.0)])
def test_gradient_passes_gradcheck_also_with_repeated_eigenvalues(eigenvalues):
    covariance = _with_eigenvalues(*eigenvalues).requires_grad_()
    assert gradcheck(lambda k: symmetric_square_root((k + k.mT) / 2), [covariance], atol=1e-7)


def test_batched_gradient_passes_gradcheck():
    covariance = torch.stack([_with_eigenvalues(1.0, 1.0, 2.0), _with_eigenvalues(0.5, 3.0, 3.0)]).requires_grad_()
    assert gradcheck(lambda k: symmetric_square_root((k + k.mT) / 2), [covariance], atol=1e-7)


def test_gradient_solves_the_sylvester_equation():
    """<G, dS> for random G and dK, with dS from scipy.linalg.solve_sylvester, an independent solver."""
    covariance = _with_eigenvalues(0.5, 0.5, 2.0).requires_grad_()
    g = torch.Generator().manual_seed(3)
    direction = torch.randn(3, 3, generator=g, dtype=F64)
    direction = direction + direction.mT
    upstream = torch.randn(3, 3, generator=g, dtype=F64)
    root = symmetric_square_root(covariance)
    (gradient,) = torch.autograd.grad(root, covariance, upstream)
    step = scipy.linalg.solve_sylvester(root.detach().numpy(), root.detach().numpy(), direction.numpy())
    assert float((gradient * direction).sum()) == pytest.approx(float((upstream.numpy() * step).sum()), rel=1e-11)


@pytest.mark.parametrize("rank", [1, 2])
def test_gradient_is_finite_and_right_along_directions_that_keep_the_rank(rank):
    """K(t) = F(t) F(t)': the derivative of S along t by central differences, where K is singular throughout."""
    g = torch.Generator().manual_seed(rank)
    factor = torch.randn(4, rank, generator=g, dtype=F64)
    change = torch.randn(4, rank, generator=g, dtype=F64)
    upstream = torch.randn(4, 4, generator=g, dtype=F64)

    def value(t):
        f = factor + t * change
        return (upstream * symmetric_square_root(f @ f.mT)).sum()

    t = torch.zeros((), dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(t), t)
    numeric = (value(torch.tensor(1e-5)) - value(torch.tensor(-1e-5))) / 2e-5
    # central differences leave 1e-10 and rounding of the zero eigenvalues 1e-16 / 1e-5
    assert float(gradient) == pytest.approx(float(numeric), rel=1e-6)


def test_repeated_rows_give_repeated_rows():
    x = torch.tensor([0.0, 0.5, 0.5, 1.2], dtype=F64)
    root = symmetric_square_root(torch.exp(-((x[:, None] - x) ** 2)))
    torch.testing.assert_close(root[1], root[2], rtol=0, atol=1e-7)  # the square root of rounding


def test_what_rounding_leaves_below_zero_is_cut_and_what_is_no_covariance_is_refused():
    x = torch.cat([torch.zeros(1), 300 + torch.linspace(0, 1, 12)])  # float32: squared distances lose five digits
    squared = x.square()[:, None] - 2 * torch.outer(x, x) + x.square()
    rounded = torch.exp(-0.5 * squared.clamp_min(0))
    assert float(torch.linalg.eigvalsh(rounded)[0]) < -1e-3
    root = symmetric_square_root(rounded)
    torch.testing.assert_close(root @ root, rounded, rtol=0, atol=0.05)
    with pytest.raises(DataError, match=r"a positive semi-definite covariance, got one with eigenvalues from -0\.5"):
        symmetric_square_root(torch.diag(torch.tensor([-0.5, 1.0, 2.0])))
