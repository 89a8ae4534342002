"""`dense_factor` and `dense_marginals`: the written-out gradient, and the formulas against one solve with K + V."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from fgp_gpytorch.errors import DataError, NonFiniteError
from fgp_gpytorch.gaussian import dense_factor, dense_marginals, masked_precision, root_precision

F64 = torch.float64


def _problem(q=5, batch=(2,), seed=0, rank=None, spread=(0.05, 2.0)):
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(*batch, q, rank or q, generator=g, dtype=F64)
    covariance = factor @ factor.mT / 2
    low, high = spread
    variance = low * (high / low) ** torch.rand(*batch, q, generator=g, dtype=F64)
    return covariance, variance, torch.randn(*batch, q, generator=g, dtype=F64)


def _textbook(covariance, variance, residual):
    """Mean, covariance, log evidence and KL by solves with K + V (every member observed)."""
    noisy = covariance + torch.diag_embed(variance)
    mean = (covariance @ torch.linalg.solve(noisy, residual.unsqueeze(-1))).squeeze(-1)
    posterior = covariance - covariance @ torch.linalg.solve(noisy, covariance)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(residual), noisy).log_prob(residual)
    spread = (residual - mean).square() + posterior.diagonal(dim1=-2, dim2=-1)
    expected = -0.5 * (torch.log(2 * math.pi * variance) + spread / variance).sum(-1)
    return mean, posterior, evidence, expected - evidence


@pytest.mark.parametrize("rank", [None, 2, 1])
def test_marginals_and_evidence_equal_the_textbook(rank):
    covariance, variance, residual = _problem(rank=rank)
    mean, posterior, evidence, kl = _textbook(covariance, variance, residual)
    got = dense_marginals(covariance, variance.reciprocal(), residual)
    torch.testing.assert_close(got.mean, mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.variance, posterior.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.kl, kl, rtol=1e-9, atol=1e-12)
    factor = dense_factor(covariance, variance.reciprocal(), residual)
    torch.testing.assert_close(factor.log_evidence(), evidence, rtol=1e-9, atol=1e-12)


def test_kl_equals_torch_distributions():
    covariance, variance, residual = _problem()
    mean, posterior, _, _ = _textbook(covariance, variance, residual)
    q = torch.distributions.MultivariateNormal(mean, posterior)
    p = torch.distributions.MultivariateNormal(torch.zeros_like(mean), covariance)
    wanted = torch.distributions.kl_divergence(q, p)
    # cond(K) reaches 1e4 here
    torch.testing.assert_close(
        dense_marginals(covariance, variance.reciprocal(), residual).kl, wanted, rtol=1e-8, atol=0
    )


def _by_factor(covariance, precision, residual):
    """The same three numbers through autograd's own rules for Cholesky and triangular solves."""
    factor = dense_factor(covariance, precision, residual)
    mean = factor.predict_mean(covariance)
    variance = factor.predict_variance(covariance, covariance.diagonal(dim1=-2, dim2=-1))
    eye = torch.eye(covariance.shape[-1], dtype=F64).expand_as(covariance)
    inverse = torch.linalg.solve_triangular(factor.cholesky, eye, upper=False)
    log_det = 2 * factor.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = inverse.square().sum((-2, -1))
    kl = 0.5 * (log_det + trace - covariance.shape[-1] + (mean * factor.weights).sum(-1))
    return mean, variance, kl


def _symmetric(function):
    """Check only directions that keep K symmetric: no other K is a covariance."""
    return lambda k, p, r: function((k + k.mT) / 2, p, r)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("spread", [(0.05, 2.0), (1e-2, 1e-1), (5.0, 50.0)])
def test_written_out_gradient_passes_gradcheck(rank, spread):
    """Spreads on both sides of R^2 k = 1, where the posterior covariance changes its expression."""
    covariance, variance, residual = _problem(q=4, rank=rank, spread=spread)
    inputs = [t.requires_grad_() for t in (covariance, variance.reciprocal().detach(), residual)]
    assert gradcheck(_symmetric(lambda *a: tuple(dense_marginals(*a))), inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_gradient_equals_autograd_through_the_cholesky_factor(masked):
    covariance, variance, residual = _problem()
    precision = variance.reciprocal()
    if masked:
        precision[..., 1] = 0.0
        residual[..., 1] = 0.0
    g = torch.Generator().manual_seed(1)
    seeds = [torch.randn(2, 5, generator=g, dtype=F64) for _ in range(2)] + [torch.randn(2, generator=g, dtype=F64)]
    gradients = []
    for function in (dense_marginals, _by_factor):
        leaves = [t.clone().requires_grad_() for t in (covariance, precision, residual)]
        k = (leaves[0] + leaves[0].mT) / 2
        outputs = function(k, *leaves[1:])
        gradients.append(torch.autograd.grad(outputs, leaves, seeds))
    for name, ours, theirs in zip(("K", "precision", "residual"), *gradients, strict=True):
        if masked and name == "precision":  # the root has no gradient at 0; masked_precision discards ours there
            ours, theirs = ours[..., [0, 2, 3, 4]], theirs[..., [0, 2, 3, 4]]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_gradient_of_each_output_alone_passes_gradcheck():
    covariance, variance, residual = _problem(q=3)
    inputs = [t.requires_grad_() for t in (covariance, variance.reciprocal().detach(), residual)]
    for i in range(3):
        assert gradcheck(_symmetric(lambda *a, i=i: dense_marginals(*a)[i]), inputs, atol=1e-6, rtol=1e-5)


def test_fixed_covariance_gets_no_gradient_and_the_rest_do():
    covariance, variance, residual = _problem()
    precision = variance.reciprocal().requires_grad_()
    out = dense_marginals(covariance, precision, residual.requires_grad_())
    (out.kl.sum() + out.mean.sum() + out.variance.sum()).backward()
    assert covariance.grad is None
    assert precision.grad.abs().min() > 0
    assert residual.grad.abs().min() > 0


@pytest.mark.parametrize("rank", [None, 2])
def test_evidence_and_predictions_pass_gradcheck(rank):
    covariance, variance, residual = _problem(q=4, rank=rank)
    cross = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(5), dtype=F64) / 4
    prior_variance = torch.full((2, 2), 9.0, dtype=F64)

    def function(k, p, r, c, v):
        factor = dense_factor((k + k.mT) / 2, p, r)
        return factor.log_evidence(), factor.predict_mean(c), factor.predict_variance(c, v)

    inputs = [covariance, variance.reciprocal(), residual, cross, prior_variance]
    assert gradcheck(function, [t.requires_grad_() for t in inputs], atol=1e-6, rtol=1e-5)


def test_shared_covariance_broadcasts_over_channels_and_its_gradient_sums():
    covariance, _, _ = _problem(batch=(2, 1))
    _, variance, residual = _problem(batch=(2, 3))
    precision = variance.reciprocal()
    results = []
    for shared in (True, False):
        leaf = covariance.clone().requires_grad_()
        k = leaf if shared else leaf.expand(2, 3, 5, 5).clone()
        out = dense_marginals(k, precision, residual)
        (out.mean.sin().sum() + out.variance.sum() + out.kl.sum()).backward()
        results.append((*out, leaf.grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_masked_precision_is_zero_at_missing_members_whatever_stands_there():
    variance = torch.tensor([0.5, float("nan"), float("inf"), 0.0, -1.0, 4.0], dtype=F64, requires_grad=True)
    mask = torch.tensor([True, False, False, False, False, True])
    precision = masked_precision(variance, mask)
    assert precision.tolist() == [2.0, 0, 0, 0, 0, 0.25]
    precision.sum().backward()
    assert variance.grad.tolist() == [-4.0, 0, 0, 0, 0, -1 / 16]


def test_root_precision_has_a_zero_gradient_at_zero():
    precision = torch.tensor([4.0, 0.0], dtype=F64, requires_grad=True)
    root = root_precision(precision)
    root.sum().backward()
    assert root.tolist() == [2.0, 0.0]
    assert precision.grad.tolist() == [0.25, 0.0]


@pytest.mark.parametrize("condition", [dense_factor, dense_marginals])
def test_a_covariance_too_large_for_rounding_is_not_blamed_on_the_kernel(condition):
    rank_one = torch.full((3, 3), 1e30, dtype=F64)  # positive semi-definite, but 1 + 1e30 is 1e30
    ones = torch.ones(3, dtype=F64)
    with pytest.raises(NonFiniteError, match=r"kernel: expected .*, got .* 1e\+30 times as large\. Try") as caught:
        condition(rank_one, ones, ones)
    assert caught.value.term == "kernel"
    with pytest.raises(NonFiniteError, match=r"posterior: expected .*, got (nan|inf)\. Try") as caught:
        condition(torch.eye(3, dtype=F64), ones * torch.inf, ones)
    assert caught.value.term == "posterior"
    negative = torch.diag(torch.tensor([-1.0, 2, 3], dtype=F64))
    with pytest.raises(DataError, match="positive semi-definite covariance, got one with eigenvalues from -1 to 3"):
        condition(negative, torch.full((3,), 2.0, dtype=F64), torch.ones(3, dtype=F64))
