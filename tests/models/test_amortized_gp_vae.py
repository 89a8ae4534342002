"""The GP-VAE with a representation network (Appendix C): against learned vectors, dense unseen groups, minibatches."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from factories import SIZES, make_data, same_state, state_of
from fgp_gpytorch import ELBO, GaussianLikelihood, fit
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import ArgumentError, GroupError, ShapeError
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.models import GPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork

ALPHA = 0.3


def make_amortized(aggregation="mean", likelihood=None, seed=1, representation=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        if representation is None:
            representation = RepresentationNetwork(MLPFeatures([3], 4, (8,)), MLPFeatures([4], 2, (8,)), aggregation)
    likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
    options = {"num_factors": 2, "noise": ALPHA, "likelihood": likelihood, **options}
    return GPVAE(encoder, decoder, 3, representation=representation, **options)


def with_learned_vectors(model, vectors):
    """The same model with these vectors as parameters."""
    other = GPVAE(model.encoder, model.decoder, 3, len(vectors), 2, likelihood=model.likelihood, noise=ALPHA)
    other.group_vectors.set_vectors(vectors.detach())
    return other.train(model.training)


def vectors_by_loop(model, batch):
    """The mean of r over the members of whom something was observed, one by one."""
    out = []
    for g in range(batch.num_groups):
        seen = [q for q in range(batch.y.shape[1]) if bool(batch.observed[g, q].any())]
        members = [model.representation.r(batch.y[g, q]) for q in seen]
        out.append(model.representation.f(sum(members) / len(members)))
    return torch.stack(out).double()


@pytest.mark.parametrize("element_mask", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_the_gp_vae_of_the_representations(element_mask, normalize):
    model, data = make_amortized(normalize=normalize).eval(), make_data(element_mask=element_mask)
    batch = data[[3, 0, 6, 1, 2, 5, 4]]
    vectors = vectors_by_loop(model, batch)
    torch.testing.assert_close(model.vectors_of(batch), vectors, rtol=1e-5, atol=1e-6)  # float32 networks
    learned = with_learned_vectors(model, vectors[batch.group_index.argsort()])
    learned.normalize = normalize
    torch.testing.assert_close(learned.vectors_of(batch), vectors)
    torch.testing.assert_close(model.terms(batch).kl_local, learned.terms(batch).kl_local, rtol=1e-5, atol=1e-6)
    x_new = 3 * torch.rand(7, 3, 1)
    for call in (lambda m: m.generate(x_new, batch), lambda m: m.reconstruct(batch)):
        torch.testing.assert_close(call(model), call(learned), rtol=1e-4, atol=1e-5)
    some, x_some = data[[4, 1]], x_new[:2]
    seen = model.condition_on(data, context="seen").generate(x_some, some)
    torch.testing.assert_close(seen, learned.condition_on(data).generate(x_some, some), rtol=1e-4, atol=1e-5)
    ours, theirs = model.infer(batch).predict(x_new), learned.infer(batch).predict(x_new)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-4, atol=1e-5)


def dense_unseen(model, data, context, x_new):
    """E[z*] of the context's groups given all rows of data and context: one dense matrix, entry by entry."""
    vectors, rows, angles, means = [], [], [], []
    for batch in (data[:], context):
        for g in range(batch.num_groups):
            members = batch.y[g, batch.mask[g]]
            d = model.representation.f(sum(model.representation.r(y) for y in members) / len(members)).double()
            rows += [len(vectors)] * len(members)
            vectors.append(d / d.norm())
            angles += batch.x[g, batch.mask[g], 0].tolist()
            means += [model.encoder(y)[0].double() for y in members]
    new = [len(data) + g for g in range(context.num_groups) for _ in range(x_new.shape[1])]
    new_angles = x_new.flatten().tolist()

    def kernel(d, w, e, v):
        return float(vectors[d] @ vectors[e]) * math.exp(-2 * math.sin((w - v) / 2) ** 2)

    known = list(zip(rows, angles, strict=True))
    gram = torch.tensor([[kernel(*a, *b) for b in known] for a in known], dtype=torch.float64)
    cross = torch.tensor([[kernel(*a, *b) for b in known] for a in zip(new, new_angles, strict=True)])
    solved = torch.linalg.solve(gram + ALPHA * torch.eye(len(gram), dtype=torch.float64), torch.stack(means))
    return (cross.double() @ solved).reshape(*x_new.shape[:2], 3)


@torch.no_grad()
def test_unseen_groups_are_the_dense_gp_of_training_rows_and_context():
    model, data = make_amortized().eval(), make_data()
    unseen = make_data(sizes=(2, 1, 4), seed=5)
    x_new = 3 * torch.rand(3, 2, 1)
    given = model.condition_on(data)
    got = given.generate(x_new, unseen)
    torch.testing.assert_close(got, model.decoder(dense_unseen(model, data, unseen[:], x_new).float()))
    one = given.generate(x_new[1:2], unseen[[1]])
    torch.testing.assert_close(one, model.decoder(dense_unseen(model, data, unseen[[1]], x_new[1:2]).float()))
    assert (one - got[1]).abs().max() > 1e-4  # asked for together, groups know of each other
    alone = model.generate(x_new, unseen)
    assert (alone - got).abs().max() > 1e-3
    assert given.generate(x_new, unseen, sample_shape=[5]).shape == (5, 3, 2, 3)
    draws = given.generate(x_new, unseen[:], sample_shape=[2])
    assert (draws[0] - draws[1]).abs().max() > 1e-3


def test_held_out_mse_takes_unseen_groups():
    model, data, unseen = make_amortized(), make_data(), make_data(sizes=(2, 3), seed=5)

    held_out = HeldOut(unseen, torch.rand(2, 2, 1), torch.rand(2, 2, 3))
    for each in (model, model.condition_on(data)):
        wanted = (each.eval().generate(held_out.x_new, held_out.context[:]) - held_out.y_new).square().mean()
        assert held_out_mse(each, held_out) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("aggregation", ["sum", "mean", "attention"])
def test_gradients_reach_the_representation_network(aggregation):
    model, data = make_amortized(aggregation), make_data()
    loss = ELBO().differentiable_loss(model, model, data[:])
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_elbos_agree_with_ours(pyro_elbo):
    model, batch = make_amortized(), make_data(element_mask=True)[:]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    theirs = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(40)])
    ours = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)])
    error = math.hypot(theirs.std() / 40**0.5, ours.std() / 40**0.5)
    assert error < 0.02 * abs(ours.mean())
    assert abs(theirs.mean() - ours.mean()) < 4.5 * error


@pytest.mark.parametrize("make_loss", [Trace_ELBO, ELBO])
def test_pyro_trains_it(make_loss):
    model, data = make_amortized("attention"), make_data()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(start[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_minibatches_with_a_summary_have_the_exact_gradient_of_the_kl():
    model, data = make_amortized("attention").double(), make_data(element_mask=True, dtype=torch.float64)
    full = gradients_of(model, model.terms(data[:]).kl_local.sum())
    assert {"prior.raw_noise", "representation.query", "encoder.layers.0.weight"} <= set(full)
    model.summary = model.summarize(data, batch_size=3)
    batches = [data[[4, 0, 2]], data[[6, 1]], data[[3, 5]]]
    terms = [model.terms(batch).kl_local.sum() for batch in batches]
    whole = copy_without_summary(model).terms(data[:]).kl_local.sum()
    torch.testing.assert_close(sum(terms), whole)
    parts = gradients_of(model, sum(terms))
    assert parts.keys() == full.keys()
    for name in full:
        torch.testing.assert_close(parts[name], full[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    with pytest.raises(GroupError, match="dataset: expected all 7 groups once, got 3"):
        model.summarize(data.subset([4, 0, 2]).align(data))


def copy_without_summary(model):
    other = copy.deepcopy(model)
    other.summary = None
    return other


def test_members_of_whom_nothing_was_observed_do_not_count():
    rows = make_data().flat()
    y_mask = torch.ones_like(rows.y, dtype=torch.bool)
    y_mask[4] = False
    keep = torch.arange(25) != 4
    model = make_amortized("sum")
    masked = model.vectors_of(GroupedDataset(rows.y, rows.x, rows.group, y_mask))
    deleted = model.vectors_of(GroupedDataset(rows.y[keep], rows.x[keep], rows.group[keep]))
    torch.testing.assert_close(masked, deleted)


def test_fitted_saved_and_loaded(tmp_path):
    model, data = make_amortized("attention", GaussianLikelihood(), normalize=False), make_data()
    unseen, x_new = make_data(sizes=(2, 3), seed=5), torch.rand(2, 2, 1)
    before = ELBO(num_particles=100).loss(model, model, data[:])
    fit(model, data, epochs=60, batch_size=len(data), learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    model.save(tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", tmp_path / "last.ckpt"):
        loaded = GPVAE.load(path)
        assert same_state(model.state_dict(), loaded.state_dict())
        assert loaded.representation.aggregation == "attention"
        assert not loaded.normalize
        given, again = model.condition_on(data), loaded.condition_on(data)
        assert torch.equal(given.generate(x_new, unseen), again.generate(x_new, unseen))


def test_unseen_groups_at_unseen_angles_are_predicted_after_training():
    """Curves a sin(x) + b cos(x) of 30 groups: of ten new ones with four members each the rest is known."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 2, generator=generator)
    x = 2 * math.pi * torch.rand(40, 12, 1, generator=generator)
    curve = weights[:, :1] * x[..., 0].sin() + weights[:, 1:] * x[..., 0].cos()
    y = torch.stack([curve, x[..., 0].cos(), x[..., 0].sin()], dim=-1)

    def rows(groups, members):
        label = torch.arange(40)[groups].repeat_interleave(members.stop - members.start)
        return GroupedDataset(y[groups, members].flatten(0, 1), x[groups, members].flatten(0, 1), label)

    train, context = rows(slice(0, 30), slice(0, 12)), rows(slice(30, 40), slice(0, 4))
    x_new, y_new = x[30:, 4:], y[30:, 4:]
    torch.manual_seed(0)
    network = RepresentationNetwork(MLPFeatures([3], 8, (32,)), MLPFeatures([8], 4, (16,)), "mean")
    model = GPVAE(MLPEncoder([3], 4, (32,)), MLPDecoder(4, [3], (32,)), 4, num_factors=4, representation=network)
    fit(model, train, epochs=400, batch_size=30, learning_rate=0.01, folder=None, progress=False, seed=0)
    error = (model.eval().condition_on(train).generate(x_new, context) - y_new).square().mean()
    baseline = (y_new - y[:30].mean((0, 1))).square().mean()
    assert error < 0.5 * baseline, (float(error), float(baseline))


class WrongRepresentation(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, y, mask):
        return torch.zeros(self.shape)


def test_mistakes_are_explained():
    model, data, unseen = make_amortized(), make_data(), make_data(sizes=(2, 3), seed=5)
    x_new = torch.zeros(2, 1, 1)
    with pytest.raises(GroupError, match=r"num_groups: expected the groups of the training data, got None. Try len"):
        GPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), 3)
    with pytest.raises(GroupError, match=r"num_groups: expected None with a representation, .* got 7"):
        make_amortized(num_groups=len(SIZES))
    with pytest.raises(ArgumentError, match="representation: expected a Module, got function"):
        make_amortized(representation=lambda y, mask: y)
    with pytest.raises(ArgumentError, match="num_factors: expected an integer >= 1, got 0"):
        make_amortized(num_factors=0)
    with pytest.raises(ShapeError, match=r"representation: expected shape \(G, 5\), got \(7, 2\). .*num_factors=m"):
        make_amortized(num_factors=5).terms(data[:])
    with pytest.raises(ShapeError, match=r"representation: expected \(G, m\) = \(7, 2\), got \(3, 2\)"):
        make_amortized(representation=WrongRepresentation((3, 2))).terms(data[:])
    for call in (model.terms, model.model, model.guide):
        with pytest.raises(GroupError, match=r"expected all 7 groups once, got 3.*Try batch_size=len\(data\)"):
            call(data[[0, 1, 2]])
    with pytest.raises(GroupError, match="got one whose representation network computes them"):
        model.initialize_vectors(data)
    with pytest.raises(GroupError, match=r"whose observations give their group vectors, got none. Try at least one"):
        model.generate(x_new)
    with pytest.raises(ArgumentError, match="context: expected one of 'new', 'seen', None, got 'old'"):
        model.condition_on(data, context="old")
    with pytest.raises(GroupError, match=r"context: expected some of the 7 .* condition_on\(train, context='new'\)"):
        model.condition_on(data, context="seen").generate(x_new, unseen)
    with pytest.raises(GroupError, match=r"x_new: expected \(G, Q\*, D\) with G = 2 and D = 1, .*got \(3, 1, 1\)"):
        model.condition_on(data).generate(torch.zeros(3, 1, 1), unseen)
    learned = with_learned_vectors(model, torch.randn(7, 2))
    with pytest.raises(GroupError, match=r"expected 'seen' for a model with one group vector .* representation="):
        learned.condition_on(data, context="new")
