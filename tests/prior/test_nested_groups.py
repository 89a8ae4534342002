"""Groups inside groups against one dense covariance over all rows of several speakers and utterances."""

import gpytorch
import mpmath
import numpy as np
import pytest
import torch

import oracles
from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.gaussian import pool_repeated
from fgp_gpytorch.kernels import WithinKernel

F64 = torch.float64


def _matern(lengthscale, outputscale=1.0, **options):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, **options)).double()
    kernel.base_kernel.lengthscale = torch.tensor(lengthscale, dtype=F64)
    kernel.outputscale = torch.tensor(outputscale, dtype=F64)
    return kernel


def _constant(variance):
    kernel = gpytorch.kernels.ConstantKernel().double()
    kernel.constant = torch.tensor(variance, dtype=F64)
    return kernel


def _nested_prior():
    """A curve for each utterance, a value for each, a curve and a value for each speaker, and a sum of levels."""
    summed = WithinKernel(_matern(0.5, 0.7), 1) + WithinKernel(_constant(0.4), 1) + _constant(1.1)
    prior = FactorizedGPPrior(
        [
            LocalChannels(1, WithinKernel(_matern(0.8, 1.3), 1)),
            LocalChannels(1, WithinKernel(_constant(0.9), 1)),
            LocalChannels(1, _matern(1.2, 0.6, active_dims=[0])),
            LocalChannels(1, summed),
            GlobalChannels(1, 1.4),
        ]
    )
    within, constant, matern = oracles.within, oracles.constant, oracles.matern32
    kernels = [
        within(matern(0.8, 1.3), 1),
        within(constant(0.9), 1),
        oracles.on(matern(1.2, 0.6), 0),
        oracles.total(within(matern(0.5, 0.7), 1), within(constant(0.4), 1), constant(1.1)),
        constant(1.4),
    ]
    return prior, oracles.DenseGaussian(kernels)


def _data():
    """Three speakers with utterances 0 to 6; the times of different utterances coincide, some members are missing."""
    times, codes = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5, 0.7], dtype=F64), [[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 3, 4]]
    code = torch.tensor([*codes, [5, 5, 5, 5, 5, 6]], dtype=F64)
    x = torch.stack([times.expand(3, -1), code], dim=-1)
    x[2, 3:5, 0] = torch.tensor([1.3, 1.6])
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(3, 6, 5, generator=generator, dtype=F64)
    variance = 0.05 + torch.rand(3, 6, 5, generator=generator, dtype=F64)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = mask[2, 5] = False  # the last: utterance 6 has no observation
    # known utterances at new times, a new utterance at old times
    x_new = torch.tensor([[[2.0, 0], [0.5, 9]], [[0.2, 4], [0.0, 10]], [[2.0, 5], [2.0, 6]]], dtype=F64)
    return x, mean, variance, mask, x_new


def test_posterior_kl_and_evidence_equal_the_dense_gaussian():
    prior, dense = _nested_prior()
    x, mean, variance, mask, x_new = _data()
    posterior = prior.posterior(x, mean, variance, mask)
    wanted = dense.condition(x, mean, variance, mask, x_new)
    close = {"rtol": 1e-9, "atol": 1e-10}
    np.testing.assert_allclose(posterior.mean.detach(), wanted.mean, **close)
    np.testing.assert_allclose(posterior.variance.detach(), wanted.variance, **close)
    np.testing.assert_allclose(posterior.log_evidence.sum().item(), wanted.log_evidence, **close)
    np.testing.assert_allclose(posterior.kl.sum().item(), wanted.kl, rtol=1e-8)


def test_predictions_for_known_and_new_utterances_equal_the_dense_gaussian():
    prior, dense = _nested_prior()
    x, mean, variance, mask, x_new = _data()
    predicted = prior.posterior(x, mean, variance, mask).predict(x_new)
    wanted = dense.condition(x, mean, variance, mask, x_new)
    np.testing.assert_allclose(predicted.mean.detach(), wanted.new_mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(predicted.variance.detach(), wanted.new_variance, rtol=1e-9, atol=1e-10)
    # a new utterance of a known speaker: its own curve is unknown, what the speaker's utterances share is known
    variances = predicted.variance[0, 1].tolist()
    assert variances[0] == pytest.approx(1.3)
    assert variances[2] < 0.5
    assert variances[4] < 1.0


def test_new_speakers_have_the_prior():
    prior, dense = _nested_prior()
    x = _data()[-1]
    distribution = prior(x)
    rows = dense.rows(x[:1])
    wanted = dense.covariance(rows, rows)  # ordered by member, then channel
    np.testing.assert_allclose(distribution.covariance_matrix[0].detach(), wanted, atol=1e-12)
    nobody = torch.zeros(3, 2, dtype=torch.bool)
    z = torch.zeros(3, 2, 5, dtype=F64)
    posterior = prior.posterior(x, z, z + 1, nobody)
    np.testing.assert_allclose(posterior.variance[0].flatten().detach(), np.diag(wanted), rtol=1e-12)


def test_joint_draws_follow_the_dense_covariance():
    prior, dense = _nested_prior()
    x, mean, variance, mask, x_new = _data()
    posterior = prior.posterior(x, mean, variance, mask)
    wanted = dense.condition(x[:1], mean[:1], variance[:1], mask[:1], x_new[:1])
    paths = posterior.rsample_paths(x_new, (40_000,))
    draws = torch.cat([paths.members, paths.new], dim=-2)[:, 0].flatten(1).detach()
    error = (draws.T.cov() - torch.as_tensor(wanted.joint_covariance)).abs().max()
    assert error < 5 * 1.7 * (2 / 40_000) ** 0.5  # five standard errors of a variance of at most 1.7


def test_values_of_an_utterance_are_one_observation_however_precise():
    """A kernel that is constant within an utterance: members at different times repeat one value."""
    x = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.9, 0.0], [2.0, 1.0]]
    mean, s2 = [0.3, 0.3 + 2e-5, -0.2, 0.3 - 1e-5, -0.2 + 3e-5], [1e-10 * (1 + i) for i in range(5)]
    kernel = WithinKernel(_constant(0.9), 1)
    prior = FactorizedGPPrior([LocalChannels(1, kernel)])
    exact = oracles.exact_group(
        oracles.within(oracles.constant(mpmath.mpf(0.9)), 1), x, mean, s2, x_new=[[7.0, 1.0], [0.5, 2.0]], digits=60
    )
    m = torch.tensor(mean, dtype=F64).reshape(1, 5, 1).requires_grad_()
    posterior = prior.posterior(torch.tensor([x], dtype=F64), m, torch.tensor(s2, dtype=F64).reshape(1, 5, 1))
    assert posterior.kl.item() == pytest.approx(float(exact.kl), rel=1e-8)
    assert posterior.log_evidence.item() == pytest.approx(float(exact.log_evidence), rel=1e-8)
    assert posterior.mean.flatten().tolist() == pytest.approx([float(v) for v in exact.mean], rel=1e-8)
    assert posterior.variance.flatten().tolist() == pytest.approx([float(v) for v in exact.variance], rel=1e-8)
    new = posterior.predict(torch.tensor([[[7.0, 1.0], [0.5, 2.0]]], dtype=F64))
    assert new.variance[0, 1].item() == pytest.approx(0.9)
    (gradient,) = torch.autograd.grad(posterior.kl.sum(), m)

    def kl(values):
        return oracles.exact_group(oracles.within(oracles.constant(mpmath.mpf(0.9)), 1), x, values, s2).kl

    wanted = oracles.exact_gradient(kl, mean)
    np.testing.assert_allclose(gradient.flatten(), wanted, rtol=1e-7, atol=1e-7)


def test_equal_times_of_different_utterances_are_no_repeats():
    x = torch.tensor([[[0.5, 0.0], [0.5, 1.0]]], dtype=F64)
    kernel = WithinKernel(_matern(1.0), 1)
    one = torch.ones(1, 2, dtype=F64)
    assert pool_repeated(kernel(x).to_dense(), one, one, x) is None
    block = FactorizedGPPrior([LocalChannels(1, kernel)]).posterior(x, one[..., None], 1e-12 * one[..., None]).blocks[0]
    assert block.pooled is None


def test_equal_times_are_repeats_of_a_curve_that_utterances_share():
    x = torch.tensor([[[0.5, 0.0], [0.5, 1.0], [1.5, 1.0]]], dtype=F64)
    shared = FactorizedGPPrior([LocalChannels(1, _matern(1.0, active_dims=[0]))])
    alone = FactorizedGPPrior([LocalChannels(1, _matern(1.0))])
    mean = torch.tensor([0.3, 0.30001, -0.2], dtype=F64).reshape(1, 3, 1)
    variance = torch.full_like(mean, 1e-10)
    first, second = shared.posterior(x, mean, variance), alone.posterior(x[..., :1], mean, variance)
    torch.testing.assert_close(first.kl, second.kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-12, atol=0)
