"""Angles that are not known: the bound against Pyro's and integrals, limits, what is plugged in, training, errors."""

import dataclasses
import math

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy.integrate import quad
from torch import nn

from factories import same_state, state_of
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    IndependentChannels,
    LatentAngleFGPVAE,
    LocalChannels,
    fit,
)
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.models import AnglePosterior
from fgp_gpytorch.models._projected_normal import CircularProjectedNormal
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures

PERIOD = 2 * math.pi
SIZES = (3, 5, 2, 4, 6, 1, 4)


def make_circle(known=0.5, sizes=SIZES, seed=0, period=PERIOD):
    """Points that go round an ellipse with the angle, each group shifted; the angle is known with this probability."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    angle = PERIOD * torch.rand(len(group), generator=generator, dtype=torch.float64)
    shift = 0.3 * torch.randn(len(sizes), generator=generator)[group]
    y = torch.stack([2 * angle.cos(), angle.sin(), shift + 0.5 * (angle + 1).cos()], dim=-1).float()
    y = y + 0.05 * torch.randn(y.shape, generator=generator)
    x_mask = torch.rand(len(group), generator=generator) < known
    return GroupedDataset(y, angle * period / PERIOD, group, x_mask=x_mask), angle[group.argsort(stable=True)]


def make_prior(period=PERIOD):
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length, kernel.lengthscale = period, 1.3
    kernel.raw_period_length.requires_grad_(False)
    kernel = gpytorch.kernels.ScaleKernel(kernel)
    kernel.outputscale = 1.7
    return FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1, variance=0.6)])


def make_model(seed=1, period=PERIOD, likelihood=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        network = MLPFeatures([3], 2, (8,))
    likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
    return LatentAngleFGPVAE(encoder, decoder, make_prior(period), network, likelihood, period=period, **options)


def as_fgp_vae(model):
    return FGPVAE(model.encoder, model.decoder, model.prior, model.likelihood)


def test_known_angles_give_the_fgp_vae():
    model, (data, _) = make_model(supervision=0.0), make_circle(known=1.1)
    torch.manual_seed(3)
    ours = model.terms(data[:])
    torch.manual_seed(3)
    torch.randn(7, 6, 2, dtype=torch.float64)  # the directions that are not used
    theirs = as_fgp_vae(model).terms(data[:])
    for name in ("log_likelihood", "kl_local", "kl_global"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.kl_features, torch.zeros(7, dtype=torch.float64))
    assert ours.log_supervision is None
    x_new = torch.rand(7, 2, 1)
    torch.testing.assert_close(model.generate(x_new, data), as_fgp_vae(model).generate(x_new, data))


def test_pyros_elbo_is_ours():
    model, (data, _) = make_model(supervision=0.7), make_circle()
    batch = data[[4, 0, 5, 1]]
    theirs = Trace_ELBO()
    with torch.no_grad():
        first = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(600)], dtype=torch.float64)
    second = torch.tensor([ELBO().loss(model, model, batch) for _ in range(600)], dtype=torch.float64)
    error = math.hypot(first.std() / 600**0.5, second.std() / 600**0.5)
    assert error < 0.03 * abs(second.mean())
    assert abs(first.mean() - second.mean()) < 4.5 * error


def test_kl_of_the_angles_is_the_integral():
    model, (data, _) = make_model(), make_circle(known=0.0)
    batch = data[[0, 2]]
    posterior = model.infer_angles(batch)
    # on the circle equally spaced points integrate a smooth density exactly, but for rounding
    grid = torch.linspace(0, PERIOD, 721, dtype=torch.float64)[:-1]
    log_q = posterior.log_prob(grid[:, None, None].expand(-1, *batch.mask.shape))
    exact = (log_q.exp() * (log_q + math.log(PERIOD))).mean(0) * PERIOD
    exact = torch.where(batch.mask, exact, 0.0).sum(-1).detach()
    draws = torch.stack([model.terms(batch).kl_features for _ in range(1500)]).detach()
    error = draws.std(0) / 1500**0.5
    assert ((draws.mean(0) - exact).abs() < 4.5 * error).all()
    assert exact.min() > 0.01


def test_supervision_is_log_q_of_the_known_angles_alone():
    model, (data, truth) = make_model(supervision=0.7), make_circle()
    batch = data[:]
    log_q = model.infer_angles(batch).log_prob(torch.nan_to_num(batch.x[..., 0]))
    known = batch.mask & ~batch.x[..., 0].isnan()
    wanted = [0.7 * sum(log_q[g, q].item() for q in range(6) if known[g, q]) for g in range(7)]
    torch.testing.assert_close(model.terms(batch).log_supervision, torch.tensor(wanted, dtype=torch.float64))
    assert 0 < int(known.sum()) < len(truth)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(beta=0.3), GECO(0.2)])
def test_gradient_reaches_the_angle_encoder_through_the_kernel(objective):
    model, (data, _) = make_model(), make_circle(known=0.3)
    model.decoder.double()
    model.angle_encoder.double()
    weight = next(model.angle_encoder.parameters())

    def loss():
        torch.manual_seed(0)
        return objective.differentiable_loss(model, model, data[:])

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (3, 1), (7, 2)):
        with torch.no_grad():
            weight[place] += 1e-6
            up = loss()
            weight[place] -= 2e-6
            down = loss()
            weight[place] += 1e-6
        # the encoder of z is float32, whose rounding the difference divides by 2e-6
        torch.testing.assert_close(gradient[place], (up - down) / 2e-6, rtol=1e-3, atol=1e-3)
    assert gradient.abs().max() > 0.01


def test_unknown_angles_are_plugged_in_at_the_middle_and_known_ones_stay():
    model, (data, _) = make_model().eval(), make_circle()
    batch = data[:]
    posterior, angles = model.infer(batch), model.infer_angles(batch)
    known = batch.x_mask[..., 0]
    filled = torch.where(known, batch.x[..., 0].nan_to_num(), angles.mean)
    torch.testing.assert_close(posterior.x[..., 0][batch.mask], filled[batch.mask])
    whole = dataclasses.replace(batch, x=filled.unsqueeze(-1))
    torch.testing.assert_close(posterior.mean, as_fgp_vae(model).infer(whole).mean)
    x_new = PERIOD * torch.rand(7, 3, 1)
    torch.testing.assert_close(model.generate(x_new, batch), as_fgp_vae(model).generate(x_new, whole))
    torch.testing.assert_close(model.reconstruct(batch), as_fgp_vae(model).reconstruct(whole))


def test_groups_do_not_know_of_each_other():
    model, (data, _) = make_model().eval(), make_circle()
    together, order = model.infer(data[:]).mean, [3, 0, 6]
    some = model.infer(data[order]).mean
    for place, group in enumerate(order):
        size = SIZES[group]
        torch.testing.assert_close(some[place, :size], together[group, :size])


def test_degrees_are_radians_in_another_unit():
    radians, degrees = make_model(), make_model(period=360.0)
    (first, _), (second, _) = make_circle(), make_circle(period=360.0)
    torch.manual_seed(0)
    ours = radians.terms(first[:])
    torch.manual_seed(0)
    theirs = degrees.terms(second[:])
    for name in ("log_likelihood", "kl_local", "kl_features", "log_supervision"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    angles = degrees.infer_angles(second[:])
    torch.testing.assert_close(angles.mean, radians.infer_angles(first[:]).mean * 180 / math.pi)
    mass = sum(angles.log_prob(torch.full((7, 6), float(d)))[0, 0].exp().item() for d in range(360))
    assert mass == pytest.approx(1, abs=1e-4)


def test_draws_of_an_angle_have_its_density():
    model, (data, _) = make_model(), make_circle()
    posterior = model.infer_angles(data[[0]])
    torch.manual_seed(0)
    draws = posterior.sample((20_000,))[:, 0, 0]
    assert draws.min() >= 0
    assert draws.max() < PERIOD
    middle = posterior.mean[0, 0].item()
    inside = ((draws - middle + math.pi).remainder(PERIOD) - math.pi).abs() < 0.8
    exact = quad(lambda w: posterior.log_prob(torch.full((1, 3), w)).exp()[0, 0].item(), middle - 0.8, middle + 0.8)[0]
    assert inside.double().mean().item() == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 20_000) ** 0.5)


def test_a_few_known_angles_teach_the_others_and_new_groups(tmp_path):
    sizes = [6] * 60
    data, truth = make_circle(known=0.15, sizes=sizes)
    unseen, unseen_truth = make_circle(known=0.0, sizes=[5] * 20, seed=9)
    model = make_model(likelihood=GaussianLikelihood())
    result = fit(model, data, epochs=60, batch_size=10, learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    for part, right in ((data, truth), (unseen, unseen_truth)):
        batch = part[:]
        guess = model.infer_angles(batch).mean[batch.mask]
        error = ((guess - right + math.pi).remainder(PERIOD) - math.pi).abs()
        # noise of 0.05 on axes of 1 and 2 leaves an error below 0.1; guessing has pi / 2
        assert error.mean() < 0.12
    assert result.history["log_supervision"].iloc[-1] > result.history["log_supervision"].iloc[0] + 1
    assert result.history["kl_features"].notna().all()
    model.save(tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", tmp_path / "last.ckpt"):
        loaded = LatentAngleFGPVAE.load(path)
        assert same_state(model.state_dict(), loaded.state_dict())
        assert torch.equal(model.reconstruct(unseen), loaded.reconstruct(unseen))


@pytest.mark.parametrize("make_loss", [Trace_ELBO, ELBO])
def test_pyro_trains_it(make_loss):
    model, (data, _) = make_model(), make_circle()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[:]) for _ in range(80)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(start[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_predictive_draws_angles_and_observations():
    model, (data, _) = make_model().eval(), make_circle()
    sites = Predictive(model.model, guide=model.guide, num_samples=4)(data[:], observe=False)
    assert sites["direction"].shape == (4, 7, 6, 2)
    torch.testing.assert_close(sites["direction"].norm(dim=-1), torch.ones(4, 7, 6, dtype=torch.float64))
    assert sites["y"].shape == (4, 7, 6, 3)
    assert Predictive(model.model, num_samples=2)(data[:], observe=False)["y"].isfinite().all()


def test_other_models_say_that_they_cannot():
    model, (data, _) = as_fgp_vae(make_model()), make_circle()
    unknown = int(data.flat().x.isnan().sum())
    for call in (model.terms, model.infer, model.model, model.guide):
        with pytest.raises(DataError, match=f"got {unknown} unknown ones, .* Try LatentAngleFGPVAE"):
            call(data[:])


def test_mistakes_are_explained():
    model, (data, _) = make_model(), make_circle()
    parts = model.encoder, model.decoder, model.prior
    with pytest.raises(ArgumentError, match=r"angle_encoder: expected a Module, got int. Try nets.ConvFeatures"):
        LatentAngleFGPVAE(*parts, 2)
    with pytest.raises(ShapeError, match=r"angle_encoder: expected .* \(25, 2\), got \(25, 3\)"):
        LatentAngleFGPVAE(*parts, nn.Linear(3, 3)).terms(data[:])
    wrong = {"feature": [-1, True], "period": [0.0, math.inf], "supervision": [-1.0, math.inf]}
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(ArgumentError, match=f"{name}: expected"):
            LatentAngleFGPVAE(*parts, model.angle_encoder, **{name: value})
    with pytest.raises(DataError, match="feature: expected one of the 1 auxiliary features, got 2"):
        LatentAngleFGPVAE(*parts, model.angle_encoder, feature=2).terms(data[:])


def test_log_density_holds_in_its_tails():
    """Against the integral over the radius in many digits (Pyro's own is clamped there)."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    for length in (0.0, 0.5, 3.0, 8.0, 20.0, 60.0, 300.0):
        for error in (0.0, 1.0, math.pi / 2, 2.0, 3.0, math.pi):
            c = torch.tensor([length, 0.0], dtype=torch.float64, requires_grad=True)
            angle = torch.tensor(error, dtype=torch.float64, requires_grad=True)
            ours = CircularProjectedNormal(c).log_prob(torch.stack([angle.cos(), angle.sin()]))
            t = mpmath.mpf(length) * mpmath.cos(mpmath.mpf(error))
            exact = mpmath.log(1 + t * mpmath.ncdf(t) / mpmath.npdf(t)) - mpmath.mpf(length) ** 2 / 2
            exact = float(exact - mpmath.log(2 * mpmath.pi))
            assert ours.item() == pytest.approx(exact, rel=1e-7, abs=1e-10), (length, error)
            gradient = torch.autograd.grad(ours, (c, angle))
            assert all(g.isfinite().all() for g in gradient)
            if length > 0 and 0 < error < 3.1:
                assert gradient[1] < 0  # further off is less likely


def test_a_wrong_and_sure_network_is_pulled_back():
    model, (data, _) = make_model(), make_circle(known=1.1)
    batch = data[:]
    direction = torch.tensor([-12.0, 16.0], dtype=torch.float64, requires_grad=True)  # length 20
    optimizer = torch.optim.Adam([direction], 0.3)
    one = dataclasses.replace(batch, x=torch.zeros_like(batch.x))
    for _ in range(400):
        optimizer.zero_grad()
        (-model._log_supervision(one, direction.expand(7, 6, 2)).sum()).backward()
        optimizer.step()
    assert abs(math.atan2(direction[1].item(), direction[0].item())) < 0.05


def test_members_of_whom_nothing_was_observed_teach_nothing():
    model, (data, _) = make_model().eval(), make_circle(known=1.1)
    batch = data[:]
    y_mask = batch.observed.clone()
    y_mask[1, 2] = False
    blank = dataclasses.replace(batch, y_mask=y_mask, y=batch.y.masked_fill(~y_mask, 0.0))
    keep = batch.mask.clone()
    keep[1, 2] = False
    without = dataclasses.replace(batch, mask=keep, y=batch.y.masked_fill(~keep.unsqueeze(-1), 0.0))
    ours, theirs = model.terms(blank).log_supervision, model.terms(without).log_supervision
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(model.infer_angles(blank).concentration[1, 2], torch.zeros(2, dtype=torch.float64))
    unknown = dataclasses.replace(blank, x=torch.full_like(batch.x, torch.nan).where(batch.mask.unsqueeze(-1), 0.0))
    alone = model.terms(unknown)
    assert alone.kl_features.isfinite().all()
    model.terms(unknown).kl_features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_prior_that_is_not_periodic_is_refused():
    model, (data, _) = make_model(), make_circle()
    parts = model.encoder, model.decoder
    free = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    for prior in (free, make_prior(period=3.0)):
        other = LatentAngleFGPVAE(*parts, prior, model.angle_encoder)
        for call in (other.terms, other.infer):
            with pytest.raises(DataError, match=r"expected a kernel with the angle's period of 6\.28.*period_length"):
                call(data[:])


def test_angles_are_below_the_period():
    tiny = AnglePosterior(torch.tensor([[[1.0, -1e-20]]]), 360.0)
    assert tiny.mean.item() == 0.0


@pytest.mark.parametrize("network", [MLPFeatures([3], 2, (8,)), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))])
def test_a_batch_in_which_nobody_was_observed_has_uniform_angles(network):
    y_mask = torch.ones(5, 3, dtype=torch.bool)
    y_mask[:2] = False
    known = torch.tensor([False, True, True, False, True])
    data = GroupedDataset(torch.randn(5, 3), torch.rand(5), [0, 0, 1, 1, 1], y_mask, known)
    model = make_model()
    model.angle_encoder = network
    density = model.infer_angles(data[[0]]).log_prob(torch.tensor([[0.3, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(density, torch.full((1, 2), -math.log(PERIOD), dtype=torch.float64))
    assert model.infer(data[[0]]).mean.isfinite().all()
    history = fit(model, data, epochs=2, batch_size=1, progress=False, folder=None).history
    assert history["mse"].notna().all()


def test_independent_channels_have_every_period():
    prior = FactorizedGPPrior([*make_prior().blocks, IndependentChannels(1)])
    model = LatentAngleFGPVAE(MLPEncoder([3], 4), MLPDecoder(4, [3]), prior, MLPFeatures([3], 2), period=PERIOD)
    data, _ = make_circle()
    assert model.infer(data).mean.shape == (7, 6, 4)


def test_a_period_that_is_learned_is_refused_in_training_when_it_left_the_circle():
    model, (data, _) = make_model(), make_circle()
    model.terms(data[:])
    model.prior.blocks[0].kernel.base_kernel.period_length = 1.02 * PERIOD
    with pytest.raises(DataError, match="prior: expected a kernel with the angle's period"):
        model.terms(data[:])


def test_an_angle_encoder_that_diverged_is_named():
    model, (data, _) = make_model(), make_circle()
    nn.init.constant_(next(model.angle_encoder.parameters()), torch.nan)
    for ask in (model.infer, model.infer_angles):
        with pytest.raises(DataError, match="angle_encoder: expected finite values"):
            ask(data)
