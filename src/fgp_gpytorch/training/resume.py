"""Starting a run, or resuming one that was interrupted."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fgp_gpytorch.errors import ArgumentError, CheckpointError, MissingFileError
from fgp_gpytorch.saving import KEY
from fgp_gpytorch.training.lightning_module import TrainingModule
from fgp_gpytorch.training.settings import MAY_CHANGE


class PatientStopping(EarlyStopping):
    """Early stopping whose patience is always that of this call. A checkpoint does not bring back an earlier one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything except the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def run(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    """Train from the start, or from a checkpoint of the same run.

    Raises:
        CheckpointError: If the file is no checkpoint of `fit`, belongs to another run, or holds more epochs than asked.
    """
    if checkpoint is not None:
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            message = f"{checkpoint}: expected a checkpoint of fit, got something else ({error})."
            raise CheckpointError(message) from error
        if not isinstance(content, dict) or not {"settings", "seed", "history", KEY} <= set(content):
            raise CheckpointError(f"{checkpoint}: expected a checkpoint of fit, got another file. Try resume=False.")
        different = next(_differences(module, content), None)
        if different is not None:
            raise CheckpointError(
                f"{checkpoint}: expected a checkpoint of this run, got one of another: {different}. Try the arguments "
                "that the run was started with, resume=False to start anew, or another folder."
            )
        finished = len(content["history"])
        if (trainer.max_epochs or 0) < finished:
            raise CheckpointError(
                f"{checkpoint}: expected at most epochs={trainer.max_epochs} behind it, got {finished}. Try "
                f"epochs={finished} or more, or FGPVAE.load({str(checkpoint)!r}) for the model."
            )
        for callback in trainer.early_stopping_callbacks:
            state = content["callbacks"].get(callback.state_key)
            if state is not None and state["wait_count"] >= callback.patience:  # it would stop the run again
                trainer.fit_loop.max_epochs = finished
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # Lightning ends so on ctrl-C
        if trainer.received_sigterm:  # the sender wants the process to end, with a status that says it is unfinished
            raise SystemExit(128 + signal.SIGTERM) from end
        if not trainer.interrupted:
            raise


def checkpoint_to_resume(resume: bool | str | Path, folder: Path | None) -> Path | None:
    """Return the checkpoint that `resume` asks for. None means a run from the start.

    Raises:
        ArgumentError: If `resume` is True and there is no folder.
        MissingFileError: If `resume` is a path without a file.
    """
    if resume is False:
        return None
    if resume is True:
        if folder is None:
            raise ArgumentError("resume: expected a folder to resume from, got folder=None. Try folder='runs/...'.")
        return existing(folder, "last.ckpt")
    if not Path(resume).is_file():
        raise MissingFileError(f"resume: no file {resume}. Try resume=True for the last checkpoint of the folder.")
    return Path(resume)


def existing(folder: Path | None, name: str) -> Path | None:
    """Return a file of a folder, or None if there is none."""
    return folder / name if folder is not None and (folder / name).exists() else None


def _differences(module: TrainingModule, content: dict[str, Any]) -> Iterator[str]:
    """Name in words what a checkpoint and this run do not agree on."""
    mine, saved = module.description, content[KEY]
    if mine["class"] != saved["class"]:
        yield f"model {mine['class']}, there {saved['class']}"
    elif mine["parts"] != saved["parts"]:
        here, there = json.loads(mine["parts"]), json.loads(saved["parts"])
        yield from (f"{name} is another" for name in here if here[name] != there.get(name))
    tensors, others = module.state_dict(), content["state_dict"]
    for name in sorted(set(tensors) | set(others)):
        alone = name not in others or name not in tensors
        recorded = name.endswith(("_labels_digest", "_num_features"))  # by the first step
        if not recorded if alone else tensors[name].shape != others[name].shape:
            yield f"{name} differs"
    mine, saved = module.record, content["settings"]
    for name in mine:
        if name in saved and name not in MAY_CHANGE and mine[name] != saved[name]:  # older files have fewer names
            yield f"{name} {mine[name]}, there {saved[name]}"
    if module.settings.seed not in (None, content["seed"]):
        yield f"seed {module.settings.seed}, there {content['seed']}"
