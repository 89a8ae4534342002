"""Shared effects in a model: minibatches, the Pyro pair, training, saving, groups that were trained on."""

import math

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from factories import BlindDecoder, make_data
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.feature_maps import CategoricalFeatures, LinearFeatures, SelectedFeatures
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

QUIET = {"folder": None, "progress": False, "accelerator": "cpu", "seed": 0}


def _data(sizes=(3, 5, 2, 4, 6, 1), seed=0):
    """Groups of a category that moves y, in the second column of x."""
    data = make_data(sizes, seed=seed)
    y, x, group = data.flat()
    category = (group % 2).to(x.dtype)
    return GroupedDataset(y + 2 * category[:, None], torch.cat([x, category[:, None]], dim=-1), group)


def _prior():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=[0]))
    kernel.outputscale = 1.7
    effects = [SelectedFeatures(CategoricalFeatures(2), [1]), SelectedFeatures(LinearFeatures(), [0])]
    return FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1, variance=0.6)], effects=effects)


def _model(decoder=None, moved=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder, decoder = MLPEncoder((3,), 3, (8,)), decoder or MLPDecoder(3, (3,), (8,))
        model = FGPVAE(encoder, decoder, _prior(), GaussianLikelihood("fixed", 0.5))
        if moved:
            for parameter in (model.prior.effects.mean, model.prior.effects.raw_root):
                parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def _mean_of(loss, times):
    with torch.no_grad():
        values = torch.tensor([loss() for _ in range(times)], dtype=torch.float64)
    return values.mean().item(), (values.std() / math.sqrt(times)).item()


@pytest.mark.parametrize("objective", [ELBO(), ELBO(0.3)])
def test_the_mean_over_minibatches_is_the_loss_of_the_data_set_and_its_gradient(objective):
    """The weights are fixed, and the decoder ignores z, so that nothing is random."""
    model, data = _model(BlindDecoder()), _data()
    weights = {"effects": torch.randn(3, 4, dtype=torch.float64)}
    effects = model.prior.effects

    def loss(batch):
        terms = pyro.condition(lambda: objective.terms(model, model, batch), data=weights)()
        return objective.loss_of(terms)

    def with_gradient(value):
        return value, *torch.autograd.grad(value, [effects.mean, effects.raw_scale, effects.raw_root])

    whole = with_gradient(loss(data[:]))
    parts = with_gradient(torch.stack([loss(data[[2 * b, 2 * b + 1]]) for b in range(3)]).mean())
    for mine, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    assert whole[1].abs().max() > 0.1  # of the KL: one for the data set


def test_pyros_elbo_agrees_with_ours_in_expectation():
    model, batch = _model(), _data()[[4, 0, 3]]
    theirs = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    first = _mean_of(lambda: theirs.loss(model.model, model.guide, batch), 20)
    ours = _mean_of(lambda: ELBO().loss(model.model, model.guide, batch), 1200)
    error = math.hypot(first[1], ours[1])
    assert error < 0.02 * abs(ours[0])
    assert abs(first[0] - ours[0]) < 4.5 * error
    assert model.prior.kl_effects().item() > 4 * ours[1]  # a KL that is left out would be noticed


def test_the_site_of_the_weights_is_outside_the_plate_and_counts_once():
    model, batch = _model(), _data()[[4, 0, 3]]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    for nodes in (guide.nodes, trace.nodes):
        site = nodes["effects"]
        assert site["value"].shape == (3, 4)
        assert site["cond_indep_stack"] == ()
        assert site["scale"] == 1.0
    mine, theirs = (nodes["effects"]["fn"] for nodes in (guide.nodes, trace.nodes))
    z, x = trace.nodes["z"]["value"], model.encode(batch).x.double()
    u = [trace.nodes[f"u_{i}"]["value"] for i in (0, 1)]
    parts = [
        (block.covariance_root(x) @ value.unsqueeze(-1)).squeeze(-1)
        for block, value in zip(model.prior.blocks, u, strict=True)
    ]
    shift = model.prior.effects.values(x, trace.nodes["effects"]["value"])
    torch.testing.assert_close(z, (torch.cat(parts, -2) + shift).mT)
    kl = torch.distributions.kl_divergence(mine.base_dist, torch.distributions.MultivariateNormal(
        torch.zeros(3, 4).double(), torch.eye(4).double())).sum()  # fmt: skip
    torch.testing.assert_close(kl, model.prior.kl_effects())
    assert theirs.event_shape == (3, 4)


def test_guide_and_infer_agree_for_groups_that_were_trained_on():
    model, data = _model(), _data()
    model.effects_seen = data.labels_digest
    batch = data[[1, 2]]
    posterior = model.infer(batch)
    with torch.no_grad(), pyro.plate("draws", 4000, dim=-2):
        guide = pyro.poutine.trace(model.guide).get_trace(batch)
        z = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch).nodes["z"]["value"]
    assert z.shape == (4000, 2, 5, 3)
    error = 6 * posterior.variance.max() / math.sqrt(4000) * 1.5
    inside = batch.mask.unsqueeze(-1)
    assert ((z.mean(0) - posterior.mean).abs() * inside).max() < error
    assert ((z.var(0) - posterior.variance).abs() * inside).max() < error


def test_training_records_its_groups_and_others_update_the_weights(tmp_path):
    model, data, others = _model(), _data(), _data((3, 4), seed=5)
    assert model.effects_seen is None
    before = model.prior.effects.mean.detach().clone()
    result = fit(model, data, epochs=2, batch_size=3, **QUIET)
    assert bool((result.history["kl_effects"] > 0).all())
    assert model.effects_seen == data.labels_digest
    assert not torch.equal(model.prior.effects.mean, before)
    assert all(block.seen for block in model.infer(data).blocks)
    assert not any(block.seen for block in model.infer(others).blocks)
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    assert loaded.effects_seen == model.effects_seen
    x_new = torch.tensor([[[0.5, 1.0]], [[0.7, 9.0]]])
    model.eval()
    torch.testing.assert_close(loaded.predict(x_new, others).mean, model.predict(x_new, others).mean)
    torch.testing.assert_close(loaded.predict(x_new, others).variance, model.predict(x_new, others).variance)
    assert model.generate(x_new).shape == (2, 1, 3)


def test_training_finds_an_effect_and_leaves_the_unseen_category_at_its_prior():
    data = _data((3,) * 40)
    model = _model(moved=False)
    start = ELBO(num_particles=200).loss(model, model, data[:])
    fit(model, data, epochs=60, batch_size=20, learning_rate=1e-2, **QUIET)
    effects = model.prior.effects
    assert ELBO(num_particles=200).loss(model, model, data[:]) < start
    root = effects.root.detach()
    assert bool((effects.mean[:, 2] == 0).all())  # the third column is that of unseen categories
    assert root[:, 2].abs().sum(-1).tolist() == pytest.approx([1.0] * 3)
    assert effects.mean[:, :2].abs().max() > 0.1
    assert root[:, 0, 0].min() < 0.9


def test_geco_counts_the_kl_of_the_weights_once():
    model, data = _model(BlindDecoder()), _data()
    geco = GECO(0.1)
    terms = geco.terms(model, model, data[[0, 1]])
    without = geco.loss_of(terms._replace(kl_effects=None))
    expected = model.prior.kl_effects() / (1 + 0.1 * geco.multiplier)
    torch.testing.assert_close(geco.loss_of(terms) - without, expected)
