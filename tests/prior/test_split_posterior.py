"""A batch of groups of very different sizes gets the answers of one padding, from two or three."""

import pytest
import torch
from gpytorch.kernels import ConstantKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from gpytorch.means import LinearMean
from prior_cases import answers
from torch import nn

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels
from fgp_gpytorch.feature_maps import LinearFeatures, SelectedFeatures
from fgp_gpytorch.prior import split_posterior
from fgp_gpytorch.prior.local_channels import DenseBlockPosterior
from fgp_gpytorch.prior.split_posterior import SplitBlockPosterior, parts_of

F64 = torch.float64
SIZES = [3, 60, 1, 4, 0, 200, 2, 5, 70, 1]

KERNELS = {
    "dense": lambda: ScaleKernel(RBFKernel()),
    "state space": lambda: MaternKernel(nu=1.5) + ConstantKernel(),
    "features": lambda: PeriodicKernel(),
}


def batch(channels=2, features=1):
    """x, means, variances and mask; a hole in the largest group, padding at the first member's x."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor(SIZES)
    x = 10 * torch.rand(len(SIZES), max(SIZES), features, generator=g, dtype=F64)
    mask = torch.arange(max(SIZES)) < sizes.unsqueeze(-1)
    mask[5, 7] = False
    x = torch.where(
        mask.unsqueeze(-1) | (torch.arange(max(SIZES)) == 7).unsqueeze(-1) & (sizes > 7)[:, None, None], x, x[:, :1]
    )
    mean = torch.randn(len(SIZES), max(SIZES), channels, generator=g, dtype=F64)
    variance = 0.05 + torch.rand(len(SIZES), max(SIZES), channels, generator=g, dtype=F64)
    return x, mean, variance, mask


def with_gradients(prior, data, x_new):
    posterior = prior.posterior(*data)
    numbers = list(answers(posterior, x_new).values())
    parameters = [p for p in prior.parameters() if p.requires_grad]
    loss = sum(n.square().sum() for n in numbers)
    return posterior, [*numbers, *torch.autograd.grad(loss, [data[1], data[2], *parameters])]


def both(monkeypatch, make, data, x_new):
    data = data[0], data[1].requires_grad_(), data[2].requires_grad_(), data[3]
    split, found = with_gradients(make(), data, x_new)
    monkeypatch.setattr(split_posterior, "_LEAST_GAIN", 0.0)
    whole, expected = with_gradients(make(), data, x_new)
    assert isinstance(split.blocks[0], SplitBlockPosterior)
    assert not isinstance(whole.blocks[0], SplitBlockPosterior)
    return found, expected, split


@pytest.mark.parametrize("name", KERNELS)
def test_answers_and_gradients_are_those_of_one_padding(monkeypatch, name):
    monkeypatch.setattr(split_posterior, "_PART_COST", 0.0)
    x_new = torch.linspace(-1, 12, 4, dtype=F64).reshape(1, 4, 1).expand(len(SIZES), 4, 1)

    def make():
        torch.manual_seed(0)
        return FactorizedGPPrior([LocalChannels(2, KERNELS[name](), LinearMean(1)), GlobalChannels(1)])

    found, expected, split = both(monkeypatch, make, batch(channels=3), x_new)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
    assert 2 <= len(split.blocks[0].parts) <= 3


@pytest.mark.parametrize("seen", [False, True])
def test_effects_are_added_to_each_part(monkeypatch, seen):
    x, mean, variance, mask = batch(features=2)
    x_new = torch.rand(len(SIZES), 3, 2, dtype=F64)

    def posterior(given):
        torch.manual_seed(0)
        prior = FactorizedGPPrior(
            [LocalChannels(2, RBFKernel(active_dims=(0,)))], effects=[SelectedFeatures(LinearFeatures(), [1])]
        )
        nn.init.normal_(prior.effects.mean, generator=torch.Generator().manual_seed(1))
        return prior.condition(x, mean, variance, mask, weights=prior.effects.mean if given else None, seen=seen)

    for given in (True, False):
        split = posterior(given)
        with monkeypatch.context() as patched:
            patched.setattr(split_posterior, "_LEAST_GAIN", 0.0)
            whole = posterior(given)
        torch.testing.assert_close(split.mean, whole.mean)
        torch.testing.assert_close(split.predict(x_new).mean, whole.predict(x_new).mean)


def test_joint_draws_have_the_moments_of_their_marginals():
    torch.manual_seed(0)
    x, mean, variance, mask = batch()
    x_new = 10 * torch.rand(len(SIZES), 2, 1, dtype=F64)
    posterior = FactorizedGPPrior([LocalChannels(2, RBFKernel())]).posterior(x, mean, variance, mask)
    assert isinstance(posterior.blocks[0], SplitBlockPosterior)
    draws, new = posterior.rsample_paths(x_new, (2000,))
    assert draws.shape == (2000, *mean.shape)
    predicted = posterior.predict(x_new)
    for own, expected in ((draws, posterior), (new, predicted)):
        error = (own.mean(0) - expected.mean).abs() / expected.variance.sqrt()
        assert error.max() < 6 / 2000**0.5
    assert posterior.rsample((3,)).shape == (3, *mean.shape)


def test_whitened_variables_and_covariances_are_those_of_one_padding():
    x, mean, variance, mask = batch()
    posterior = FactorizedGPPrior([LocalChannels(2, RBFKernel())]).posterior(x, mean, variance, mask)
    block = posterior.blocks[0]
    covariance = posterior.distribution().covariance_matrix
    torch.testing.assert_close(
        covariance.diagonal(dim1=-2, dim2=-1), posterior.variance.flatten(-2), rtol=1e-6, atol=1e-8
    )
    assert block.whitened().weights.shape == (len(SIZES), 2, max(SIZES))
    assert block.observations[0].shape == block.precision.shape


def test_groups_of_similar_sizes_and_small_ones_keep_one_padding():
    x, mean, variance, mask = batch()
    precision = mask.unsqueeze(-2).double().expand(-1, 2, -1)
    assert len(parts_of(x, precision, lambda: True)) == 3
    assert parts_of(x[:, :20], precision[..., :20], lambda: True) == []
    assert parts_of(x, torch.ones_like(precision), lambda: True) == []
    assert parts_of(x[5:6], precision[5:6], lambda: True) == []
    prior = FactorizedGPPrior([LocalChannels(2, RBFKernel())])
    assert isinstance(prior.posterior(x[5:6], mean[5:6], variance[5:6]).blocks[0], DenseBlockPosterior)


def test_one_long_group_among_many_short_ones_stands_alone():
    sizes = torch.tensor([1] * 19 + [500])
    x = torch.zeros(20, 500, 1, dtype=F64)
    precision = (torch.arange(500) < sizes.unsqueeze(-1)).double().unsqueeze(-2)
    for dense in (False, True):
        parts = parts_of(x, precision, lambda dense=dense: dense)
        assert [(len(part.groups), part.width) for part in parts] == [(19, 2), (1, 500)]


def test_members_without_an_observation_at_an_x_of_their_own_are_no_padding():
    x, mean, variance, mask = batch()
    x[2, -1] += 0.5
    precision = mask.unsqueeze(-2).double().expand(-1, 2, -1)
    assert parts_of(x, precision, lambda: True) == []
    posterior = FactorizedGPPrior([LocalChannels(2, RBFKernel())]).condition(x, mean, variance, mask)
    alone = FactorizedGPPrior([LocalChannels(2, RBFKernel())]).condition(x[2:3], mean[2:3], variance[2:3], mask[2:3])
    torch.testing.assert_close(posterior.mean[2:3], alone.mean)


def test_a_batch_of_a_data_set_is_split():
    groups = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    data = GroupedDataset(torch.rand(len(groups), 1), torch.rand(len(groups), 1), groups)
    padded = data[:]
    prior = FactorizedGPPrior([LocalChannels(1, RBFKernel())])
    mean = torch.zeros(*padded.mask.shape, 1)
    assert isinstance(prior.condition(padded.x, mean, mean + 1, padded.mask).blocks[0], SplitBlockPosterior)
