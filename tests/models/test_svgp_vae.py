"""The SVGP-VAE: dense oracles, the limit of many inducing points, Pyro's ELBO, errors, training."""

import math

import gpytorch
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal

from factories import SIZES, make_data, same_state
from fgp_gpytorch import ELBO, SVGPVAE, GaussianLikelihood, HeldOut, fit
from fgp_gpytorch.coupled import InducingPrior, unit_length
from fgp_gpytorch.errors import ArgumentError, GroupError, ShapeError
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork

F64 = torch.float64
AMPLITUDE = 1.7


def make_svgp_vae(num_inducing=5, seed=1, likelihood=None):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel())
    kernel.outputscale, kernel.base_kernel.period_length = AMPLITUDE, 2 * math.pi
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
        encoder, decoder = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
        return SVGPVAE(encoder, decoder, 3, len(SIZES), 2, num_inducing, kernel, likelihood=likelihood)


def kernel_by_hand(model, first, second):
    """Sum over factors of vectors times the periodic kernel, entry by entry; rows are (vector, x)."""
    lengthscale = model.prior.kernel.base_kernel.lengthscale.item()
    amplitude = model.prior.kernel.outputscale.item()
    out = torch.zeros(len(first), len(second), dtype=F64)
    for i, (v, w) in enumerate(first):
        for j, (u, s) in enumerate(second):
            view = math.exp(-2 * math.sin(float(w - s) / 2) ** 2 / lengthscale)
            out[i, j] = float(v @ u) * amplitude * view
    return out


def rows_of(model, groups, x):
    vectors = model.group_vectors.vectors.detach()[groups]
    return list(zip(vectors / vectors.norm(dim=-1, keepdim=True), x.double()[:, 0], strict=True))


def titsias(model, batch, scale=1.0):
    """q(f_u) by the textbook's dense formulas in f_u itself, not whitened; KL, and marginals at the rows."""
    inducing = list(zip(model.prior.inducing_vectors.detach(), model.prior.inducing_x.detach()[:, 0], strict=True))
    kuu = kernel_by_hand(model, inducing, inducing)
    kuu = kuu + 1e-6 * kuu.diagonal().mean() * torch.eye(len(kuu), dtype=F64)
    groups = batch.group_index.unsqueeze(-1).expand(batch.mask.shape)[batch.mask]
    rows = rows_of(model, groups, batch.x[batch.mask])
    kxu, kxx = kernel_by_hand(model, rows, inducing), kernel_by_hand(model, rows, rows).diagonal()
    mean, variance = (part.detach().double() for part in model.encoder(batch.y[batch.mask]))
    kl, means, variances = 0.0, [], []
    for c in range(3):
        weighted = kxu.mT / variance[:, c] * scale
        sigma = torch.linalg.inv(kuu + weighted @ kxu)
        q_mean, q_covariance = kuu @ sigma @ weighted @ mean[:, c], kuu @ sigma @ kuu
        q = MultivariateNormal(q_mean, (q_covariance + q_covariance.mT) / 2)
        kl += torch.distributions.kl_divergence(q, MultivariateNormal(torch.zeros(len(kuu), dtype=F64), kuu))
        project = kxu @ torch.linalg.inv(kuu)
        means.append(project @ q_mean)
        rest = kxx - (project * kxu).sum(-1)
        variances.append(rest + ((project @ q_covariance) * project).sum(-1))
    return kl, torch.stack(means, -1), torch.stack(variances, -1)


def test_posterior_and_kl_are_those_of_the_dense_formulas():
    model, data = make_svgp_vae().eval(), make_data()
    batch = data[[3, 0, 6, 1, 2, 5, 4]]
    kl, mean, variance = titsias(model, batch)
    posterior = model.infer(batch)
    torch.testing.assert_close(posterior.kl_channels.sum(), kl, rtol=1e-6, atol=0)
    torch.testing.assert_close(posterior.mean[batch.mask], mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(posterior.variance[batch.mask], variance, rtol=1e-6, atol=1e-7)
    terms = model.terms(batch)
    torch.testing.assert_close(terms.kl_local.sum() * terms.scale, kl, rtol=1e-6, atol=0)


def test_minibatch_counts_its_rows_for_the_groups_that_are_not_there():
    model, data = make_svgp_vae(), make_data()
    batch = data[[4, 0]]
    kl, mean, _ = titsias(model, batch, scale=7 / 2)
    terms = model.terms(batch)
    torch.testing.assert_close(terms.kl_local.sum() * terms.scale, kl, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.training_posterior(batch).mean[batch.mask], mean, rtol=1e-6, atol=1e-7)


def test_inducing_points_at_every_row_give_exact_regression():
    model, data = make_svgp_vae(num_inducing=sum(SIZES)).eval(), make_data()
    batch, rows = data[:], data.flat()
    with torch.no_grad():
        model.prior.set_inducing(unit_length(model.group_vectors(rows.group)), rows.x.double())
    listed = rows_of(model, rows.group, rows.x)
    k = kernel_by_hand(model, listed, listed)
    mean, variance = (part.detach().double() for part in model.encoder(rows.y))
    posterior = model.infer(batch)
    for c in range(3):
        gain = k @ torch.linalg.inv(k + torch.diag(variance[:, c]))
        # the jitter of 1e-6 on the inducing variables leaves so much of the function to guess
        torch.testing.assert_close(posterior.mean[batch.mask][:, c], gain @ mean[:, c], rtol=0, atol=1e-4)
        exact = (k - gain @ k).diagonal()
        torch.testing.assert_close(posterior.variance[batch.mask][:, c], exact, rtol=0, atol=1e-4)


def test_masked_members_do_not_matter():
    model, data = make_svgp_vae().eval(), make_data()
    batch = data[:]
    padded = model.infer(batch)
    rows = batch.mask.nonzero()
    alone = titsias(model, batch)
    torch.testing.assert_close(padded.mean[rows[:, 0], rows[:, 1]], alone[1], rtol=1e-6, atol=1e-7)
    assert padded.mean.isfinite().all()


def test_draws_have_the_posteriors_moments_and_are_coherent():
    model, batch = make_svgp_vae().eval(), make_data()[:]
    posterior = model.infer(batch)
    x_new = torch.rand(7, 2, 1)
    for part in (posterior, posterior.predict(x_new)):
        for marginals in (True, False):
            draws = part.rsample((20_000,), marginals=marginals)
            deviation = part.variance.sqrt()
            assert ((draws.mean(0) - part.mean).abs() < 5 * deviation / 20_000**0.5).all()
            torch.testing.assert_close(draws.var(0), part.variance, rtol=0.06, atol=1e-6)
    same = posterior.predict(batch.x[:, :1])
    torch.testing.assert_close(same.mean, posterior.mean[:, :1])


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("groups", [slice(None), [4, 0, 5]])
def test_pyros_elbos_agree_with_ours(pyro_elbo, groups):
    model, batch = make_svgp_vae(), make_data()[groups]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    first = torch.tensor([theirs.loss(model.model, model.guide, batch) for _ in range(40)], dtype=F64)
    second = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)], dtype=F64)
    error = math.hypot(first.std() / 40**0.5, second.std() / 40**0.5)
    assert error < 0.02 * abs(second.mean())
    assert abs(first.mean() - second.mean()) < 4.5 * error


def test_svi_steps_all_parameters():
    model, data = make_svgp_vae(), make_data()
    import pyro

    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), TraceMeanField_ELBO())
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100
    assert all(not torch.equal(value, dict(model.named_parameters())[name]) for name, value in before.items())


def test_fitted_in_minibatches_saved_loaded_and_asked_about_held_out_members(tmp_path):
    model, data = make_svgp_vae(), make_data()
    model.initialize_vectors(data)
    before = ELBO(num_particles=100).loss(model, model, data[:])
    fit(model, data, epochs=30, batch_size=3, learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    model.save(tmp_path / "model.pt")
    loaded = SVGPVAE.load(tmp_path / "model.pt")
    assert same_state(model.state_dict(), loaded.state_dict())
    assert torch.equal(model.reconstruct(data), loaded.reconstruct(data))
    held_out = HeldOut(data.subset([2, 5]).align(data), torch.rand(2, 1, 1), torch.rand(2, 1, 3))
    assert 0 < held_out_mse(loaded.condition_on(data), held_out) < 10


def test_groups_without_an_object_vector_are_refused():
    model, data = make_svgp_vae(), make_data()
    for use in (model.terms, model.infer, model.guide):
        with pytest.raises(GroupError, match="7 groups whose vectors the model has, got a batch of a data set"):
            use(data.subset([0, 1])[:])
    with pytest.raises(GroupError, match="context: expected groups of the training data, got none"):
        model.generate(torch.rand(1, 2, 1))


def test_numbers_and_kernels_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="num_inducing: expected an integer >= 1, got 0"):
        InducingPrior(2, 2, gpytorch.kernels.RBFKernel(), 0)
    with pytest.raises(ShapeError, match=r"kernel: expected batch_shape \[\], got \[2\]"):
        InducingPrior(2, 2, gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2])))


def test_inducing_points_start_at_rows_with_the_vectors_of_their_groups():
    data = make_data()
    norm = torch.nn.BatchNorm1d(4)
    network = RepresentationNetwork(torch.nn.Sequential(MLPFeatures([3], 4), norm), MLPFeatures([4], 2), "mean")
    model = SVGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), 3, num_factors=2, num_inducing=9, representation=network)
    model.initialize_inducing(data[:])
    model.initialize_inducing(data)
    assert norm.training
    assert not norm.running_mean.any()
    model.eval()
    vectors = torch.nn.functional.normalize(model.vectors_of(data), dim=-1).detach()
    rows = data.flat()
    pairs = torch.cat([vectors[rows.group], rows.x.to(F64)], dim=-1)
    inducing = torch.cat([model.prior.inducing_vectors, model.prior.inducing_x], dim=-1).detach()
    distance = torch.cdist(inducing, pairs)
    assert distance.min(dim=1).values.max() < 1e-6
    assert len(distance.argmin(dim=1).unique()) > 3
