"""Starting a run, or resuming one that was interrupted."""

import errno
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fgp_gpytorch.errors import ArgumentError, CheckpointError
from fgp_gpytorch.saving import KEY, cannot_write, options_of, read_checkpoint, write_checkpoint
from fgp_gpytorch.training.folders import existing
from fgp_gpytorch.training.lightning_module import TrainingModule
from fgp_gpytorch.training.settings import MAY_CHANGE, another_run, conditions

_failed_groups: list[int] = []  # numbers of processes whose group an error ended


class PatientStopping(EarlyStopping):
    """Early stopping whose patience is always that of this call. A checkpoint does not bring back an earlier one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything except the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def run(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None, folder: Path | None) -> None:
    """Train from the start, or from a checkpoint of the same run.

    Raises:
        CheckpointError: If the file is no checkpoint of `fit`, belongs to another run, ends within an epoch, or holds
            more epochs than asked, or if a file of this run cannot be written.
        ArgumentError: If an earlier run in several processes failed in this one.
    """
    module.record.update(conditions(trainer, module.settings))
    if checkpoint is None:
        module.objective.reset()
    else:
        content = content_of(checkpoint)
        _compare(module, content, checkpoint)
        finished = len(content["history"])
        steps, most = content["global_step"], module.settings.max_steps
        limits = ("epochs", module.settings.epochs, finished), ("max_steps", most, steps)
        for name, limit, behind in limits:
            if limit is not None and limit < behind:
                raise CheckpointError(
                    f"{checkpoint}: expected at most {name}={limit} behind it, got {behind}. Try "
                    f"{name}={behind} or more, or FGPVAE.load({str(checkpoint)!r}) for the model."
                )
        if steps == most:
            trainer.fit_loop.max_epochs = finished
        for callback in trainer.early_stopping_callbacks:
            state = content["callbacks"].get(callback.state_key)
            if state is not None and state["wait_count"] >= callback.patience:  # it would stop the run again
                trainer.fit_loop.max_epochs = finished
        if folder is not None and trainer.is_global_zero:
            _bring_best(checkpoint, content, folder)
    if trainer.world_size > 1 and os.getpid() in _failed_groups:
        raise ArgumentError(
            "devices: expected a new start of the script after a run that failed in several processes, got another "
            "run. These processes can no longer find each other. Try to start the script again, or devices=1."
        )
    try:
        with _group_ended_on_error():
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # Lightning ends so on ctrl-C
        if trainer.received_sigterm:  # the sender wants the process to end, with a status that says it is unfinished
            raise SystemExit(128 + signal.SIGTERM) from end
        if not trainer.interrupted:
            raise
    except OSError as error:
        if folder is None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise cannot_write(folder, error) from error  # the log


@contextmanager
def _group_ended_on_error() -> Iterator[None]:
    """Leave the group of processes if an error ends the run. The others would wait for this one."""
    try:
        yield
    except BaseException:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            _failed_groups.append(os.getpid())
        raise


def content_of(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of `fit` that ends with an epoch.

    Raises:
        CheckpointError: If the file is something else.
    """
    try:
        content = read_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: expected a checkpoint of fit, got something else ({error}).") from error
    names = {"settings", "seed", "history", "objective", "callbacks", "loops", "optimizer_states", "state_dict", KEY}
    if not names <= set(content):
        raise CheckpointError(f"{checkpoint}: expected a checkpoint of fit, got another file. Try resume=False.")
    loop = content["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    if epochs["ready"] != epochs["processed"] or not batches["is_last_batch"]:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint of the end of an epoch, got one from within epoch "
            f"{len(content['history'])}. Try last.ckpt of the run's folder, which holds whole epochs."
        )
    return content


def _compare(module: TrainingModule, content: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another run. The module compares the optimizer, once it is made."""
    module.resumed = content["settings"], str(checkpoint)
    for different in _differences(module, content):
        raise another_run(different, str(checkpoint))


def _bring_best(checkpoint: Path, content: dict[str, Any], folder: Path) -> None:
    """Write best.ckpt if a run goes on in a new folder, or if its file was lost and this checkpoint is the best."""
    rows = content["history"]
    monitor = next((name for name in ("val_loss", "val_mse") if any(name in row for row in rows)), None)
    start_is_best = content.get("best", {}).get("epoch") == 0
    if monitor is None or start_is_best or existing(folder, "best.ckpt") is not None:
        return
    values = [row.get(monitor, math.inf) for row in rows]  # not every epoch was validated
    best = values.index(min(values))
    for path in (checkpoint, checkpoint.with_name("best.ckpt")):
        other = content if path == checkpoint else read_checkpoint(path) if path.is_file() else {}
        if other.get("history") == rows[: best + 1]:
            write_checkpoint(other, folder / "best.ckpt")
            return


def _differences(module: TrainingModule, content: dict[str, Any]) -> Iterator[str]:
    """Name in words what a checkpoint and this run do not agree on."""
    mine, saved = module.description, content[KEY]
    if mine["class"] != saved["class"]:
        yield f"model {mine['class']}, there {saved['class']}"
    else:
        here, there = options_of(mine), options_of(saved)
        yield from (f"{name} is another" for name in {**here, **there} if here.get(name) != there.get(name))
    tensors, others = module.state_dict(), content["state_dict"]
    for name in sorted(set(tensors) | set(others)):
        alone = name not in others or name not in tensors
        recorded = name.endswith("_labels_digest")  # by the first step
        if not recorded if alone else tensors[name].shape != others[name].shape:
            yield f"{name} differs"
    if module.settings.seed not in (None, content["seed"]):
        yield f"seed {module.settings.seed}, there {content['seed']}"
    mine, saved = module.record, content["settings"]
    for name in mine:
        if name in saved and name not in MAY_CHANGE and mine[name] != saved[name]:  # older files have fewer names
            yield f"{name} {mine[name]}, there {saved[name]}"
    if module.settings.restore_best and content.get("best", {}).get("state") is None:
        yield "restore_best True, there False"
