"""What a training run leaves: numbers, files, and the same numbers after every kind of accident."""

import dataclasses
import math
import random
import subprocess
import sys
from pathlib import Path

import gpytorch
import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from factories import make_data, make_model, same_state, state_of
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GroupedDataset,
    HeldOut,
    LocalChannels,
    fit,
)
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import ArgumentError, CheckpointError, MissingFileError, NonFiniteError, ShapeError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.training import RunSettings

# some runs of these tests take so large steps that they end at the mean of y


def held_out(seed=5):
    """The first member of every group of several is to be predicted from the others."""
    data = make_data((3, 4, 2), seed=seed)
    rows = data.flat()
    first = torch.cat([torch.tensor([True]), rows.group[1:] != rows.group[:-1]])
    return HeldOut(data.select(~first), rows.x[first].unsqueeze(1), rows.y[first].unsqueeze(1))


def train(model=None, **options):
    """A run of 14 steps on seven groups: four epochs of four batches would be 16, so the last batch is short."""
    options = {"epochs": 4, "batch_size": 2, "seed": 3, "progress": False, "folder": None} | options
    data = options.pop("data", None)
    model = make_model(GaussianLikelihood(), member_dropout=0.3) if model is None else model
    return model, fit(model, make_data() if data is None else data, **options)


class At(lightning.Callback):
    """Does something once, after step number `step`."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            self.action()


def interrupt():
    raise KeyboardInterrupt


def assert_same_history(first, second):
    pd.testing.assert_frame_equal(first, second, check_exact=True)


# history


def test_history_has_a_row_per_epoch_and_the_documented_columns(tmp_path):
    parts = ["epoch", "log_likelihood", "kl_local", "kl_global", "mse", "multiplier", "learning_rate"]
    for folders in ([None] * 3, [tmp_path / name for name in "abc"]):
        _, result = train(folder=folders[0])
        assert list(result.history.columns) == parts
        assert result.history.epoch.tolist() == [0, 1, 2, 3]
        assert not result.history.isna().any().any()
        _, result = train(folder=folders[1], validation=make_data(seed=9))
        assert list(result.history.columns) == [*parts, "val_loss", "val_mse"]
        _, result = train(folder=folders[2], validation=held_out())
        assert list(result.history.columns) == [*parts, "val_mse"]
        assert not result.history.isna().any().any()


def test_history_is_the_same_with_and_without_a_folder_and_as_in_the_log(tmp_path):
    _, without = train(validation=make_data(seed=9))
    _, result = train(validation=make_data(seed=9), folder=tmp_path)
    assert_same_history(without.history, result.history)
    log = pd.read_csv(tmp_path / "log" / "version_0" / "metrics.csv").groupby("epoch").last()
    for name in result.history.columns[1:]:  # the log keeps float32
        np.testing.assert_allclose(log[name], result.history[name], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_history_is_that_of_the_whole_data_set_at_once(batch_size):
    """No learning: the epoch's numbers are those of the model, whatever the batches, gaps and unobserved groups."""
    from factories import BlindDecoder

    rows = make_data(element_mask=True).flat()
    observed = make_data(element_mask=True).members.y_mask.clone()
    observed[rows.group == 3] = False
    data = GroupedDataset(rows.y, rows.x, rows.group, observed)
    model = make_model(decoder=BlindDecoder())
    before = state_of(model)
    no_steps = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    _, result = train(model, data=data, batch_size=batch_size, epochs=1, **no_steps)
    assert same_state(before, state_of(model))
    terms, row = model.terms(data[:]), result.history.iloc[0]
    for name in ("log_likelihood", "kl_local", "kl_global"):
        assert row[name] == pytest.approx(getattr(terms, name).sum().item() / 6, rel=1e-5)  # of 7 groups one has no y
    assert row.mse == pytest.approx(terms.mse.item(), rel=1e-5)
    assert row.learning_rate == 0


def test_validation_groups_are_judged_by_their_negative_elbo_per_member():
    from factories import BlindDecoder

    model, other = make_model(decoder=BlindDecoder()), make_data((3, 1, 5, 2), seed=8, element_mask=True)
    _, result = train(model, validation=other, epochs=1, batch_size=3)
    terms = model.terms(other[:])
    loss = (terms.kl_local + terms.kl_global - terms.log_likelihood).sum() / 11
    assert result.history.val_loss[0] == pytest.approx(loss.item(), rel=1e-6)
    assert result.history.val_mse[0] == pytest.approx(terms.mse.item(), rel=1e-6)


def test_held_out_members_are_judged_by_the_error_of_generating_them():
    others = held_out()
    model, result = train(validation=others, epochs=2, batch_size=2)
    error = (model.generate(others.x_new, others.context) - others.y_new).square().mean()
    assert result.history.val_mse[1] == pytest.approx(error.item(), rel=1e-5)


def test_training_lowers_the_loss_and_ends_in_evaluation_mode():
    start, data = make_model(), make_data()
    before = ELBO(num_particles=200).loss(start, start, data[:])
    model, _ = train(make_model(), epochs=40, learning_rate=0.02)
    assert ELBO(num_particles=200).loss(model, model, data[:]) < before - 50
    assert not model.training


def test_element_masks_train_and_unobserved_values_do_not_matter():
    data = make_data(element_mask=True)
    rows, mask = data.flat(), data[:].observed[data[:].mask]
    garbage = GroupedDataset(torch.where(mask, rows.y, torch.nan), rows.x, rows.group, mask)
    first, _ = train(data=data)
    second, _ = train(data=garbage)
    assert same_state(first.state_dict(), second.state_dict())
    third, _ = train()
    assert not same_state(first.state_dict(), third.state_dict())


# options


def test_the_same_seed_gives_the_same_run_and_another_another():
    first, one = train(objective=GECO(0.1))
    torch.manual_seed(99)
    second, two = train(objective=GECO(0.1))
    third, _ = train(objective=GECO(0.1), seed=4)
    assert same_state(first.state_dict(), second.state_dict())
    assert_same_history(one.history, two.history)
    assert not same_state(first.state_dict(), third.state_dict())


def test_without_a_seed_one_is_drawn_and_saved(tmp_path):
    model, result = train(folder=tmp_path, seed=None)
    seed = torch.load(result.last_checkpoint, weights_only=True)["seed"]
    again, _ = train(seed=seed)
    assert same_state(model.state_dict(), again.state_dict())


def test_workers_change_nothing():
    here, _ = train(epochs=2)
    there, _ = train(epochs=2, num_workers=2)
    assert same_state(here.state_dict(), there.state_dict())


def test_cosine_schedule_falls_from_the_learning_rate_to_zero():
    rates = []

    class Rates(lightning.Callback):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    _, result = train(lr_schedule="cosine", learning_rate=0.01, callbacks=[Rates()])
    expected = [0.005 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert result.history.learning_rate.iloc[-1] == pytest.approx(0, abs=1e-18)


def test_a_schedule_of_ones_own_is_stepped_every_step():
    def schedule(optimizer, steps):
        assert steps == 16
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    _, result = train(lr_schedule=schedule, learning_rate=0.01)
    np.testing.assert_allclose(result.history.learning_rate, [0.01 / (1 + 4 * epoch) for epoch in (1, 2, 3, 4)])


def test_gradients_are_clipped_to_the_norm_asked_for():
    norms = []

    class Norms(lightning.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())

    train(callbacks=[Norms()])
    assert min(norms) > 0.05
    norms.clear()
    train(callbacks=[Norms()], gradient_clip=0.05)
    assert norms
    assert max(norms) <= 0.05 * (1 + 1e-5)


def test_an_optimizer_of_ones_own_gets_the_free_parameters():
    seen = []

    def optimizer(parameters):
        seen.extend(parameters)
        return torch.optim.SGD(seen, lr=1e-3)

    model, _ = train(optimizer=optimizer)
    assert {id(p) for p in seen} == {id(p) for p in model.parameters() if p.requires_grad}


def test_early_stopping_waits_for_the_patience_asked_for():
    _, result = train(validation=make_data(seed=9), early_stopping=2, epochs=30, learning_rate=0.3)
    losses = result.history.val_loss.tolist()
    assert len(losses) < 30
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2


def test_lightnings_own_flags_are_passed_on():
    _, result = train(accelerator="cpu", limit_train_batches=3)
    assert result.trainer.global_step == 12
    with pytest.raises(ArgumentError, match="max_epochs: expected fit's own argument epochs"):
        train(max_epochs=2)


# files


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, result = train(validation=make_data(seed=9))
    assert list(tmp_path.iterdir()) == []
    assert (result.folder, result.last_checkpoint, result.best_checkpoint) == (None, None, None)


@pytest.mark.parametrize("kind", ["groups", "members"])
def test_best_checkpoint_is_the_best_epoch_by_validation(kind, tmp_path):
    validation = make_data(seed=9) if kind == "groups" else held_out()
    name = "val_loss" if kind == "groups" else "val_mse"
    _, result = train(validation=validation, folder=tmp_path, epochs=8, learning_rate=0.3)
    best = int(result.history[name].idxmin())
    assert best < 7, "the last epoch is the best: the test would not see a wrong file"
    content = torch.load(result.best_checkpoint, weights_only=True)
    assert content["epoch"] == best
    assert len(content["history"]) == best + 1
    model, _ = train(epochs=best + 1, learning_rate=0.3, validation=validation)
    assert same_state(content["fgp_gpytorch"]["state_dict"], model.state_dict())


@pytest.mark.parametrize(("every", "epochs"), [(1, 4), (3, 4), (3, 3), (10, 4)])
def test_last_checkpoint_is_the_end_however_rarely_it_is_saved(every, epochs, tmp_path):
    model, result = train(folder=tmp_path, epochs=epochs, checkpoint_every=every)
    content = torch.load(result.last_checkpoint, weights_only=True)
    assert content["global_step"] == 4 * epochs
    assert same_state(content["fgp_gpytorch"]["state_dict"], model.state_dict())
    assert len(content["history"]) == epochs


def test_without_validation_there_is_no_best_checkpoint(tmp_path):
    _, result = train(folder=tmp_path)
    assert result.best_checkpoint is None
    assert not (tmp_path / "best.ckpt").exists()


# resuming

SETTINGS = {"epochs": 6, "lr_schedule": "cosine", "learning_rate": 0.01, "checkpoint_every": 2}


def full_run(**options):
    objective = GECO(0.1)
    model, result = train(objective=objective, **(SETTINGS | options))
    return model, result, objective


def assert_same_end(first, second):
    assert same_state(first[0].state_dict(), second[0].state_dict())
    assert_same_history(first[1].history, second[1].history)
    assert first[2].state_dict() == second[2].state_dict()


@pytest.mark.parametrize("step", [1, 9, 17, 23])
@pytest.mark.parametrize("validation", [None, make_data(seed=9)])
def test_interrupted_and_resumed_equals_uninterrupted(step, validation, tmp_path):
    whole = full_run(validation=validation)
    _, cut = train(
        objective=GECO(0.1), folder=tmp_path, callbacks=[At(step, interrupt)], validation=validation, **SETTINGS
    )
    assert cut.interrupted
    assert cut.history.shape[0] == (step - 1) // 4
    saved = 2 * ((step - 1) // 8)
    assert (cut.last_checkpoint is not None) == (saved > 0)
    if saved:
        assert torch.load(cut.last_checkpoint, weights_only=True)["epoch"] == saved - 1  # whole epochs alone
    resumed = full_run(folder=tmp_path, resume=True, validation=validation)
    assert not resumed[1].interrupted
    assert_same_end(whole, resumed)


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    whole = full_run(lr_schedule=None, epochs=7)
    full_run(lr_schedule=None, epochs=3, folder=tmp_path)
    longer = full_run(lr_schedule=None, epochs=7, folder=tmp_path, resume=True)
    assert_same_end(whole, longer)


def test_a_longer_cosine_is_that_of_all_epochs_and_never_rises_again_at_its_end(tmp_path):
    full_run(epochs=3, folder=tmp_path)
    _, result, _ = full_run(epochs=6, folder=tmp_path, resume=True)
    expected = [0.005 * (1 + math.cos(math.pi * epoch / 6)) for epoch in (4, 5, 6)]
    np.testing.assert_allclose(result.history.learning_rate[3:], expected, atol=1e-15)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = full_run(folder=tmp_path)
    assert_same_end(whole, full_run(folder=tmp_path, resume=True))


def test_resuming_from_the_best_checkpoint_equals_uninterrupted(tmp_path):
    def climb(optimizer, steps):  # down for half of the epochs, and up again
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < steps // 2 else -1.0)

    options = {"validation": make_data(seed=9), "lr_schedule": climb, "learning_rate": 0.1}
    whole = full_run(folder=tmp_path, **options)
    assert torch.load(whole[1].best_checkpoint, weights_only=True)["epoch"] < 5
    assert_same_end(whole, full_run(folder=None, resume=whole[1].best_checkpoint, **options))


def test_early_stopping_remembers_its_patience_when_resumed(tmp_path):
    options = {"validation": make_data(seed=9), "early_stopping": 2, "epochs": 30, "learning_rate": 0.3}
    _, whole = train(**options)
    stop = 4 * (len(whole.history) - 1) + 1
    _, cut = train(folder=tmp_path, callbacks=[At(stop, interrupt)], **options)
    assert cut.interrupted
    _, resumed = train(folder=tmp_path, resume=True, **options)
    assert_same_history(whole.history, resumed.history)


def test_ctrl_c_leaves_the_signal_and_the_model_usable(tmp_path):
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores ctrl-C
    try:
        model, result = train(folder=tmp_path, callbacks=[At(6, lambda: signal.raise_signal(signal.SIGINT))])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.interrupted
    assert not model.training
    assert model.reconstruct(make_data()).isfinite().all()


def test_a_terminated_run_ends_its_process(tmp_path):
    here = Path(__file__).parent
    program = f"""
import os, signal, sys
sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]
from test_fit import At, train
train(callbacks=[At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))])
print("went on")
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 143, run.stderr
    assert "went on" not in run.stdout


KILLED = """
import os, random, signal, sys
import lightning, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
from test_fit import GECO, SETTINGS, train

class Kill(lightning.Callback):
    def on_train_batch_start(self, trainer, *args):
        self.at("start of the batch", trainer)
    def on_after_backward(self, trainer, *args):
        self.at("backward", trainer)
    def on_before_zero_grad(self, trainer, *args):
        self.at("zero grad", trainer)
    def on_train_batch_end(self, trainer, *args):
        self.at("end of the batch", trainer)
    def on_save_checkpoint(self, trainer, *args):
        self.at("saving", trainer)
    def at(self, place, trainer):
        if trainer.global_step >= {step} and place == {place!r}:
            os.kill(os.getpid(), signal.SIGKILL)

train(objective=GECO(0.1), folder={folder!r}, callbacks=[Kill()], **SETTINGS)
"""


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    chance = random.SystemRandom()
    step = chance.randrange(1, 23)
    place = chance.choice(["start of the batch", "backward", "zero grad", "end of the batch", "saving"])
    print(f"SIGKILL at step {step}, {place}")
    here = Path(__file__).parent
    program = KILLED.format(tests=str(here.parent), here=str(here), step=step, place=place, folder=str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == -9, run.stderr
    resumed = full_run(folder=tmp_path, resume=True)
    assert_same_end(full_run(), resumed)
    assert resumed[1].history.epoch.tolist() == list(range(6))


# what goes wrong


class FailingDecoder(nn.Module):
    """Gives NaN from a certain call on, or for groups whose z is asked for then."""

    def __init__(self, from_call):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer = nn.Linear(3, 3)
        self.calls, self.from_call = 0, from_call

    def forward(self, z):
        self.calls += 1
        return self.layer(z) * (math.nan if self.calls >= self.from_call else 1.0)


class FailingEncoder(FailingDecoder):
    def forward(self, y):
        mean = super().forward(y)
        return mean, torch.full_like(mean, 0.5)


def test_a_non_finite_loss_stops_with_epoch_groups_and_term_and_keeps_the_last_checkpoint(tmp_path):
    groups = []

    class Groups(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, *args):
            groups.append(batch.group_index.tolist())

    model = make_model(decoder=FailingDecoder(from_call=11))  # the third batch of the third epoch
    with pytest.raises(NonFiniteError) as stop:
        train(model, folder=tmp_path, callbacks=[Groups()])
    words = f"training stopped: log_likelihood is not finite in epoch 2, in the batch of groups {groups[10]}"
    assert str(stop.value).startswith(words)
    assert "Try a smaller learning rate, gradient_clip=" in str(stop.value)
    assert (stop.value.term, stop.value.epoch, stop.value.groups) == ("log_likelihood", 2, groups[10])
    assert len(groups) == 11
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["epoch"] == 1
    assert all(content["state_dict"][f"model.{name}"].isfinite().all() for name, _ in model.named_parameters())
    healthy = make_model(decoder=FailingDecoder(from_call=1000))
    whole, _ = train(make_model(decoder=FailingDecoder(from_call=1000)))
    train(healthy, folder=tmp_path, resume=True)
    assert same_state(whole.state_dict(), healthy.state_dict())


def test_a_non_finite_encoder_is_named():
    with pytest.raises(
        NonFiniteError, match=r"stopped: kl_local \(of the encoder's .*epoch 1, .*groups \[\d, \d\]"
    ) as stop:
        train(make_model(encoder=FailingEncoder(from_call=6)))
    assert (stop.value.term, stop.value.epoch, len(stop.value.groups)) == ("kl_local", 1, 2)


@pytest.mark.parametrize("inference", ["dense", "state_space"])
def test_y_that_is_not_finite_in_a_lazy_data_set_is_named(inference):
    """Data in memory are looked at when a data set is made."""
    x, group = torch.arange(12.0), torch.arange(12) // 3
    spoilt = torch.rand(12, 3)
    spoilt[7] = torch.nan
    healthy, lost = (LazyDataset.from_array(y.numpy(), x, group) for y in (torch.rand(12, 3), spoilt))
    kernel = gpytorch.kernels.MaternKernel(nu=0.5)
    prior = FactorizedGPPrior([LocalChannels(2, kernel, inference=inference)])
    model = FGPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), prior)
    options = {"epochs": 1, "folder": None, "progress": False, "accelerator": "cpu"}
    for part, given in (("training", (lost, None)), ("validation", (healthy, lost))):
        words = rf"{part} stopped: .* not finite in epoch 0, in .*y itself has NaN or infinite values in groups \[2\]"
        with pytest.raises(NonFiniteError, match=words) as stop:
            fit(model, given[0], validation=given[1], **options)
        assert stop.value.epoch == 0
        assert 2 in stop.value.groups


def test_a_covariance_that_cannot_be_factorized_is_named(monkeypatch):
    def fail(self, *args):
        raise torch.linalg.LinAlgError("not positive definite")

    model = make_model()
    monkeypatch.setattr(type(model), "terms", fail)
    with pytest.raises(NonFiniteError, match=r"stopped: posterior \(of the encoder's mean and variance\) is") as stop:
        train(model, batch_size=7)
    assert (stop.value.term, stop.value.epoch, sorted(stop.value.groups)) == ("posterior", 0, list(range(7)))


def test_an_exploding_learning_rate_stops_with_a_message():
    with pytest.raises(NonFiniteError, match=r"training stopped: .* is not finite in epoch \d+, .*groups \["):
        train(learning_rate=1e25, epochs=50)


class Cliff(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * math.inf


def test_a_non_finite_gradient_never_reaches_the_parameters():
    class Decoder(nn.Linear):
        def forward(self, z):
            return Cliff.apply(super().forward(z))

    model = make_model(decoder=Decoder(3, 3))
    before = state_of(model)
    with pytest.raises(
        NonFiniteError, match=r"stopped: gradient of .*(weight|bias|raw_\w+|constant) is not finite in"
    ) as stop:
        train(model)
    assert stop.value.term is not None
    assert stop.value.term.removeprefix("gradient of ") in dict(model.named_parameters())
    assert (stop.value.epoch, len(stop.value.groups)) == (0, 2)
    assert same_state(before, state_of(model))


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: expected a checkpoint of fit, got something else"):
        train(folder=tmp_path, resume=True)
    make_model().save(path)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of fit, got another file\. Try resume=False"):
        train(folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(folder=tmp_path)
    other = make_model(GaussianLikelihood(), encoder=FailingEncoder(from_call=1000))
    with pytest.raises(CheckpointError, match="expected a checkpoint of this run, got one of another: encoder is an"):
        train(other, folder=tmp_path, resume=True)
    matern = make_model(GaussianLikelihood(), member_dropout=0.3)
    matern.prior = FactorizedGPPrior([LocalChannels(3, gpytorch.kernels.MaternKernel(0.5))])
    with pytest.raises(CheckpointError, match="of another: prior is another"):
        train(matern, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": GECO(0.1)}, "objective GECO, there ELBO"),
        (
            {"objective": ELBO(beta=2.0)},
            r"settings of the objective \{'beta': 2\.0, 'num_particles': 1\.0\}, there \{'beta': 1",
        ),
        ({"gradient_clip": 1.0}, r"gradient_clip 1\.0, there None"),
        ({"data": make_data(seed=7)}, r"checksum of the data \d+, there \d+"),
        ({"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3)}, "optimizer your own, there Adam"),
        ({"learning_rate": 0.5}, r"learning_rate 0\.5, there 0\.001"),
        ({"lr_schedule": "cosine"}, "lr_schedule cosine, there None"),
        ({"batch_size": 3}, "batch_size 3, there 2"),
        ({"seed": 4}, "seed 4, there 3"),
        ({"data": make_data((3, 5))}, "groups 2, there 7"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, words, tmp_path):
    train(folder=tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match=f"got one of another: {words}"):
        train(folder=tmp_path, resume=True, **options)


def test_settings_that_a_resumed_run_may_change(tmp_path):
    options = {"validation": make_data(seed=9), "early_stopping": 9}
    train(folder=tmp_path, epochs=2, **options)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["settings"]
    assert (saved["epochs"], saved["early_stopping"], saved["checkpoint_every"], saved["num_workers"]) == (2, 9, 1, 0)
    options["early_stopping"] = 8
    _, result = train(folder=tmp_path, epochs=3, checkpoint_every=2, num_workers=1, resume=True, **options)
    assert len(result.history) == 3


def test_numbers_of_numpy_are_settings_like_pythons(tmp_path):
    plain, _ = train(epochs=2)
    model, result = train(folder=tmp_path, epochs=np.int64(2), batch_size=np.int64(2), seed=np.int64(3))
    assert same_state(plain.state_dict(), model.state_dict())
    assert torch.load(result.last_checkpoint, weights_only=True)["settings"]["batch_size"] == 2


def test_run_settings_are_frozen_plain_and_checked():
    options = {
        "objective": GECO(0.1), "epochs": 3, "batch_size": 2, "learning_rate": 0.1, "optimizer": None,
        "lr_schedule": "cosine", "gradient_clip": None, "early_stopping": None, "seed": None, "checkpoint_every": 1,
        "num_workers": 0,
    }  # fmt: skip
    settings = RunSettings(**options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 4  # pyright: ignore[reportAttributeAccessIssue]
    plain = settings.plain()
    assert (plain["objective"], plain["learning_rate"], plain["lr_schedule"]) == ("GECO", 0.1, "cosine")
    assert plain["settings of the objective"]["kappa"] == 0.1
    assert plain == RunSettings(**options | {"seed": 5}).plain()  # the seed is saved by itself
    for name, value in {"epochs": True, "seed": 0.5, "learning_rate": None, "num_workers": -1}.items():
        with pytest.raises(ArgumentError, match=f"{name}: expected .*, got {value}"):
            RunSettings(**options | {name: value})


def test_the_same_run_in_other_words_is_resumed(tmp_path):
    train(folder=tmp_path, epochs=2, objective=ELBO())
    before = torch.random.get_rng_state()
    train(folder=tmp_path, epochs=3, resume=True, objective=ELBO(beta=1, num_particles=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    path = tmp_path / "last.ckpt"
    old = torch.load(path, weights_only=True)
    for name in ("settings of the objective", "checksum of the data", "gradient_clip"):
        del old["settings"][name]  # as an earlier version wrote it
    torch.save(old, path)
    _, result = train(folder=tmp_path, epochs=4, resume=True)
    assert len(result.history) == 4


def test_a_lazy_data_set_whose_observations_differ_each_time_is_resumed(tmp_path):
    lazy = LazyDataset(make_data(), lambda batch: batch.y + 0.01 * torch.randn_like(batch.y))
    train(folder=tmp_path, epochs=2, data=lazy)
    _, result = train(folder=tmp_path, epochs=3, resume=True, data=lazy)
    assert len(result.history) == 3


def test_fewer_epochs_than_are_finished_are_refused(tmp_path):
    train(folder=tmp_path, epochs=3)
    with pytest.raises(CheckpointError, match=r"expected at most epochs=2 behind it, got 3\. Try epochs=3 or more"):
        train(folder=tmp_path, epochs=2, resume=True)


def test_a_run_that_stopped_early_does_not_go_on(tmp_path):
    options = {"validation": make_data(seed=9), "early_stopping": 2, "epochs": 30, "learning_rate": 0.3}
    model, whole = train(folder=tmp_path, **options)
    again, resumed = train(folder=tmp_path, resume=True, **options)
    assert_same_history(whole.history, resumed.history)
    assert same_state(model.state_dict(), again.state_dict())


@pytest.mark.parametrize("patience", [None, 40])
def test_a_run_that_stopped_early_goes_on_for_whoever_has_more_patience(tmp_path, patience):
    options = {"validation": make_data(seed=9), "epochs": 30, "learning_rate": 0.3}
    _, stopped = train(folder=tmp_path, early_stopping=2, **options)
    assert len(stopped.history) < 30
    _, resumed = train(folder=tmp_path, early_stopping=patience, resume=True, **options)
    assert len(resumed.history) == 30
    assert_same_history(stopped.history, resumed.history[: len(stopped.history)])


def test_training_leaves_pytorchs_generator_as_it_was():
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    train()
    assert torch.equal(torch.rand(3), expected)


def test_seconds_per_epoch_are_those_of_the_epochs_trained_here(tmp_path):
    _, first = train(folder=tmp_path, epochs=2)
    assert 0 < first.seconds_per_epoch < 60
    _, finished = train(folder=tmp_path, epochs=2, resume=True)
    assert math.isnan(finished.seconds_per_epoch)


def test_cosine_counts_the_steps_of_the_optimizer():
    _, result = train(lr_schedule="cosine", accumulate_grad_batches=2)
    assert result.trainer.global_step == 8
    assert result.history.learning_rate.iloc[-1] == pytest.approx(0, abs=1e-18)


def test_targets_of_the_wrong_shape_are_refused():
    others = held_out()
    with pytest.raises(ShapeError, match=r"y_new: expected shape \(3, 1, 3\), got \(3, 3\)\. .*y_new\.unsqueeze\(1\)"):
        HeldOut(others.context, others.x_new, others.y_new[:, 0])


def test_a_missing_checkpoint_is_named_and_true_starts_anew(tmp_path):
    with pytest.raises(MissingFileError, match=r"resume: no file .*none\.ckpt\. Try resume=True"):
        train(resume=tmp_path / "none.ckpt")
    with pytest.raises(ArgumentError, match=r"resume: expected a folder to resume from, got folder=None"):
        train(resume=True)
    first, _ = train(folder=tmp_path, resume=True)
    second, _ = train()
    assert same_state(first.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs: expected an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected an integer >= 1"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a positive finite number, got 0\.0"),
        ({"learning_rate": math.inf}, "learning_rate: expected a positive finite number, got inf"),
        ({"gradient_clip": -1.0}, r"gradient_clip: expected a positive finite number, got -1\.0"),
        ({"epochs": 1.5}, r"epochs: expected an integer >= 1, got 1\.5"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
        ({"early_stopping": -1, "validation": make_data(seed=9)}, "early_stopping: expected an integer >= 1, got -1"),
        ({"lr_schedule": "cosin"}, "lr_schedule: expected one of None, 'cosine', got 'cosin'.* or a function"),
        ({"objective": "elbo"}, "objective: expected an Objective, got str"),
        ({"optimizer": torch.optim.SGD([torch.ones(1)], lr=1.0)}, "optimizer: expected a function .* got SGD"),
        ({"optimizer": lambda parameters: None}, r"optimizer\(parameters\): expected an Optimizer, got None"),
        ({"lr_schedule": lambda optimizer, steps: None}, "lr_schedule: expected a function .* got a NoneType"),
        (
            {"lr_schedule": lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)},
            "lr_schedule: .* stepped after every batch, got a ReduceLROnPlateau",
        ),
        ({"early_stopping": 3}, "early_stopping: expected validation data to judge by"),
        ({"data": [1, 2]}, "train: expected a GroupedDataset, got list"),
        ({"validation": [1, 2]}, "validation: expected a GroupedDataset or HeldOut, got list"),
        ({"model": nn.Linear(1, 1)}, "model: expected a GroupedVAE, got Linear"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        train(**options)


def test_held_out_members_of_another_number_of_groups_are_refused():
    others = held_out()
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(3, Q\*, 1\), got"):
        HeldOut(others.context, others.x_new[:2], others.y_new)


def test_y_in_raw_units_is_warned_of():
    rows = make_data().flat()
    raw = GroupedDataset(140 + 4 * rows.y, rows.x, rows.group)
    for likelihood in (GaussianLikelihood(), DiagonalGaussianLikelihood(raw.y_shape)):
        with pytest.warns(UserWarning, match=r"y: expected .* scale near 1, .* of 14\d.*y\.std\(0\)") as found:
            train(make_model(likelihood), data=raw, epochs=1)
        assert {w.filename for w in found} == {__file__}
    train(make_model(PoissonLike()), data=raw, epochs=1)  # another likelihood may well have another scale


class PoissonLike(GaussianLikelihood):
    """Some likelihood of its own."""
