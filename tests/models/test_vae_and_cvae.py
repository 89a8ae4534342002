"""The plain and the conditional VAE: formulas written out, Pyro's ELBO, what each may know of a group."""

import math

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import Normal, kl_divergence

from factories import make_data, make_prior, same_state
from fgp_gpytorch import (
    CVAE,
    ELBO,
    VAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    IndependentChannels,
    fit,
)
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder, FourierFeatures, MLPDecoder, MLPEncoder


def make_vae():
    return VAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), 3, GaussianLikelihood("fixed", 0.5))


def make_cvae(prior=None, told=True):
    features = FourierFeatures(2, 3.0) if told else None
    prior = FactorizedGPPrior([GlobalChannels(3)]) if prior is None else prior
    width = 4 if told else 1
    encoder = MLPEncoder([3], 3, (8,), num_features=width)
    decoder = MLPDecoder(3, [3], (8,), num_features=width)
    return CVAE(encoder, decoder, prior, features, GaussianLikelihood("fixed", 0.5))


def test_vae_has_the_textbook_elbo():
    model, batch = make_vae(), make_data()[[4, 0, 2]]
    rows = batch.y[batch.mask]
    mean, variance = (part.double() for part in model.encoder(rows))
    q = Normal(mean / (1 + variance), (variance / (1 + variance)).sqrt())
    terms = model.terms(batch, num_particles=4000)
    kl = kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).sum(-1)
    z = q.sample((4000,))
    log_likelihood = Normal(model.decoder(z.float()), 0.5**0.5).log_prob(rows).sum(-1).mean(0)
    group = batch.mask.nonzero()[:, 0]
    for g in range(3):
        torch.testing.assert_close(terms.kl_local[g], kl[group == g].sum())
        # 4000 draws of a sum whose standard deviation is below 3 nats: 5 standard errors
        assert abs(terms.log_likelihood[g] - log_likelihood[group == g].sum()) < 5 * 3 * math.sqrt(2 / 4000)
    assert torch.equal(terms.kl_global, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        make_vae,
        make_cvae,
        lambda: make_cvae(FactorizedGPPrior([IndependentChannels(3)])),
        lambda: make_cvae(make_prior()),
    ],
)
def test_pyros_elbo_agrees_with_ours(make):
    model, batch = make(), make_data()[[4, 0, 5, 2]]
    pyro_elbo = TraceMeanField_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    theirs = torch.tensor([pyro_elbo.loss(model.model, model.guide, batch) for _ in range(40)])
    ours = torch.tensor([ELBO(num_particles=50).loss(model, model, batch) for _ in range(40)])
    error = math.hypot(theirs.std() / 40**0.5, ours.std() / 40**0.5)
    assert error < 0.02 * abs(ours.mean())
    assert abs(theirs.mean() - ours.mean()) < 4.5 * error


def test_vae_knows_nothing_of_a_new_member():
    model, batch = make_vae().eval(), make_data()[[0, 1]]
    x_new = torch.rand(2, 4, 1)
    expected = model.decoder(torch.zeros(2, 4, 3))
    torch.testing.assert_close(model.generate(x_new, batch), expected)


def test_cvae_tells_both_networks_where_they_are():
    model, data = make_cvae().eval(), make_data()
    batch = data[[0, 3]]
    x_new = torch.rand(2, 5, 1)
    z = model.infer(batch).predict(x_new).mean.float()
    expected = model.decoder(z, FourierFeatures(2, 3.0)(x_new))
    torch.testing.assert_close(model.generate(x_new, batch), expected)
    rows = batch.y[batch.mask]
    mean, variance = model.encoder(rows, FourierFeatures(2, 3.0)(batch.x[batch.mask]))
    weight = 1 / variance.double()
    for g, members in enumerate(([0, 1, 2], [3, 4, 5, 6])):  # the pooled code, by hand
        pooled = (weight * mean)[members].sum(0) / (1 + weight[members].sum(0))
        torch.testing.assert_close(z[g, 0], pooled.float())


def test_published_cvae_draws_from_the_angle_alone():
    model, data = make_cvae(FactorizedGPPrior([IndependentChannels(3)])).eval(), make_data()
    x_new = torch.rand(1, 4, 1).expand(2, -1, -1)
    first = model.generate(x_new, data[[0, 1]])
    assert torch.equal(first, model.generate(x_new, data[[2, 3]]))
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-4


def test_samples_and_paths_have_the_documented_shapes():
    for model in (make_vae().eval(), make_cvae().eval()):
        batch = make_data()[[0, 4]]
        x_new = torch.rand(2, 5, 1)
        assert model.generate(x_new).shape == (2, 5, 3)
        assert model.generate(x_new, batch, sample_shape=[7]).shape == (7, 2, 5, 3)
        assert model.reconstruct(batch).shape == batch.y.shape


@pytest.mark.parametrize("make", [make_vae, make_cvae, lambda: make_cvae(told=False)])
def test_fitted_saved_and_loaded(make, tmp_path):
    model, data = make(), make_data()
    before = ELBO(num_particles=100).loss(model, model, data[:])
    fit(model, data, epochs=20, learning_rate=0.02, folder=tmp_path, progress=False, seed=0)
    assert ELBO(num_particles=100).loss(model, model, data[:]) < before - 20
    model.save(tmp_path / "model.pt")
    loaded = type(model).load(tmp_path / "model.pt")
    assert same_state(model.state_dict(), loaded.state_dict())
    assert torch.equal(model.reconstruct(data), loaded.reconstruct(data))


def test_pyro_trains_a_cvae():
    model, data = make_cvae(), make_data()
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), TraceMeanField_ELBO())
    losses = [svi.step(data[:]) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100


def test_features_of_the_wrong_shape_are_refused():
    class Flat(torch.nn.Module):
        def forward(self, x):
            return x.flatten()

    with pytest.raises(ShapeError, match=r"features: expected the leading dimensions of x \(3, 1\), got \(3,\)"):
        CVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), make_prior(), Flat()).infer(make_data()[[0]])


def test_paper_networks_take_features():
    y, z, features = torch.rand(2, 5, 1, 28, 28), torch.randn(2, 5, 16), torch.rand(2, 5, 2)
    encoder, decoder = ConvEncoder(16, num_features=2), ConvDecoder(16, num_features=2)
    mean, variance = encoder(y, features)
    one = encoder(y[1, 3], features[1, 3])
    torch.testing.assert_close(mean[1, 3], one[0])
    torch.testing.assert_close(variance[1, 3], one[1])
    assert (encoder(y, features + 1)[0] - mean).abs().min() > 0
    torch.testing.assert_close(decoder(z, features)[1, 3], decoder(z[1, 3], features[1, 3]))


def test_fourier_features_are_points_on_circles():
    x = torch.tensor([[0.25, 1.0]], dtype=torch.float64)
    got = FourierFeatures(2, period=1.0)(x)
    wanted = [f(2 * math.pi * k * v) for v in (0.25, 1.0) for f in (math.cos, math.sin) for k in (1, 2)]
    torch.testing.assert_close(got, torch.tensor([wanted], dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_module_of_the_features_gets_them_in_its_own_precision():
    rows = make_data().flat()
    data = GroupedDataset(rows.y, rows.x.double(), rows.group)
    networks = MLPEncoder([3], 2, num_features=3), MLPDecoder(2, [3], num_features=3)
    model = CVAE(*networks, FactorizedGPPrior([GlobalChannels(2)]), features=torch.nn.Linear(1, 3))
    assert fit(model, data, epochs=1, progress=False, folder=None).history["mse"].notna().all()
    assert model.generate(torch.rand(len(data), 2, 1).double(), data).shape == (len(data), 2, 3)


def test_features_that_are_no_module_are_refused():
    networks = MLPEncoder([3], 2, num_features=1), MLPDecoder(2, [3], num_features=1)
    with pytest.raises(ArgumentError, match="features: expected a torch Module of x, got builtin_function_or_method"):
        CVAE(*networks, FactorizedGPPrior([GlobalChannels(2)]), features=torch.sin)
    with pytest.raises(ArgumentError, match=r"got GaussianLikelihood.* likelihood=\.\.\."):  # FGPVAE has it here
        CVAE(*networks, FactorizedGPPrior([GlobalChannels(2)]), GaussianLikelihood())
