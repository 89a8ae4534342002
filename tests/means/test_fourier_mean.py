"""A learned periodic mean."""

import math

import gpytorch
import pytest
import torch

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

F64 = torch.float64


def filled(mean):
    with torch.no_grad():
        mean.constant.normal_()
        mean.coefficients.normal_()
    return mean


@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_mean_is_the_sum_written_out(batch_shape):
    mean = filled(FourierMean(2, period=5.0, batch_shape=torch.Size(batch_shape), feature=1).double())
    x = torch.rand(4, 1, 6, 2, dtype=F64)
    got = mean(x).expand(4, *(batch_shape or (1,)), 6)
    for g in range(4):
        for c in range(got.shape[1]):
            a, b = mean.coefficients[c] if batch_shape else mean.coefficients
            constant = mean.constant[c] if batch_shape else mean.constant
            for q in range(6):
                angle = 2 * math.pi * x[g, 0, q, 1].item() / 5.0
                wanted = constant.item() + sum(
                    a[k].item() * math.cos((k + 1) * angle) + b[k].item() * math.sin((k + 1) * angle) for k in range(2)
                )
                assert got[g, c, q].item() == pytest.approx(wanted, rel=1e-12)


def test_prior_with_it_is_the_prior_around_it_and_comes_back_from_a_file(tmp_path):
    mean = filled(FourierMean(3, batch_shape=torch.Size([2])))
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.PeriodicKernel(), mean), GlobalChannels(1)])
    x, values = torch.rand(2, 4, 1, dtype=F64), torch.randn(2, 4, 3, dtype=F64)
    shift = torch.cat([mean(x.unsqueeze(-3)).mT, torch.zeros(2, 4, 1, dtype=F64)], dim=-1)
    plain = FactorizedGPPrior([LocalChannels(2, prior.blocks[0].kernel), GlobalChannels(1)])
    posterior = prior.posterior(x, values + shift, torch.ones_like(values))
    around = plain.posterior(x, values, torch.ones_like(values))
    torch.testing.assert_close(posterior.mean, around.mean + shift)
    torch.testing.assert_close(posterior.kl, around.kl)
    torch.testing.assert_close(prior(x).mean, shift)
    model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), prior)
    model.save(tmp_path / "model.pt")
    assert torch.equal(FGPVAE.load(tmp_path / "model.pt").prior(x).mean, prior(x).mean)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ArgumentError, match="harmonics: expected an integer >= 1, got 0"):
        FourierMean(0)
    with pytest.raises(ArgumentError, match="period: expected a positive finite number, got 0"):
        FourierMean(1, period=0)
