"""The joint distribution of a posterior, its KL split in two, and the base classes."""

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from prior_cases import CASES, Case, data_for, scale, with_lengthscale

import oracles
from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.prior import KLTerms, LatentPrior, Posterior, Prediction

F64 = torch.float64


def independent_case() -> Case:
    """Two independent channels between a local and a global one; no x repeats, so that equal x is the same member."""
    local = scale(with_lengthscale(gpytorch.kernels.RBFKernel(), 0.9), 1.7)
    prior = FactorizedGPPrior([LocalChannels(1, local), IndependentChannels(2), GlobalChannels(1, variance=0.6)])
    same = [lambda a, b, m: float(a == b)] * 2
    return Case(prior, oracles.DenseGaussian([oracles.rbf(0.9, 1.7), *same, oracles.constant(0.6)]), features=1)


ALL = CASES | {"independent": independent_case}


@pytest.fixture(params=sorted(ALL))
def case(request):
    return ALL[request.param]()


@pytest.mark.parametrize("ragged", [True, False])
def test_joint_distribution_is_the_dense_posterior_of_every_group(case, ragged):
    data = data_for(case, ragged=ragged)
    posterior = case.prior.posterior(*data.observations)
    distribution = posterior.distribution()
    assert isinstance(distribution, MultitaskMultivariateNormal)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (4, case.channels)
    assert distribution.covariance_matrix.dtype == F64
    dense = case.dense.condition(*data.observations)
    size = 4 * case.channels
    for g in range(3):
        rows = slice(g * size, (g + 1) * size)  # of group g, by member and then by channel
        got = distribution.covariance_matrix[g].detach().numpy()
        np.testing.assert_allclose(got, dense.covariance[rows, rows], rtol=1e-9, atol=1e-10)
        assert np.abs(dense.covariance[rows, : g * size]).max(initial=0.0) == 0.0  # nothing between groups is left out
    np.testing.assert_allclose(distribution.mean.detach(), dense.mean, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("ragged", [True, False])
def test_joint_distribution_has_the_marginals_of_the_posterior(case, ragged):
    posterior = case.prior.posterior(*data_for(case, ragged=ragged).observations)
    distribution = posterior.distribution()
    assert torch.equal(distribution.mean, posterior.mean)
    torch.testing.assert_close(distribution.variance, posterior.variance, rtol=1e-9, atol=1e-11)
    covariance = distribution.covariance_matrix
    torch.testing.assert_close(covariance, covariance.mT, rtol=1e-12, atol=1e-13)


def test_group_without_an_observed_member_has_the_joint_distribution_of_the_prior(case):
    data = data_for(case)
    data.mask[1] = False
    got = case.prior.posterior(*data.observations).distribution()
    wanted = case.prior(data.x)
    torch.testing.assert_close(got.mean[1], wanted.mean[1], rtol=1e-9, atol=1e-11)
    # (Phi)(Phi)' of a square root in place of K: 1e-8 at a singular K
    torch.testing.assert_close(got.covariance_matrix[1], wanted.covariance_matrix[1], rtol=1e-7, atol=1e-7)


def test_batch_dimensions_stand_in_front(case):
    data = data_for(case, batch=(2,), groups=2)
    whole = case.prior.posterior(*data.observations).distribution()
    assert whole.batch_shape == (2, 2)
    part = case.prior.posterior(*(value[1] for value in data.observations)).distribution()
    torch.testing.assert_close(whole.mean[1], part.mean)
    torch.testing.assert_close(whole.covariance_matrix[1], part.covariance_matrix, rtol=1e-9, atol=1e-11)


def test_gradients_reach_pseudo_observations_and_kernel_through_the_joint_distribution():
    case = CASES["ard"]()
    data = data_for(case)
    data.mean.requires_grad_()
    data.variance.requires_grad_()
    distribution = case.prior.posterior(*data.observations).distribution()
    (distribution.covariance_matrix.square().sum() + distribution.mean.square().sum()).backward()
    assert data.mean.grad[data.mask].abs().min() > 0
    assert data.variance.grad[data.mask].abs().min() > 0
    assert data.variance.grad[~data.mask].abs().max() == 0
    assert case.prior.blocks[0].kernel.base_kernel.raw_lengthscale.grad.abs().min() > 0


# KL terms


def test_kl_terms_are_the_kl_of_local_and_of_global_channels(case):
    posterior = case.prior.posterior(*data_for(case).observations)
    terms = posterior.kl_terms
    assert isinstance(terms, KLTerms)
    assert terms.kl_local.shape == terms.kl_global.shape == (3,)
    torch.testing.assert_close(terms.kl_local + terms.kl_global, posterior.kl)
    is_global = case.prior.is_global
    torch.testing.assert_close(terms.kl_global, posterior.kl_channels[..., is_global].sum(-1))
    torch.testing.assert_close(terms.kl_local, posterior.kl_channels[..., ~is_global].sum(-1))
    assert (terms.kl_local > 0).all()
    assert (terms.kl_global > 0).all() == bool(is_global.any())


@pytest.mark.parametrize("which", ["local", "global"])
def test_prior_of_one_kind_of_channels_has_no_kl_of_the_other(which):
    block = GlobalChannels(2) if which == "global" else LocalChannels(2, gpytorch.kernels.RBFKernel())
    prior = FactorizedGPPrior([block])
    posterior = prior.posterior(torch.rand(3, 4, 1), torch.randn(3, 4, 2), torch.ones(3, 4, 2))
    own, other = posterior.kl_terms if which == "local" else reversed(posterior.kl_terms)
    assert torch.equal(other, torch.zeros(3, dtype=F64))
    assert torch.equal(own, posterior.kl)


def test_global_channels_are_named_in_the_order_of_the_channels():
    wanted = {
        "paper": [False, False, True, True],
        "many_blocks": [True, False, True, True, False, False],
        "coregionalized": [False, False, False, True],
        "independent": [False, False, False, True],
    }
    for name, expected in wanted.items():
        prior = ALL[name]().prior
        assert prior.is_global.tolist() == expected
        assert prior.is_global.dtype == torch.bool
        assert prior.num_global_channels == sum(expected)
        assert prior.num_local_channels == len(expected) - sum(expected)
        assert not prior.couples_groups
        assert isinstance(prior, LatentPrior)


# base classes


def test_base_classes_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        Prediction()
    with pytest.raises(TypeError, match="abstract"):
        Posterior()
    assert Prediction.__abstractmethods__ == {"marginals", "rsample_jointly"}
    more = {"kl_terms", "predict_checked", "distribution"}
    assert Posterior.__abstractmethods__ == Prediction.__abstractmethods__ | more


class Wide(Prediction):
    """z ~ N(x, 4), independent."""

    def __init__(self, x):
        self.x = x

    @property
    def marginals(self):
        return self.x, torch.full_like(self.x, 4.0)

    def rsample_jointly(self, sample_shape):
        return self.x.expand(*sample_shape, *self.x.shape)


class WidePosterior(Wide, Posterior):
    @property
    def kl_terms(self):
        return KLTerms(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25]))

    def predict_checked(self, x_new):
        return Wide(x_new)

    def distribution(self):
        return MultitaskMultivariateNormal(self.mean, 4 * torch.eye(self.x[0].numel()).expand(len(self.x), -1, -1))


def test_a_posterior_of_somebody_else_gets_the_kl_the_draws_and_the_checks():
    posterior = WidePosterior(torch.zeros(2, 3, 1))
    assert posterior.kl.tolist() == [1.5, 2.25]
    assert torch.equal(posterior.rsample((5,)), torch.zeros(5, 2, 3, 1))
    draws = posterior.rsample((20_000,), marginals=True)
    assert draws.shape == (20_000, 2, 3, 1)
    torch.testing.assert_close(draws.var(0), posterior.variance, rtol=0, atol=5 * 4 * (2 / 20_000) ** 0.5)
    assert posterior.predict(torch.ones(2, 7, 1)).mean.shape == (2, 7, 1)
    with pytest.raises(
        ShapeError, match=r"x_new: expected shape \(2, Q\*, 1\), got \(3, 7, 1\). It needs the groups of"
    ):
        posterior.predict(torch.ones(3, 7, 1))
    with pytest.raises(ArgumentError, match=r"sample_shape: expected a sequence of integers, got 5. Try \[5\]"):
        posterior.rsample(5)
