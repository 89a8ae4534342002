"""What all models have in common: abstract bases, public networks, posteriors of one kind."""

import itertools

import gpytorch
import pytest
import torch

from factories import SIZES, make_data, make_prior
from fgp_gpytorch import (
    CVAE,
    FGPVAE,
    GPVAE,
    SVGPVAE,
    VAE,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    LatentAngleFGPVAE,
    LocalChannels,
)
from fgp_gpytorch.models import CoupledVAE, FactorizedVAE, GroupedVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures
from fgp_gpytorch.prior import Posterior

FINAL = [CVAE, FGPVAE, GPVAE, SVGPVAE, VAE, CorrelatedFGPVAE, LatentAngleFGPVAE]
PERIOD = 3.0


def networks(num_features=0):
    return MLPEncoder([3], 3, (8,), num_features=num_features), MLPDecoder(3, [3], (8,), num_features=num_features)


def make(kind):
    torch.manual_seed(0)
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length = PERIOD
    likelihood = GaussianLikelihood("fixed", 0.5)
    if kind is VAE:
        return VAE(*networks(), 3, likelihood)
    if kind is CVAE:
        return CVAE(*networks(1), make_prior(), likelihood=likelihood)
    if kind is LatentAngleFGPVAE:
        prior = FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1)])
        return LatentAngleFGPVAE(*networks(), prior, MLPFeatures([3], 2), likelihood, period=PERIOD)
    if kind is FGPVAE:
        return FGPVAE(*networks(), make_prior(), likelihood)
    first = ([LocalChannels(2, kernel)], 1) if kind is CorrelatedFGPVAE else (3,)
    return kind(*networks(), *first, len(SIZES), 2, likelihood=likelihood)


@pytest.mark.parametrize("kind", [GroupedVAE, FactorizedVAE, CoupledVAE])
def test_base_classes_of_models_cannot_be_made(kind):
    with pytest.raises(TypeError, match=f"abstract class {kind.__name__}"):
        kind(*networks(), make_prior())


def test_the_base_class_of_posteriors_cannot_be_made():
    with pytest.raises(TypeError, match="abstract class Posterior"):
        Posterior()


def test_no_model_is_another_one():
    assert all(issubclass(kind, GroupedVAE) for kind in FINAL)
    for one, other in itertools.permutations(FINAL, 2):
        assert not issubclass(one, other)


@pytest.mark.parametrize("kind", FINAL)
def test_encode_gives_the_encoders_numbers_and_neutral_padding(kind):
    model, batch = make(kind).eval(), make_data()[:]
    pseudo = model.encode(batch)
    features = (batch.x[batch.mask],) if kind is CVAE else ()
    mean, variance = model.encoder(batch.y[batch.mask], *features)
    assert pseudo.mean.shape == pseudo.variance.shape == (len(SIZES), max(SIZES), 3)
    assert torch.equal(pseudo.mean[batch.mask], mean)
    assert torch.equal(pseudo.variance[batch.mask], variance)
    assert torch.equal(pseudo.x[batch.mask], batch.x[batch.mask])
    assert torch.equal(pseudo.mask, batch.mask)
    assert (pseudo.mean[~batch.mask] == 0).all()
    assert (pseudo.variance[~batch.mask] == 1).all()


@pytest.mark.parametrize("kind", FINAL)
def test_decode_gives_the_decoders_output_and_generation_is_its_mean(kind):
    model, data = make(kind).eval(), make_data()
    x = torch.rand(len(SIZES), 4, 1)
    z = model.predict(x, data).mean
    features = (x,) if kind is CVAE else ()
    output = model.decode(z, x)
    torch.testing.assert_close(output, model.decoder(z.float(), *features), rtol=0, atol=0)
    assert torch.equal(model.generate(x, data), model.likelihood.mean(output))


@pytest.mark.parametrize("kind", FINAL)
def test_every_posterior_is_a_posterior_whose_kl_is_the_sum_of_its_terms(kind):
    model, batch = make(kind).eval(), make_data()[:]
    posterior, terms = model.infer(batch), model.terms(batch)
    assert isinstance(posterior, Posterior)
    kl_local, kl_global = posterior.kl_terms
    assert kl_local.shape == kl_global.shape == (len(SIZES),)
    assert torch.equal(posterior.kl, kl_local + kl_global)
    assert posterior.kl.sum() > 0
    torch.testing.assert_close((terms.kl_local, terms.kl_global), (kl_local, kl_global))
