"""The three coupled posteriors: joint distributions against dense Gaussians filled by loops, KL terms, some groups."""

import math

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal

from fgp_gpytorch import GlobalChannels, LocalChannels
from fgp_gpytorch.coupled import (
    CorrelatedPosterior,
    CorrelatedPrior,
    CoupledPosterior,
    CoupledPrior,
    GroupInputs,
    InducingPosterior,
    InducingPrior,
    MeanFieldPosterior,
    ProductPrior,
)
from fgp_gpytorch.errors import DataError, GroupError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures
from fgp_gpytorch.prior import KLTerms

F64 = torch.float64
AMPLITUDE, LENGTHSCALE, ALPHA = 1.7, 0.8, 0.3
SIZES = (3, 1, 4, 2)
GROUPS, MEMBERS, CHANNELS = 4, 4, 3
KINDS = ("correlated", "inducing", "product")


def rbf(a, b):
    return AMPLITUDE * math.exp(-0.5 * ((a - b) / LENGTHSCALE) ** 2)


def rbf_kernel():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    kernel.outputscale = torch.tensor(AMPLITUDE, dtype=F64)
    kernel.base_kernel.lengthscale = torch.tensor(LENGTHSCALE, dtype=F64)
    return kernel


def periodic_kernel():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel()).double()
    kernel.outputscale = torch.tensor(AMPLITUDE, dtype=F64)
    kernel.base_kernel.initialize(
        lengthscale=torch.tensor(LENGTHSCALE, dtype=F64), period_length=torch.tensor(2 * math.pi, dtype=F64)
    )
    return kernel


def make_prior(kind):
    """A local channel and two global ones; three channels of five inducing points; three channels of a product."""
    if kind == "correlated":
        return CorrelatedPrior([LocalChannels(1, rbf_kernel())], 2)
    if kind == "product":
        return ProductPrior(CHANNELS, PeriodicFeatures(periodic_kernel(), harmonics=20), noise=ALPHA)
    prior = InducingPrior(CHANNELS, 2, rbf_kernel(), num_inducing=5)
    g = torch.Generator().manual_seed(7)
    prior.set_inducing(torch.randn(5, 2, generator=g, dtype=F64), torch.linspace(0, 3, 5, dtype=F64).unsqueeze(-1))
    return prior


def make_inputs(seed=0, sizes=SIZES):
    """Vectors of different lengths, ragged groups, NaN where a member was not observed."""
    g = torch.Generator().manual_seed(seed)
    shape = len(sizes), max(sizes)
    mask = torch.arange(shape[1]) < torch.tensor(sizes).unsqueeze(-1)
    mean = torch.randn(*shape, CHANNELS, generator=g, dtype=F64)
    mean[~mask] = math.nan
    return GroupInputs.of(
        torch.randn(shape[0], 2, generator=g, dtype=F64),
        3 * torch.rand(*shape, 1, generator=g, dtype=F64),
        mean,
        0.1 + torch.rand(*shape, CHANNELS, generator=g, dtype=F64),
        mask,
        F64,
    )


def rows_of(vectors, x):
    """(group, vector, x) of every member, group after group."""
    return [(g, vectors[g].tolist(), float(x[g, q, 0])) for g in range(len(x)) for q in range(x.shape[1])]


def filled(left, right, entry):
    out = torch.zeros(len(left), len(right), dtype=F64)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            out[i, j] = entry(a, b)
    return out


def dot(a, b):
    return sum(s * t for s, t in zip(a, b, strict=True))


def product(a, b):
    return dot(a[1], b[1]) * rbf(a[2], b[2])


def dense_correlated(inputs, channel):
    """Mean and covariance (N,), (N, N) of one channel at all members, observed or not."""
    rows = rows_of(inputs.vectors, inputs.x)
    if channel == 0:
        prior = filled(rows, rows, lambda a, b: rbf(a[2], b[2]) if a[0] == b[0] else 0.0)
    else:
        prior = filled(rows, rows, lambda a, b: dot(a[1], b[1]))
    return conditioned(prior, inputs, channel)


def dense_inducing(inputs, channel, prior):
    """Titsias' q: the GP of K_xu K_uu^-1 K_ux, and the variance that u leaves, member by member."""
    rows = rows_of(inputs.vectors, inputs.x)
    points = [
        (None, v.tolist(), float(x))
        for v, x in zip(*(p.detach() for p in (prior.inducing_vectors, prior.inducing_x)), strict=True)
    ]
    among = filled(points, points, product)
    among += 1e-6 * among.diagonal().mean() * torch.eye(5, dtype=F64)
    cross = filled(rows, points, product)
    explained = cross @ torch.linalg.solve(among, cross.T)
    mean, covariance = conditioned(explained, inputs, channel)
    left = filled(rows, rows, product).diagonal() - explained.diagonal()
    return mean, covariance + left.diag()


def conditioned(prior, inputs, channel):
    seen = inputs.mask.flatten().nonzero()[:, 0]
    y = inputs.mean[..., channel].flatten()[seen]
    noisy = prior[seen][:, seen] + inputs.variance[..., channel].flatten()[seen].diag()
    gain = torch.linalg.solve(noisy, prior[seen]).T
    return gain @ y, prior - gain @ prior[seen]


def by_channel(distribution):
    """The covariance (G Q L, G Q L) as (G Q, L, G Q, L)."""
    return distribution.covariance_matrix.detach().reshape(GROUPS * MEMBERS, CHANNELS, GROUPS * MEMBERS, CHANNELS)


@pytest.mark.parametrize("kind", ["correlated", "inducing"])
def test_joint_distribution_is_the_dense_posterior_over_all_groups(kind):
    prior, inputs = make_prior(kind), make_inputs()
    distribution = prior.condition(inputs).distribution()
    covariance = by_channel(distribution)
    for channel in range(CHANNELS):
        if kind == "correlated":
            mean, wanted = dense_correlated(inputs, channel)
        else:
            mean, wanted = dense_inducing(inputs, channel, prior)
        torch.testing.assert_close(distribution.mean[:, channel].detach(), mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(covariance[:, channel, :, channel], wanted, rtol=1e-8, atol=1e-9)
        for other in range(CHANNELS):
            if other != channel:
                assert covariance[:, channel, :, other].abs().max() == 0
    between = covariance.reshape(GROUPS, MEMBERS, CHANNELS, GROUPS, MEMBERS, CHANNELS)[0, :, :, 2]
    assert between[:, 1, :, 1].abs().min() > 0  # groups depend on each other
    if kind == "correlated":
        assert between[:, 0].abs().max() == 0  # but not in their local channels


def test_mean_field_distribution_is_a_diagonal_of_all_members():
    posterior = make_prior("product").condition(make_inputs())
    covariance = posterior.distribution().covariance_matrix
    torch.testing.assert_close(covariance, posterior.variance.flatten().diag(), rtol=1e-12, atol=0)
    inputs = posterior.inputs
    assert torch.equal(posterior.distribution().mean[inputs.mask.flatten()], inputs.mean[inputs.mask])
    # members not observed: the GP given the others, alpha included
    rows = rows_of(inputs.vectors, inputs.x)

    def periodic(a, b):
        return dot(a[1], b[1]) * AMPLITUDE * math.exp(-2 * math.sin((a[2] - b[2]) / 2) ** 2 / LENGTHSCALE)

    kernel, seen = filled(rows, rows, periodic), inputs.mask.flatten()
    gain = torch.linalg.solve(kernel[seen][:, seen] + ALPHA * torch.eye(10, dtype=F64), kernel[seen][:, ~seen]).T
    explained = kernel[~seen][:, ~seen].diagonal() + ALPHA - (gain * kernel[~seen][:, seen]).sum(-1)
    for channel in range(CHANNELS):
        wanted = gain @ inputs.mean[inputs.mask][:, channel]
        torch.testing.assert_close(posterior.distribution().mean[~seen, channel], wanted, rtol=1e-8, atol=1e-9)
        wanted = explained + gain.square() @ inputs.variance[inputs.mask][:, channel]
        got = posterior.distribution().variance[~seen, channel]
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_joint_distribution_has_the_shape_and_the_marginals_of_the_posterior(kind):
    posterior = make_prior(kind).condition(make_inputs())
    distribution = posterior.distribution()
    assert isinstance(distribution, MultitaskMultivariateNormal)
    assert distribution.batch_shape == ()
    assert distribution.event_shape == (GROUPS * MEMBERS, CHANNELS)
    mean, variance = distribution.mean.unflatten(0, (GROUPS, -1)), distribution.variance.unflatten(0, (GROUPS, -1))
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(variance, posterior.variance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_joint_draws_have_the_joint_covariance(kind):
    posterior = make_prior(kind).condition(make_inputs())
    with torch.no_grad():
        distribution = posterior.distribution()
        draws = posterior.rsample((20_000,)).flatten(1)
    covariance = distribution.covariance_matrix
    # an entry's standard error is at most v sqrt(2 / 20000), v the largest variance; 5.5 of them for 2304 entries
    bound = 5.5 * float(covariance.diagonal().max()) * (2 / 20_000) ** 0.5
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=bound)
    torch.testing.assert_close(draws.mean(0), distribution.mean.flatten(), rtol=0, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_vectors_through_the_joint_distribution(kind):
    inputs = make_inputs()
    inputs = inputs._replace(vectors=inputs.vectors.requires_grad_())
    prior = make_prior(kind)
    distribution = prior.condition(inputs).distribution()
    (distribution.covariance_matrix.square().sum() + distribution.mean.square().sum()).backward()
    assert inputs.vectors.grad.abs().min() > 0
    assert all(p.grad is not None for p in prior.parameters() if p.requires_grad)


# KL terms


@pytest.mark.parametrize("kind", KINDS)
def test_kl_terms_sum_to_the_kl(kind):
    posterior = make_prior(kind).condition(make_inputs())
    terms = posterior.kl_terms
    assert isinstance(terms, KLTerms)
    assert terms.kl_local.shape == terms.kl_global.shape == (GROUPS,)
    torch.testing.assert_close(terms.kl_local + terms.kl_global, posterior.kl)
    if kind == "correlated":
        assert torch.equal(terms.kl_local, posterior.local.kl)
        torch.testing.assert_close(terms.kl_global.sum(), posterior.shared.kl().sum())
        assert (terms.kl_global == terms.kl_global[0]).all()  # equal shares
    else:
        assert torch.equal(terms.kl_global, torch.zeros(GROUPS, dtype=F64))
        torch.testing.assert_close(terms.kl_local.sum(), posterior.kl_channels.sum())
        assert (terms.kl_local == terms.kl_local[0]).all()


@pytest.mark.parametrize("kind", ["correlated", "inducing"])
def test_scale_counts_every_member_more_often_and_divides_the_shared_kl(kind):
    """scale = P / G: conditioning on two copies of every group at half the share of the KL each."""
    prior, inputs = make_prior(kind), make_inputs()
    twice, scaled = prior.condition(inputs.cat(inputs)), prior.condition(inputs, scale=2.0)
    torch.testing.assert_close(twice.kl[:GROUPS], scaled.kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(twice.kl_terms.kl_global[:GROUPS], scaled.kl_terms.kl_global, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(twice.mean[:GROUPS], scaled.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(twice.variance[:GROUPS], scaled.variance, rtol=1e-9, atol=1e-10)


# some groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [[3, 0], [1, 1, 2], [0, 1, 2, 3]])
def test_some_groups_are_predicted_as_among_all(kind, order):
    posterior = make_prior(kind).condition(make_inputs())
    x_new, groups = torch.rand(GROUPS, 2, 1, dtype=F64), torch.tensor(order)
    whole, some = posterior.predict(x_new), posterior.predict(x_new[groups], groups)
    assert some.mean.shape == some.variance.shape == (len(order), 2, CHANNELS)
    torch.testing.assert_close(some.mean, whole.mean[groups], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(some.variance, whole.variance[groups], rtol=1e-10, atol=1e-12)
    assert some.rsample((5,)).shape == (5, len(order), 2, CHANNELS)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_of_wrong_groups_or_features_is_refused(kind):
    posterior = make_prior(kind).condition(make_inputs())
    x_new = torch.rand(2, 5, 1, dtype=F64)
    for groups in ([0, 4], [-1, 0]):
        words = (
            rf"groups: expected positions from 0 to 3, the groups .* got {groups[0]} to {groups[1]}\. Try to condition"
        )
        with pytest.raises(GroupError, match=words):
            posterior.predict(x_new, torch.tensor(groups))
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(3, Q\*, 1\), got \(2, 5, 1\)"):
        posterior.predict(x_new, torch.tensor([0, 1, 2]))
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(4, Q\*, 1\), got \(2, 5, 1\)"):
        posterior.predict(x_new)
    with pytest.raises(DataError, match=r"x_new: expected a floating-point dtype, got torch\.int64"):
        posterior.predict(torch.zeros(2, 5, 1, dtype=torch.int64), torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(4, Q\*, 1\), got \(1, 1\)"):
        posterior.predict([[0.0]])


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_parts_joined_are_the_whole(kind):
    prior = make_prior(kind)
    first, second = make_inputs(0, (3, 1)), make_inputs(1, (2, 4))
    joined = prior.condition(first).join(prior.condition(second))
    whole = prior.condition(first.cat(second))
    assert type(joined) is type(whole)
    torch.testing.assert_close(joined.kl, whole.kl)
    x_new = torch.rand(4, 2, 1, dtype=F64)
    torch.testing.assert_close(joined.predict(x_new).mean, whole.predict(x_new).mean)
    torch.testing.assert_close(joined.distribution().covariance_matrix, whole.distribution().covariance_matrix)


# what kind of prior


@pytest.mark.parametrize(
    ("kind", "posterior"), list(zip(KINDS, (CorrelatedPosterior, InducingPosterior, MeanFieldPosterior), strict=True))
)
def test_coupled_priors_couple_groups_and_name_their_global_channels(kind, posterior):
    prior = make_prior(kind)
    assert isinstance(prior, CoupledPrior)
    assert prior.couples_groups
    assert prior.num_channels == CHANNELS
    assert prior.is_global.tolist() == ([False, True, True] if kind == "correlated" else [False] * 3)
    assert isinstance(prior.condition(make_inputs()), posterior)
    assert issubclass(posterior, CoupledPosterior)


def test_global_block_beside_the_local_ones_counts_as_global():
    prior = CorrelatedPrior([GlobalChannels(1), LocalChannels(1, rbf_kernel())], 1)
    assert prior.is_global.tolist() == [True, False, True]
    posterior = prior.condition(make_inputs())
    torch.testing.assert_close(posterior.kl_terms.kl_local, posterior.local.kl_channels[:, 1])
    shared = posterior.shared.kl().sum() / GROUPS
    torch.testing.assert_close(posterior.kl_terms.kl_global, posterior.local.kl_channels[:, 0] + shared)


def test_coupled_base_classes_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        CoupledPosterior(make_inputs())
    with pytest.raises(TypeError, match="abstract"):
        CoupledPrior()
