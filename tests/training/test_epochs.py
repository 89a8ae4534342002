"""What an epoch contains, and what a run leaves unchanged in the process."""

import os
import random
import weakref

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from factories import make_data, make_model, same_state, state_of
from fgp_gpytorch import GroupedDataset, fit
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import ArgumentError

QUIET = {"folder": None, "progress": False, "accelerator": "cpu", "seed": 3}
SIZES = (1, 5, 5, 5, 5)


class Batches(lightning.Callback):
    """The groups of every step, by epoch."""

    def __init__(self):
        self.groups = {}

    def on_train_batch_start(self, trainer, module, batch, index):
        self.groups.setdefault(trainer.current_epoch, []).append(batch.group_index.tolist())


class NormalizingEncoder(nn.Module):
    """Batch normalization needs two members."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 6))

    def forward(self, y):
        mean, log_variance = self.layers(y).chunk(2, -1)
        return mean, log_variance.exp()


def test_drop_last_leaves_out_other_groups_in_each_epoch():
    batches = Batches()
    model = make_model(encoder=NormalizingEncoder())
    result = fit(model, make_data(SIZES), epochs=20, batch_size=2, drop_last=True, callbacks=[batches], **QUIET)
    assert len(result.history) == 20
    assert all([len(groups) for groups in epoch] == [2, 2] for epoch in batches.groups.values())
    left_out = {({*range(5)} - {*first, *second}).pop() for first, second in batches.groups.values()}
    assert left_out == {0, 1, 2, 3, 4}


def test_drop_last_keeps_a_single_minibatch():
    batches = Batches()
    fit(make_model(), make_data(SIZES), epochs=1, batch_size=20, drop_last=True, callbacks=[batches], **QUIET)
    assert sorted(batches.groups[0][0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_drop_last_is_true_or_false(value):
    with pytest.raises(ArgumentError, match="drop_last: expected one of False, True"):
        fit(make_model(), make_data(), drop_last=value, **QUIET)


STORED = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


def noisy(batch):
    """Observations with noise from all three global generators."""
    y = STORED[batch.y.long()]
    noise = torch.randn(y.shape) + torch.from_numpy(np.random.standard_normal(y.shape)).float()  # noqa: NPY002
    return y + 0.3 * noise + random.random()


def lazy():
    return LazyDataset(GroupedDataset(torch.arange(24.0), torch.arange(24.0) % 4, torch.arange(24) // 4), noisy)


def test_random_observations_follow_from_the_seed_whatever_the_workers():
    states = []
    for workers in (0, 2):
        model = make_model()
        fit(model, lazy(), epochs=2, batch_size=4, num_workers=workers, **QUIET)
        states.append(state_of(model))
    assert same_state(*states)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_observations_resume_bit_for_bit(tmp_path, workers):
    options = {"batch_size": 4, "num_workers": workers, **QUIET}
    whole, cut = make_model(), make_model()
    fit(whole, lazy(), epochs=3, **options)
    fit(cut, lazy(), epochs=2, **options | {"folder": tmp_path})
    fit(cut, lazy(), epochs=3, resume=True, **options | {"folder": tmp_path})
    assert same_state(state_of(whole), state_of(cut))


@pytest.mark.parametrize("switch", ["deterministic", "benchmark"])
def test_a_run_moves_no_random_generator_and_no_switch(switch):
    backend, data = torch.backends.cudnn, lazy()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    switches = backend.deterministic, backend.benchmark, torch.are_deterministic_algorithms_enabled()
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    fit(make_model(), data, epochs=1, **{switch: True}, **QUIET)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    assert switches == (backend.deterministic, backend.benchmark, torch.are_deterministic_algorithms_enabled())
    assert variable == os.environ.get("CUBLAS_WORKSPACE_CONFIG")


class Fails(lightning.Callback):
    def on_train_batch_end(self, *arguments):
        raise OSError("the disk is gone")


def test_an_error_leaves_every_part_in_its_mode():
    model = make_model().train()
    model.decoder.eval()
    modes = [part.training for part in model.modules()]
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, make_data(), epochs=1, callbacks=[Fails()], deterministic=True, **QUIET)
    assert [part.training for part in model.modules()] == modes
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_rounds_x_is_refused(precision):
    with pytest.raises(ArgumentError, match=rf"precision: expected .*, got '{precision}', .*Try 'bf16-mixed'"):
        fit(make_model(), make_data(), precision=precision, **QUIET)


def test_a_precision_plugin_that_rounds_x_is_refused():
    plugin = lightning.pytorch.plugins.HalfPrecision("bf16-true")
    with pytest.raises(ArgumentError, match="precision: expected"):
        fit(make_model(), make_data(), plugins=[plugin], **QUIET)


@pytest.mark.filterwarnings("ignore:prior. expected a lengthscale")
def test_mixed_precision_leaves_x_and_the_prior_in_double():
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append((batch.x.dtype, batch.x.unique().numel()))

    days = 1.7e9 + 86400.0 * torch.arange(12.0, dtype=torch.float64)
    data = GroupedDataset(torch.randn(12, 3), days, torch.arange(12) // 4)
    fit(make_model(), data, epochs=1, precision="bf16-mixed", callbacks=[Look()], **QUIET)
    assert seen == [(torch.float64, 12)]


def test_a_step_keeps_nothing_for_the_rest_of_the_epoch():
    """Weak references to the batches' tensors die: nothing grows with the number of steps."""
    batches, alive = [], []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            batches.append(weakref.ref(batch.y))
            alive.append(sum(reference() is not None for reference in batches))
            kept = module.__dict__.values()
            sizes.append(sum(len(value) for value in kept if isinstance(value, list | dict)))

    sizes = []
    fit(make_model(), make_data((2,) * 40), epochs=1, batch_size=1, callbacks=[Watch()], **QUIET)
    assert max(alive) <= 3  # this step's and what the loader fetched
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overfit_batches": 1}, "overfit_batches: expected fit's own argument train, got Lightning's flag. Try fit"),
        ({"barebones": True}, "barebones: expected fit's own argument folder"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val: expected fit's own argument gradient_clip"),
        (
            {"accelerater": "cpu"},
            "accelerater: expected an argument of fit or a flag of Lightning, .* Try accelerator=",
        ),
        ({"callbacks": 3}, "callbacks: expected a list of Lightning callbacks, got 3"),
        ({"callbacks": [3]}, "callbacks: expected a list of Lightning callbacks"),
    ],
)
def test_options_that_fit_cannot_take_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        fit(make_model(), make_data(), **{**QUIET, **options})
