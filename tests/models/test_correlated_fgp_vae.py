"""The FGP-VAE with correlated global channels: Pyro's ELBO, the FGP-VAE as its limit, errors, training."""

import math

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from factories import SIZES, make_data, make_model, same_state, state_of
from fgp_gpytorch import ELBO, GaussianLikelihood, GroupedDataset, LocalChannels, fit
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics import mse_by_context_size
from fgp_gpytorch.models import CorrelatedFGPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


def make_correlated(likelihood=None, seed=1, hyperprior=False, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        prior = gpytorch.priors.GammaPrior(20.0, 4.0) if hyperprior else None
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(lengthscale_prior=prior))
        kernel.outputscale, kernel.base_kernel.lengthscale = 1.7, 0.8
        likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
        local = [LocalChannels(1, kernel)]
        return CorrelatedFGPVAE(encoder, decoder, local, 2, len(SIZES), 2, likelihood=likelihood, **options)


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("case", ["plain", "element mask", "hyperprior"])
def test_pyros_elbos_agree_with_ours(pyro_elbo, case):
    model, batch = make_correlated(hyperprior=case == "hyperprior"), make_data(element_mask=case == "element mask")[:]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    theirs = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(40)])
    ours = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)])
    error = math.hypot(theirs.std() / 40**0.5, ours.std() / 40**0.5)
    assert error < 0.02 * abs(ours.mean())
    assert abs(theirs.mean() - ours.mean()) < 4.5 * error


def test_kl_of_the_sites_is_the_posteriors():
    model, batch = make_correlated(), make_data()[:]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    kl = {
        name: torch.distributions.kl_divergence(guide.nodes[name]["fn"], trace.nodes[name]["fn"]).sum()
        for name in ("u_0",)
    }
    q = guide.nodes["u_global"]["fn"]
    standard = torch.distributions.MultivariateNormal(torch.zeros_like(q.mean), torch.eye(2, dtype=q.mean.dtype))
    kl["u_global"] = torch.distributions.kl_divergence(q, standard).sum()
    terms = model.terms(batch)
    torch.testing.assert_close(terms.kl_local.sum(), kl["u_0"], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(terms.kl_global.sum(), kl["u_global"], rtol=1e-9, atol=1e-10)
    assert trace.nodes["z"]["value"].shape == (7, 6, 3)
    assert {trace.nodes[name]["scale"] for name in ("u_0", "u_global", "y")} == {1.0}


def test_orthogonal_objects_give_the_fgp_vae():
    fgp_vae, data = make_model(), make_data()
    correlated = CorrelatedFGPVAE(
        fgp_vae.encoder, fgp_vae.decoder, [fgp_vae.prior.blocks[0]], 1, 7, 7, likelihood=fgp_vae.likelihood,
        normalize=False,
    )  # fmt: skip
    correlated.group_vectors.set_vectors(0.6**0.5 * torch.eye(7))
    ours, theirs = correlated.terms(data[:]), fgp_vae.terms(data[:])
    torch.testing.assert_close(ours.kl_local, theirs.kl_local)
    torch.testing.assert_close(ours.kl_global.sum(), theirs.kl_global.sum(), rtol=1e-5, atol=0)
    x_new = torch.rand(2, 4, 1)
    context = data[[4, 1]]
    torch.testing.assert_close(correlated.generate(x_new, context), fgp_vae.generate(x_new, context))
    torch.testing.assert_close(correlated.condition_on(data).generate(x_new, context), fgp_vae.generate(x_new, context))


def test_other_groups_teach_about_a_group():
    model, data = make_correlated().eval(), make_data()
    x_new, context = torch.rand(2, 4, 1), data[[4, 1]]
    alone, together = model.generate(x_new, context), model.condition_on(data).generate(x_new, context)
    assert (alone - together).abs().max() > 1e-3
    by_all = model.generate(torch.cat([x_new, x_new, x_new, x_new[:1]])[[6, 1, 2, 3, 0, 5, 4]], data)
    torch.testing.assert_close(together, by_all[[4, 1]])


def times_over(model, batch, times):
    """A model and a data set that has the batch's groups so many times over, each with its group vector."""
    group = torch.arange(batch.num_groups).unsqueeze(-1).expand(batch.mask.shape)[batch.mask]
    group = torch.cat([group + batch.num_groups * i for i in range(times)])
    data = GroupedDataset(batch.y[batch.mask].repeat(times, 1), batch.x[batch.mask].repeat(times, 1), group)
    larger = CorrelatedFGPVAE(
        model.encoder, model.decoder, list(model.prior.local.blocks), 2, times * batch.num_groups, 2,
        likelihood=model.likelihood,
    )  # fmt: skip
    larger.group_vectors.set_vectors(model.group_vectors.vectors.detach()[batch.group_index].repeat(times, 1))
    return larger, data


def test_minibatch_has_the_terms_of_a_data_set_that_has_it_times_over():
    # networks in double: in single precision their rounding may depend on the size of the batch
    model, data = make_correlated(), make_data(sizes=(3, 1, 4, 2, 5, 2), dtype=torch.float64)
    model = CorrelatedFGPVAE(
        model.encoder, model.decoder, list(model.prior.local.blocks), 2, 6, 2, likelihood=model.likelihood
    ).double()
    batch = data[[4, 1]]
    larger, whole = times_over(model, batch, 3)
    ours, theirs = model.terms(batch), larger.terms(whole[:])
    for name in ("kl_local", "kl_global"):
        mine, exact = getattr(ours, name).sum() * ours.scale, getattr(theirs, name).sum()
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=0)
    q, exact = model.training_posterior(batch), larger.infer(whole[:])
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(q, name)[batch.mask], getattr(exact, name)[:2][batch.mask])
    # and what is inferred of the batch counts its rows once
    assert (model.infer(batch).variance[..., 1:][batch.mask] > 1.01 * q.variance[..., 1:][batch.mask]).all()


def test_pyros_elbo_of_a_minibatch_is_ours():
    model, batch = make_correlated(), make_data()[[4, 0, 5]]
    theirs = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    first = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(40)], dtype=torch.float64)
    second = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)], dtype=torch.float64)
    error = math.hypot(first.std() / 40**0.5, second.std() / 40**0.5)
    assert error < 0.02 * abs(second.mean())
    assert abs(first.mean() - second.mean()) < 4.5 * error


def test_fitted_in_minibatches():
    model, data = make_correlated(GaussianLikelihood(), member_dropout=0.3), make_data()
    model.initialize_vectors(data)
    before = ELBO(num_particles=100).loss(model, model, data[:])
    fit(model, data, epochs=30, batch_size=3, learning_rate=0.02, folder=None, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20


def test_other_groups_are_refused():
    model = make_correlated()
    for call in (model.terms, model.model, model.guide):
        with pytest.raises(GroupError, match="expected groups of the data set of 7 groups"):
            call(make_data(sizes=(2, 3))[:])
    with pytest.raises(GroupError, match="expected groups of the data set of 7 groups"):
        model.infer(make_data(sizes=(2, 3)))
    with pytest.raises(GroupError, match="A new group has no group vector"):
        model.generate(torch.zeros(1, 2, 1))


def test_predictive_draws_from_the_posterior_and_from_the_prior():
    model, batch = make_correlated().eval(), make_data()[:]
    sites = Predictive(model.model, guide=model.guide, num_samples=3000, parallel=True)(batch, observe=False)
    assert sites["y"].shape == (3000, *batch.y.shape)
    # standard deviations are below 1.3: five standard errors
    torch.testing.assert_close(sites["z"].mean(0), model.infer(batch).mean, rtol=0, atol=5 * 1.3 / 3000**0.5)
    assert Predictive(model.model, num_samples=5)(batch, observe=False)["y"].shape == (5, *batch.y.shape)


@pytest.mark.parametrize("learn_vectors", [True, False])
def test_fitted_saved_and_loaded(tmp_path, learn_vectors):
    model, data = make_correlated(GaussianLikelihood(), learn_vectors=learn_vectors, member_dropout=0.3), make_data()
    model.initialize_vectors(data)
    before, start = ELBO(num_particles=100).loss(model, model, data[:]), state_of(model)
    fit(model, data, epochs=60, batch_size=len(data), learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert ("group_vectors.vectors" in moved) == learn_vectors
    assert "prior.local.blocks.0.kernel.base_kernel.raw_lengthscale" in moved
    for path in (tmp_path / "model.pt", tmp_path / "last.ckpt"):
        model.save(tmp_path / "model.pt")
        loaded = CorrelatedFGPVAE.load(path)
        assert same_state(model.state_dict(), loaded.state_dict())
        assert torch.equal(model.reconstruct(data), loaded.reconstruct(data))
        assert loaded.group_vectors.vectors.requires_grad == learn_vectors


@pytest.mark.parametrize("make_loss", [Trace_ELBO, ELBO])
def test_pyro_trains_it(make_loss):
    model, data = make_correlated(), make_data()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(start[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_pca_of_groups_that_lack_an_element_finds_the_factor_and_not_who_lacks():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(7, generator=generator)
    y = 50 + factor[:, None] * torch.tensor([1.0, -0.5, 2.0]) + 0.01 * torch.randn(7, 3, generator=generator)
    y_mask = torch.ones(7, 3, dtype=torch.bool)
    y_mask[[1, 4], 0] = False
    model = make_correlated(learn_vectors=False, normalize=False)
    model.initialize_vectors(GroupedDataset(y, torch.zeros(7), torch.arange(7), y_mask))
    found = torch.corrcoef(torch.stack([model.group_vectors.vectors[:, 0], factor.double()]))[0, 1]
    assert abs(found) > 0.9


def test_a_model_given_its_rows_has_no_error_by_context_size():
    model, data = make_correlated().eval(), make_data()
    held_out = HeldOut(data, data[:].x[:, :1], data[:].y[:, :1])
    with pytest.raises(DataError, match="expected one that conditions on its context, got one"):
        mse_by_context_size(model.condition_on(data), held_out, (1,))
