"""K = I: the latents of a plain VAE, against formulas written out member by member and against the dense algebra."""

import gpytorch
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fgp_gpytorch import FactorizedGPPrior, IndependentChannels
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.gaussian import dense_factor, dense_marginals
from fgp_gpytorch.kernels import IndependentKernel
from fgp_gpytorch.prior import exact_gp

F64 = torch.float64


def observations(groups=3, members=4, channels=2):
    x = torch.zeros(groups, members, 1, dtype=F64)  # x repeats: members are different observations all the same
    mean = torch.randn(groups, members, channels, dtype=F64)
    variance = torch.rand(groups, members, channels, dtype=F64) + 0.1
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    return x, mean, variance, mask


def test_posterior_is_each_members_own():
    x, mean, variance, mask = observations()
    posterior = FactorizedGPPrior([IndependentChannels(2)]).posterior(x, mean, variance, mask)
    kl, evidence = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    for g in range(3):
        for q in range(4):
            for c in range(2):
                wanted = Normal(torch.zeros((), dtype=F64), 1.0)
                if mask[g, q]:
                    precision = 1 + 1 / variance[g, q, c]
                    wanted = Normal(mean[g, q, c] / variance[g, q, c] / precision, precision**-0.5)
                    evidence[g] += Normal(0, (1 + variance[g, q, c]).sqrt()).log_prob(mean[g, q, c])
                torch.testing.assert_close(posterior.mean[g, q, c], wanted.mean)
                torch.testing.assert_close(posterior.variance[g, q, c], wanted.variance)
                kl[g] += kl_divergence(wanted, Normal(torch.zeros((), dtype=F64), 1.0))
    torch.testing.assert_close(posterior.kl, kl)
    torch.testing.assert_close(posterior.log_evidence, evidence)


def test_equals_the_dense_algebra_with_the_identity():
    x, mean, variance, _ = observations()
    posterior = FactorizedGPPrior([IndependentChannels(2)]).posterior(x, mean, variance)
    identity = torch.eye(4, dtype=F64).expand(3, 2, 4, 4)
    marginals = dense_marginals(identity, 1 / variance.mT, mean.mT)
    torch.testing.assert_close(posterior.mean.mT, marginals.mean)
    torch.testing.assert_close(posterior.variance.mT, marginals.variance)
    torch.testing.assert_close(posterior.kl_channels, marginals.kl)
    evidence = dense_factor(identity, 1 / variance.mT, mean.mT).log_evidence().sum(-1)
    torch.testing.assert_close(posterior.log_evidence, evidence)


def test_nothing_is_known_of_a_new_member_not_even_at_the_same_x():
    x, mean, variance, mask = observations()
    posterior = FactorizedGPPrior([IndependentChannels(2)]).posterior(x, mean, variance, mask)
    prediction = posterior.predict(x[:, :1])
    assert torch.equal(prediction.mean, torch.zeros(3, 1, 2, dtype=F64))
    assert torch.equal(prediction.variance, torch.ones(3, 1, 2, dtype=F64))
    paths = posterior.rsample_paths(x, (20_000,))
    covariance = (paths.members * paths.new).mean(0) - paths.members.mean(0) * paths.new.mean(0)
    assert covariance.abs().max() < 5 / 20_000**0.5
    torch.testing.assert_close(paths.members.mean(0), posterior.mean, atol=5 / 20_000**0.5, rtol=0)
    torch.testing.assert_close(paths.members.var(0), posterior.variance, atol=0.08, rtol=0)


def test_prior_as_a_distribution_and_the_bridge():
    x, mean, variance, _ = observations()
    prior = FactorizedGPPrior([IndependentChannels(2)])
    assert torch.equal(prior(x).covariance_matrix, torch.eye(8, dtype=F64).expand(3, 8, 8))
    gp = exact_gp(prior.blocks[0], x, mean, variance)
    gp.train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(gp.train_inputs[0]), gp.train_targets)
    torch.testing.assert_close(evidence.sum() * 12, prior.posterior(x, mean, variance).log_evidence.sum())


def test_kernel_is_the_identity_on_one_set_of_rows_and_zero_between_two():
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    kernel = IndependentKernel()
    assert torch.equal(kernel(rows).to_dense(), torch.eye(3))
    assert torch.equal(kernel(rows, rows[:2]).to_dense(), torch.zeros(3, 2))
    assert torch.equal(kernel(rows, diag=True), torch.ones(3))


def test_an_empty_block_is_refused():
    with pytest.raises(ArgumentError, match="num_channels: expected an integer >= 1, got 0"):
        IndependentChannels(0)
