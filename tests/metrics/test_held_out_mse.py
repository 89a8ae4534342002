"""Figures of merit against a loop."""

import dataclasses

import gpytorch
import pytest
import torch

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, HeldOut, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.metrics import disentanglement, held_out_mse, latent_means, swap_errors
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


@pytest.fixture
def model() -> FGPVAE:
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    return FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior).eval()


@pytest.fixture
def held_out() -> HeldOut:
    sizes = torch.tensor([2, 5, 3])
    group = torch.repeat_interleave(torch.arange(3), sizes)
    context = GroupedDataset(torch.randn(10, 3), torch.rand(10), group)
    return HeldOut(context, torch.rand(3, 2, 1), torch.randn(3, 2, 3))


def test_held_out_mse_is_the_mean_over_groups_one_by_one(model: FGPVAE, held_out: HeldOut) -> None:
    errors = [
        (model.generate(held_out.x_new[[g]], held_out.context[[g]]) - held_out.y_new[[g]]).square().mean().item()
        for g in range(3)
    ]
    assert held_out_mse(model, held_out, batch_size=2) == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_held_out_mse_of_samples_is_larger_on_average(model: FGPVAE, held_out: HeldOut) -> None:
    y_new = model.generate(held_out.x_new, held_out.context)  # the mean has no error at all
    held_out = dataclasses.replace(held_out, y_new=y_new)
    assert held_out_mse(model, held_out) == pytest.approx(0, abs=1e-12)
    assert held_out_mse(model, held_out, sample=True) > 1e-6


def test_held_out_mse_leaves_the_mode_of_the_model_alone(model: FGPVAE, held_out: HeldOut) -> None:
    model.train()
    held_out_mse(model, held_out)
    assert model.training


def test_many_draws_are_averaged_before_the_error_is_taken(model: FGPVAE, held_out: HeldOut) -> None:
    torch.manual_seed(4)
    found = held_out_mse(model, held_out, sample=True, num_samples=5)
    torch.manual_seed(4)
    drawn = model.generate(held_out.x_new, held_out.context, sample_shape=(5,))
    assert found == pytest.approx((drawn.mean(0) - held_out.y_new).square().mean().item(), rel=1e-5)


def test_predict_gives_the_latents_that_generate_decodes(model: FGPVAE, held_out: HeldOut) -> None:
    z = model.predict(held_out.x_new, held_out.context).mean
    torch.testing.assert_close(model.decoder(z.float()), model.generate(held_out.x_new, held_out.context))


def test_targets_and_numbers_of_draws_are_checked(model: FGPVAE, held_out: HeldOut) -> None:
    for number, sample in ((0, True), (2.5, True), (3, False)):
        with pytest.raises(ArgumentError, match=f"num_samples: expected .*got {number}"):
            held_out_mse(model, held_out, sample=sample, num_samples=number)
    y_new = held_out.y_new.clone()
    y_new[1, 0, 2] = torch.nan
    with pytest.raises(DataError, match="y_new: expected finite values, got 1"):
        dataclasses.replace(held_out, y_new=y_new)


def test_a_data_set_or_an_impossible_batch_size_is_named(model: FGPVAE, held_out: HeldOut) -> None:
    with pytest.raises(ArgumentError, match="held_out: expected a HeldOut, got GroupedDataset"):
        held_out_mse(model, held_out.context)
    for metric in (held_out_mse, swap_errors):
        with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
            metric(model, held_out, batch_size=0)
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got -3"):
        latent_means(model, held_out.context, batch_size=-3)
    with pytest.raises(ArgumentError, match=r"period: expected a positive finite number.* or None"):
        disentanglement(model, held_out.context, period=0.0)
