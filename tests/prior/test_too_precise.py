"""Covariances that the pseudo-variances vanish beside."""

import gpytorch
import pytest
import torch

from fgp_gpytorch import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.errors import DataError, NonFiniteError


@pytest.mark.parametrize("figure", ["kl", "log_evidence", "variance"])
def test_a_covariance_beyond_the_digits_is_named(figure):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.outputscale = 1e6
    prior = FactorizedGPPrior([LocalChannels(1, kernel)])
    x, mean = torch.linspace(0, 1, 30, dtype=torch.float64).reshape(1, 30, 1), torch.zeros(1, 30, 1)
    with pytest.raises(NonFiniteError, match=r"kernel: expected prior variances .*, got .* up to 1e\+18 times"):
        getattr(prior.posterior(x, mean, torch.full((1, 30, 1), 1e-12)), figure)


@pytest.mark.parametrize("fits", [False, True])
def test_a_divergence_of_rounding_errors_is_refused_and_low_rank_has_its_digits(fits):
    """The pseudo-means lie beside the one direction of the kernel: w = (K + R^-2)^-1 r has entries of 1e9."""
    torch.manual_seed(0)
    x = 4 * torch.rand(1, 60, 1, dtype=torch.float64) - 1
    mean = 0.7 * x if fits else torch.randn(1, 60, 1, dtype=torch.float64)
    given = x, mean, torch.full((1, 60, 1), 1e-9, dtype=torch.float64)
    kernel = gpytorch.kernels.LinearKernel().double()
    low_rank = FactorizedGPPrior([LocalChannels(1, kernel, inference="low_rank")]).posterior(*given)
    dense = FactorizedGPPrior([LocalChannels(1, kernel)]).posterior(*given)
    torch.testing.assert_close(dense.log_evidence, low_rank.log_evidence, rtol=1e-6, atol=0)
    if fits:
        torch.testing.assert_close(dense.kl, low_rank.kl, rtol=1e-6, atol=0)
        return
    with pytest.raises(NonFiniteError, match=r"variance: expected .* got some down to 1e-09 .*inference='low_rank'"):
        _ = dense.kl
    variance, mean = 1 / (1 / kernel.variance + (x**2 / 1e-9).sum()), (x * mean / 1e-9).sum()  # of the slope
    mean = mean * variance
    ratio = variance / kernel.variance
    kl = 0.5 * (ratio - 1 - ratio.log() + mean**2 / kernel.variance)
    torch.testing.assert_close(low_rank.kl.sum(), kl.squeeze(), rtol=1e-9, atol=0)


BURSTS = torch.cat([torch.linspace(0, 5, 30, dtype=torch.float64)] * 2)
BURSTS[30:] += 30 * 86400  # seconds: a month


def bursts(kernel, inference="auto"):
    kernel.double().lengthscale = 1.0
    prior = FactorizedGPPrior([LocalChannels(1, kernel, inference=inference)])
    return prior.posterior(BURSTS[None, :, None], BURSTS.sin()[None, :, None], torch.full((1, 60, 1), 0.01).double())


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_bursts_a_month_apart_are_independent_groups(nu):
    found = bursts(gpytorch.kernels.MaternKernel(nu=nu))
    kernel = gpytorch.kernels.MaternKernel(nu=nu).double()
    kernel.lengthscale = 1.0
    apart = torch.stack([BURSTS[:30], BURSTS[:30]]).unsqueeze(-1)
    prior = FactorizedGPPrior([LocalChannels(1, kernel, inference="dense")])
    y = BURSTS.sin().reshape(2, 30, 1)
    expected = prior.posterior(apart, y, torch.full((2, 30, 1), 0.01).double())
    torch.testing.assert_close(found.kl.sum(), expected.kl.sum(), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.mean.reshape(2, 30, 1), expected.mean, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kernel", [gpytorch.kernels.RBFKernel, gpytorch.kernels.MaternKernel])
def test_distances_of_rounding_errors_are_refused(kernel):
    with pytest.raises(
        DataError, match=r"x: expected a range of at most 1e\+06 lengthscales, got 2.592e\+06 .*state space"
    ):
        _ = bursts(kernel(), "dense").kl


def test_wide_ranges_of_equal_steps_are_no_gaps():
    """All members are independent, and no distance is a rounding error."""
    kernel = gpytorch.kernels.RBFKernel().double()
    kernel.lengthscale = 1e-6
    x = torch.linspace(0, 10, 60, dtype=torch.float64).reshape(1, 60, 1)
    posterior = FactorizedGPPrior([LocalChannels(1, kernel)]).posterior(
        x, x.sin(), torch.full((1, 60, 1), 0.1).double()
    )
    torch.testing.assert_close(posterior.mean, x.sin() / 1.1)
