"""Checkpoints of a run. They hold whole epochs, and are files of `saving`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO

from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.saving import cannot_write, read_checkpoint, write_checkpoint


class CheckpointFiles(TorchCheckpointIO):
    """Writes and reads Lightning's checkpoints as files of `saving`. Lightning itself serves addresses such as s3://."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. The previous file stays until this one is whole.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint onto the CPU, without executing anything.

        Raises:
            MissingFileError: If there is no such file.
            CheckpointError: If it is damaged.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(path)


class EpochCheckpoint(ModelCheckpoint):
    """Saves the last or the best state of whole epochs. An epoch that was cut is not saved: a resumed run repeats it.

    The scores of a run stay when its folder was moved, and when the best file was lost.

    Args:
        folder: The folder.
        name: The name of the file, without .ckpt.
        monitor: The figure to keep the smallest of. None saves the last state.
        every: Epochs between two files.
    """

    def __init__(self, folder: str | Path, name: str, monitor: str | None = None, every: int = 1) -> None:
        super().__init__(
            folder, name, monitor=monitor, every_n_epochs=every,
            save_on_train_epoch_end=True,  # not after validation: the best epoch is in its own history
            enable_version_counter=False,
        )  # fmt: skip

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the epoch, if it is whole and its turn, or the last state at the end of the run."""
        if not _is_whole(trainer) or (self.monitor is not None and self.monitor not in trainer.callback_metrics):
            return
        if self.monitor is not None and getattr(pl_module, "best_epoch", None) == 0:
            return  # the model before training is still better
        super().on_train_epoch_end(trainer, pl_module)
        finished = trainer.current_epoch + 1
        ends = trainer.should_stop or finished == trainer.max_epochs
        # here, not in on_train_end: a callback that averages weights replaces the model's there
        if self.monitor is None and ends and finished % (self.every_n_epochs or 1) != 0:
            trainer.save_checkpoint(self.format_checkpoint_name({}))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores. The files are those of the present folder."""
        here = self.dirpath or ""

        def move(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else path

        paths = {key: move(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {move(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


def with_checkpoint_files(plugins: Any) -> list[Any]:
    """Return Lightning's `plugins` with `CheckpointFiles` among them.

    Raises:
        ArgumentError: If one of them writes checkpoints itself.
    """
    several = isinstance(plugins, Sequence) and not isinstance(plugins, str)
    listed = [] if plugins is None else list(plugins) if several else [plugins]
    for plugin in listed:
        if isinstance(plugin, CheckpointIO):
            raise ArgumentError(
                f"plugins: expected none that writes checkpoints, got {type(plugin).__name__}. fit writes them itself, "
                "with a digest. Try a ModelCheckpoint with its own folder in callbacks=."
            )
    return [*listed, CheckpointFiles()]


def _is_whole(trainer: lightning.Trainer) -> bool:
    """Whether the current epoch took its last batch: max_steps, max_time and should_stop end a run earlier."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
