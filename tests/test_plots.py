"""Figures show what they are given."""

import gpytorch
import pandas as pd
import pytest
import torch

from factories import make_data
from fgp_gpytorch import (
    CVAE,
    FGPVAE,
    GPVAE,
    SVGPVAE,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedBatch,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.nets import FourierFeatures, MLPDecoder, MLPEncoder
from fgp_gpytorch.plots import image_rows, latent_paths, training_curves


def test_image_rows_draws_an_image_for_each_that_is_not_nan() -> None:
    images = torch.rand(4, 1, 28, 28)
    images[2] = torch.nan
    figure = image_rows([("a", images), ("b", torch.rand(3, 28, 28))], columns=list("wxyz"), marked=[(0, 1)])
    drawn = [len(axes.images) for axes in figure.axes]
    assert drawn == [1, 1, 0, 1, 1, 1, 1, 0]
    assert [axes.get_title() for axes in figure.axes[:4]] == list("wxyz")


def test_image_rows_draws_colours_as_they_are() -> None:
    images = torch.rand(2, 3, 8, 10)
    drawn = image_rows([("a", images)]).axes[1].images[0].get_array()
    assert torch.equal(torch.as_tensor(drawn.data), images[1].permute(1, 2, 0))


@pytest.mark.parametrize("shape", [(2, 8), (2, 2, 8, 8), (2, 4, 1, 8, 8)])
def test_image_rows_refuses_what_are_no_images(shape) -> None:
    with pytest.raises(ShapeError, match=r"rows: expected images \(n, H, W\).* for 'a'"):
        image_rows([("a", torch.rand(shape))])
    with pytest.raises(ShapeError, match="expected at least one row"):
        image_rows([])


def test_latent_paths_has_a_panel_for_each_local_channel_and_one_for_the_global() -> None:
    prior = FactorizedGPPrior([LocalChannels(3, gpytorch.kernels.RBFKernel()), GlobalChannels(2, variance=4.0)])
    model = FGPVAE(MLPEncoder([3], 5), MLPDecoder(5, [3]), prior).eval()
    batch = GroupedBatch.from_tensors(torch.randn(1, 4, 3), torch.rand(1, 4, 1))
    figure = latent_paths(model, batch, torch.linspace(0, 1, 20))
    assert len(figure.axes) == 4
    line = figure.axes[1].lines[0]
    expected = model.infer(batch).predict(torch.linspace(0, 1, 20).reshape(1, -1, 1)).mean[0, :, 1]
    assert torch.as_tensor(line.get_ydata()).double().tolist() == pytest.approx(expected.tolist())


def test_latent_paths_takes_what_infer_takes() -> None:
    """A model in double with data in float, a data set as context, and an encoder that is told x."""
    data = GroupedDataset(torch.randn(4, 3), torch.rand(4, 1), torch.zeros(4, dtype=torch.int64))
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel())])
    figure = latent_paths(FGPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), prior).double().eval(), data, torch.rand(5))
    assert len(figure.axes) == 2
    networks = MLPEncoder([3], 2, num_features=2), MLPDecoder(2, [3], num_features=2)
    told = CVAE(*networks, FactorizedGPPrior([GlobalChannels(2)]), FourierFeatures()).eval()
    assert len(latent_paths(told, data, torch.rand(5)).axes) == 1


def test_training_curves_draw_every_run() -> None:
    history = pd.DataFrame(
        {"epoch": [0, 1], "mse": [0.2, 0.1], "kl_local": [1.0, 2.0], "kl_global": [1.0, 1.5], "multiplier": [1.0, 3.0]}
    )
    figure = training_curves([history, history], kappa=0.05)
    assert [len(axes.lines) for axes in figure.axes] == [3, 4, 2]


@pytest.mark.parametrize("kind", [CorrelatedFGPVAE, GPVAE, SVGPVAE])
def test_latent_paths_of_models_that_couple_groups(kind) -> None:
    data = make_data()
    networks = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
    local = [LocalChannels(2, gpytorch.kernels.RBFKernel())]
    first = (local, 1) if kind is CorrelatedFGPVAE else (3,)
    model = kind(*networks, *first, num_groups=len(data), num_factors=2)
    figure = latent_paths(model, data[[1]], [0.0, 1.0, 2.0])
    assert len([axes for axes in figure.axes if axes.axison]) == 3
    assert model.training  # as it was found


def test_latent_paths_draws_no_dot_of_whom_nothing_was_observed() -> None:
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel())])
    model = FGPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), prior)
    y_mask = torch.ones(4, 3, dtype=torch.bool)
    y_mask[1] = False
    data = GroupedDataset(torch.randn(4, 3), torch.rand(4), [0] * 4, y_mask)
    dots = latent_paths(model, data, torch.linspace(0, 1, 5)).axes[0].containers[0].lines[0]
    assert len(dots.get_xdata()) == 3


def test_pictures_say_what_they_expected() -> None:
    with pytest.raises(ShapeError, match="columns: expected 3 headings, one for each image of a row, got 2"):
        image_rows([("a", torch.rand(3, 8, 8))], columns=["x", "y"])
    with pytest.raises(ArgumentError, match="rows, images for 'a': expected a tensor or an array of numbers, got str"):
        image_rows([("a", "images")])
