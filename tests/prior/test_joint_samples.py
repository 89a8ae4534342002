"""Joint draws against the joint covariance of the dense Gaussian, and coherence within a draw.

Moments of S draws are compared entry by entry: the mean within 5 sqrt(C_ii / S), the covariance within
5 sqrt((C_ii C_jj + C_ij^2) / S), five standard errors of a Gaussian's sample moments (Isserlis).
"""

import numpy as np
import pytest
import torch
from prior_cases import CASES, data_for

S = 4000


@pytest.fixture(params=["paper", "means", "many_blocks", "markov"])
def case(request):
    return CASES[request.param]()


def _assert_moments(draws: torch.Tensor, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Draws (S, N)."""
    z = draws.detach().numpy()
    count = len(z)
    variance = np.diag(covariance)
    error = np.abs(z.mean(0) - mean)
    assert (error <= 5 * np.sqrt(variance.clip(0) / count) + 1e-6).all(), error.max()
    centred = z - mean
    error = np.abs(centred.T @ centred / count - covariance)
    spread = np.sqrt((np.outer(variance, variance).clip(0) + covariance**2) / count)
    assert (error <= 5 * spread + 1e-6).all(), (error / (spread + 1e-12)).max()


def _flat(*draws: torch.Tensor) -> torch.Tensor:
    return torch.cat([d.flatten(1) for d in draws], dim=1)


def test_posterior_draws_have_the_dense_joint_covariance(case):
    data = data_for(case, groups=2, members=3, new=2)
    dense = case.dense.condition(*data.observations)
    draws = case.prior.posterior(*data.observations).rsample((S,))
    assert draws.shape == (S, *data.mean.shape)
    _assert_moments(_flat(draws), dense.mean.reshape(-1), dense.covariance)


def test_paths_at_old_and_new_members_have_the_dense_joint_covariance(case):
    data = data_for(case, groups=2, members=3, new=2)
    dense = case.dense.condition(*data.observations, data.x_new)
    paths = case.prior.posterior(*data.observations).rsample_paths(data.x_new, (S,))
    assert paths.members.shape == (S, *data.mean.shape)
    assert paths.new.shape == (S, *data.x_new.shape[:-1], case.channels)
    _assert_moments(_flat(paths.members, paths.new), dense.joint_mean, dense.joint_covariance)


def test_predicted_draws_have_the_dense_joint_covariance(case):
    data = data_for(case, groups=2, members=3, new=3)
    dense = case.dense.condition(*data.observations, data.x_new)
    draws = case.prior.posterior(*data.observations).predict(data.x_new).rsample((S,))
    new = slice(data.mean.numel(), None)
    _assert_moments(_flat(draws), dense.joint_mean[new], dense.joint_covariance[new, new])


def test_prior_draws_have_the_dense_prior_covariance(case):
    data = data_for(case, groups=2, members=3)
    rows = case.dense.rows(data.x)
    draws = case.prior.sample(data.x, (S,))
    assert draws.shape == (S, *data.mean.shape)
    _assert_moments(_flat(draws), case.dense.prior_mean(rows), case.dense.covariance(rows, rows))


def test_marginal_draws_are_independent_with_the_posterior_variances(case):
    data = data_for(case, groups=2, members=3, new=2)
    dense = case.dense.condition(*data.observations, data.x_new)
    posterior = case.prior.posterior(*data.observations)
    draws = posterior.rsample((S,), marginals=True)
    _assert_moments(_flat(draws), dense.mean.reshape(-1), np.diag(dense.variance.reshape(-1)))
    draws = posterior.predict(data.x_new).rsample((S,), marginals=True)
    _assert_moments(_flat(draws), dense.new_mean.reshape(-1), np.diag(dense.new_variance.reshape(-1)))


def test_path_has_one_value_at_one_place(case):
    """x_new equal to an old x, and an x that repeats: the same value in the same draw, to the root of rounding."""
    data = data_for(case)
    data.x[:, 3] = data.x[:, 0]
    paths = case.prior.posterior(*data.observations).rsample_paths(data.x, (7,))
    torch.testing.assert_close(paths.new, paths.members, rtol=0, atol=1e-6)
    torch.testing.assert_close(paths.members[:, :, 3], paths.members[:, :, 0], rtol=0, atol=1e-6)
    assert paths.members.std(0).min() > 1e-4  # the draws themselves differ
    sampled = case.prior.sample(data.x, (7,))
    torch.testing.assert_close(sampled[:, :, 3], sampled[:, :, 0], rtol=0, atol=1e-6)


def test_global_channels_are_constant_within_a_draw_and_differ_between_groups():
    case = CASES["paper"]()  # channels 2 and 3 are global
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    paths = posterior.rsample_paths(data.x_new, (5,))
    everything = torch.cat([paths.members, paths.new], dim=-2)[..., 2:]
    assert (everything == everything[..., :1, :]).all()
    assert (everything[:, 0] != everything[:, 1]).all()
    for draws in (posterior.rsample((5,))[..., 2:], case.prior.sample(data.x, (5,))[..., 2:]):
        assert (draws == draws[..., :1, :]).all()
        assert (draws[:, 0] != draws[:, 1]).all()
        assert (draws[0] != draws[1]).all()
    alone = posterior.rsample((5,), marginals=True)[..., 2:]
    assert (alone[..., 1:, :] != alone[..., :1, :]).all()


def test_single_group_may_be_sampled_without_its_group_dimension():
    case = CASES["paper"]()
    x = data_for(case).x
    torch.manual_seed(1)
    grouped = case.prior.sample(x[:1], (3,))
    torch.manual_seed(1)
    torch.testing.assert_close(case.prior.sample(x[0], (3,)), grouped[:, 0], rtol=0, atol=0)
    assert case.prior.sample(x[0]).shape == (4, 4)
    assert case.prior.sample(x).shape == (3, 4, 4)


def test_reparameterized_gradient_of_the_second_moment_equals_the_analytic_one(case):
    """E[z^2] = m^2 + v; gradients of 40 independent batches give the standard error of their mean."""
    data = data_for(case, groups=2, members=3, new=2)
    for name in ("mean", "variance"):
        getattr(data, name).requires_grad_()
    leaves = [data.mean, data.variance, *(p for p in case.prior.parameters() if p.requires_grad)]
    posterior = case.prior.posterior(*data.observations)
    predicted = posterior.predict(data.x_new)
    analytic = (posterior.mean.square() + posterior.variance).sum()
    analytic = analytic + (predicted.mean.square() + predicted.variance).sum()
    wanted = torch.autograd.grad(analytic, leaves, retain_graph=True)
    parts = []
    for _ in range(40):
        paths = posterior.rsample_paths(data.x_new, (100,))
        total = (paths.members.square().sum() + paths.new.square().sum()) / 100
        parts.append(torch.autograd.grad(total, leaves, retain_graph=True))
    for i, gradient in enumerate(wanted):
        stack = torch.stack([part[i] for part in parts])
        error = stack.std(0) / 40**0.5
        assert ((stack.mean(0) - gradient).abs() <= 5 * error + 1e-7).all(), i


@pytest.mark.parametrize("marginals", [False, True])
def test_gradient_of_a_draw_passes_gradcheck(marginals):
    case = CASES["means"]()
    data = data_for(case, groups=2, members=3, new=2)

    def draw(x, mean, variance, x_new):
        torch.manual_seed(5)
        posterior = case.prior.posterior(x, mean, variance, data.mask)
        if marginals:
            return posterior.rsample(marginals=True), posterior.predict(x_new).rsample(marginals=True)
        return tuple(posterior.rsample_paths(x_new))

    inputs = [t.requires_grad_() for t in (data.x, data.mean, data.variance, data.x_new)]
    # the joint covariance of five places is near singular: central differences keep 1e-5
    assert torch.autograd.gradcheck(draw, inputs, atol=1e-5, rtol=1e-3)


def test_whitened_distributions_agree_with_the_posterior():
    """z = m + Phi u with u ~ q(u): the Pyro pair's distributions have the posterior's moments and KL."""
    case = CASES["many_blocks"]()
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    means, kls = [], []
    for block, q in zip(case.prior.blocks, posterior.whitened_distributions(), strict=True):
        assert q.batch_shape == (3,)
        root = block.covariance_root(posterior.x)
        base = q.base_dist
        means.append((block.prior_mean(posterior.x) + (root @ base.mean.unsqueeze(-1)).squeeze(-1)).mT)
        identity = torch.eye(base.event_shape[-1], dtype=torch.float64)
        p = torch.distributions.MultivariateNormal(torch.zeros_like(base.mean), identity)
        q_plain = torch.distributions.MultivariateNormal(base.mean, base.covariance_matrix)
        kls.append(torch.distributions.kl_divergence(q_plain, p).sum(-1))
    torch.testing.assert_close(torch.cat(means, dim=-1), posterior.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sum(kls), posterior.kl, rtol=1e-6, atol=1e-7)
