"""Training on Lightning."""

import importlib.util
import logging
import math
import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.objectives import ELBO, Objective
from fgp_gpytorch.objectives.objective import HasTerms
from fgp_gpytorch.training.arguments import check_data, check_numbers, check_options, warn_of_scale
from fgp_gpytorch.training.lightning_module import OptimizerFactory, ScheduleFactory, TrainingModule
from fgp_gpytorch.training.resume import PatientStopping, checkpoint_to_resume, checksum, existing, run


@dataclass(frozen=True)
class FitResult:
    """What a training run leaves.

    Attributes:
        history: One row per epoch: log_likelihood, kl_local, kl_global (nats per group), mse (units of y squared per
            element), multiplier, learning_rate, and val_loss (nats per member), val_mse if there was validation data.
        folder: Where logs and checkpoints are, or None if nothing was written.
        last_checkpoint: The last epoch that was saved.
        best_checkpoint: The best epoch by validation, None without validation data.
        interrupted: Whether the run was stopped by ctrl-C.
        seconds_per_epoch: Mean wall time of the epochs that this call trained, seconds; NaN if there was none.
        trainer: Lightning's trainer.
    """

    history: pd.DataFrame
    folder: Path | None
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    interrupted: bool
    seconds_per_epoch: float
    trainer: lightning.Trainer = field(repr=False)


def fit(
    model: HasTerms,
    train: GroupedDataset,
    *,
    validation: GroupedDataset | HeldOut | None = None,
    objective: Objective | None = None,
    epochs: int = 100,
    batch_size: int = 20,
    learning_rate: float = 1e-3,
    optimizer: OptimizerFactory | None = None,
    lr_schedule: Literal["cosine"] | ScheduleFactory | None = None,
    gradient_clip: float | None = None,
    early_stopping: int | None = None,
    seed: int | None = None,
    folder: str | Path | None = "runs/fgp_vae",
    resume: bool | str | Path = False,
    checkpoint_every: int = 1,
    progress: bool = True,
    num_workers: int = 0,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> FitResult:
    """Train a model in place.

    Loops, devices, logging and checkpoints are Lightning's. Every epoch is seeded by (seed, epoch), so a run that was
    cut anywhere and resumed ends bit for bit where the uninterrupted one does (same machine, same number of threads).

    Args:
        model: An `FGPVAE`, or another model of this package.
        train: Training groups.
        validation: Either groups (their negative ELBO is `val_loss`, nats per member), or a `HeldOut` (the error
            of generating its members is `val_mse`): it decides what the best checkpoint is.
        objective: `ELBO()` if None.
        epochs: Passes over the training groups, in all (a resumed run counts those before). A run that was to have
            fewer goes on with the schedule of all.
        batch_size: Groups per step and process.
        learning_rate: Of the default optimizer.
        optimizer: Makes an optimizer of parameters; None for Adam in its fused form.
        lr_schedule: "cosine" falls from the learning rate to zero over all steps; or a function of the optimizer and
            the number of steps that gives a scheduler, stepped every step.
        gradient_clip: Largest norm of the gradient of the loss per member, None for no clipping.
        early_stopping: Validation epochs without improvement after which to stop; None never stops early.
        seed: Of shuffling and sampling; None draws one, which is saved. The model's start is made before: call
            `torch.manual_seed` before building it. PyTorch's global generators are left as they were.
        folder: For logs (CSV, and TensorBoard if it is installed) and checkpoints; None writes nothing.
        resume: True goes on from the folder's last checkpoint if there is one; a path from that one. Model, data,
            objective and settings must be those it was started with.
        checkpoint_every: Epochs between checkpoints of the last state. The end is always saved.
        progress: Whether to show a progress bar.
        num_workers: Processes that load data; the data sets of this package are in memory and need none.
        callbacks: More Lightning callbacks.
        **trainer_options: Lightning's own flags: `accelerator`, `devices`, `strategy`, `precision`, ...

    Warns:
        UserWarning: If y looks unscaled: a Gaussian likelihood, and an element whose root mean square is above 20.

    Returns:
        The history and where the checkpoints are. The model holds the last epoch's parameters, in evaluation mode.

    Raises:
        DataError: If a number is out of range, the data are no `GroupedDataset`, or an option needs another one.
        ShapeError: If held-out members do not fit their context.
        MissingFileError: If the checkpoint to resume from does not exist.
        CheckpointError: If it is no checkpoint of `fit`, or of another model, data set (by its features and a million
            of its values), objective or setting.
        NonFiniteError: If a loss or gradient is NaN or infinite; it names the term, the epoch and the groups.
    """
    check_data(model, train, validation)
    check_options(objective, optimizer, lr_schedule, trainer_options)
    if early_stopping is not None and validation is None:
        raise DataError("early_stopping: expected validation data to judge by, got none. Try validation=held_out.")
    whole = {"epochs": epochs, "batch_size": batch_size, "checkpoint_every": checkpoint_every}
    check_numbers(
        whole, learning_rate=learning_rate, gradient_clip=gradient_clip, early_stopping=early_stopping,
        seed=seed, num_workers=num_workers,
    )  # fmt: skip
    assert isinstance(model, nn.Module)
    warn_of_scale(model, train)
    path = Path(folder) if folder is not None else None
    checkpoint = checkpoint_to_resume(resume, path)
    given_seed = seed
    if seed is None:
        seed = secrets.randbelow(2**31)
    module = TrainingModule(
        model=model,
        objective=objective or ELBO(),
        optimizer=optimizer or _adam(learning_rate),
        schedule=_cosine if lr_schedule == "cosine" else lr_schedule,
        train=train,
        validation=validation,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
        settings={
            "objective": type(objective or ELBO()).__qualname__,
            "settings of the objective": (objective or ELBO()).settings(),
            "optimizer": "Adam" if optimizer is None else "your own",
            "learning_rate": learning_rate if optimizer is None else None,
            "lr_schedule": lr_schedule if lr_schedule is None or isinstance(lr_schedule, str) else "your own",
            "gradient_clip": gradient_clip,
            "batch_size": batch_size,
            "groups": len(train),
            "members": train.num_members,
            **({} if path is None and checkpoint is None else {"checksum of the data": checksum(train)}),
        },
    )
    monitor = "val_mse" if isinstance(validation, HeldOut) else "val_loss"
    last, best, end = None, None, None
    if path is not None:
        last = ModelCheckpoint(
            path, "last", monitor=None, every_n_epochs=checkpoint_every, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        end = _SaveEnd(path / "last.ckpt", checkpoint_every)
        if validation is not None:
            # at the end of the epoch, not of its validation: the best epoch is in its own history
            best = ModelCheckpoint(
                path, "best", monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
            )
    chosen = [callback for callback in (end, last, best, *callbacks) if callback is not None]
    if early_stopping is not None:
        chosen.append(PatientStopping(monitor, patience=early_stopping, check_on_train_epoch_end=False))
    progress = bool(trainer_options.get("enable_progress_bar", progress))
    if progress:
        chosen.append(TQDMProgressBar(refresh_rate=10))
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with _quiet(), torch.random.fork_rng(devices=cuda):
        trainer = lightning.Trainer(
            **{
                "max_epochs": epochs,
                "callbacks": chosen,
                "logger": _loggers(path),
                "gradient_clip_val": gradient_clip,
                "enable_progress_bar": progress,
                "enable_checkpointing": path is not None,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10**9,  # metrics are logged by the epoch
                "limit_val_batches": None if validation is not None else 0,
                "default_root_dir": path,
                **trainer_options,
            }
        )
        model.train()
        run(trainer, module, checkpoint, given_seed)
    model.eval()
    # a file of an earlier run in this folder is not this run's
    last_is_ours = not trainer.interrupted or checkpoint is not None or bool(last and last.best_model_path)
    return FitResult(
        history=pd.DataFrame(module.history),
        folder=path,
        last_checkpoint=existing(path, "last.ckpt") if last_is_ours else None,
        best_checkpoint=existing(path, "best.ckpt") if best is not None and best.best_model_path else None,
        interrupted=trainer.interrupted,
        seconds_per_epoch=module.seconds_per_epoch,
        trainer=trainer,
    )


class _SaveEnd(Callback):
    """Saves the end of the run, unless the last epoch's checkpoint just did; in every process, as Lightning asks."""

    def __init__(self, path: Path, checkpoint_every: int) -> None:
        self._path, self._checkpoint_every = path, checkpoint_every

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save."""
        if trainer.current_epoch % self._checkpoint_every != 0:
            trainer.save_checkpoint(self._path)


def _adam(learning_rate: float) -> OptimizerFactory:
    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)

    return make


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    # not CosineAnnealingLR, whose state brings back its old length when a run is resumed for more epochs
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    )


def _loggers(path: Path | None) -> list[Logger]:
    if path is None:
        return []
    # a new version for each (re)start: Lightning would delete an earlier one's file
    loggers: list[Logger] = [CSVLogger(path, name="log", flush_logs_every_n_steps=1)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(path, name="tensorboard", version=loggers[0].version))
    return loggers


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's advice that does not apply here, for the run alone."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*GPU available but not used.*")
        warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
        try:
            yield
        finally:
            logger.setLevel(level)
