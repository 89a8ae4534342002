"""`CorrelatedPrior`: its global channels against one dense Gaussian over all rows, its limits, its samples."""

import gpytorch
import pytest
import torch
from torch.distributions import MultivariateNormal

from factories import make_prior as make_factorized
from fgp_gpytorch.coupled import CorrelatedPrior, GroupInputs, GroupVectors, unit_length
from fgp_gpytorch.errors import ArgumentError, GroupError
from fgp_gpytorch.prior import LocalChannels

F64 = torch.float64
INDEX = torch.tensor([2, 0, 4, 1])


with torch.random.fork_rng():
    torch.manual_seed(3)
    VECTORS = GroupVectors(5, 2)


def condition(prior, x, mean, variance, mask):
    return prior.condition(GroupInputs.of(unit_length(VECTORS(INDEX)), x, mean, variance, mask, F64))


def make_prior(num_global=2):
    VECTORS.zero_grad()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.7, 0.8
    return CorrelatedPrior([LocalChannels(1, kernel)], num_global)


def make_problem(channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.tensor([3, 1, 4, 2]).unsqueeze(-1)
    x = 3 * torch.rand(4, 4, 1, generator=g, dtype=F64)
    mean = torch.randn(4, 4, channels, generator=g, dtype=F64)
    variance = 0.1 + torch.rand(4, 4, channels, generator=g, dtype=F64)
    return x, mean, variance, mask


def dense(prior, mean, variance, mask):
    """Mean and covariance of the groups' values, and the evidence, from one Gaussian over the observed rows."""
    vectors = VECTORS.vectors.detach()
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    sigma = vectors[INDEX] @ vectors[INDEX].T
    group = mask.nonzero()[:, 0]
    noisy = sigma[group][:, group] + torch.diag(variance[mask])
    gain = torch.linalg.solve(noisy, sigma[group]).T
    evidence = MultivariateNormal(torch.zeros(len(group), dtype=F64), noisy).log_prob(mean[mask])
    return gain @ mean[mask], sigma - gain @ sigma[group], evidence


def test_global_channels_are_those_of_the_dense_gaussian_over_all_groups():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    mean[~mask] = float("nan")
    posterior = condition(prior, x, mean, variance, mask)
    prediction = posterior.predict(x[:, :2] + 1)
    evidence = posterior.local.log_evidence.sum().detach()
    kl = torch.zeros((), dtype=F64)
    for channel in (1, 2):
        values, covariance, log_evidence = dense(prior, mean[..., channel], variance[..., channel], mask)
        evidence += log_evidence
        for answer, members in ((posterior, 4), (prediction, 2)):
            wanted = values.unsqueeze(-1).expand(4, members)
            torch.testing.assert_close(answer.mean[..., channel].detach(), wanted, rtol=1e-9, atol=1e-10)
            wanted = covariance.diagonal().unsqueeze(-1).expand(4, members)
            torch.testing.assert_close(answer.variance[..., channel].detach(), wanted, rtol=1e-9, atol=1e-10)
        group = mask.nonzero()[:, 0]
        spread = (mean[mask][:, channel] - values[group]).square() + covariance.diagonal()[group]
        noise = variance[mask][:, channel]
        kl += -0.5 * ((2 * torch.pi * noise).log() + spread / noise).sum() - log_evidence
    torch.testing.assert_close(posterior.log_evidence.detach(), evidence, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior.kl_terms.kl_global.sum().detach(), kl, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.kl, sum(posterior.kl_terms))


def test_orthogonal_vectors_are_the_factorized_prior():
    factorized = make_factorized()
    vectors = 0.6**0.5 * torch.eye(4, dtype=F64)  # the factories' global variance is 0.6
    prior = CorrelatedPrior([factorized.blocks[0]], 1)
    x, mean, variance, mask = make_problem()
    x_new = torch.rand(4, 2, 1, dtype=F64)
    theirs = factorized.posterior(x, mean, variance, mask)
    ours = prior.condition(GroupInputs.of(vectors, x, mean, variance, mask, F64))
    # the factories make 0.6 in float32's reach: 1e-8
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.kl.sum(), theirs.kl.sum(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.log_evidence, theirs.log_evidence.sum(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.predict(x_new).mean, theirs.predict(x_new).mean, rtol=1e-6, atol=1e-7)


def test_joint_samples_have_the_covariance_between_groups_and_marginals_have_none():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, x, mean, variance, mask)
    _, covariance, _ = dense(prior, mean[..., 1], variance[..., 1], mask)
    with torch.no_grad():
        for answer in (posterior, posterior.predict(x[:, :2] + 1)):
            joint = answer.rsample((20_000,))[..., 1]
            assert torch.equal(joint[..., 0], joint[..., -1])  # one value per group
            # an entry's standard error is at most sqrt(2 / 20000) = 0.01
            torch.testing.assert_close(joint[..., 0].T.cov(), covariance, rtol=0, atol=0.05)
            single = answer.rsample((20_000,), marginals=True)[..., 1]
            torch.testing.assert_close(single[..., 0].T.cov(), covariance.diagonal().diag(), rtol=0, atol=0.05)
            torch.testing.assert_close(single.mean(0), answer.mean[..., 1], rtol=0, atol=0.05)


def test_some_groups_of_a_posterior_are_predicted_as_among_all():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, x, mean, variance, mask)
    x_new = torch.rand(4, 2, 1, dtype=F64)
    whole = posterior.predict(x_new)
    some = posterior.predict(x_new[[3, 0]], torch.tensor([3, 0]))
    torch.testing.assert_close(some.mean, whole.mean[[3, 0]])
    torch.testing.assert_close(some.variance, whole.variance[[3, 0]])
    with pytest.raises(GroupError, match=r"expected positions from 0 to 3, the groups that were conditioned on, got 2"):
        posterior.predict(x_new[:2], torch.tensor([2, 4]))


def test_gradient_reaches_objects_kernel_and_pseudo_observations():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, x, mean.requires_grad_(), variance.requires_grad_(), mask)
    (posterior.kl.sum() + posterior.rsample(marginals=True).square().sum()).backward()
    assert mean.grad[mask].abs().min() > 0
    assert variance.grad[mask].abs().min() > 0
    assert variance.grad[~mask].abs().max() == 0
    assert all(parameter.grad is not None for parameter in (*prior.parameters(), *VECTORS.parameters()))


def test_prior_without_a_local_or_a_global_channel_is_refused():
    with pytest.raises(ArgumentError, match="local: expected a sequence"):
        CorrelatedPrior([], 1)
    with pytest.raises(ArgumentError, match="num_global_channels: expected an integer >= 1, got 0"):
        make_prior(num_global=0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), "2"])
def test_scale_that_is_no_positive_number_is_refused(scale):
    prior = make_prior()
    inputs = GroupInputs.of(torch.eye(2), *_two_groups(prior), None, torch.float64)
    with pytest.raises(ArgumentError, match="scale: expected a positive finite number"):
        prior.condition(inputs, scale)


def test_evidence_of_a_minibatch_is_refused():
    prior = make_prior()
    inputs = GroupInputs.of(torch.eye(2), *_two_groups(prior), None, torch.float64)
    assert torch.isfinite(prior.condition(inputs).log_evidence)
    with pytest.raises(ArgumentError, match=r"expected a posterior of all groups \(scale=1\), got scale=2"):
        _ = prior.condition(inputs, 2.0).log_evidence


def _two_groups(prior):
    shape = 2, 3, prior.num_channels
    return torch.arange(6.0).reshape(2, 3, 1), torch.ones(shape), torch.ones(shape)
