"""prior(x) as GPyTorch's MultitaskMultivariateNormal against loops."""

import gpytorch
import numpy as np
import pytest
import torch
from prior_cases import CASES, data_for

from fgp_gpytorch import FactorizedGPPrior, LocalChannels


@pytest.mark.parametrize("name", sorted(CASES))
def test_mean_and_covariance_equal_the_loops(name):
    case = CASES[name]()
    data = data_for(case)
    distribution = case.prior(data.x)
    assert isinstance(distribution, gpytorch.distributions.MultitaskMultivariateNormal)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (4, case.channels)
    for g in range(3):
        rows = case.dense.rows(data.x[g : g + 1])  # member, then channel
        wanted = case.dense.covariance(rows, rows)
        got = distribution.covariance_matrix[g].detach().numpy()
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
        mean = case.dense.prior_mean(rows).reshape(4, case.channels)
        np.testing.assert_allclose(distribution.mean[g].detach(), mean, rtol=1e-12, atol=1e-12)
        variance = np.diag(wanted).reshape(4, case.channels)
        np.testing.assert_allclose(distribution.variance[g].detach(), variance, rtol=1e-12, atol=1e-12)


def test_log_prob_equals_a_dense_normal_where_the_covariance_is_positive_definite():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=0.5)).double()
    kernel.outputscale = torch.tensor(1.6, dtype=torch.float64)
    mean = gpytorch.means.ConstantMean().double()
    mean.constant.data = torch.tensor(0.4, dtype=torch.float64)
    prior = FactorizedGPPrior([LocalChannels(3, kernel, mean=mean)])
    x = torch.tensor([[[0.0], [0.7], [1.9], [3.1]], [[0.2], [1.0], [2.2], [2.9]]], dtype=torch.float64)
    value = torch.randn(2, 4, 3, dtype=torch.float64)
    wanted = torch.zeros(2, dtype=torch.float64)
    for g in range(2):
        gram = torch.empty(4, 4, dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                gram[i, j] = 1.6 * torch.exp(-(x[g, i] - x[g, j]).abs() / kernel.base_kernel.lengthscale).item()
        for channel in range(3):
            normal = torch.distributions.MultivariateNormal(torch.full((4,), 0.4, dtype=torch.float64), gram)
            wanted[g] += normal.log_prob(value[g, :, channel])
    torch.testing.assert_close(prior(x).log_prob(value), wanted, rtol=1e-9, atol=1e-10)


def test_gradients_reach_the_kernel_through_the_distribution():
    case = CASES["ard"]()
    case.prior(data_for(case).x).covariance_matrix.square().sum().backward()
    assert case.prior.blocks[0].kernel.base_kernel.raw_lengthscale.grad.abs().min() > 0


def test_batch_dimensions_stand_in_front():
    case = CASES["means"]()
    data = data_for(case, batch=(2,), groups=2)
    distribution = case.prior(data.x)
    assert distribution.batch_shape == (2, 2)
    torch.testing.assert_close(distribution.mean[1], case.prior(data.x[1]).mean)
    torch.testing.assert_close(distribution.covariance_matrix[1], case.prior(data.x[1]).covariance_matrix)
