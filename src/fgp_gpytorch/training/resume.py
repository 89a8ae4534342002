"""Starting a run, or going on with one that was cut."""

import signal
import zlib
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.errors import CheckpointError, DataError, MissingFileError
from fgp_gpytorch.training.lightning_module import TrainingModule


def run(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None, seed: int | None) -> None:
    """Train, from a checkpoint if there is one and it is of this run."""
    if checkpoint is None:
        _fit_or_interrupt(trainer, module, None)
        return
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        known = isinstance(content, dict) and {"settings", "seed", "history", "fgp_gpytorch"} <= set(content)
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: expected a checkpoint of fit, got something else ({error}).") from error
    if not known:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint of fit, got another file. Try resume=False to start."
        )
    different = module.differences(content, seed)
    if different:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint of this run, got one of another: {different[0]}. Try what the run "
            "was started with, resume=False to start anew, or another folder."
        )
    finished = len(content["history"])
    if (trainer.max_epochs or 0) < finished:
        raise CheckpointError(
            f"{checkpoint}: expected at most epochs={trainer.max_epochs} behind it, got {finished}. Try "
            f"epochs={finished} or more, or FGPVAE.load({str(checkpoint)!r}) for the model."
        )
    if _stopped_early(content, trainer):
        trainer.fit_loop.max_epochs = finished
    _fit_or_interrupt(trainer, module, checkpoint)


class PatientStopping(EarlyStopping):
    """Early stopping with the patience that this call asks for, whatever the run was started with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all but the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def _stopped_early(content: dict[str, Any], trainer: lightning.Trainer) -> bool:
    """Whether the run was stopped, and would be by the callbacks of this call as well."""
    for callback in trainer.early_stopping_callbacks:
        state = content["callbacks"].get(callback.state_key)
        if state is not None and state["wait_count"] >= callback.patience:
            return True
    return False


def _fit_or_interrupt(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # how Lightning ends on ctrl-C
        if trainer.received_sigterm:  # whoever sends it wants the process to end, and to say that it is not done
            raise SystemExit(128 + signal.SIGTERM) from end
        if not trainer.interrupted:
            raise


def checkpoint_to_resume(resume: bool | str | Path, path: Path | None) -> Path | None:
    """The checkpoint that `resume` asks for, None for a run from the start."""
    if resume is False:
        return None
    if resume is True:
        if path is None:
            raise DataError("resume: expected a folder to resume from, got folder=None. Try folder='runs/...'.")
        return existing(path, "last.ckpt")
    if not Path(resume).is_file():
        raise MissingFileError(f"resume: no file {resume}. Try resume=True for the last checkpoint of the folder.")
    return Path(resume)


def existing(path: Path | None, name: str) -> Path | None:
    """A file of a folder, if it is there."""
    return path / name if path is not None and (path / name).exists() else None


def checksum(data: GroupedDataset) -> int:
    """A number of all features and sizes, and of a million values of y as stored, at equal distances."""
    y = data.members.y.flatten()
    parts = [*data.features(), y[:: max(1, y.numel() // 2**20)]]
    content = [part.contiguous().cpu().view(torch.uint8).numpy().tobytes() for part in parts]
    return zlib.crc32(b"".join(content), data.labels_digest or 0)
