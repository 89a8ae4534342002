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
    x, mean = torch.linspace(0, 1, 30, dtype=torch.float64).reshape(1, 30, 1), torch.zeros(1, 30, 1)
    with pytest.raises(NonFiniteError, match=r"kernel: expected prior variances .*, got .* up to 1e\+18 times"):
        getattr(prior.posterior(x, mean, torch.full((1, 30, 1), 1e-12)), figure)
