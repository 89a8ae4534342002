"""Figures of merit against a loop."""

from types import SimpleNamespace

import gpytorch
import pytest
import torch

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.metrics import disentanglement, held_out_mse, latent_means, swap_errors
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


@pytest.fixture
def model() -> FGPVAE:
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    return FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior).eval()


@pytest.fixture
def held_out() -> SimpleNamespace:
    sizes = torch.tensor([2, 5, 3])
    group = torch.repeat_interleave(torch.arange(3), sizes)
    context = GroupedDataset(torch.randn(10, 3), torch.rand(10), group)
    return SimpleNamespace(context=context, x_new=torch.rand(3, 2, 1), y_new=torch.randn(3, 2, 3))


def test_held_out_mse_is_the_mean_over_groups_one_by_one(model: FGPVAE, held_out: SimpleNamespace) -> None:
    errors = [
        (model.generate(held_out.x_new[[g]], held_out.context[[g]]) - held_out.y_new[[g]]).square().mean().item()
        for g in range(3)
    ]
    assert held_out_mse(model, held_out, batch_size=2) == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_held_out_mse_of_samples_is_larger_on_average(model: FGPVAE, held_out: SimpleNamespace) -> None:
    held_out.y_new = model.generate(held_out.x_new, held_out.context)  # the mean has no error at all
    assert held_out_mse(model, held_out) == pytest.approx(0, abs=1e-12)
    assert held_out_mse(model, held_out, sample=True) > 1e-6


def test_held_out_mse_leaves_the_mode_of_the_model_alone(model: FGPVAE, held_out: SimpleNamespace) -> None:
    model.train()
    held_out_mse(model, held_out)
    assert model.training


def test_many_draws_are_averaged_before_the_error_is_taken(model: FGPVAE, held_out: SimpleNamespace) -> None:
    torch.manual_seed(4)
    found = held_out_mse(model, held_out, sample=True, num_samples=5)
    torch.manual_seed(4)
    drawn = model.generate(held_out.x_new, held_out.context, sample_shape=(5,))
    assert found == pytest.approx((drawn.mean(0) - held_out.y_new).square().mean().item(), rel=1e-5)


def test_predict_gives_the_latents_that_generate_decodes(model: FGPVAE, held_out: SimpleNamespace) -> None:
    z = model.predict(held_out.x_new, held_out.context).mean
    torch.testing.assert_close(model.decoder(z.float()), model.generate(held_out.x_new, held_out.context))


def test_targets_and_numbers_of_draws_are_checked(model: FGPVAE, held_out: SimpleNamespace) -> None:
    for number, sample in ((0, True), (2.5, True), (3, False)):
        with pytest.raises(DataError, match=f"num_samples: expected an integer of at least 1, .*got {number}"):
            held_out_mse(model, held_out, sample=sample, num_samples=number)
    held_out.y_new[1, 0, 2] = torch.nan
    with pytest.raises(DataError, match="y_new: expected finite values, got 1"):
        held_out_mse(model, held_out)


def test_a_data_set_or_an_impossible_batch_size_is_named(model: FGPVAE, held_out: SimpleNamespace) -> None:
    with pytest.raises(DataError, match=r"held_out: expected an object with context, .*got GroupedDataset"):
        held_out_mse(model, held_out.context)
    for metric in (held_out_mse, swap_errors):
        with pytest.raises(DataError, match="batch_size: expected an integer >= 1, got 0"):
            metric(model, held_out, batch_size=0)
    with pytest.raises(DataError, match="batch_size: expected an integer >= 1, got -3"):
        latent_means(model, held_out.context, batch_size=-3)
    with pytest.raises(DataError, match="period: expected a positive finite number, or None"):
        disentanglement(model, held_out.context, period=0.0)
