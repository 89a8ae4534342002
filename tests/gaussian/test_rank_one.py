"""Global channels: Appendix B as printed, the dense form with K = s 1 1', gradients."""

import pytest
import torch
from torch.autograd import gradcheck

import oracles
from fgp_gpytorch.gaussian import dense_factor, dense_marginals, rank_one_factor, rank_one_marginals

F64 = torch.float64


def _problem(batch=(3,), q=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    precision = torch.exp(torch.randn(*batch, q, generator=g, dtype=F64))
    return 0.3 + torch.rand(batch, generator=g, dtype=F64), precision, torch.randn(*batch, q, generator=g, dtype=F64)


def test_mu_bar_sigma_bar_and_the_second_integral_of_appendix_b():
    _, precision, residual = _problem()
    factor = rank_one_factor(torch.ones(3, dtype=F64), precision, residual)
    for g in range(3):
        mu, s2 = residual[g].tolist(), precision[g].reciprocal().tolist()
        mu_bar, var_bar = oracles.paper_global_posterior(mu, s2)
        assert float(factor.mean()[g]) == pytest.approx(mu_bar, rel=1e-12)
        assert float(factor.variance()[g]) == pytest.approx(var_bar, rel=1e-12)
        assert float(factor.log_evidence()[g]) == pytest.approx(oracles.paper_global_log_evidence(mu, s2), rel=1e-12)


def test_closed_form_equals_the_dense_form_with_a_constant_covariance():
    prior_variance, precision, residual = _problem()
    precision[0, 2] = residual[0, 2] = 0.0
    one = rank_one_factor(prior_variance, precision, residual)
    covariance = prior_variance[:, None, None].expand(3, 4, 4)
    dense = dense_marginals(covariance, precision, residual)
    torch.testing.assert_close(one.mean().unsqueeze(-1).expand(3, 4), dense.mean, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(one.variance().unsqueeze(-1).expand(3, 4), dense.variance, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(one.kl(), dense.kl, rtol=1e-11, atol=1e-13)
    evidence = dense_factor(covariance, precision, residual).log_evidence()
    torch.testing.assert_close(one.log_evidence(), evidence, rtol=1e-11, atol=1e-13)


def test_kl_equals_the_divergence_of_two_normals():
    prior_variance, precision, residual = _problem()
    factor = rank_one_factor(prior_variance, precision, residual)
    q = torch.distributions.Normal(factor.mean(), factor.variance().sqrt())
    p = torch.distributions.Normal(torch.zeros(3, dtype=F64), prior_variance.sqrt())
    torch.testing.assert_close(factor.kl(), torch.distributions.kl_divergence(q, p), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("missing", [False, True])
def test_gradients_pass_gradcheck(missing):
    prior_variance, precision, residual = _problem()
    observed = torch.ones_like(precision)
    if missing:
        observed[0, 1] = 0.0
        observed[1] = 0.0  # nothing observed

    def function(s, p, r):
        factor = rank_one_factor(s, p * observed, r * observed)
        return factor.mean(), factor.variance(), factor.log_evidence(), factor.kl()

    assert gradcheck(function, [t.requires_grad_() for t in (prior_variance, precision, residual)])


@pytest.mark.parametrize("missing", [False, True])
def test_marginals_for_training_have_the_values_and_gradients_of_the_factor(missing):
    prior_variance, precision, residual = _problem()
    precision[0, 0] = 1e12
    if missing:
        precision[0, 1] = residual[0, 1] = 0.0
        precision[1], residual[1] = 0.0, 0.0
    inputs = [t.requires_grad_() for t in (prior_variance, precision, residual)]
    factor = rank_one_factor(*inputs)
    wanted, got = (factor.mean(), factor.variance(), factor.kl()), rank_one_marginals(*inputs)
    for index, (value, expected) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
        weights = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
        gradients = [
            torch.autograd.grad((v * weights).sum(), inputs, retain_graph=True, materialize_grads=True)
            for v in (value, expected)
        ]
        for own, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-12, msg=f"result {index}")


def test_marginals_of_one_prior_variance_for_all_channels_have_its_summed_gradient():
    _, precision, residual = _problem(batch=(2, 3))
    shared = torch.tensor([0.7], dtype=F64, requires_grad=True)
    each = torch.full((2, 3), 0.7, dtype=F64, requires_grad=True)
    losses = [sum(part.sum() for part in rank_one_marginals(s, precision, residual)) for s in (shared, each)]
    (summed,), (apart,) = (torch.autograd.grad(loss, s) for loss, s in zip(losses, (shared, each), strict=True))
    torch.testing.assert_close(summed, apart.sum().reshape(1))


def test_group_without_observations_is_its_prior():
    zeros = torch.zeros(2, 3, dtype=F64)
    factor = rank_one_factor(torch.tensor([0.7, 2.0], dtype=F64), zeros, zeros)
    assert factor.mean().tolist() == [0.0, 0.0]
    assert factor.variance().tolist() == [0.7, 2.0]
    assert factor.kl().tolist() == factor.log_evidence().tolist() == [0.0, 0.0]
