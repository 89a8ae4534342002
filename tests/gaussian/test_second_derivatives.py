"""Derivatives of second order: right (finite differences, closed forms), or refused."""

import gpytorch
import pytest
import torch
from torch.autograd import gradgradcheck

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.gaussian import (
    dense_marginals,
    low_rank_factor,
    rank_one_factor,
    rank_one_marginals,
    symmetric_square_root,
)
from fgp_gpytorch.nets.elu import elu

F64 = torch.float64


def _problem(q=3, rank=None):
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(2, q, rank or q, generator=g, dtype=F64)
    parts = factor @ factor.mT / 2, 0.2 + torch.rand(2, q, generator=g, dtype=F64), torch.randn(2, q, generator=g)
    return [part.to(F64).requires_grad_() for part in parts]


def _symmetric(function):
    return lambda k, *rest: function((k + k.mT) / 2, *rest)


@pytest.mark.parametrize("rank", [None, 1])
def test_dense_marginals_pass_gradgradcheck(rank):
    assert gradgradcheck(_symmetric(lambda *a: tuple(dense_marginals(*a))), _problem(rank=rank), atol=1e-5)


def test_dense_marginals_pass_gradgradcheck_where_the_residual_depends_on_the_precision():
    covariance, precision, residual = _problem()
    function = _symmetric(lambda k, d, r: tuple(dense_marginals(k, d, r * d.square())))
    assert gradgradcheck(function, [covariance, precision, residual], atol=1e-5)


def test_precise_members_of_equal_x_have_the_same_gradient_with_create_graph_and_a_right_second_one():
    prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel())])
    x = torch.tensor([0.0, 0.0, 1.0], dtype=F64).reshape(1, 3, 1)
    mean = torch.tensor([0.0, 1.0, 0.5], dtype=F64).reshape(1, 3, 1)
    log_variance = torch.full((1, 3, 1), 1e-6, dtype=F64).log().requires_grad_()

    def first(log_variance, create_graph=False):
        kl = prior.posterior(x, mean, log_variance.exp()).kl.sum()
        return torch.autograd.grad(kl, log_variance, create_graph=create_graph)[0]

    differentiable = first(log_variance, create_graph=True)
    torch.testing.assert_close(differentiable.detach(), first(log_variance), rtol=1e-8, atol=1e-10)
    (second,) = torch.autograd.grad(differentiable[0, 0, 0], log_variance)
    step = torch.zeros_like(log_variance)
    step[0, 0, 0] = 1e-4
    wanted = (first(log_variance + step) - first(log_variance - step))[0, 0, 0] / 2e-4
    torch.testing.assert_close(second[0, 0, 0], wanted, rtol=1e-5, atol=1e-8)


def test_low_rank_and_rank_one_pass_gradgradcheck():
    root, precision, residual = _problem()

    def low_rank(root, precision, residual):
        factor = low_rank_factor(root, precision, residual)
        return factor.kl(), factor.log_evidence(), factor.weights

    def rank_one(variance, precision, residual):
        factor = rank_one_factor(variance, precision, residual)
        return factor.kl(), factor.log_evidence(), factor.mean(), factor.variance()

    assert gradgradcheck(low_rank, [root, precision, residual], atol=1e-5)
    variance = torch.tensor([0.7, 1.2], dtype=F64, requires_grad=True)
    assert gradgradcheck(rank_one, [variance, precision, residual], atol=1e-5)
    assert gradgradcheck(lambda *a: tuple(rank_one_marginals(*a)), [variance, precision, residual], atol=1e-5)


@pytest.mark.parametrize("covariance", [[[2.0, 0.5], [0.5, 1.0]], [[2.0, 0.0], [0.0, 2.0]]], ids=["simple", "repeated"])
def test_square_root_passes_gradgradcheck_also_with_repeated_eigenvalues(covariance):
    leaf = torch.tensor(covariance, dtype=F64, requires_grad=True)
    assert gradgradcheck(_symmetric(symmetric_square_root), [leaf])


def test_square_root_of_a_singular_covariance_refuses_a_second_derivative():
    leaf = torch.ones(3, 3, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(symmetric_square_root(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(DataError, match="expected full rank for a second derivative"):
        torch.autograd.grad(gradient.square().sum(), leaf)


def test_elu_passes_gradgradcheck_and_serves_torch_func():
    activation = torch.tensor([-1.3, 0.4, -0.2], dtype=F64, requires_grad=True)
    assert gradgradcheck(elu, [activation])
    hessian = torch.func.hessian(lambda a: elu(a).sum())(activation.detach())
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([-1.3, -torch.inf, -0.2], dtype=F64).exp()))


def _kl():
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    x, v = torch.rand(1, 4, 1, dtype=F64), torch.rand(1, 4, 2, dtype=F64) + 0.2
    return prior, (lambda m: prior.posterior(x, m, v).kl.sum()), x, v, torch.randn(1, 4, 2, dtype=F64)


def test_hessian_of_the_kl_in_the_pseudo_means_is_the_closed_form():
    """M^-1 K M^-1 with M = K + S, by torch.autograd and torch.func."""
    prior, kl, x, v, mean = _kl()
    k = prior.blocks[0].covariance(x, x)[0, 0].detach()
    inverse = torch.linalg.inv(k + torch.diag(v[0, :, 0]))
    for hessian in (torch.autograd.functional.hessian(kl, mean), torch.func.hessian(kl)(mean)):
        local = hessian[0, :, 0, 0, :, 0].detach()
        torch.testing.assert_close(local, inverse @ k @ inverse, rtol=1e-9, atol=1e-12)


def test_forward_mode_and_reverse_mode_agree():
    _, kl, _, _, mean = _kl()
    leaf = mean.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(kl(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(kl)(mean).detach(), wanted, rtol=1e-10, atol=1e-12)
    _, slope = torch.func.jvp(kl, (mean,), (torch.ones_like(mean),))
    torch.testing.assert_close(slope.detach(), wanted.sum(), rtol=1e-10, atol=1e-12)


def test_second_derivative_in_the_lengthscale_is_right_in_trace_mode_and_else_refused():
    prior, kl, _, _, mean = _kl()
    raw = prior.blocks[0].kernel.raw_lengthscale
    with pytest.raises(ArgumentError, match=r"kernel RBFKernel: expected one derivative .*trace_mode"):
        torch.autograd.grad(kl(mean), raw, create_graph=True)
    with gpytorch.settings.trace_mode():
        (first,) = torch.autograd.grad(kl(mean), raw, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), raw)
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            raw.add_(step)
        ends.append(torch.autograd.grad(kl(mean), raw)[0].item())
        with torch.no_grad():
            raw.sub_(step)
    assert second.item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_joint_draws_refuse_torch_func():
    prior, _, x, v, mean = _kl()
    with pytest.raises(ArgumentError, match=r"joint draws.*torch.autograd.grad"):
        torch.func.grad(lambda m: prior.posterior(x, m, v).rsample().sum())(mean)
