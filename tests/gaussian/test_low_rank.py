"""`low_rank_factor` and `mean_field_factor` against dense N x N Gaussians, textbook solves and the other forms."""

import math

import mpmath
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from fgp_gpytorch.gaussian import (
    dense_factor,
    dense_marginals,
    low_rank_factor,
    mean_field_factor,
    rank_one_factor,
)

F64 = torch.float64


def _problem(n=7, m=3, batch=(2,), seed=0):
    g = torch.Generator().manual_seed(seed)
    root = 1.3 * torch.randn(*batch, n, m, generator=g, dtype=F64)
    variance = 0.05 * 40 ** torch.rand(*batch, n, generator=g, dtype=F64)
    return root, variance, torch.randn(*batch, n, generator=g, dtype=F64)


def _normal(mean, covariance):
    return MultivariateNormal(mean, covariance, validate_args=False)


# the exact posterior of pseudo-observations


@pytest.mark.parametrize("shape", [(7, 3), (4, 9), (5, 1)])
def test_posterior_and_evidence_equal_the_textbook(shape):
    root, variance, residual = _problem(*shape)
    new = torch.randn(2, 4, shape[1], generator=torch.Generator().manual_seed(1), dtype=F64)
    covariance = root @ root.mT
    noisy = covariance + torch.diag_embed(variance)
    factor = low_rank_factor(root, variance.reciprocal(), residual)
    for features in (root, new):
        cross = features @ root.mT
        mean = (cross @ torch.linalg.solve(noisy, residual.unsqueeze(-1))).squeeze(-1)
        posterior = features @ features.mT - cross @ torch.linalg.solve(noisy, cross.mT)
        torch.testing.assert_close(factor.predict_mean(features), mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(
            factor.predict_variance(features), posterior.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-11
        )
    evidence = _normal(torch.zeros_like(residual), noisy).log_prob(residual)
    torch.testing.assert_close(factor.log_evidence(), evidence, rtol=1e-10, atol=1e-10)


def test_kl_is_the_expected_log_density_of_the_pseudo_observations_less_the_evidence():
    """Appendix B, last line: the KL without a density of z, which has none here (N > M)."""
    root, variance, residual = _problem()
    factor = low_rank_factor(root, variance.reciprocal(), residual)
    spread = (residual - factor.predict_mean(root)).square() + factor.predict_variance(root)
    expected = -0.5 * (torch.log(2 * math.pi * variance) + spread / variance).sum(-1)
    torch.testing.assert_close(factor.kl(), expected - factor.log_evidence(), rtol=1e-10, atol=1e-10)


def test_kl_equals_torch_distributions_where_z_has_a_density():
    root, variance, residual = _problem(3, 3)
    posterior = torch.linalg.inv(torch.linalg.inv(root @ root.mT) + torch.diag_embed(1 / variance))
    mean = (posterior @ (residual / variance).unsqueeze(-1)).squeeze(-1)
    wanted = kl_divergence(_normal(mean, posterior), _normal(torch.zeros_like(mean), root @ root.mT))
    got = low_rank_factor(root, variance.reciprocal(), residual).kl()
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)  # the dense inverse of K loses the digits


@pytest.mark.parametrize("shape", [(7, 3), (4, 9)])
def test_low_rank_form_agrees_with_the_dense_form(shape):
    root, variance, residual = _problem(*shape)
    precision = variance.reciprocal()
    precision[0, 1] = residual[0, 1] = 0.0
    factor, covariance = low_rank_factor(root, precision, residual), root @ root.mT
    dense = dense_marginals(covariance, precision, residual)
    torch.testing.assert_close(factor.predict_mean(root), dense.mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(factor.predict_variance(root), dense.variance, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(factor.kl(), dense.kl, rtol=1e-9, atol=1e-11)
    evidence = dense_factor(covariance, precision, residual).log_evidence()
    torch.testing.assert_close(factor.log_evidence(), evidence, rtol=1e-9, atol=1e-11)
    b = torch.eye(shape[1], dtype=F64) + root.mT @ torch.diag_embed(precision) @ root
    torch.testing.assert_close(factor.cholesky @ factor.cholesky.mT, b, rtol=1e-12, atol=1e-12)
    projected = root.mT @ (precision * residual).unsqueeze(-1)
    torch.testing.assert_close(factor.weights, torch.linalg.solve(b, projected).squeeze(-1), rtol=1e-9, atol=1e-11)


# q(u) itself: the same posterior as the dense form, and a density where z has none


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_pushed_forward_moments_equal_the_dense_posterior(rank):
    g = torch.Generator().manual_seed(rank)
    root = torch.randn(2, 5, rank, generator=g, dtype=F64)
    precision = torch.exp(torch.randn(2, 5, generator=g, dtype=F64))
    residual = torch.randn(2, 5, generator=g, dtype=F64)
    precision[0, 1] = residual[0, 1] = 0.0
    factor = low_rank_factor(root, precision, residual)
    covariance = torch.linalg.inv(factor.cholesky @ factor.cholesky.mT)
    dense = dense_marginals(root @ root.mT, precision, residual)
    torch.testing.assert_close((root @ factor.weights.unsqueeze(-1)).squeeze(-1), dense.mean, rtol=1e-9, atol=1e-11)
    variance = (root @ covariance @ root.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance, dense.variance, rtol=1e-9, atol=1e-11)
    # the divergence is the same for u and for z
    q = MultivariateNormal(factor.weights, covariance)
    p = MultivariateNormal(torch.zeros(2, rank, dtype=F64), torch.eye(rank, dtype=F64))
    torch.testing.assert_close(kl_divergence(q, p), dense.kl, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_joint_covariance_equals_the_dense_posterior_covariance(rank):
    root, variance, residual = _problem(5, rank)
    new = torch.randn(2, 4, rank, generator=torch.Generator().manual_seed(1), dtype=F64)
    precision = variance.reciprocal()
    precision[0, 1] = residual[0, 1] = 0.0
    factor = low_rank_factor(root, precision, residual)
    observed = torch.tensor([0, 2, 3, 4]), torch.arange(5)
    for batch, rows in enumerate(observed):
        noisy = root[batch, rows] @ root[batch, rows].T + torch.diag(variance[batch, rows])
        for features in (root, new):
            cross = features[batch] @ root[batch, rows].T
            wanted = features[batch] @ features[batch].T - cross @ torch.linalg.solve(noisy, cross.T)
            torch.testing.assert_close(factor.covariance(features)[batch], wanted, rtol=1e-9, atol=1e-11)
    for features in (root, new):
        diagonal = factor.covariance(features).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, factor.predict_variance(features), rtol=1e-12, atol=1e-14)


def test_draws_are_the_mean_plus_a_root_of_the_posterior_covariance():
    """The noise of a seed is solved out of the draws. The columns of A with A A' = Phi B^-1 Phi' remain, exactly."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(4, 3, generator=g, dtype=F64)
    precision, residual = torch.rand(4, generator=g, dtype=F64), torch.randn(4, generator=g, dtype=F64)
    factor = low_rank_factor(root, precision, residual)
    torch.manual_seed(5)
    draws = factor.rsample_weights(torch.Size([4]))
    assert draws.shape == (4, 3)
    torch.manual_seed(5)
    noise = torch.randn(4, 3, 1, dtype=F64).squeeze(-1)
    # [draws] = [1 noise] [mean; A'], four equations for the four rows of the mean and A'
    solved = torch.linalg.solve(torch.cat([torch.ones(4, 1, dtype=F64), noise], dim=-1), draws @ root.mT)
    mean, columns = solved[0], solved[1:].mT
    wanted = root @ torch.linalg.inv(torch.eye(3, dtype=F64) + root.mT @ torch.diag(precision) @ root) @ root.mT
    torch.testing.assert_close(columns @ columns.mT, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, root @ factor.weights, rtol=1e-12, atol=1e-12)


def test_draws_of_weights_and_the_covariance_pass_gradcheck():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(2, 4, 3, generator=g, dtype=F64)
    precision, residual = torch.rand(2, 4, generator=g, dtype=F64), torch.randn(2, 4, generator=g, dtype=F64)

    def function(root, precision, residual):
        factor = low_rank_factor(root, precision, residual)
        torch.manual_seed(0)  # the same noise at every call
        return factor.weights, factor.rsample_weights(torch.Size([2])), factor.covariance(root)

    assert gradcheck(function, [t.requires_grad_() for t in (root, precision + 0.1, residual)])


def test_one_constant_column_is_a_global_channel():
    _, variance, residual = _problem()
    amplitude = torch.tensor([0.6, 1.7], dtype=F64)
    root = amplitude.sqrt()[:, None, None].expand(2, 7, 1)
    factor = low_rank_factor(root, variance.reciprocal(), residual)
    one = rank_one_factor(amplitude, variance.reciprocal(), residual)
    torch.testing.assert_close(factor.kl(), one.kl())
    torch.testing.assert_close(factor.log_evidence(), one.log_evidence())
    torch.testing.assert_close(factor.predict_mean(root[:, :1]).squeeze(-1), one.mean())
    torch.testing.assert_close(factor.predict_variance(root[:, :1]).squeeze(-1), one.variance())


def test_masked_row_equals_deleted_row():
    root, variance, residual = _problem()
    keep = torch.tensor([0, 1, 3, 4, 6])
    precision = variance.reciprocal()
    precision[:, [2, 5]] = residual[:, [2, 5]] = 0.0
    masked = low_rank_factor(root, precision, residual)
    deleted = low_rank_factor(root[:, keep], precision[:, keep], residual[:, keep])
    torch.testing.assert_close(masked.kl(), deleted.kl(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked.log_evidence(), deleted.log_evidence(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked.predict_variance(root), deleted.predict_variance(root), rtol=1e-12, atol=1e-12)


def test_no_observation_leaves_the_prior():
    root = _problem()[0]
    factor = low_rank_factor(root, torch.zeros(2, 7, dtype=F64), torch.zeros(2, 7, dtype=F64))
    assert torch.equal(factor.kl(), torch.zeros(2, dtype=F64))
    assert torch.equal(factor.log_evidence(), torch.zeros(2, dtype=F64))
    torch.testing.assert_close(factor.predict_variance(root), root.square().sum(-1))


def test_shared_root_broadcasts_over_channels():
    root, _, _ = _problem(batch=())
    _, variance, residual = _problem(batch=(3,))
    together = low_rank_factor(root, variance.reciprocal(), residual)
    for channel in range(3):
        alone = low_rank_factor(root, variance[channel].reciprocal(), residual[channel])
        torch.testing.assert_close(together.kl()[channel], alone.kl())
        torch.testing.assert_close(together.predict_mean(root)[channel], alone.predict_mean(root))
        torch.testing.assert_close(together.predict_variance(root)[channel], alone.predict_variance(root))


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e10])
def test_evidence_kl_and_variance_keep_their_digits_at_extreme_noise(scale):
    """Rank 1, so that every number has a closed form in mpmath's hundred digits."""
    root, variance, residual = _problem(5, 1, batch=())
    variance = variance * scale
    factor = low_rank_factor(root, variance.reciprocal(), residual)
    with mpmath.workdps(100):
        phi, v, r = ([mpmath.mpf(t) for t in values.flatten().tolist()] for values in (root, variance, residual))
        b = 1 + mpmath.fsum(p * p / s for p, s in zip(phi, v, strict=True))
        u = mpmath.fsum(p * t / s for p, t, s in zip(phi, r, v, strict=True)) / b
        kl = (mpmath.log(b) + 1 / b - 1 + u * u) / 2
        quadratic = mpmath.fsum((t - p * u) ** 2 / s for p, t, s in zip(phi, r, v, strict=True)) + u * u
        evidence = -(quadratic + mpmath.log(b) + mpmath.fsum(mpmath.log(2 * mpmath.pi * s) for s in v)) / 2
        variances = [float(p * p / b) for p in phi]
    # R = 1 / sqrt(sigma^2) and its square are rounded: a few units in the last place of each
    assert float(factor.kl()) == pytest.approx(float(kl), rel=1e-13)
    assert float(factor.log_evidence()) == pytest.approx(float(evidence), rel=1e-12)
    assert factor.predict_variance(root).tolist() == pytest.approx(variances, rel=1e-13)


@pytest.mark.parametrize("missing", [False, True])
def test_gradients_of_the_exact_posterior_pass_gradcheck(missing):
    root, variance, residual = _problem(4, 3)
    new = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    observed = torch.ones_like(variance)
    if missing:
        observed[0, 1] = 0.0
        observed[1] = 0.0

    def function(root, precision, residual, new):
        factor = low_rank_factor(root, precision * observed, residual * observed)
        return factor.predict_mean(new), factor.predict_variance(new), factor.log_evidence(), factor.kl()

    assert gradcheck(function, [t.requires_grad_() for t in (root, variance.reciprocal(), residual, new)])


# a mean-field q


@pytest.mark.parametrize("shape", [(7, 3), (4, 9), (5, 1)])
@pytest.mark.parametrize("alpha", [0.3, 2.0, 1e-4])
def test_mean_field_kl_equals_torch_distributions(shape, alpha):
    root, variance, mean = _problem(*shape)
    noise = torch.tensor(alpha, dtype=F64)
    prior = root @ root.mT + alpha * torch.eye(shape[0], dtype=F64)
    wanted = kl_divergence(_normal(mean, torch.diag_embed(variance)), _normal(torch.zeros_like(mean), prior))
    got = mean_field_factor(root, noise, mean, variance).kl()
    # the dense solve with K + alpha I has a condition number of up to 1e6
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_mean_field_predictions_are_the_gp_predictions_averaged_over_q():
    root, variance, mean = _problem()
    new = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    noise = torch.tensor(0.3, dtype=F64)
    factor = mean_field_factor(root, noise, mean, variance)
    prior = root @ root.mT + 0.3 * torch.eye(7, dtype=F64)
    gain = torch.linalg.solve(prior, root @ new.mT).mT  # E[f* | z] = gain z
    explained = new @ new.mT - gain @ root @ new.mT
    spread = gain @ torch.diag_embed(variance) @ gain.mT
    torch.testing.assert_close(factor.predict_mean(new), (gain @ mean.unsqueeze(-1)).squeeze(-1), rtol=1e-10, atol=0)
    wanted = (explained + spread).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(factor.predict_variance(new), wanted, rtol=1e-10, atol=1e-12)


def test_samples_have_the_predicted_mean_and_joint_covariance():
    root, variance, mean = _problem(batch=())
    new = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    factor = mean_field_factor(root, torch.tensor(0.3, dtype=F64), mean, variance)
    draws = factor.rsample_weights(torch.Size([40_000])) @ new.mT
    gain = torch.linalg.solve(root @ root.mT + 0.3 * torch.eye(7, dtype=F64), root @ new.mT).mT
    covariance = new @ new.mT - gain @ root @ new.mT + gain @ torch.diag(variance) @ gain.mT
    scale = covariance.diagonal().max().item()
    # standard errors: sqrt(scale / 40000) and at most scale sqrt(2 / 40000); five of them
    torch.testing.assert_close(draws.mean(0), factor.predict_mean(new), rtol=0, atol=5 * (scale / 40_000) ** 0.5)
    torch.testing.assert_close(draws.mT.cov(), covariance, rtol=0, atol=5 * scale * (2 / 40_000) ** 0.5)


def test_shared_factorization_serves_every_channel():
    root, _, _ = _problem(batch=())
    _, variance, mean = _problem(batch=(3,))
    noise = torch.tensor(0.4, dtype=F64)
    together = mean_field_factor(root, noise, mean, variance)
    assert together.cholesky.shape == (3, 3)
    new = torch.randn(5, 3, dtype=F64)
    for channel in range(3):
        alone = mean_field_factor(root, noise, mean[channel], variance[channel])
        torch.testing.assert_close(together.kl()[channel], alone.kl())
        torch.testing.assert_close(together.predict_mean(new)[channel], alone.predict_mean(new))
        torch.testing.assert_close(together.predict_variance(new)[channel], alone.predict_variance(new))


def test_mean_field_without_a_kernel_is_a_sum_of_univariate_divergences():
    _, variance, mean = _problem()
    noise = torch.tensor(0.7, dtype=F64)
    factor = mean_field_factor(torch.zeros(2, 7, 3, dtype=F64), noise, mean, variance)
    q, p = torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, noise.sqrt())
    torch.testing.assert_close(factor.kl(), kl_divergence(q, p).sum(-1), rtol=1e-12, atol=1e-12)


def test_kl_vanishes_where_q_is_the_prior():
    noise = torch.tensor(0.7, dtype=F64)
    root = torch.diag(torch.tensor([1.3, 0.5, 2.0], dtype=F64))
    variance = root.square().sum(-1) + 0.7
    kl = mean_field_factor(root, noise, torch.zeros(3, dtype=F64), variance).kl()
    assert abs(float(kl)) < 1e-14


def test_mean_field_gradients_pass_gradcheck():
    root, variance, mean = _problem(5, 3)
    new = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)

    def function(root, noise, mean, variance, new):
        factor = mean_field_factor(root, noise, mean, variance)
        return factor.kl(), factor.predict_mean(new), factor.predict_variance(new)

    inputs = [root, torch.tensor([0.4, 0.9], dtype=F64), mean, variance, new]
    assert gradcheck(function, [t.requires_grad_() for t in inputs])


def test_float32_is_accurate_to_its_own_rounding_times_the_condition():
    root, variance, mean = _problem()
    wanted = mean_field_factor(root, torch.tensor(0.3, dtype=F64), mean, variance).kl()
    got = mean_field_factor(root.float(), torch.tensor(0.3), mean.float(), variance.float()).kl()
    # eps 6e-8 times the condition of A, about 1 + 7 * 1.7 * 3 / 0.3 = 120
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
