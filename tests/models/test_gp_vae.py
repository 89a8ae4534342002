"""The GP-VAE of Casale et al.: dense oracles, Pyro's ELBO, minibatches with exact gradients, errors, training."""

import copy
import dataclasses
import math
from dataclasses import replace

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from factories import SIZES, BlindDecoder, make_data, same_state, state_of
from fgp_gpytorch import ELBO, GaussianLikelihood, GroupedDataset, fit
from fgp_gpytorch.coupled import GroupInputs, unit_length
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.models import GPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

ALPHA = 0.3


def make_gp_vae(likelihood=None, seed=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
        return GPVAE(encoder, decoder, 3, len(SIZES), 2, likelihood=likelihood, noise=ALPHA, **options)


def dense_covariance(model, groups, angles):
    """Sigma_dd' exp(-2 sin^2((w - w') / 2)), entry by entry."""
    vectors = model.group_vectors.vectors.detach()
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    out = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for i in range(len(groups)):
        for j in range(len(groups)):
            sigma = float(vectors[groups[i]] @ vectors[groups[j]])
            out[i, j] = sigma * math.exp(-2 * math.sin(float(angles[i] - angles[j]) / 2) ** 2)
    return out


def observed_rows(batch):
    return batch.mask if batch.y_mask is None else batch.mask & batch.y_mask.flatten(2).any(-1)


@pytest.mark.parametrize("element_mask", [False, True])
def test_elbo_is_the_dense_one(element_mask):
    model, data = make_gp_vae(), make_data(element_mask=element_mask)
    batch = data[[3, 0, 6, 1, 2, 5, 4]]  # as a shuffling loader gives them
    terms = model.terms(batch, num_particles=4000)
    rows = observed_rows(batch)
    mean, variance = (part.double().detach() for part in model.encoder(batch.y[rows]))
    groups = batch.group_index.unsqueeze(-1).expand(rows.shape)[rows]
    dense = dense_covariance(model, groups, batch.x[rows][:, 0]) + ALPHA * torch.eye(len(mean), dtype=torch.float64)
    p = MultivariateNormal(torch.zeros(len(mean), dtype=torch.float64), dense)
    wanted = sum(
        kl_divergence(MultivariateNormal(m, torch.diag(v)), p) for m, v in zip(mean.T, variance.T, strict=True)
    )
    torch.testing.assert_close(terms.kl_local.sum(), wanted, rtol=1e-8, atol=1e-8)
    assert terms.kl_global.tolist() == [0.0] * 7
    assert terms.scale == 1.0
    z = (mean + variance.sqrt() * torch.randn(4000, *mean.shape)).float()
    each = Normal(model.decoder(z), 0.5**0.5).log_prob(batch.y[rows])
    each = torch.where(batch.observed[rows], each, 0.0).sum(-1).mean(0)
    group = rows.nonzero()[:, 0]
    for g in range(7):
        # 4000 draws of a sum whose standard deviation is below 3 nats: 5 standard errors
        assert abs(terms.log_likelihood[g] - each[group == g].sum()) < 5 * 3 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("element_mask", [False, True])
def test_pyros_elbos_agree_with_ours(pyro_elbo, element_mask):
    model, batch = make_gp_vae(), make_data(element_mask=element_mask)[:]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    theirs = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(40)])
    ours = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)])
    error = math.hypot(theirs.std() / 40**0.5, ours.std() / 40**0.5)
    assert error < 0.02 * abs(ours.mean())
    assert abs(theirs.mean() - ours.mean()) < 4.5 * error


def test_trace_has_the_documented_sites_and_no_scale():
    model, batch = make_gp_vae(), make_data()[:]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    trace.compute_log_prob()
    assert "z_rows" in guide.stochastic_nodes
    assert trace.nodes["z_rows"]["value"].shape == (3, sum(SIZES))
    z = trace.nodes["z"]["value"]
    assert z.shape == (7, max(SIZES), 3)
    torch.testing.assert_close(z[batch.mask].T, trace.nodes["z_rows"]["value"])
    assert not z[~batch.mask].any()
    assert trace.nodes["y"]["log_prob"].shape == (7,)
    assert {trace.nodes[name]["scale"] for name in ("z_rows", "y")} == {1.0}
    rows = batch.group_index.unsqueeze(-1).expand(batch.mask.shape)[batch.mask]
    dense = dense_covariance(model, rows, batch.x[batch.mask][:, 0]) + ALPHA * torch.eye(25, dtype=torch.float64)
    wanted = MultivariateNormal(torch.zeros(25, dtype=torch.float64), dense).log_prob(trace.nodes["z_rows"]["value"])
    torch.testing.assert_close(trace.nodes["z_rows"]["log_prob"], wanted, rtol=1e-8, atol=1e-8)


def test_predictive_draws_from_the_posterior_and_from_the_prior():
    model, batch = make_gp_vae().eval(), make_data()[:]
    sites = Predictive(model.model, guide=model.guide, num_samples=3000, parallel=True)(batch, observe=False)
    assert sites["y"].shape == (3000, *batch.y.shape)
    mean = model.infer(batch).mean
    # standard deviations of q are below 2: five standard errors
    torch.testing.assert_close(sites["z"].mean(0)[batch.mask], mean[batch.mask], rtol=0, atol=5 * 2 / 3000**0.5)
    prior = Predictive(model.model, num_samples=5)(batch, observe=False)
    assert prior["y"].shape == (5, *batch.y.shape)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_minibatches_with_a_summary_have_the_exact_gradient_of_the_kl():
    model, data = make_gp_vae().double(), make_data(element_mask=True, dtype=torch.float64)
    full = gradients_of(model, model.terms(data[:]).kl_local.sum())
    assert {"prior.raw_noise", "group_vectors.vectors", "encoder.layers.0.weight"} <= set(full)
    model.summary = model.summarize(data, batch_size=3)
    batches = [data[[4, 0, 2]], data[[6, 1]], data[[3, 5]]]
    parts = gradients_of(model, sum(model.terms(batch).kl_local.sum() for batch in batches))
    assert parts.keys() == full.keys()
    for name in full:
        torch.testing.assert_close(parts[name], full[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_minibatches_with_a_summary_are_unbiased():
    """The mean over all batches of two groups of the scaled gradient is the full gradient, to rounding."""
    model, data = make_gp_vae().double(), make_data(dtype=torch.float64)
    full = gradients_of(model, model.terms(data[:]).kl_local.sum())
    model.summary = model.summarize(data)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    losses = []
    for pair in pairs:
        terms = model.terms(data[list(pair)])
        losses.append(terms.scale * terms.kl_local.sum())
    mean = gradients_of(model, sum(losses) / len(pairs))
    for name in full:
        torch.testing.assert_close(mean[name], full[name], rtol=1e-9, atol=1e-10)


def test_summary_is_the_first_order_form_after_a_step():
    model, data = make_gp_vae().double(), make_data(dtype=torch.float64)
    model.summary = model.summarize(data)
    other = copy.deepcopy(model)
    other.summary = None
    errors = []
    direction = [torch.randn_like(p) for p in model.parameters()]
    start = state_of(model)
    for size in (1e-2, 1e-3):
        for each in (model, other):
            each.load_state_dict(start)
            with torch.no_grad():
                for parameter, d in zip(each.parameters(), direction, strict=True):
                    if parameter.requires_grad:
                        parameter += size * d
        linear, exact = model.terms(data[:]).kl_local.sum(), other.terms(data[:]).kl_local.sum()
        errors.append(abs(float((linear - exact).detach())))
    assert errors[0] > 1e-6
    assert errors[1] < errors[0] / 50  # of second order: a hundredth


def test_summary_is_exact_where_one_row_moves_alone():
    model, data = make_gp_vae().double(), make_data(dtype=torch.float64)
    batch = data[:]
    summary = model.summarize(data)
    with torch.no_grad():
        start = model.training_posterior(batch)
        for group, member, mean_step, factor in ((0, 1, 3.0, 1.0), (4, 2, 0.0, 7.0), (6, 3, -20.0, 0.01)):
            mean, variance = start.inputs.mean.clone(), start.inputs.variance.clone()
            mean[group, member] += mean_step
            variance[group, member] *= factor
            vectors, dtype = model.used_vectors(batch), model.prior.dtype
            moved = model.prior.condition(GroupInputs.of(vectors, batch.x, mean, variance, batch.mask, dtype))
            form = summary.separable_kl(moved, batch.group_index).sum()
            torch.testing.assert_close(form, moved.kl_channels.sum(), rtol=1e-9, atol=1e-9)


def test_batch_of_some_groups_is_refused():
    model, data = make_gp_vae(), make_data()
    message = r"expected all 7 groups once, got 3: this prior couples all groups. Try batch_size=len\(data\)"
    for call in (model.terms, model.model, model.guide):
        with pytest.raises(GroupError, match=message):
            call(data[[0, 1, 2]])
    with pytest.raises(GroupError, match=r"Try batch_size=len\(data\)"):
        fit(model, data, epochs=1, batch_size=3, folder=None, progress=False, seed=0)
    with pytest.raises(GroupError, match="expected all 7 groups once, got 7"):
        model.terms(data[[0, 1, 2, 3, 4, 5, 5]])


def test_groups_without_an_object_vector_are_refused():
    model, other = make_gp_vae(), make_data(sizes=(2, 3))
    x_new = torch.zeros(2, 1, 1)
    message = (
        r"expected groups of the data set of 7 groups whose.* of a data set of 2. If these .*context.align\(train\)"
    )
    for call in (model.infer, model.terms, model.reconstruct, lambda b: model.generate(x_new, b)):
        with pytest.raises(GroupError, match=message):
            call(other[:])
    with pytest.raises(GroupError, match=r"got none. A new group has no group vector .* Try FGPVAE"):
        model.generate(x_new)
    unknown = replace(make_data()[[0, 1]], group_index=torch.tensor([0, 9]))
    with pytest.raises(GroupError, match="expected positions from 0 to 6, got 0 to 9"):
        model.infer(unknown)
    with pytest.raises(GroupError, match=r"x_new: expected \(G, Q\*, D\) with G = 7 and D = 1, .*got \(2, 1, 1\)"):
        model.condition_on(make_data()).generate(x_new, make_data())


def test_generation_decodes_the_dense_gps_mean_and_given_rows_condition_on_all():
    model, data = make_gp_vae().eval(), make_data()
    context = data[[4, 1]]
    x_new = 3 * torch.rand(2, 3, 1)

    def by_hand(batch):
        rows = batch.mask
        mean = model.encoder(batch.y[rows])[0].double().detach()
        groups = batch.group_index.unsqueeze(-1).expand(rows.shape)[rows].tolist() + [4] * 3 + [1] * 3
        angles = torch.cat([batch.x[rows][:, 0], x_new.flatten()])
        dense = dense_covariance(model, groups, angles)
        n = len(mean)
        noisy = dense[:n, :n] + ALPHA * torch.eye(n, dtype=torch.float64)
        return model.decoder((dense[n:, :n] @ torch.linalg.solve(noisy, mean)).float()).reshape(2, 3, 3)

    torch.testing.assert_close(model.generate(x_new, context), by_hand(context))
    torch.testing.assert_close(model.condition_on(data).generate(x_new, context), by_hand(data[:]))
    assert (by_hand(context) - by_hand(data[:])).abs().max() > 1e-3
    # Groups 4 and 1: one of them was not conditioned on, and is predicted from its learned vector.
    part = model.condition_on(data.subset([0, 1, 2]).align(data))
    torch.testing.assert_close(part.generate(x_new, context), by_hand(data[[0, 1, 2]]))
    assert model.generate(x_new, context, sample_shape=[5]).shape == (5, 2, 3, 3)
    assert model.condition_on(data).generate(x_new, context, [5]).shape == (5, 2, 3, 3)


def test_held_out_mse_takes_the_model_and_the_model_given_all_rows():
    model, data = make_gp_vae(), make_data()
    held_out = HeldOut(data.subset([4, 1, 6]).align(data), torch.rand(3, 2, 1), torch.rand(3, 2, 3))
    for each in (model, model.condition_on(data)):
        wanted = (each.eval().generate(held_out.x_new, held_out.context[:]) - held_out.y_new).square().mean()
        assert held_out_mse(each, held_out) == pytest.approx(float(wanted), rel=1e-5)


def test_objects_start_from_the_principal_components_of_the_mean_observations():
    model, data = make_gp_vae(), make_data(element_mask=True)
    model.initialize_vectors(data)
    means = torch.zeros(7, 3, dtype=torch.float64)
    for g in range(7):
        batch = data[[g]]
        for k in range(3):
            seen = batch.y[0, :, k][batch.observed[0, :, k]]
            means[g, k] = seen.double().mean() if len(seen) else math.nan
    means = means.where(~means.isnan(), means.nanmean(0))  # a group without an element has the mean of the others
    means = means - means.mean(0)
    _, vectors = torch.linalg.eigh(means.T @ means)
    scores = means @ vectors[:, [2, 1]]
    got = model.group_vectors.vectors.detach()
    ratio = (got / scores).abs()  # a component's sign is free, the length is one for both
    torch.testing.assert_close(ratio, ratio[0, 0].expand(7, 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(got.square().sum(-1).mean(), torch.tensor(1.0).double())
    many = make_gp_vae()
    many.group_vectors.num_factors = 4
    with pytest.raises(DataError, match=r"num_factors: expected at most 3 components of \(7, 3\) mean"):
        many.initialize_vectors(data)


def test_members_of_whom_nothing_was_observed_do_not_count():
    data = make_data()
    rows = data.flat()
    y_mask = torch.ones_like(rows.y, dtype=torch.bool)
    y_mask[4] = False
    keep = torch.arange(25) != 4
    model = make_gp_vae()
    masked = model.terms(GroupedDataset(rows.y, rows.x, rows.group, y_mask)[:])
    deleted = model.terms(GroupedDataset(rows.y[keep], rows.x[keep], rows.group[keep])[:])
    torch.testing.assert_close(masked.kl_local, deleted.kl_local)


def test_fitted_saved_and_loaded(tmp_path):
    model, data = make_gp_vae(GaussianLikelihood(), normalize=False), make_data()
    model.initialize_vectors(data)
    before, start = ELBO(num_particles=100).loss(model, model, data[:]), state_of(model)
    fit(model, data, epochs=60, batch_size=len(data), learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    still = {name for name, value in model.state_dict().items() if torch.equal(value, start[name])}
    assert "prior.features.kernel.raw_period_length" in still
    moved = {"prior.raw_noise", "group_vectors.vectors", "prior.features.kernel.raw_lengthscale"}
    assert not moved & still
    for path in (tmp_path / "model.pt", tmp_path / "last.ckpt"):
        model.save(tmp_path / "model.pt")
        loaded = GPVAE.load(path)
        assert same_state(model.state_dict(), loaded.state_dict())
        assert torch.equal(model.reconstruct(data), loaded.reconstruct(data))
        assert not loaded.normalize


@pytest.mark.parametrize("make_loss", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
def test_pyro_trains_it(make_loss):
    model, data = make_gp_vae(), make_data()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(start[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_pyro_trains_a_part_that_was_replaced():
    model, data = make_gp_vae(), make_data()
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), ELBO())
    svi.step(data[:])
    model.encoder = MLPEncoder([3], 3, (8,))
    start = state_of(model.encoder)
    svi.step(data[:])
    assert not any(torch.equal(start[name], value) for name, value in model.encoder.named_parameters())


@pytest.mark.parametrize("num_particles", [0, 1.5])
def test_number_of_draws_is_a_count(num_particles):
    with pytest.raises(ArgumentError, match="num_particles: expected an integer"):
        make_gp_vae().terms(make_data()[:], num_particles=num_particles)


def test_member_of_a_seen_group_at_an_unseen_angle_is_predicted_after_training():
    """Curves sin(x + phase of the group): the angle between is known from the neighbours and the other groups."""
    g = torch.Generator().manual_seed(0)
    group = torch.arange(12).repeat_interleave(8)
    x = 2 * math.pi * torch.rand(96, 1, generator=g)
    phase = 2 * math.pi * torch.rand(12, generator=g)[group]
    y = torch.stack([torch.sin(x[:, 0] + phase), torch.cos(x[:, 0] + phase), torch.sin(phase)], -1)
    held_out = torch.arange(96) % 8 == 3
    train = GroupedDataset(y[~held_out], x[~held_out], group[~held_out])
    torch.manual_seed(0)
    model = GPVAE(MLPEncoder([3], 3, (16,)), MLPDecoder(3, [3], (16,)), 3, 12, 3)
    model.initialize_vectors(train)
    x_new, y_new = x[held_out].unsqueeze(1), y[held_out].unsqueeze(1)
    fit(model, train, epochs=500, batch_size=12, learning_rate=0.02, folder=None, progress=False, seed=0)
    error = (model.generate(x_new, train) - y_new).square().mean()
    assert error < 0.1 * (y_new - y.mean(0)).square().mean()


def test_accumulated_minibatches_are_a_full_batch_step():
    """The recipe of `summarize`: with a decoder that ignores z the loss has no noise, and the gradients are equal."""
    data, objective = make_data(dtype=torch.float64), ELBO()
    model = GPVAE(MLPEncoder([3], 3, (8,)), BlindDecoder(), 3, 7, 2, None, GaussianLikelihood("fixed", 0.5)).double()
    full = gradients_of(model, objective.differentiable_loss(model, model, data[:]))
    model.zero_grad()
    model.summary = model.summarize(data)
    for groups in ([4, 0, 2], [6, 1], [3, 5]):
        batch = data[groups]
        (objective.differentiable_loss(model, model, batch) * batch.num_groups / len(data)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, full[name], rtol=1e-9, atol=1e-10)


def test_own_view_root_is_used_learned_and_saved(tmp_path):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel())
    kernel.base_kernel.period_length, kernel.outputscale = 3.0, 1.7
    model, data = make_gp_vae(view_features=PeriodicFeatures(kernel, period=3.0, harmonics=12)), make_data()
    vectors = unit_length(model.group_vectors(torch.tensor([2, 2])))
    root = model.prior.root(vectors, torch.tensor([[[0.4]], [[3.4]]])).detach().squeeze(1)
    torch.testing.assert_close(root @ root.T, torch.full((2, 2), 1.7).double(), rtol=1e-5, atol=0)
    model.terms(data[:]).kl_local.sum().backward()
    assert kernel.raw_outputscale.grad.abs() > 0
    model.save(tmp_path / "model.pt")
    loaded = GPVAE.load(tmp_path / "model.pt")
    torch.testing.assert_close(loaded.terms(data[:]).kl_local, model.eval().terms(data[:]).kl_local)


def test_a_summary_is_refused_for_rows_it_was_not_made_of():
    model, data = make_gp_vae(), make_data()
    model.summary = model.summarize(data)
    keep = torch.ones(sum(SIZES), dtype=torch.bool)
    keep[0] = False
    for other in (data.select(keep).align(data)[:], dataclasses.replace(data[:], x=data[:].x + 1)):
        with pytest.raises(GroupError, match=r"expected groups of the 7 that the summary was made of, with all their"):
            model.terms(other)
    model.prior.raw_noise.requires_grad_(False)
    with pytest.raises(GroupError, match="the same learned hyperparameters"):
        model.terms(data[:])


def test_given_is_a_copy_in_evaluation_mode_that_metrics_leave_alone():
    model, data = make_gp_vae().train(), make_data()
    given = model.condition_on(data)
    x_new = torch.rand(7, 2, 1)
    copied = copy.deepcopy(model).condition_on(data).generate(x_new, data)
    with torch.no_grad():
        for parameter in (model.prior.raw_noise, model.group_vectors.vectors, *model.encoder.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert (model.condition_on(data).generate(x_new, data) - copied).abs().max() > 1e-3
    torch.testing.assert_close(given.generate(x_new, data), copied)
    assert model.training
    assert not given.train().training
    held_out = HeldOut(data, torch.rand(7, 1, 1), torch.rand(7, 1, 3))
    model.eval()
    model.encoder.train()
    held_out_mse(given, held_out)
    held_out_mse(model, held_out)
    assert (given.training, given.model.training) == (False, False)
    assert (model.training, model.encoder.training) == (False, True)
    with pytest.raises(GroupError):
        model.condition_on(make_data(sizes=(2, 3)))
    with pytest.raises(GroupError, match="once"):
        model.condition_on(data[[0, 0, 1]])
    for wrong, error in (
        (torch.full((7, 2, 1), torch.nan), DataError),
        (torch.zeros(7, 2, 1, dtype=torch.int64), DataError),
        (torch.rand(7, 2, 2), ShapeError),
        (torch.rand(6, 2, 1), GroupError),
    ):
        with pytest.raises(error, match="x_new"):
            given.generate(wrong, data)


def test_unknown_features_are_refused_by_the_pyro_program_too():
    model, data = make_gp_vae(), make_data()
    x = data[:].x.clone()
    x[0, 0] = torch.nan
    with pytest.raises(DataError, match="got 1 unknown ones"):
        model.model(dataclasses.replace(data[:], x=x))
