"""q(u) with z = Phi u: the same posterior as the dense form, and a density where z has none."""

import pytest
import torch
from torch.autograd import gradcheck

from fgp_gpytorch.gaussian import dense_marginals, whitened_factor

F64 = torch.float64


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_pushed_forward_moments_equal_the_dense_posterior(rank):
    g = torch.Generator().manual_seed(rank)
    root = torch.randn(2, 5, rank, generator=g, dtype=F64)
    precision = torch.exp(torch.randn(2, 5, generator=g, dtype=F64))
    residual = torch.randn(2, 5, generator=g, dtype=F64)
    precision[0, 1] = residual[0, 1] = 0.0
    factor = whitened_factor(root, precision, residual)
    covariance = torch.linalg.inv(factor.precision)
    dense = dense_marginals(root @ root.mT, precision, residual)
    torch.testing.assert_close((root @ factor.mean.unsqueeze(-1)).squeeze(-1), dense.mean, rtol=1e-9, atol=1e-11)
    variance = (root @ covariance @ root.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance, dense.variance, rtol=1e-9, atol=1e-11)
    # the divergence is the same for u and for z
    q = torch.distributions.MultivariateNormal(factor.mean, covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros(2, rank, dtype=F64), torch.eye(rank, dtype=F64))
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p), dense.kl, rtol=1e-9, atol=1e-11)


def test_draws_are_the_mean_plus_a_root_of_the_posterior_covariance():
    """Feeding unit vectors as noise returns the columns of A with A A' = Phi B^-1 Phi': no randomness needed."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(4, 3, generator=g, dtype=F64)
    precision, residual = torch.rand(4, generator=g, dtype=F64), torch.randn(4, generator=g, dtype=F64)
    factor = whitened_factor(root, precision, residual)
    mean = factor.rsample(torch.zeros(3, dtype=F64))
    columns = (factor.rsample(torch.eye(3, dtype=F64)) - mean).mT
    wanted = root @ torch.linalg.inv(factor.precision) @ root.mT
    torch.testing.assert_close(columns @ columns.mT, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, root @ factor.mean, rtol=1e-12, atol=1e-12)


def test_draws_pass_gradcheck():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(2, 4, 3, generator=g, dtype=F64)
    precision, residual = torch.rand(2, 4, generator=g, dtype=F64), torch.randn(2, 4, generator=g, dtype=F64)
    noise = torch.randn(2, 3, generator=g, dtype=F64)
    inputs = [t.requires_grad_() for t in (root, precision + 0.1, residual)]
    assert gradcheck(
        lambda f, p, r: whitened_factor(f, p, r).rsample(noise), [t.detach().requires_grad_() for t in inputs]
    )
