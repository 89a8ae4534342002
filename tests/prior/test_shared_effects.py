"""Effects that all groups share, against dense Gaussians in NumPy: K + Phi S Phi' over every row of every group."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from prior_cases import answers, assert_same

import oracles
from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.feature_maps import CategoricalFeatures, LinearFeatures, PeriodicFeatures, SelectedFeatures
from fgp_gpytorch.prior import SharedEffects

F64 = torch.float64
CATEGORIES, COLUMNS = 2, 4  # three features of a category, one of a line


def _rbf(lengthscale, outputscale=1.0):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=[0])).double()
    kernel.base_kernel.lengthscale = torch.tensor(lengthscale, dtype=F64)
    kernel.outputscale = torch.tensor(outputscale, dtype=F64)
    return kernel


def _effects():
    """Of a category in column 1 and of a line in column 0."""
    return [SelectedFeatures(CategoricalFeatures(CATEGORIES), [1]), SelectedFeatures(LinearFeatures(), [0])]


def _phi(row, scale):
    """Features of one row on one channel, by hand."""
    code = int(row[1]) if row[1] in range(CATEGORIES) else CATEGORIES
    return [*(scale[0] * (code == c) for c in range(CATEGORIES + 1)), scale[1] * row[0]]


def _prior(blocks, seed=0, dtype=F64):
    """A prior whose q(w) is not its start, and the same q(w) and scales as arrays."""
    prior = FactorizedGPPrior(blocks, effects=_effects(), dtype=dtype)
    effects, generator = prior.effects, torch.Generator().manual_seed(seed)
    for parameter, size in ((effects.mean, 1.0), (effects.raw_root, 0.4), (effects.raw_scale, 0.5)):
        parameter.data += size * torch.randn(parameter.shape, generator=generator, dtype=F64)
    root = effects.root.detach().double().numpy()
    return prior, effects.mean.detach().double().numpy(), root, effects.scale.detach().double().numpy()


def _data(channels, groups=3, members=4, new=2, seed=0):
    g = torch.Generator().manual_seed(seed)

    def features(count):
        time = 2 * torch.rand(groups, count, 1, generator=g, dtype=F64)
        code = torch.randint(-1, CATEGORIES + 1, (groups, count, 1), generator=g).double()
        return torch.cat([time, code], dim=-1)

    mean = 1.5 * torch.randn(groups, members, channels, generator=g, dtype=F64)
    variance = 0.02 * 100 ** torch.rand(groups, members, channels, generator=g, dtype=F64)
    mask = torch.ones(groups, members, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = False
    return features(members), mean, variance, mask, features(new)


def _coregionalized():
    base = gpytorch.kernels.PeriodicKernel().double()
    base.lengthscale, base.period_length = torch.tensor(0.8, dtype=F64), torch.tensor(2 * math.pi, dtype=F64)
    block = CoregionalizedChannels(2, 3, SelectedPeriodic(base, harmonics=2))
    block.loadings.data = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
    weights = block.loadings.tolist()
    kernels = [[oracles.coregionalized(a, b, 0.8, 2) for b in weights] for a in weights]
    return block, kernels


class SelectedPeriodic(PeriodicFeatures):
    """Periodic features of the first column."""

    def forward(self, x):
        return super().forward(x[..., :1])


def _case(name):
    """Blocks, kernels and means of their channels, and kernels between different channels."""
    line = gpytorch.means.ConstantMean().double()
    line.constant.data = torch.tensor(0.8, dtype=F64)
    rbf, constant = oracles.on(oracles.rbf(0.9, 1.3), 0), oracles.constant(1.4)
    if name == "local and global":
        blocks = [LocalChannels(2, _rbf(0.9, 1.3), line), GlobalChannels(1, 1.4)]
        return blocks, [rbf, rbf, constant], [0.8, 0.8, 0.0], {}
    block, kernels = _coregionalized()
    blocks = [GlobalChannels(1, 1.4), block]
    pairs = {(1, 2): kernels[0][1], (2, 1): kernels[1][0]}
    return blocks, [constant, kernels[0][0], kernels[1][1]], [0.0] * 3, pairs


def _dense(kernels, means, pairs, weights, root, scale):
    """The oracle of K + Phi S Phi' and mean m + Phi m_w; a root of None leaves S out."""

    def with_effect(kernel, channel):
        def k(a, b, m=math):
            left, right = (root[channel].T @ np.array(_phi(row, scale[:, channel])) for row in (a, b))
            return kernel(a, b, m) + left @ right

        return kernel if root is None else k

    def mean_of(channel):
        return lambda a, m: means[channel] + float(np.dot(_phi(a, scale[:, channel]), weights[channel]))

    channels = range(len(kernels))
    return oracles.DenseGaussian([with_effect(kernels[c], c) for c in channels], [mean_of(c) for c in channels], pairs)


def _close(got, wanted, rtol=1e-8, atol=1e-9):
    np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=rtol, atol=atol)


CASES = ["local and global", "coregionalized"]


@pytest.mark.parametrize("name", CASES)
def test_new_groups_have_the_dense_posterior_under_q_of_the_weights(name):
    blocks, kernels, means, pairs = _case(name)
    prior, weights, root, scale = _prior(blocks)
    x, mean, variance, mask, x_new = _data(3)
    posterior = prior.posterior(x, mean, variance, mask)
    dense = _dense(kernels, means, pairs, weights, root, scale)
    wanted = dense.condition(x, mean, variance, mask, x_new)
    _close(posterior.mean, wanted.mean)
    _close(posterior.variance, wanted.variance)
    predicted = posterior.predict(x_new)
    _close(predicted.mean, wanted.new_mean)
    _close(predicted.variance, wanted.new_variance)
    for g in range(3):
        alone = dense.condition(x[g : g + 1], mean[g : g + 1], variance[g : g + 1], mask[g : g + 1])
        _close(posterior.log_evidence[g], alone.log_evidence)
        _close(posterior.kl[g], alone.kl)
        covariance = posterior.distribution().covariance_matrix[g]
        _close(covariance, alone.covariance)


@pytest.mark.parametrize("name", CASES)
def test_seen_groups_keep_q_of_the_weights(name):
    """E over q(w) of the dense posterior given w, which is linear in w: its mean, variance, KL and evidence."""
    blocks, kernels, means, pairs = _case(name)
    prior, weights, root, scale = _prior(blocks)
    x, mean, variance, mask, x_new = _data(3)
    posterior = prior.posterior(x, mean, variance, mask, seen=True)

    def given(w):
        return _dense(kernels, means, pairs, w, None, scale).condition(x, mean, variance, mask, x_new)

    centre = given(weights)
    wanted = {"variance": centre.variance, "new": centre.new_variance, "kl": centre.kl, "log": centre.log_evidence}
    for channel in range(3):
        for column in range(COLUMNS):
            step = np.zeros_like(weights)
            step[channel] = root[channel][:, column]
            up, down = given(weights + step), given(weights - step)
            wanted["variance"] = wanted["variance"] + (up.mean - centre.mean) ** 2
            wanted["new"] = wanted["new"] + (up.new_mean - centre.new_mean) ** 2
            wanted["kl"] += (up.kl + down.kl) / 2 - centre.kl  # quadratic in w
            wanted["log"] += (up.log_evidence + down.log_evidence) / 2 - centre.log_evidence
    _close(posterior.mean, centre.mean)
    _close(posterior.variance, wanted["variance"])
    predicted = posterior.predict(x_new)
    _close(predicted.mean, centre.new_mean)
    _close(predicted.variance, wanted["new"])
    _close(posterior.kl.sum(), wanted["kl"])
    _close(posterior.log_evidence.sum(), wanted["log"])


@pytest.mark.parametrize("name", CASES)
def test_given_weights_are_a_part_of_the_mean(name):
    blocks, kernels, means, pairs = _case(name)
    prior, weights, _, scale = _prior(blocks)
    x, mean, variance, mask, x_new = _data(3)
    posterior = prior.condition(x, mean, variance, mask, weights=torch.as_tensor(weights))
    wanted = _dense(kernels, means, pairs, weights, None, scale).condition(x, mean, variance, mask, x_new)
    _close(posterior.mean, wanted.mean)
    _close(posterior.variance, wanted.variance)
    _close(posterior.predict(x_new).mean, wanted.new_mean)
    _close(posterior.kl.sum(), wanted.kl)
    _close(posterior.log_evidence.sum(), wanted.log_evidence)


class _Study:
    """Three groups of one channel with all their rows in one dense covariance, w ~ N(0, I) shared by all."""

    def __init__(self, seed=0):
        self.prior = FactorizedGPPrior([LocalChannels(1, _rbf(0.9, 1.3))], effects=_effects())
        self.prior.effects.scale = torch.tensor([[0.7], [1.6]])
        self.x, self.mean, self.variance, _, self.x_new = _data(1, seed=seed)
        scale = self.prior.effects.scale.detach().numpy()[:, 0]
        rows, new = self.x.reshape(-1, 2).numpy(), self.x_new.reshape(-1, 2).numpy()
        self.phi = np.array([_phi(row, scale) for row in rows])
        phi_new = np.array([_phi(row, scale) for row in new])
        group, new_group = np.repeat(range(3), 4), np.repeat(range(3), 2)
        rbf = oracles.rbf(0.9, 1.3)

        def k(a, b, left, right):
            return np.array([[rbf(r[:1], s[:1]) * (g == h) for s, h in zip(b, right, strict=True)]
                             for r, g in zip(a, left, strict=True)])  # fmt: skip

        own = k(rows, rows, group, group) + np.diag(self.variance.flatten().numpy())
        noisy = own + self.phi @ self.phi.T
        cross = k(new, rows, new_group, group) + phi_new @ self.phi.T
        y = self.mean.flatten().numpy()
        self.new_mean = cross @ np.linalg.solve(noisy, y)
        prior_variance = 1.3 + (phi_new**2).sum(1)
        self.new_variance = prior_variance - np.einsum("ij,ji->i", cross, np.linalg.solve(noisy, cross.T))
        self.log_evidence = -0.5 * (
            y @ np.linalg.solve(noisy, y) + np.linalg.slogdet(noisy)[1] + len(y) * math.log(2 * math.pi)
        )
        precision = np.eye(COLUMNS) + self.phi.T @ np.linalg.solve(own, self.phi)
        self.covariance = np.linalg.inv(precision)  # of p(w | all groups)
        self.weights = self.covariance @ self.phi.T @ np.linalg.solve(own, y)

    def bound(self):
        posterior = self.prior.posterior(self.x, self.mean, self.variance, seen=True)
        return posterior.log_evidence.sum() - self.prior.kl_effects()


def test_the_bound_with_the_optimal_q_is_the_dense_evidence_and_predictions_are_the_dense_gps():
    study = _Study()
    effects = study.prior.effects
    assert study.bound().item() < study.log_evidence - 0.1  # q(w) = p(w)
    root = torch.linalg.cholesky(torch.as_tensor(study.covariance))
    effects.mean.data[0] = torch.as_tensor(study.weights)
    effects.raw_root.data[0] = root.tril(-1) + root.diagonal().log().diag()
    _close(study.bound(), study.log_evidence)
    predicted = study.prior.posterior(study.x, study.mean, study.variance, seen=True).predict(study.x_new)
    _close(predicted.mean.flatten(), study.new_mean)
    _close(predicted.variance.flatten(), study.new_variance)


def test_gradients_lead_q_to_the_posterior_of_the_weights():
    study = _Study()
    effects = study.prior.effects
    parameters = [effects.mean, effects.raw_root]
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -study.bound()
        loss.backward()
        return loss

    optimizer.step(closure)
    _close(study.bound(), study.log_evidence, rtol=1e-7)
    _close(effects.mean[0], study.weights, atol=1e-4)
    covariance = effects.root[0] @ effects.root[0].mT
    _close(covariance, study.covariance, rtol=1e-3, atol=1e-4)


def test_a_category_without_data_keeps_its_prior():
    study = _Study()
    study.x[..., 1] = study.x[..., 1].clamp(0, 0)  # one category
    effects = study.prior.effects
    gradient = torch.autograd.grad(study.bound(), [effects.mean, effects.raw_root])
    assert bool((gradient[0][0, [1, 2]] == 0).all())
    assert gradient[0][0, 0].abs() > 1e-3
    for row in (1, 2):  # neither the known category nor the unseen one
        others = [c for c in range(COLUMNS) if c != row]
        assert bool((gradient[1][0, row, others].abs() < 1e-12).all())
        assert abs(gradient[1][0, row, row].item()) < 1e-12
    effects.mean.data[0, 0] = 5.0
    x = torch.tensor([[[0.0, 1.0]], [[0.0, 99.0]], [[0.0, 0.0]]], dtype=F64)
    new = study.prior(x)
    assert new.mean.flatten().tolist() == pytest.approx([0.0, 0.0, 5.0 * effects.scale[0, 0].item()])
    assert new.variance.flatten()[1].item() == pytest.approx(1.3 + effects.scale[0, 0].item() ** 2)


def test_kl_is_that_of_the_dense_gaussians():
    prior, weights, root, _ = _prior([LocalChannels(2, _rbf(0.9))])
    covariance = np.einsum("cik,cjk->cij", root, root)
    wanted = sum(
        oracles.gaussian_kl(m, s, np.zeros(COLUMNS), np.eye(COLUMNS)) for m, s in zip(weights, covariance, strict=True)
    )
    _close(prior.kl_effects(), wanted)
    assert SharedEffects(_effects(), 2).kl().item() == 0
    q, p = prior.effects.distribution(), prior.effects.prior_distribution()
    assert q.event_shape == p.event_shape == (2, COLUMNS)


def test_prior_and_draws_have_the_dense_covariance():
    blocks, kernels, means, pairs = _case("coregionalized")
    prior, weights, root, scale = _prior(blocks)
    x = _data(3)[0]
    dense = _dense(kernels, means, pairs, weights, root, scale)
    distribution = prior(x)
    for g in range(3):
        rows = dense.rows(x[g : g + 1])
        _close(distribution.covariance_matrix[g], dense.covariance(rows, rows))
        _close(distribution.mean[g].flatten(), dense.prior_mean(rows))
    draws = prior.sample(x, (60_000,)).detach()
    assert draws.shape == (60_000, 3, 4, 3)
    one = draws[:, 0].flatten(1)
    scale_of = one.var(0).max()
    wanted = torch.as_tensor(dense.covariance(dense.rows(x[:1]), dense.rows(x[:1])))
    assert (one.T.cov() - wanted).abs().max() < 6 * scale_of * (2 / 60_000) ** 0.5
    # new groups share one draw of the weights
    left, right = ([np.array(_phi(r, scale[:, 0])) @ root[0] for r in x[g].tolist()] for g in (0, 1))
    between = torch.stack([draws[:, 0, 0, 0], draws[:, 1, 0, 0]]).cov()[0, 1]
    assert abs(between.item() - left[0] @ right[0]) < 6 * scale_of * (2 / 60_000) ** 0.5
    assert prior.sample(x[0]).shape == (4, 3)


@pytest.mark.parametrize("seen", [False, True])
def test_joint_draws_have_the_moments_of_the_posterior(seen):
    blocks, *_ = _case("local and global")
    prior, *_ = _prior(blocks)
    x, mean, variance, mask, x_new = _data(3)
    posterior = prior.posterior(x, mean, variance, mask, seen=seen)
    paths = posterior.rsample_paths(x_new, (40_000,))
    tolerance = 6 * posterior.predict(x_new).variance.max() * (2 / 40_000) ** 0.5
    assert (paths.new.var(0) - posterior.predict(x_new).variance).abs().max() < tolerance
    assert (paths.members.mean(0) - posterior.mean).abs().max() < tolerance
    joint = posterior.distribution().covariance_matrix[0]
    assert (paths.members[:, 0].flatten(1).T.cov() - joint).abs().max() < tolerance


def test_channels_without_memory_take_effects_too():
    prior, weights, root, scale = _prior([IndependentChannels(1)])
    x, mean, variance, mask, x_new = _data(1)
    posterior = prior.posterior(x, mean, variance, mask)
    observed = mask[2]
    phi = np.array([_phi(row, scale[:, 0]) for row in x[2].tolist()]) @ root[0]
    phi_new = np.array([_phi(row, scale[:, 0]) for row in x_new[2].tolist()])
    noisy = np.eye(4) + np.diag(variance[2, :, 0]) + phi @ phi.T
    residual = mean[2, :, 0].numpy() - np.array([_phi(row, scale[:, 0]) for row in x[2].tolist()]) @ weights[0]
    assert bool(observed.all())
    cross = phi_new @ root[0] @ phi.T
    wanted = phi_new @ weights[0] + cross @ np.linalg.solve(noisy, residual)
    _close(posterior.predict(x_new).mean[2, :, 0], wanted)
    spread = 1 + ((phi_new @ root[0]) ** 2).sum(1) - np.einsum("ij,ji->i", cross, np.linalg.solve(noisy, cross.T))
    _close(posterior.predict(x_new).variance[2, :, 0], spread)
    given = prior.condition(x, mean, variance, mask, weights=torch.as_tensor(weights))
    _close(given.predict(x_new).mean[2, :, 0], phi_new @ weights[0])


def test_effects_that_are_zero_change_nothing():
    blocks, *_ = _case("local and global")
    plain = FactorizedGPPrior(blocks)
    prior, *_ = _prior(_case("local and global")[0])
    prior.effects.mean.data.zero_()
    prior.effects.scale = 1e-9
    x, mean, variance, mask, x_new = _data(3)
    for seen in (False, True):
        one, two = (p.posterior(x, mean, variance, mask, seen=seen) for p in (plain, prior))
        assert_same(answers(one, x_new), answers(two, x_new), rtol=1e-7, atol=1e-8)


def test_single_precision_agrees_with_double():
    x, mean, variance, mask, x_new = _data(3)
    variance = variance.clamp_min(0.1)
    double, *_ = _prior(_case("local and global")[0])
    single, *_ = _prior(_case("local and global")[0], dtype=torch.float32)
    for seen in (False, True):
        one, two = (p.posterior(x, mean, variance, mask, seen=seen) for p in (double, single))
        wanted = {name: value.double() for name, value in answers(two, x_new).items()}
        assert_same(answers(one, x_new), wanted, rtol=2e-3, atol=2e-3)  # 1e4 eps: the precisions reach 10


def test_wrong_effects_are_refused():
    block = LocalChannels(1, _rbf(1.0))
    with pytest.raises(ArgumentError, match=r"effects: expected a list of feature maps, got list\. Try"):
        FactorizedGPPrior([block], effects=[])
    with pytest.raises(ArgumentError, match=r"effects: expected a list of feature maps, got LinearFeatures\. Try"):
        FactorizedGPPrior([block], effects=LinearFeatures())
    with pytest.raises(ArgumentError, match=r"effects: expected a feature map, got RBFKernel\. Try"):
        FactorizedGPPrior([block], effects=[gpytorch.kernels.RBFKernel()])
    one = LinearFeatures()
    with pytest.raises(ArgumentError, match="effects: expected different maps, got one twice"):
        FactorizedGPPrior([block], effects=[one, one])
