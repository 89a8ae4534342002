"""Models with a representation network (Appendix C) against the same ones with learned vectors; training, saving."""

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from factories import make_data, same_state, state_of
from fgp_gpytorch import ELBO, GaussianLikelihood, GroupedDataset, LocalChannels, fit
from fgp_gpytorch.errors import DataError, GroupError, ShapeError
from fgp_gpytorch.models import SVGPVAE, CorrelatedFGPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork

pytestmark = pytest.mark.parametrize("kind", [CorrelatedFGPVAE, SVGPVAE])


def build(kind, encoder, decoder, **options):
    if kind is SVGPVAE:
        return SVGPVAE(encoder, decoder, 3, num_factors=2, num_inducing=5, **options)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.7, 0.8
    return CorrelatedFGPVAE(encoder, decoder, [LocalChannels(1, kernel)], 2, num_factors=2, **options)


def make_amortized(kind, aggregation="mean", likelihood=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        network = RepresentationNetwork(MLPFeatures([3], 4, (8,)), MLPFeatures([4], 2, (8,)), aggregation)
        likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
        return build(kind, encoder, decoder, likelihood=likelihood, representation=network, **options)


def with_learned_vectors(model, vectors):
    """The same model with these vectors as parameters."""
    other = build(type(model), model.encoder, model.decoder, num_groups=len(vectors), likelihood=model.likelihood)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("representation.")}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert (unexpected, [name for name in missing if not name.endswith("group_vectors.vectors")]) == ([], [])
    other.group_vectors.set_vectors(vectors.detach())
    return other.train(model.training)


@pytest.mark.parametrize("element_mask", [False, True])
def test_it_is_the_model_of_the_representations(kind, element_mask):
    model, data = make_amortized(kind).eval(), make_data(element_mask=element_mask)
    batch = data[[3, 0, 6, 1, 2, 5, 4]]
    vectors = model.vectors_of(batch)
    learned = with_learned_vectors(model, vectors[batch.group_index.argsort()])
    for each in (batch, data[[4, 0, 2]]):  # a minibatch counts its rows 7/3 times in both
        for name in ("kl_local", "kl_global"):
            torch.testing.assert_close(getattr(model.terms(each), name), getattr(learned.terms(each), name))
    x_new = 3 * torch.rand(7, 3, 1)
    torch.testing.assert_close(model.generate(x_new, batch), learned.generate(x_new, batch))
    some, x_some = data[[4, 1]], x_new[:2]
    seen = model.condition_on(data, context="seen").generate(x_some, some)
    torch.testing.assert_close(seen, learned.condition_on(data).generate(x_some, some))


@pytest.mark.parametrize("sizes", [(2, 1, 4), (9, 2)])  # fewer and more members than any group of the training data
def test_unseen_groups_are_those_of_a_model_that_knows_all_groups(kind, sizes):
    model, data, unseen = make_amortized(kind).eval(), make_data(), make_data(sizes=sizes, seed=5)
    x_new = 3 * torch.rand(len(sizes), 2, 1)
    first, second = data.flat(), unseen.flat()
    both = GroupedDataset(
        torch.cat([first.y, second.y]), torch.cat([first.x, second.x]), torch.cat([first.group, second.group + 7])
    )
    learned = with_learned_vectors(model, torch.cat([model.vectors_of(data), model.vectors_of(unseen)]))
    wanted = learned.condition_on(both).generate(x_new, both[list(range(7, 7 + len(sizes)))])
    got = model.condition_on(data).generate(x_new, unseen)
    torch.testing.assert_close(got, wanted)
    assert (got - model.generate(x_new, unseen)).abs().max() > 1e-3  # other groups teach about a group
    assert model.condition_on(data).generate(x_new, unseen, sample_shape=[5]).shape == (5, len(sizes), 2, 3)


def test_a_batch_in_which_nobody_was_observed_is_trained_on(kind):
    """What a group gets does not depend on who shares its batch."""
    rows = make_data().flat()
    observed = torch.ones_like(rows.y, dtype=torch.bool)
    observed[rows.group == 5] = False
    data = GroupedDataset(rows.y, rows.x, rows.group, observed)
    model = make_amortized(kind, "attention").eval()
    torch.testing.assert_close(model.vectors_of(data[[5]]), model.vectors_of(data[[5, 0]])[:1])
    fit(model, data, epochs=1, batch_size=1, folder=None, progress=False, seed=0)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_other_features_and_vectors_that_are_not_finite_are_refused(kind):
    model, data = make_amortized(kind).eval(), make_data()
    rows = data.flat()
    two = GroupedDataset(rows.y, torch.cat([rows.x, rows.x], dim=-1), rows.group)
    for context, given in (("new", model.condition_on(data)), ("seen", model.condition_on(data, context="seen"))):
        with pytest.raises(ShapeError, match=r"x_new: expected shape \(7, Q\*, 1\), got \(7, 1, 2\)"):
            given.generate(torch.rand(7, 1, 2), data)
        if context == "new":
            with pytest.raises(ShapeError, match=r"context.x: expected (shape \(G, Q, 1\)|D = 1 auxiliary features)"):
                given.generate(torch.rand(7, 1, 1), two)
    if kind is SVGPVAE:
        with pytest.raises(ShapeError, match=r"batch.x: expected D = 1 auxiliary features, .*got 2\. .*num_features"):
            model.terms(two[:])
    with torch.no_grad():
        next(model.representation.f.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="representation: expected finite values"):
        model.vectors_of(data)


@pytest.mark.parametrize("make_loss", [Trace_ELBO, ELBO])
def test_pyro_trains_it(kind, make_loss):
    model, data = make_amortized(kind, "attention"), make_data()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(start[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("batch_size", [7, 3])
def test_fitted_saved_and_loaded(kind, tmp_path, batch_size):
    options = {"member_dropout": 0.3} if kind is CorrelatedFGPVAE else {}
    model, data = make_amortized(kind, "attention", GaussianLikelihood(), **options), make_data()
    if kind is SVGPVAE:
        model.initialize_inducing(data)
    unseen, x_new = make_data(sizes=(2, 3), seed=5), torch.rand(2, 2, 1)
    before = ELBO(num_particles=100).loss(model, model, data[:])
    fit(model, data, epochs=60, batch_size=batch_size, learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    model.save(tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", tmp_path / "last.ckpt"):
        loaded = kind.load(path)
        assert same_state(model.state_dict(), loaded.state_dict())
        again = loaded.condition_on(data).generate(x_new, unseen)
        assert torch.equal(model.condition_on(data).generate(x_new, unseen), again)


def test_mistakes_are_explained(kind):
    model, data = make_amortized(kind), make_data()
    with pytest.raises(GroupError, match=r"num_groups: expected None with a representation, .* got 7"):
        make_amortized(kind, num_groups=7)
    with pytest.raises(GroupError, match="num_groups: expected the groups of the training data, got None"):
        build(kind, MLPEncoder([3], 3), MLPDecoder(3, [3]))
    with pytest.raises(GroupError, match="got one whose representation network computes them"):
        model.initialize_vectors(data)
    with pytest.raises(GroupError, match=r"context: expected some of the 7 .* condition_on\(train, context='new'\)"):
        model.condition_on(data, context="seen").generate(torch.zeros(2, 1, 1), make_data(sizes=(2, 3)))
    model.representation = RepresentationNetwork(MLPFeatures([3], 4), MLPFeatures([4], 5))
    with pytest.raises(ShapeError, match=r"representation: expected shape \(G, 2\), got \(7, 5\). .*num_factors=m"):
        model.terms(data[:])
