"""Warnings of runs that are likely to be worthless, and their silence in ordinary ones."""

import warnings

import gpytorch
import pandas as pd
import pytest
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from torch import nn

from factories import make_data, make_model, make_prior
from fgp_gpytorch import (
    CVAE,
    ELBO,
    FGPVAE,
    GECO,
    CoregionalizedChannels,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.nets import FourierFeatures, MLPDecoder, MLPEncoder
from fgp_gpytorch.training import RunSettings
from fgp_gpytorch.training import _advice as advice

QUIET = {"folder": None, "progress": False, "accelerator": "cpu", "seed": 3}


def warned(call):
    """The messages and files of all warnings."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found], {w.filename for w in found}


def like(model, data, **options):
    return warned(lambda: fit(model, data, epochs=1, **QUIET | options))


# columns in raw units


def of_units(model, data):
    return warned(lambda: advice.warn_of_raw_units(model, data))[0]


class Counts(GaussianLikelihood):
    """Another likelihood, which may have a scale of its own."""


def scaled(*scales):
    rows = make_data().flat()
    return GroupedDataset(rows.y * torch.tensor(scales), rows.x, rows.group)


def test_columns_of_y_in_raw_units_are_named():
    for likelihood in (GaussianLikelihood(), DiagonalGaussianLikelihood([3])):
        (message,) = of_units(make_model(likelihood), scaled(1.0, 100.0, 1000.0))
        assert message.startswith("y: expected columns of a scale near 1, got a root mean square of ")
        first, second = message.split("square of ")[1].split(". Networks")[0].split(" and ")
        assert (first.split(" in ")[1], second.split(" in ")[1]) == ("column 2", "column 1")
        y = make_data().flat().y
        assert float(second.split(" in ")[0]) == pytest.approx(100 * y[:, 1].square().mean().sqrt().item(), rel=0.01)
        assert "Try (y - y.mean(0)) / y.std(0)" in message


def test_counts_may_be_larger_and_unobserved_values_do_not_count():
    assert of_units(make_model(Counts()), scaled(1.0, 100.0, 1.0)) == []
    (message,) = of_units(make_model(Counts()), scaled(1.0, 1e5, 1.0))
    assert "in column 1. " in message
    assert "an encoder that takes logarithms" in message
    rows = scaled(1.0, 1.0, 1.0).flat()
    observed = torch.rand(rows.y.shape) < 0.7
    data = GroupedDataset(torch.where(observed, rows.y, 1e6), rows.x, rows.group, observed)
    assert of_units(make_model(), data) == []


def test_elements_of_images_are_named_by_their_place():
    rows = make_data(y_shape=(2, 3)).flat()
    y = rows.y.clone()
    y[:, 1, 2] = 300.0
    model = make_model(y_shape=(2, 3))
    (message,) = of_units(model, GroupedDataset(y, rows.x, rows.group))
    assert "300 in column 1, 2. " in message


@pytest.mark.parametrize("features", [None, nn.Linear(1, 1), FourierFeatures(period=360.0)])
def test_features_in_raw_units_are_named_where_networks_take_them(features):
    rows = make_data().flat()
    data = GroupedDataset(rows.y, 100 * rows.x, rows.group)
    size = 2 if isinstance(features, FourierFeatures) else 1
    networks = MLPEncoder([3], 2, (8,), num_features=size), MLPDecoder(2, [3], (8,), num_features=size)
    model = CVAE(*networks, FactorizedGPPrior([GlobalChannels(2)]), features)
    messages = of_units(model, data)
    if isinstance(features, FourierFeatures):
        assert messages == []
    else:
        (message,) = messages
        assert message.startswith("x: expected features of a scale near 1 for networks, got a root mean square of 1")
        assert "in column 0. Try (x - x.mean(0)) / x.std(0)" in message


# lengthscales


def model_of(*blocks):
    prior = FactorizedGPPrior(list(blocks))
    channels = prior.num_channels
    return FGPVAE(MLPEncoder([3], channels, (8,)), MLPDecoder(channels, [3], (8,)), prior, GaussianLikelihood("fixed"))


def at(unit, shift=0.0):
    """Groups with members at 0, 1, ..., in a unit."""
    rows = make_data((6, 5, 4, 5)).flat()
    x = torch.cat([torch.arange(float(n), dtype=torch.double) for n in (6, 5, 4, 5)])
    return GroupedDataset(rows.y, unit * x + shift, rows.group)


def with_lengthscale(kernel, *value):
    kernel.lengthscale = torch.tensor(value)
    return kernel


def test_x_in_raw_days_is_caught_at_the_default_lengthscale():
    block = LocalChannels(2, ScaleKernel(MaternKernel(nu=1.5, batch_shape=torch.Size([2]))))
    messages, files = like(model_of(block), at(30.0, shift=1.9e4))
    (message,) = messages
    assert files == {__file__}
    assert message == (
        "prior: expected a lengthscale of MaternKernel near the distance of neighbouring members, which is 30, got "
        "0.693. All members are independent, and training will not change that. Try x / 30, or kernel.lengthscale = 90."
    )
    for kernel in (MaternKernel(), RBFKernel(), RQKernel()):
        assert like(model_of(LocalChannels(2, kernel)), at(1.0))[0] == []
        assert len(like(model_of(LocalChannels(2, kernel)), at(30.0))[0]) == 1


def test_a_lengthscale_far_above_the_spread_is_caught():
    data = at(1e-4)
    (message,), _ = like(model_of(LocalChannels(1, RBFKernel()), GlobalChannels(1)), data)
    assert message.startswith(
        "prior: expected a lengthscale of RBFKernel near the spread of x in a group, which is 0.0004"
    )
    assert "Try x / 0.0004" in message


def test_one_channel_that_fits_is_enough():
    shape = torch.Size([2])
    kernel = MaternKernel(batch_shape=shape)
    kernel.lengthscale = torch.tensor([0.01, 30.0]).reshape(2, 1, 1)
    assert like(model_of(LocalChannels(2, kernel)), at(30.0))[0] == []
    kernel.lengthscale = torch.tensor([0.01, 0.1]).reshape(2, 1, 1)
    assert len(like(model_of(LocalChannels(2, kernel)), at(30.0))[0]) == 1


def test_the_limit_is_ten_lengthscales_between_neighbours():
    for unit, number in ((9.9, 0), (10.1, 1)):
        block = LocalChannels(1, with_lengthscale(RBFKernel(), 1.0))
        assert len(like(model_of(block), at(unit))[0]) == number


def test_each_kernel_is_compared_with_the_features_that_it_takes():
    rows = make_data((6, 5, 4, 5)).flat()
    steps = torch.cat([torch.arange(float(n)) for n in (6, 5, 4, 5)])
    data = GroupedDataset(rows.y, torch.stack([1000 * steps, steps], -1), rows.group)

    def messages(kernel):
        return like(model_of(LocalChannels(1, kernel)), data)[0]

    assert messages(RBFKernel(active_dims=[1])) == []
    assert "which is 1e+03" in messages(RBFKernel(active_dims=[0]))[0]
    assert len(messages(RBFKernel(active_dims=[1]) * MaternKernel(active_dims=[0]))) == 1
    assert len(messages(ScaleKernel(RBFKernel(active_dims=[0]) + MaternKernel(active_dims=[1])))) == 1
    assert messages(with_lengthscale(RBFKernel(ard_num_dims=2), 2000.0, 2.0)) == []
    assert len(messages(with_lengthscale(RBFKernel(ard_num_dims=2), 2.0, 2.0))) == 1
    assert len(messages(RBFKernel())) == 1
    assert messages(ScaleKernel(RBFKernel(active_dims=[1]))) == []


def test_periods_are_not_lengthscales():
    kernel = PeriodicKernel()
    kernel.period_length = 360.0
    assert like(model_of(LocalChannels(1, kernel)), at(22.5))[0] == []
    days = PeriodicKernel()
    days.period_length = 365.0
    assert like(model_of(LocalChannels(1, days)), at(1.0))[0] == []
    (message,), _ = like(model_of(LocalChannels(1, PeriodicKernel())), at(22.5))
    assert message.startswith("prior: expected a period of PeriodicKernel above the distance of neighbouring members")
    fixed = PeriodicKernel()
    fixed.raw_period_length.requires_grad_(False)
    assert like(model_of(LocalChannels(1, fixed)), at(22.5))[0] == []


def test_kernels_of_feature_maps_are_looked_at():
    data = at(30.0)
    features = NystromFeatures(RBFKernel(), data.flat().x.unique(dim=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(CoregionalizedChannels(1, 1, features))
    assert any("lengthscale of RBFKernel" in message for message in like(model, data)[0])


def test_groups_of_one_place_say_nothing_of_lengthscales():
    rows = make_data().flat()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated x
        data = GroupedDataset(rows.y, rows.group.double() * 1e6, rows.group)
    messages = like(model_of(LocalChannels(1, RBFKernel()), GlobalChannels(1)), data)[0]
    assert not any("lengthscale" in message for message in messages)


def test_dates_in_seconds_keep_their_distances():
    x = 1.7e9 + 3600 * torch.arange(40.0, dtype=torch.double)
    nearest, farthest = advice._distances([x.unsqueeze(-1)], torch.tensor([60.0], dtype=torch.double))
    assert nearest == pytest.approx(60.0, abs=1e-6)
    assert 20 * 60 <= farthest <= 39 * 60


def test_a_resumed_run_is_not_warned_again(tmp_path):
    options = QUIET | {"folder": tmp_path}
    data, model = at(30.0), model_of(LocalChannels(2, RBFKernel()))
    assert len(warned(lambda: fit(model, data, epochs=1, **options))[0]) == 1
    assert warned(lambda: fit(model, data, epochs=2, resume=True, **options))[0] == []


# channels


class Muted(MLPEncoder):
    """An encoder that says nothing of some channels."""

    muted: tuple[int, ...] = ()

    def forward(self, y, features=None, observed=None):
        mean, variance = super().forward(y, features, observed)
        there = torch.ones(mean.shape[-1])
        there[list(self.muted)] = 0
        return mean * there, torch.where(there > 0, variance, 1e6)


def muted(channels, **options):
    prior = FactorizedGPPrior([LocalChannels(2, RBFKernel()), GlobalChannels(2)])
    encoder = Muted([3], 4, (8,))
    encoder.muted = channels
    return FGPVAE(encoder, MLPDecoder(4, [3], (8,)), prior, **options)


def test_a_collapse_is_named():
    messages, files = like(muted((0, 1, 2, 3), likelihood=DiagonalGaussianLikelihood([3])), make_data())
    (message,) = messages
    assert files == {__file__}
    assert message.startswith(
        "channels: expected some that carry information, got all 4 channels with a KL below 0.1 nats a group: y is "
        "predicted by its mean. Try DiagonalGaussianLikelihood(y_shape, variance=0.01), kl_warmup_steps="
    )
    (message,), _ = like(muted((0, 1, 2, 3)), make_data())
    assert "Try kl_warmup_steps=, more steps" in message


def test_local_channels_alone_and_some_channels():
    (message,), _ = like(muted((0, 1)), make_data())
    assert "got all 2 local channels with a KL below" in message
    assert "x has no effect on the predictions of a group" in message
    for some in ((), (0,), (2, 3), (1, 2, 3)):
        assert like(muted(some), make_data())[0] == []


def test_kl_of_channels_is_that_of_the_first_groups():
    model, data = make_model(), make_data((2, 3) * 40)
    result = fit(model, data, epochs=1, **QUIET)
    with torch.no_grad():
        expected = model.infer(data[range(64)]).kl_channels.mean(0)
    torch.testing.assert_close(result.kl_channels, expected)
    assert result.kl_channels.shape == (3,)


def test_a_collapse_of_coupled_groups_is_read_from_the_history():
    history = pd.DataFrame({"kl_local": [3.0, 0.05], "kl_global": [2.0, 0.01]})
    model = make_model()

    def messages(restored):
        return warned(lambda: advice.warn_of_unused_channels(model, history, None, restored))[0]

    assert len(messages(None)) == len(messages(2)) == 1
    assert messages(1) == messages(0) == []


# steps


def settings_of(epochs, **options):
    return RunSettings(
        objective=options.pop("objective", ELBO()), epochs=epochs, batch_size=20, learning_rate=1e-3, optimizer=None,
        lr_schedule=None, gradient_clip=None, early_stopping=None, seed=0, checkpoint_every=1, num_workers=0, **options,
    )  # fmt: skip


def history_of(losses):
    losses = torch.as_tensor(losses, dtype=torch.double)
    zero = torch.zeros_like(losses)
    return pd.DataFrame({"log_likelihood": (-losses).numpy(), "kl_local": zero.numpy(), "kl_global": zero.numpy()})


def of_steps(losses, steps=100, best_epoch=None, **options):
    settings = settings_of(options.pop("epochs", len(losses)), **options)
    return warned(lambda: advice.warn_of_few_steps(settings, history_of(losses), steps, best_epoch))[0]


FALLING = torch.linspace(100, 50, 100)
NOISE = torch.randn(100, generator=torch.Generator().manual_seed(1))


def test_a_loss_that_still_falls_after_few_steps_is_named():
    (message,) = of_steps(FALLING + 0.5 * NOISE)
    assert message == (
        "epochs: expected at least 500 steps or a loss that has settled, got 100 steps in 100 epochs, and a loss that "
        "still falls. Try epochs=1000, max_steps=, or a smaller batch_size."
    )


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        (50 + NOISE, {}),  # settled
        (FALLING.flip(0) + NOISE, {}),  # rising
        (FALLING + 30 * NOISE, {}),  # lost in the noise
        (FALLING, {"steps": 500}),
        (FALLING, {"max_steps": 100}),  # the user counts steps
        (FALLING, {"epochs": 200}),  # something else ended the run
        (FALLING, {"best_epoch": 60}),  # validation says that it is enough
        (FALLING, {"objective": GECO(0.1)}),  # another loss
        (FALLING[:19], {}),
        (FALLING, {"kl_warmup_steps": 90}),  # only ten epochs with the whole KL
    ],
)
def test_settled_deliberate_and_short_runs_are_not_warned_of(losses, options):
    assert of_steps(losses, **options) == []


def test_a_newcomer_with_five_groups_is_told():
    data = make_data((4, 5, 3, 4, 5))
    messages, files = warned(lambda: fit(make_model(), data, learning_rate=1e-3, **QUIET))
    (message,) = messages
    assert "got 100 steps in 100 epochs, and a loss that still falls. Try epochs=1000" in message
    assert files == {__file__}


def test_ordinary_runs_are_silent():
    options = QUIET | {"epochs": None, "max_steps": 60, "learning_rate": 1e-2}
    for model, data in (
        (make_model(DiagonalGaussianLikelihood([3])), make_data(element_mask=True)),
        (make_model(), make_data()),
        (FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), make_prior(hyperprior=True)), make_data()),
    ):
        assert warned(lambda model=model, data=data: fit(model, data, **options))[0] == []


def test_a_mean_that_is_no_kernel_is_passed_over():
    block = LocalChannels(1, RBFKernel(), gpytorch.means.LinearMean(1))
    assert like(model_of(block, GlobalChannels(1)), at(1.0))[0] == []
