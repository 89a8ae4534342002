"""A run can be cut anywhere: whole epochs in checkpoints, folders that belong to one run, and resumed runs compared."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from test_fit import At as AtStep
from test_fit import assert_same_history, held_out, interrupt, train

from factories import make_data, make_model, same_state, state_of
from fgp_gpytorch import ELBO, FGPVAE, GECO, GroupedDataset, fit
from fgp_gpytorch.errors import ArgumentError, CheckpointError, DataError

# some runs of these tests take so large steps that they end at the mean of y


class Stop(lightning.Callback):
    """Ends the run after step number `step`, as a callback may."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            trainer.should_stop = True


class Slow(lightning.Callback):
    def on_train_batch_end(self, *arguments):
        time.sleep(0.1)


CUTS = {
    "max_steps": lambda: {"max_steps": 6},
    "max_time": lambda: {"max_time": {"seconds": 0.55}, "callbacks": [Slow()]},
    "should_stop": lambda: {"callbacks": [Stop(6)]},
    "ctrl-c": lambda: {"callbacks": [AtStep(6, interrupt)]},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_ends_within_an_epoch_resumes_bit_for_bit(cut, every, tmp_path):
    options = {"validation": make_data(seed=9), "checkpoint_every": every}
    whole, expected = train(objective=GECO(0.1), **options)
    _, first = train(objective=GECO(0.1), folder=tmp_path, **options, **CUTS[cut]())
    assert first.trainer.global_step < 16
    if first.last_checkpoint is not None:
        content = torch.load(first.last_checkpoint, weights_only=True)
        assert content["global_step"] % (4 * every) == 0  # whole epochs
        assert len(content["history"]) == content["global_step"] // 4
    model, result = train(objective=GECO(0.1), folder=tmp_path, resume=True, **options)
    assert same_state(model.state_dict(), whole.state_dict())
    assert_same_history(result.history, expected.history)
    assert torch.load(result.best_checkpoint, weights_only=True)["epoch"] == result.history.val_loss.idxmin()


def test_max_steps_at_the_end_of_an_epoch_saves_it(tmp_path):
    _, result = train(folder=tmp_path, max_steps=8)
    assert torch.load(result.last_checkpoint, weights_only=True)["global_step"] == 8


def test_max_time_is_that_of_each_call(tmp_path):
    limit = {"max_time": {"seconds": 0.55}, "callbacks": [Slow()]}  # a little more than an epoch
    for _ in range(8):
        model, result = train(folder=tmp_path, resume=True, **limit)
        if result.trainer.global_step == 16:
            break
    assert result.history.epoch.tolist() == [0, 1, 2, 3]
    assert same_state(model.state_dict(), train()[0].state_dict())


def test_a_checkpoint_from_within_an_epoch_is_refused(tmp_path):
    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    train(callbacks=[Save()])
    with pytest.raises(CheckpointError, match="expected a checkpoint of the end of an epoch, got one from within"):
        train(resume=tmp_path / "within.ckpt")


# best.ckpt


def best_epoch(path):
    return torch.load(path, weights_only=True)["epoch"]


OPTIONS = {"validation": make_data(seed=9), "learning_rate": 0.3}


@pytest.mark.parametrize("epochs", [3, 4, 6])
def test_a_moved_folder_keeps_its_best_score(epochs, tmp_path):
    train(folder=tmp_path / "here", epochs=epochs, **OPTIONS)
    shutil.move(tmp_path / "here", tmp_path / "there")
    _, result = train(folder=tmp_path / "there", epochs=8, resume=True, **OPTIONS)
    assert best_epoch(result.best_checkpoint) == result.history.val_loss.idxmin()
    assert result.best_checkpoint.parent == tmp_path / "there"


def test_a_run_whose_best_checkpoint_was_lost_does_not_save_a_worse_epoch_as_the_best(tmp_path):
    _, whole = train(epochs=8, **OPTIONS)
    best = int(whole.history.val_loss.idxmin())
    assert best < 6
    train(folder=tmp_path, epochs=best + 2, **OPTIONS)
    (tmp_path / "best.ckpt").unlink()
    _, result = train(folder=tmp_path, epochs=8, resume=True, **OPTIONS)
    assert result.best_checkpoint is None


def test_a_run_that_goes_on_in_another_folder_takes_its_best_checkpoint_along(tmp_path):
    first = train(folder=tmp_path / "a", epochs=6, **OPTIONS)[1]
    _, result = train(folder=tmp_path / "b", epochs=8, resume=first.last_checkpoint, **OPTIONS)
    assert best_epoch(tmp_path / "b" / "best.ckpt") == result.history.val_loss.idxmin()


# folders


def test_the_default_folder_carries_date_and_time_and_is_new_in_every_run(tmp_path, monkeypatch):
    from fgp_gpytorch.training.folders import DEFAULT_FOLDER

    monkeypatch.chdir(tmp_path)
    folders = {train(folder=DEFAULT_FOLDER, epochs=1)[1].folder for _ in range(2)}
    assert len(folders) == 2
    assert all(re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?", str(folder)) for folder in folders)
    with pytest.raises(ArgumentError, match=r"resume: expected a folder to resume from, got the default one.*Try fold"):
        train(folder=DEFAULT_FOLDER, resume=True)


def test_a_second_run_in_a_used_folder_is_refused(tmp_path):
    model, result = train(folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"folder: expected a new folder .*last\.ckpt .*Try resume=True"):
        train(folder=tmp_path)
    other = train(folder=tmp_path / "other", epochs=2)[1]
    with pytest.raises(CheckpointError, match="folder: expected a new folder"):
        train(folder=tmp_path, resume=other.last_checkpoint)
    assert same_state(FGPVAE.load(result.last_checkpoint).state_dict(), model.state_dict())
    train(folder=tmp_path, resume=tmp_path / "last.ckpt", epochs=5)


def test_a_run_that_was_cut_in_its_first_epoch_leaves_its_folder_free(tmp_path):
    _, cut = train(folder=tmp_path, callbacks=[AtStep(2, interrupt)])
    assert (cut.interrupted, cut.last_checkpoint) == (True, None)
    train(folder=tmp_path)


def test_two_runs_cannot_write_one_folder_at_once(tmp_path):
    errors = []

    def second():
        with pytest.raises(CheckpointError, match=r"folder: expected one run in .* at a time") as error:
            train(folder=tmp_path, resume=True)
        errors.append(error)

    train(folder=tmp_path, callbacks=[AtStep(2, second)])
    assert len(errors) == 1

    def fail():
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        train(folder=tmp_path, resume=True, epochs=5, callbacks=[AtStep(18, fail)])
    train(folder=tmp_path, resume=True, epochs=5)  # the lock is free after an exception


def test_a_killed_process_leaves_the_lock_and_its_leftovers_are_removed(tmp_path):
    here = Path(__file__).parent
    program = f"""
import os, signal, sys
sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]
from test_fit import At, train
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
train(folder={str(tmp_path)!r})
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == -9, run.stderr
    assert len(list(tmp_path.glob(".last.ckpt.*.tmp"))) == 1
    model, _ = train(folder=tmp_path, resume=True)
    assert not list(tmp_path.glob(".*.tmp"))
    assert same_state(model.state_dict(), train()[0].state_dict())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match="expected a place with room that can be written"):
            train(folder=folder)
    with pytest.raises(ArgumentError, match="folder: expected a str or PathLike, got int"):
        train(folder=3)
    with pytest.raises(ArgumentError, match="resume: expected a bool or str or PathLike, got int"):
        train(folder=tmp_path, resume=1)


def test_a_full_disk_ends_the_run_with_the_previous_checkpoint(tmp_path, monkeypatch):
    full = [False]
    fsync = os.fsync

    def sync(descriptor):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(CheckpointError, match="expected a place with room that can be written, got No space left"):
        train(folder=tmp_path, callbacks=[AtStep(10, lambda: full.__setitem__(0, True))])
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["last.ckpt"]
    full[0] = False
    model, _ = train(folder=tmp_path, resume=True)
    assert same_state(model.state_dict(), train()[0].state_dict())


def test_checkpoints_are_checked_on_reading(tmp_path):
    _, result = train(folder=tmp_path, epochs=2)
    data = bytearray(result.last_checkpoint.read_bytes())
    data[len(data) // 2] ^= 4
    result.last_checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError, match="its digest does not match"):
        train(folder=tmp_path, resume=True)


@pytest.mark.parametrize("plugins", [TorchCheckpointIO(), [AsyncCheckpointIO()]])
def test_another_writer_of_checkpoints_is_refused(plugins):
    with pytest.raises(ArgumentError, match="plugins: expected none that writes checkpoints, got"):
        train(plugins=plugins)


# resuming compares


def sgd(**options):
    return {"optimizer": lambda parameters: torch.optim.SGD(parameters, **{"lr": 1e-3, **options})}


def step_schedule(gamma):
    return {"lr_schedule": lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma)}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"validation": make_data(seed=9)}, "validation .*there None"),
        ({"validation": make_data(seed=9)}, {}, "validation None, there"),
        ({"validation": make_data(seed=9)}, {"validation": make_data(seed=8)}, "validation: checksum of the data"),
        ({"validation": held_out()}, {"validation": held_out(seed=6)}, "validation: checksum"),
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches 2, there 1"),
        ({}, {"precision": "bf16-mixed"}, "precision bf16-mixed, there 32-true"),
        ({}, {"gradient_clip": 0.5}, r"gradient_clip 0\.5, there None"),
        ({}, {"limit_train_batches": 2}, r"limit_train_batches 2, there 1\.0"),
        (sgd(), sgd(lr=0.5), r"settings of the optimizer: groups: lr 0\.5, there 0\.001"),
        (sgd(), sgd(momentum=0.9), r"settings of the optimizer: groups: momentum 0\.9, there 0"),
        (sgd(), {"optimizer": torch.optim.Adam}, "settings of the optimizer: class Adam, there SGD"),
        (step_schedule(0.5), step_schedule(0.1), r"settings of the schedule: gamma 0\.1, there 0\.5"),
    ],
)
def test_a_resumed_run_with_other_arguments_is_refused(first, second, words, tmp_path):
    train(folder=tmp_path, epochs=2, **first)
    with pytest.raises(CheckpointError, match=f"got one of another: {words}"):
        train(folder=tmp_path, resume=True, **second)
    train(folder=tmp_path, epochs=3, resume=True, **first)


def test_the_batch_of_all_processes_is_compared():
    from types import SimpleNamespace

    from fgp_gpytorch.training.settings import conditions

    def batch(processes, groups):
        trainer = SimpleNamespace(
            world_size=processes, gradient_clip_algorithm=None, gradient_clip_val=None, accumulate_grad_batches=1,
            precision="32-true", limit_train_batches=1.0, limit_val_batches=1.0, check_val_every_n_epoch=1,
            val_check_interval=1.0,
        )  # fmt: skip
        return conditions(trainer, SimpleNamespace(batch_size=groups, batch_members=None))

    assert batch(2, 4) == batch(1, 8) != batch(2, 8)


# objectives


def test_an_objective_starts_anew_in_a_second_run():
    objective = GECO(0.1)
    first, one = train(objective=objective)
    assert objective.multiplier != 1
    second, two = train(objective=objective)
    assert same_state(first.state_dict(), second.state_dict())
    assert_same_history(one.history, two.history)


def test_reset_restores_the_state_of_the_constructor():
    objective, fresh = GECO(0.1, initial_multiplier=3.0), GECO(0.1, initial_multiplier=3.0)
    train(objective=objective)
    objective.reset()
    for name, value in fresh.state_dict().items():
        assert torch.equal(objective.state_dict()[name].nan_to_num(7), value.nan_to_num(7))
    ELBO().reset()


def test_a_schedule_is_that_of_all_epochs_when_a_run_is_cut(tmp_path):
    options = {
        "lr_schedule": "cosine",
        "epochs": 4,
        "batch_size": 2,
        "seed": 3,
        "progress": False,
        "accelerator": "cpu",
    }
    whole, cut = make_model(), make_model()
    fit(whole, make_data(), folder=None, **options)
    fit(cut, make_data(), folder=tmp_path, callbacks=[Stop(5)], **options)
    fit(cut, make_data(), folder=tmp_path, resume=True, **options)
    assert same_state(state_of(whole), state_of(cut))


def test_a_run_that_was_not_validated_in_every_epoch_goes_on_in_another_folder(tmp_path):
    options = {"validation": make_data(seed=5), "check_val_every_n_epoch": 2, "seed": 3, "progress": False}
    options |= {"accelerator": "cpu", "batch_size": 3}
    first = fit(make_model(), make_data(), folder=tmp_path / "a", epochs=3, **options)
    path = first.last_checkpoint
    result = fit(make_model(), make_data(), folder=tmp_path / "b", epochs=4, resume=path, **options)
    assert len(result.history) == 4
    assert result.best_checkpoint == tmp_path / "b" / "best.ckpt"


@pytest.mark.parametrize("option", [{"limit_val_batches": 1}, {"check_val_every_n_epoch": 2}])
def test_validation_that_changed_is_named(tmp_path, option):
    options = {"validation": make_data(seed=5), "seed": 3, "progress": False, "accelerator": "cpu", "folder": tmp_path}
    fit(make_model(), make_data(), epochs=1, batch_size=3, **options)
    with pytest.raises(CheckpointError, match=next(iter(option))):
        fit(make_model(), make_data(), epochs=2, batch_size=3, resume=True, **options, **option)


def test_an_average_of_weights_is_not_what_the_last_file_holds(tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    options = {"seed": 3, "progress": False, "accelerator": "cpu", "checkpoint_every": 3, "batch_size": 3}
    plain, averaged = make_model(), make_model()
    fit(plain, make_data(), folder=None, epochs=4, **options)
    result = fit(averaged, make_data(), folder=tmp_path, epochs=4, callbacks=[EMAWeightAveraging(decay=0.9)], **options)
    saved = type(plain).load(result.last_checkpoint)
    assert same_state(state_of(saved), state_of(plain))
    assert not same_state(state_of(averaged), state_of(plain))


def test_validation_groups_without_observations_are_refused():
    data = make_data()
    rows = data.flat()
    nothing = torch.zeros(rows.y.shape, dtype=torch.bool)
    empty = GroupedDataset(rows.y, rows.x, rows.group, nothing, allow_unobserved=True)
    with pytest.raises(DataError, match="validation: expected groups with an observation, got none"):
        fit(make_model(), data, validation=empty, folder=None, progress=False)
