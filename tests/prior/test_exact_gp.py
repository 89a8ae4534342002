"""`exact_gp`: GPyTorch's own ExactGP must say what our posterior says, gradients and ragged groups included.

GPyTorch adds no jitter to a covariance with noise; 1e-8 covers its dense Cholesky of all N rows against ours by group.
"""

import gpytorch
import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from prior_cases import CASES, data_for

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.prior import exact_gp


def _blocks():
    for name in sorted(CASES):
        for index, block in enumerate(CASES[name]().prior.blocks):
            if not block.couples_channels:
                yield pytest.param((name, index), id=f"{name}-{index}")


@pytest.fixture(params=list(_blocks()))
def setting(request):
    """A case, one of its blocks, and the block's slice of the channels."""
    name, index = request.param
    case = CASES[name]()
    start = sum(block.num_channels for block in case.prior.blocks[:index])
    block = case.prior.blocks[index]
    return case, index, slice(start, start + block.num_channels)


def _pair(setting):
    case, index, channels = setting
    data = data_for(case)
    data.mask[0, 3] = True
    posterior = case.prior.posterior(*data.observations)
    block = case.prior.blocks[index]
    gp = exact_gp(block, data.x, data.mean[..., channels], data.variance[..., channels], data.mask)
    return data, posterior, gp


def _evidence(gp) -> torch.Tensor:
    gp.train()
    rows = gp.train_inputs[0]
    mll = ExactMarginalLogLikelihood(gp.likelihood, gp)
    rows = rows[0] if rows.dim() == 3 else rows
    return mll(gp(rows), gp.train_targets) * gp.train_targets.shape[-1]  # GPyTorch divides by N


def test_marginal_log_likelihood_equals_our_log_evidence(setting):
    _, posterior, gp = _pair(setting)
    ours = posterior.blocks[setting[1]].log_evidence()  # shape: (G, J)
    theirs = _evidence(gp)
    assert theirs.shape == (ours.shape[-1],)
    torch.testing.assert_close(theirs, ours.sum(0), rtol=1e-8, atol=1e-8)


def test_gradients_of_the_evidence_reach_the_shared_parameters_equally(setting):
    case, index, _ = setting
    block = case.prior.blocks[index].requires_grad_(True)
    _, posterior, gp = _pair(setting)
    parameters = list(block.parameters())
    ours = torch.autograd.grad(posterior.blocks[index].log_evidence().sum(), parameters)
    theirs = torch.autograd.grad(_evidence(gp).sum(), parameters)
    for left, right in zip(theirs, ours, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-8)


def test_predictions_equal_our_posterior_at_old_and_new_members(setting):
    _, _, channels = setting
    data, posterior, gp = _pair(setting)
    gp.eval()
    predicted = posterior.predict(data.x_new)
    for x, mean, variance in (
        (data.x_new, predicted.mean, predicted.variance),
        (data.x, posterior.mean, posterior.variance),
    ):
        with torch.no_grad():
            theirs = gp.multitask(x)
        shape = (*x.shape[:-1], mean[..., channels].shape[-1])
        assert isinstance(theirs, gpytorch.distributions.MultitaskMultivariateNormal)
        torch.testing.assert_close(theirs.mean.reshape(shape), mean[..., channels].detach(), rtol=1e-7, atol=1e-8)
        wanted = variance[..., channels].detach()
        torch.testing.assert_close(theirs.variance.reshape(shape), wanted, rtol=1e-7, atol=1e-7)


def test_what_is_learned_there_is_learned_here():
    case = CASES["paper"]()
    data = data_for(case)
    block = case.prior.blocks[0]
    before = case.prior.posterior(*data.observations).log_evidence.sum().item()
    gp = exact_gp(block, data.x, data.mean[..., :2], data.variance[..., :2], data.mask)
    optimizer = torch.optim.Adam(gp.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (-_evidence(gp).sum()).backward()
        optimizer.step()
    assert case.prior.posterior(*data.observations).log_evidence.sum().item() > before
    assert float(block.kernel.outputscale.detach()) != pytest.approx(1.7)


def test_group_that_was_never_observed_is_predicted_by_its_prior():
    case = CASES["paper"]()
    data = data_for(case)
    data.mask[1] = False
    gp = exact_gp(case.prior.blocks[0], data.x, data.mean[..., :2], data.variance[..., :2], data.mask).eval()
    with torch.no_grad():
        variance = gp.multitask(data.x_new).variance.reshape(3, 3, 2)
    torch.testing.assert_close(variance[1], torch.full((3, 2), 1.7, dtype=torch.float64))


def test_mask_without_an_observed_member_is_an_error():
    case = CASES["paper"]()
    data = data_for(case)
    with pytest.raises(DataError, match="mask: expected at least one observed member, got none"):
        exact_gp(case.prior.blocks[0], data.x, data.mean[..., :2], data.variance[..., :2], data.mask & False)


def test_wrong_shapes_are_errors():
    case = CASES["paper"]()
    data = data_for(case)
    with pytest.raises(ShapeError, match=r"mean: expected shape \(3, 4, 2\), got \(3, 4, 4\)"):
        exact_gp(case.prior.blocks[0], data.x, data.mean, data.variance)
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"mask: expected shape \(3, 4\), got \(3,\)"):
        exact_gp(case.prior.blocks[0], data.x, data.mean[..., :2], data.variance[..., :2], mask)


def test_inducing_points_are_refused():
    kernel = gpytorch.kernels.RBFKernel()
    block = LocalChannels(1, kernel, inference="inducing", inducing_points=torch.linspace(0, 1, 2))
    with pytest.raises(ArgumentError, match=r"block: expected exact inference, got inference='inducing'.*Try"):
        exact_gp(block, torch.rand(2, 6, 1), torch.zeros(2, 6, 1), torch.ones(2, 6, 1))


def test_what_the_posterior_refuses_is_refused_here_too():
    prior = FactorizedGPPrior([GlobalChannels(2)])
    block, x, mean, variance = prior.blocks[0], torch.rand(3, 4, 1), torch.randn(3, 4, 2), torch.ones(3, 4, 2)
    with pytest.raises(ArgumentError, match=r"block: expected a ChannelBlock, got FactorizedGPPrior. Try prior"):
        exact_gp(prior, x, mean, variance)
    with pytest.raises(ShapeError, match=r"x: expected shape \(..., G, Q, D\), got \(4, 1\)"):
        exact_gp(block, x[0], mean[0], variance[0])
    with pytest.raises(DataError, match="mean: expected finite values"):
        exact_gp(block, x, mean.index_fill(0, torch.tensor(1), torch.nan), variance)
    with pytest.raises(
        DataError, match=r"variance: expected positive pseudo-variances, got 24 entries <= 0, the smallest -1\.0"
    ):
        exact_gp(block, x, mean, -variance)
    with pytest.raises(DataError, match=r"mask: expected torch.bool, got torch.float32"):
        exact_gp(block, x, mean, variance, torch.ones(3, 4))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False  # what is not observed may be anything
    exact_gp(block, x, mean.index_fill(0, torch.tensor(1), torch.nan), variance, mask)
