"""Mean and covariance of fitted groups, beside loops over groups with dense covariances in NumPy."""

import math

import gpytorch
import numpy as np
import pytest
import torch

from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.prior import GroupDistribution, IndependentChannels
from oracles import constant, coregionalized, matern32, rbf

LENGTHSCALES, SCALE, LEVEL, MIDDLE = (0.9, 0.5), 1.7, 0.6, 0.3
SIZES = (4, 2, 5, 3, 1)


def local_prior(kernel=gpytorch.kernels.RBFKernel):
    """Two local channels with lengthscales and a mean of their own, and a global one of variance 0.6."""
    base = kernel(batch_shape=torch.Size([2]))
    base.lengthscale = torch.tensor(LENGTHSCALES).reshape(2, 1, 1)
    scaled = gpytorch.kernels.ScaleKernel(base)
    scaled.outputscale = SCALE
    mean = gpytorch.means.ConstantMean()
    mean.initialize(constant=MIDDLE)
    level = gpytorch.means.ConstantMean()
    level.initialize(constant=-0.4)
    return FactorizedGPPrior([LocalChannels(2, scaled, mean), GlobalChannels(1, variance=LEVEL, mean=level)])


def pseudo_observations(channels, sizes=SIZES, seed=0):
    """Ragged groups: x in [0, 3], means of spread 2 away from the prior's, variances from 0.1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    members = max(sizes)
    x = 3 * torch.rand(len(sizes), members, 1, generator=generator, dtype=torch.float64)
    mean = 2 * torch.randn(len(sizes), members, channels, generator=generator, dtype=torch.float64) + 1
    variance = 0.1 + 0.9 * torch.rand(len(sizes), members, channels, generator=generator, dtype=torch.float64)
    return x, mean, variance, torch.arange(members) < torch.tensor(sizes).unsqueeze(-1)


def fitted(prior, x, mean, variance, mask, bandwidth=1.0, num_points=4, parts=1):
    posteriors = [
        prior.posterior(*(value[rows] for value in (x, mean, variance, mask)))
        for rows in torch.arange(len(x)).chunk(parts)
    ]
    return GroupDistribution.fit(prior, posteriors, x[mask], bandwidth, num_points)


def kernel_matrix(k, left, right):
    return np.array([[k((a,), (b,)) for b in right] for a in left])


def factors_of(k, points):
    """L of w = L^-1 (z(X) - m(X) + n), and A(x) = k(x, X) L^-T as a function."""
    among = kernel_matrix(k, points, points)
    cholesky = np.linalg.cholesky(among + 1e-8 * np.mean(np.diag(among)) * np.eye(len(points)))
    return lambda x: np.linalg.solve(cholesky, kernel_matrix(k, points, x)).T


def posterior_of_factors(cross, among, observations, variances):
    """Mean and covariance of w ~ N(0, I) given z + noise, with Cov(z, w) = cross and Cov(z) = among."""
    noisy = among + np.diag(variances)
    gain = np.linalg.solve(noisy, cross).T
    return gain @ observations, np.eye(cross.shape[1]) - gain @ cross


def aggregated(moments):
    means = np.array([mean for mean, _ in moments])
    return means.mean(0), np.cov(means.T, bias=True) + np.mean([covariance for _, covariance in moments], axis=0)


def dense_oracle(distribution, x, mean, variance, mask):
    """Mean and covariance of w, by a loop over groups: channel by channel in one vector."""
    points = distribution.points_0[:, 0].numpy()
    kernels = [rbf(scale, SCALE) for scale in LENGTHSCALES]
    moments = []
    for g in range(len(x)):
        there = mask[g].numpy()
        at = x[g, there, 0].numpy()
        parts = []
        for channel, k in enumerate(kernels):
            y, noise = (value[g, there, channel].numpy() for value in (mean, variance))
            parts.append(posterior_of_factors(factors_of(k, points)(at), kernel_matrix(k, at, at), y - MIDDLE, noise))
        y, noise = (value[g, there, 2].numpy() for value in (mean, variance))
        root, same = np.full((len(at), 1), math.sqrt(LEVEL)), kernel_matrix(constant(LEVEL), at, at)
        parts.append(posterior_of_factors(root, same, y + 0.4, noise))
        sizes = [len(part[0]) for part in parts]
        covariance = np.zeros((sum(sizes), sum(sizes)))
        for start, (_, block) in zip(np.cumsum([0, *sizes]), parts, strict=False):
            covariance[start : start + len(block), start : start + len(block)] = block
        moments.append((np.concatenate([part[0] for part in parts]), covariance))
    return aggregated(moments)


@pytest.mark.parametrize("parts", [1, 3])
def test_local_and_global_factors_have_the_moments_of_a_loop_over_groups(parts):
    prior, data = local_prior(), pseudo_observations(3)
    distribution = fitted(prior, *data, parts=parts)
    mean, covariance = dense_oracle(distribution, *data)
    assert distribution.points_0.shape == (4, 1)
    # the hyperparameters are of float32: 1e-7 of a lengthscale, times the condition of k(X, X)
    np.testing.assert_allclose(distribution.mean.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(distribution.covariance.numpy(), covariance, atol=1e-6)


@pytest.mark.parametrize("bandwidth", [1.0, 0.4])
def test_draws_at_other_x_have_the_mean_and_covariance_of_the_oracle(bandwidth):
    prior, data = local_prior(), pseudo_observations(3)
    distribution = fitted(prior, *data, bandwidth=bandwidth)
    points = distribution.points_0[:, 0].numpy()
    mean, covariance = dense_oracle(distribution, *data)
    x_new = np.array([0.2, 1.4, points[0], 5.0])
    rows = np.zeros((12, len(mean)))
    rest = np.zeros((12, 12))
    for channel, k in enumerate(rbf(scale, SCALE) for scale in LENGTHSCALES):
        here, features = slice(4 * channel, 4 * channel + 4), factors_of(k, points)(x_new)
        rows[here, here] = features
        rest[here, here] = kernel_matrix(k, x_new, x_new) - features @ features.T
    rows[8:, 8] = math.sqrt(LEVEL)
    expected_mean = rows @ mean + np.repeat([MIDDLE, MIDDLE, -0.4], 4)
    expected = rows @ covariance @ rows.T + rest
    torch.manual_seed(0)
    draws = distribution.sample(prior, torch.tensor(x_new).reshape(1, 4, 1), [40_000])  # shape: (s, 1, 4, 3)
    flat = draws[:, 0].mT.flatten(1).numpy()
    sd = np.sqrt(np.diag(expected))
    assert np.abs((flat.mean(0) - expected_mean) / sd).max() < 5 / math.sqrt(40_000)
    # the tails are those of a Gaussian at most: the standard error of a covariance is below 1.5 s s' / sqrt(n)
    assert np.abs((np.cov(flat.T) - expected) / np.outer(sd, sd)).max() < 5 * 1.5 / math.sqrt(40_000)


def test_coregionalized_factors_have_the_moments_of_a_loop_over_groups():
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 0.8
    features = PeriodicFeatures(kernel, harmonics=2)
    prior = FactorizedGPPrior([CoregionalizedChannels(3, 2, features, FourierMean(1))])
    x, mean, variance, mask = pseudo_observations(3)
    distribution = fitted(prior, x, mean, variance, mask)
    weights = prior.blocks[0].loadings.detach().numpy()
    kernels = [[coregionalized(weights[i], weights[j], 0.8, 2) for j in range(3)] for i in range(3)]
    moments = []
    for g in range(len(x)):
        there = mask[g].numpy()
        at = x[g, there, 0].numpy()
        among = np.block([[kernel_matrix(kernels[i][j], at, at) for j in range(3)] for i in range(3)])
        root = prior.blocks[0].covariance_root(x[g : g + 1, there])[0].flatten(0, 1).detach().numpy()
        np.testing.assert_allclose(root @ root.T, among, atol=1e-6)
        y, noise = (value[g, there].T.flatten().numpy() for value in (mean, variance))
        moments.append(posterior_of_factors(root, among, y, noise))
    middle, covariance = aggregated(moments)
    np.testing.assert_allclose(distribution.mean.numpy(), middle, atol=1e-6)
    np.testing.assert_allclose(distribution.covariance.numpy(), covariance, atol=1e-6)
    assert [name for name, _ in distribution.named_buffers()] == ["centers", "root"]


def test_groups_at_their_prior_give_the_prior():
    prior = local_prior()
    x, mean, variance, mask = pseudo_observations(3)
    posterior = prior.posterior(x, mean, variance, torch.zeros_like(mask))
    distribution = GroupDistribution.fit(prior, [posterior], x[mask], 1.0, 4)
    identity = torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(distribution.mean, torch.zeros(9, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(distribution.covariance, identity, rtol=0, atol=1e-12)
    x_new = torch.tensor([[0.1], [1.0], [2.9], [6.0]], dtype=torch.float64).unsqueeze(0)
    torch.manual_seed(1)
    draws = distribution.sample(prior, x_new, [40_000])[:, 0]
    wanted = prior(x_new)
    for channel in range(3):
        covariance = wanted.covariance_matrix[0][channel::3, channel::3].detach()
        sd = covariance.diagonal().sqrt()
        assert ((draws[..., channel].mean(0) - wanted.mean[0, :, channel]) / sd).abs().max() < 5 / 200
        error = (draws[..., channel].T.cov() - covariance) / torch.outer(sd, sd)
        assert error.abs().max() < 5 * math.sqrt(2) / 200


@pytest.mark.parametrize("bandwidth", [0.2, 0.7, 1.0])
def test_no_bandwidth_changes_mean_and_covariance(bandwidth):
    prior, data = local_prior(), pseudo_observations(3)
    one, other = fitted(prior, *data), fitted(prior, *data, bandwidth=bandwidth)
    torch.testing.assert_close(other.mean, one.mean)
    torch.testing.assert_close(other.covariance, one.covariance)
    assert len(other.centers) == (1 if bandwidth == 1 else 5)


def test_masked_member_equals_deleted_member():
    prior = local_prior()
    x, mean, variance, mask = pseudo_observations(3, sizes=(4, 4, 4))
    mask[:, 3] = False
    short = [value[:, :3] for value in (x, mean, variance, mask)]
    masked, deleted = fitted(prior, x, mean, variance, mask), fitted(prior, *short)
    torch.testing.assert_close(masked.mean, deleted.mean)
    torch.testing.assert_close(masked.covariance, deleted.covariance)


def test_few_groups_of_many_factors_have_a_proper_covariance():
    prior = local_prior(lambda batch_shape: gpytorch.kernels.MaternKernel(nu=0.5, batch_shape=batch_shape))
    x, mean, variance, mask = pseudo_observations(3, sizes=(12, 9, 10))
    distribution = fitted(prior, x, mean, variance, mask, num_points=20)
    assert distribution.covariance.shape == (41, 41)
    assert torch.linalg.eigvalsh(distribution.covariance).min() > 1e-3
    draws = distribution.sample(prior, x[:1], [50])
    assert bool(draws.isfinite().all())


def test_draws_are_coherent_over_members_and_new_for_every_group():
    prior, data = local_prior(), pseudo_observations(3)
    distribution = fitted(prior, *data)
    x = torch.tensor([[0.3], [2.2], [0.3]], dtype=torch.float64).expand(4, -1, -1)
    z = distribution.sample(prior, x, (2,))
    assert z.shape == (2, 4, 3, 3)
    # roots of the conditional covariance agree to the square root of rounding at equal x
    torch.testing.assert_close(z[..., 0, :2], z[..., 2, :2], rtol=0, atol=1e-5)
    assert torch.equal(z[..., 0, 2], z[..., 1, 2])
    assert len(z[..., 0, 2].unique()) == 8


def test_groups_at_different_x_are_drawn_as_one_by_one():
    prior, data = local_prior(), pseudo_observations(3)
    distribution = fitted(prior, *data)
    x = torch.tensor([[0.3, 2.0], [1.1, 1.9]], dtype=torch.float64).unsqueeze(-1)
    torch.manual_seed(3)
    both = distribution.sample(prior, x, [20_000])
    for group in range(2):
        alone = distribution.sample(prior, x[[group]], [20_000])[:, 0]
        for channel in range(3):
            wanted, got = alone[..., channel].T.cov(), both[:, group, :, channel].T.cov()
            sd = wanted.diagonal().sqrt()
            assert ((got - wanted) / torch.outer(sd, sd)).abs().max() < 5 * 2 / math.sqrt(20_000)


def test_points_explain_the_kernel_and_stop_when_nothing_is_left():
    prior = local_prior()
    x = torch.linspace(0, 3, 200, dtype=torch.float64).reshape(1, -1, 1)
    data = x, torch.zeros(1, 200, 3, dtype=torch.float64), torch.ones(1, 200, 3, dtype=torch.float64)
    two = [torch.cat([value, value]) for value in data]
    distribution = fitted(prior, *two, torch.ones(2, 200, dtype=torch.bool), num_points=50)
    points = distribution.points_0[:, 0].numpy()
    assert 5 < len(points) < 25
    for k in (rbf(scale, SCALE) for scale in LENGTHSCALES):
        features = factors_of(k, points)(x[0, ::7, 0].numpy())
        assert (SCALE - (features**2).sum(1)).max() < 1e-4 * SCALE


def test_rough_kernels_leave_their_conditional_variance_to_the_prior():
    prior = local_prior(lambda batch_shape: gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=batch_shape))
    data = pseudo_observations(3)
    distribution = fitted(prior, *data, num_points=2)
    far = torch.tensor([[[40.0], [80.0]]], dtype=torch.float64)
    torch.manual_seed(0)
    draws = distribution.sample(prior, far, [40_000])[:, 0, :, 0]
    assert matern32(0.9)((0.0,), (37.0,)) < 1e-12  # so far from the points z is independent of w
    assert (draws.mean(0) - MIDDLE).abs().max() < 5 * math.sqrt(SCALE) / 200
    assert (draws.var(0) / SCALE - 1).abs().max() < 5 * math.sqrt(2) / 200


def test_independent_channels_keep_their_prior():
    prior = FactorizedGPPrior([IndependentChannels(2), GlobalChannels(1)])
    x, mean, variance, mask = pseudo_observations(3)
    distribution = fitted(prior, x, mean, variance, mask)
    assert distribution.centers.shape == (1, 1)
    torch.manual_seed(0)
    draws = distribution.sample(prior, x[:1], [20_000])[:, 0, :, :2]
    assert draws.mean((0, 1)).abs().max() < 5 / math.sqrt(100_000)
    assert (draws.flatten(0, 1).T.cov() - torch.eye(2)).abs().max() < 5 * math.sqrt(2) / math.sqrt(100_000)


def test_float32_prior_gives_the_same_to_its_precision():
    double, data = local_prior(), pseudo_observations(3)
    single = FactorizedGPPrior(list(local_prior().blocks), dtype=torch.float32)
    wanted, got = fitted(double, *data), fitted(single, *data)
    assert got.centers.dtype == torch.float32
    torch.testing.assert_close(got.points_0.double(), wanted.points_0, rtol=1e-6, atol=1e-6)
    # its w has noise of 1e-4 of the variance in place of 1e-8: compare z at the points, which does not see the noise
    for channel, k in enumerate(rbf(scale, SCALE) for scale in LENGTHSCALES):
        at = wanted.points_0[:, 0].numpy()
        here = slice(4 * channel, 4 * channel + 4)
        among = kernel_matrix(k, at, at)
        covariances = []
        for distribution, noise in ((wanted, 1e-8), (got, 1e-4)):
            features = np.linalg.solve(np.linalg.cholesky(among + noise * SCALE * np.eye(4)), among).T
            covariance = distribution.covariance[here, here].double().numpy()
            covariances.append(features @ covariance @ features.T + among - features @ features.T)
        np.testing.assert_allclose(covariances[1], covariances[0], atol=3e-3)


def test_wrong_arguments_are_refused():
    prior, data = local_prior(), pseudo_observations(3)
    with pytest.raises(DataError, match=r"data: expected at least 2 groups, got 1\. Try the training data"):
        fitted(prior, *(value[:1] for value in data))
    distribution = fitted(prior, *data)
    with pytest.raises(ArgumentError, match="prior: expected one of 2 blocks of channels, got 1"):
        distribution.sample(FactorizedGPPrior([GlobalChannels(3)]), data[0])
    with pytest.raises(ShapeError, match=r"x: expected shape \(G, Q, D\), got \(5, 1\)"):
        distribution.sample(prior, data[0][0])
    with pytest.raises(ArgumentError, match="sample_shape"):
        distribution.sample(prior, data[0], 2.5)
    with pytest.raises(ArgumentError, match="num_centers: expected an integer >= 1, got 0"):
        GroupDistribution(0, 3, [None], 1)
