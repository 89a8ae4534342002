"""Covariances that the pseudo-variances vanish beside."""

import gpytorch
import pytest
import torch

from fgp_gpytorch import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.errors import NonFiniteError


@pytest.mark.parametrize("figure", ["kl", "log_evidence", "variance"])
def test_a_covariance_beyond_the_digits_is_named(figure):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.outputscale = 1e6
    prior = FactorizedGPPrior([LocalChannels(1, kernel)])
    x, mean = torch.rand(1, 12, 1, dtype=torch.float64), torch.randn(1, 12, 1)
    with pytest.raises(NonFiniteError, match=r"kernel: expected prior variances .*, got .* up to 1e\+18 times as large"):
        getattr(prior.posterior(x, mean, torch.full((1, 12, 1), 1e-12)), figure)
