"""`ProductPrior` against one dense Gaussian over all rows of all groups, its covariance filled in by loops."""

import math

import gpytorch
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from fgp_gpytorch.coupled import GroupInputs, GroupVectors, ProductPrior, unit_length
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures

F64 = torch.float64
AMPLITUDE, LENGTHSCALE, ALPHA = 1.7, 0.8, 0.3
SIZES = (3, 1, 4, 2)  # of the groups with the group vectors 2, 0, 4, 1 of five
INDEX = torch.tensor([2, 0, 4, 1])


with torch.random.fork_rng():
    torch.manual_seed(3)
    VECTORS = GroupVectors(5, 2)


def condition(prior, index, x, mean, variance, mask, **options):
    inputs = GroupInputs.of(unit_length(VECTORS(index)), x, mean, variance, mask, F64)
    return prior.condition(inputs, **options)


def make_prior(**options):
    VECTORS.zero_grad()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel()).double()
    kernel.outputscale = torch.tensor(AMPLITUDE, dtype=F64)
    kernel.base_kernel.initialize(
        lengthscale=torch.tensor(LENGTHSCALE, dtype=F64), period_length=torch.tensor(2 * math.pi, dtype=F64)
    )
    return ProductPrior(3, PeriodicFeatures(kernel, harmonics=20), noise=ALPHA, **options)


def make_problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.tensor(SIZES).unsqueeze(-1)
    x = 7 * torch.rand(4, 4, 1, generator=g, dtype=F64)
    mean = torch.randn(4, 4, 3, generator=g, dtype=F64)
    variance = 0.1 + torch.rand(4, 4, 3, generator=g, dtype=F64)
    return x, mean, variance, mask


def rows_of(x, mask):
    return [(int(INDEX[g]), float(x[g, q, 0])) for g in range(len(x)) for q in range(x.shape[1]) if mask[g, q]]


def covariance(prior, left, right):
    vectors = VECTORS.vectors.detach()
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    out = torch.zeros(len(left), len(right), dtype=F64)
    for i, (d, w) in enumerate(left):
        for j, (e, v) in enumerate(right):
            sigma = float(vectors[d] @ vectors[e])
            out[i, j] = sigma * AMPLITUDE * math.exp(-2 * math.sin((w - v) / 2) ** 2 / LENGTHSCALE)
    return out


def test_kl_is_that_of_the_dense_gaussian_over_all_rows():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, INDEX, x, mean, variance, mask)
    rows = rows_of(x, mask)
    dense = covariance(prior, rows, rows) + ALPHA * torch.eye(10, dtype=F64)
    p = MultivariateNormal(torch.zeros(10, dtype=F64), dense)
    for channel in range(3):
        q = MultivariateNormal(mean[mask][:, channel], torch.diag(variance[mask][:, channel]))
        torch.testing.assert_close(posterior.kl_channels[channel], kl_divergence(q, p), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.kl.sum(), posterior.kl_channels.sum())
    assert posterior.kl.shape == (4,)


def test_kl_of_views_that_repeat_is_that_of_the_dense_gaussian():
    prior, (_, mean, variance, mask) = make_prior(), make_problem()
    x = torch.tensor([0.3, 2.0], dtype=F64)[torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])]
    x = x.unsqueeze(-1)
    assert prior.repeated_rows(unit_length(VECTORS(INDEX)), x, mask).pays
    rows = rows_of(x, mask)
    dense = covariance(prior, rows, rows) + ALPHA * torch.eye(10, dtype=F64)
    posterior = condition(prior, INDEX, x, mean, variance, mask)
    p = MultivariateNormal(torch.zeros(3, 10, dtype=F64), dense)
    q = MultivariateNormal(mean[mask].mT, torch.diag_embed(variance[mask].mT))
    torch.testing.assert_close(posterior.kl_channels, kl_divergence(q, p), rtol=1e-9, atol=1e-9)


def test_views_that_are_learned_get_their_gradient_though_they_repeat():
    prior, (_, mean, variance, mask) = make_prior(), make_problem()
    x = torch.full((4, 4, 1), 0.7, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(condition(prior, INDEX, x, mean, variance, mask).kl.sum(), x)
    assert float(gradient[mask].abs().min()) > 0


def test_predictions_are_the_dense_gps_averaged_over_q():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    x_new = 7 * torch.rand(4, 3, 1, dtype=F64)
    prediction = condition(prior, INDEX, x, mean, variance, mask).predict(x_new)
    rows, new = rows_of(x, mask), rows_of(x_new, torch.ones(4, 3, dtype=torch.bool))
    cross = covariance(prior, new, rows)
    gain = torch.linalg.solve(covariance(prior, rows, rows) + ALPHA * torch.eye(10, dtype=F64), cross.T).T
    explained = covariance(prior, new, new) + ALPHA * torch.eye(12, dtype=F64) - gain @ cross.T
    for channel in range(3):
        wanted = gain @ mean[mask][:, channel]
        torch.testing.assert_close(prediction.mean[..., channel].flatten(), wanted, rtol=1e-8, atol=1e-9)
        spread = explained + gain @ torch.diag(variance[mask][:, channel]) @ gain.T
        torch.testing.assert_close(prediction.variance[..., channel].flatten(), spread.diagonal(), rtol=1e-8, atol=1e-9)
    draws = prediction.rsample((20_000,))[..., 1].flatten(1)
    spread = explained + gain @ torch.diag(variance[mask][:, 1]) @ gain.T
    # an entry's standard error is at most (1.7 + 0.3 + spread) sqrt(2 / 20000) = 0.03
    torch.testing.assert_close(draws.T.cov(), spread, rtol=0, atol=0.15)
    torch.testing.assert_close(draws.mean(0), gain @ mean[mask][:, 1], rtol=0, atol=0.08)


def test_observed_members_keep_their_q_and_the_others_get_the_prediction():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    mean[~mask] = float("nan")
    posterior = condition(prior, INDEX, x, mean, variance, mask)
    assert torch.equal(posterior.mean[mask], mean[mask])
    assert torch.equal(posterior.variance[mask], variance[mask])
    prediction = posterior.predict(x)
    torch.testing.assert_close(posterior.mean[~mask], prediction.mean[~mask])
    torch.testing.assert_close(posterior.variance[~mask], prediction.variance[~mask])
    assert torch.isfinite(posterior.rsample((2,))).all()
    whole = condition(prior, INDEX, x, mean, variance, mask, predict_unobserved=False)
    assert whole.mean is mean


def test_members_of_other_groups_teach_about_a_group():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    x_new = torch.ones(4, 1, 1, dtype=F64)
    before = condition(prior, INDEX, x, mean, variance, mask).predict(x_new).mean[1]
    mean[2] += 1.0
    after = condition(prior, INDEX, x, mean, variance, mask).predict(x_new).mean[1]
    assert (after - before).abs().min() > 0.01


def test_permuted_groups_give_permuted_answers():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    order = torch.tensor([2, 0, 3, 1])
    x_new = torch.rand(4, 2, 1, dtype=F64)
    first = condition(prior, INDEX, x, mean, variance, mask)
    second = condition(prior, INDEX[order], x[order], mean[order], variance[order], mask[order])
    torch.testing.assert_close(first.kl_channels, second.kl_channels)
    torch.testing.assert_close(first.predict(x_new).mean[order], second.predict(x_new[order]).mean)
    torch.testing.assert_close(first.predict(x_new).variance[order], second.predict(x_new[order]).variance)


def test_parts_put_together_are_the_whole():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    whole = condition(prior, INDEX, x, mean, variance, mask)
    parts = [
        condition(prior, INDEX[rows], *(value[rows, :size] for value in (x, mean, variance, mask)))
        for rows, size in ((slice(0, 2), 3), (slice(2, 4), 4))
    ]
    together = parts[0].join(parts[1])
    torch.testing.assert_close(together.kl_channels, whole.kl_channels)
    torch.testing.assert_close(together.predict(x).mean, whole.predict(x).mean)


def test_answer_first_read_without_gradients_has_gradients_later():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, INDEX, x, mean, variance, mask)
    with torch.no_grad():
        value = posterior.kl_channels
    posterior.kl_channels.sum().backward()
    torch.testing.assert_close(value, posterior.kl_channels.detach(), rtol=1e-13, atol=0)
    assert prior.raw_noise.grad.abs() > 0
    assert VECTORS.vectors.grad[INDEX].abs().min() > 0
    assert VECTORS.vectors.grad[3].abs().max() == 0  # the group that is not there


def test_fixed_noise_is_not_learned_and_hyperpriors_count_once():
    prior = make_prior(learn_noise=False)
    assert not prior.raw_noise.requires_grad
    assert float(prior.noise) == pytest.approx(ALPHA, rel=1e-12)
    assert float(prior.log_hyperprior()) == 0.0
    gamma = gpytorch.priors.GammaPrior(20.0, 4.0)
    kernel = prior.features.kernel.base_kernel
    kernel.register_prior("lengthscale_prior", gamma, "lengthscale")
    torch.testing.assert_close(prior.log_hyperprior(), gamma.log_prob(kernel.lengthscale).sum().double())


def test_errors_say_what_to_try():
    prior, (x, mean, variance, mask) = make_prior(), make_problem()
    posterior = condition(prior, INDEX, x, mean, variance, mask)
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(4, Q\*, 1\), got \(2, 4, 1\)"):
        posterior.predict(x[:2])
    with pytest.raises(DataError, match="x_new: expected finite values"):
        posterior.predict(torch.full_like(x, float("nan")))
    with pytest.raises(GroupError, match="expected positions from 0 to 3"):
        posterior.predict(x[:1], torch.tensor([5]))
    with pytest.raises(GroupError, match="expected positions from 0 to 4"):
        VECTORS(torch.tensor([5]))
    with pytest.raises(ArgumentError, match=r"noise: expected a positive finite number, got 0. Try 0.1"):
        ProductPrior(3, prior.features, noise=0)


def test_scale_other_than_one_is_refused():
    inputs = GroupInputs.of(torch.eye(2), torch.rand(2, 3, 1), torch.ones(2, 3, 1), torch.ones(2, 3, 1), None, F64)
    with pytest.raises(ArgumentError, match=r"scale: expected 1, got 2\.0"):
        ProductPrior(1).condition(inputs, 2.0)
