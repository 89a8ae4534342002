"""Training on Lightning."""

import importlib.util
import logging
import math
import secrets
import signal
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.utils.data import Dataset

from fgp_gpytorch.data import GroupedDataset, LazyDataset
from fgp_gpytorch.data.held_out import HeldOut
from fgp_gpytorch.errors import CheckpointError, DataError, MissingFileError
from fgp_gpytorch.likelihoods import GaussianLikelihood
from fgp_gpytorch.objectives import ELBO, Objective
from fgp_gpytorch.objectives.objective import HasTerms
from fgp_gpytorch.training.held_out import HeldOutDataset
from fgp_gpytorch.training.lightning_module import OptimizerFactory, ScheduleFactory, TrainingModule

_RAW = 20.0  # root mean square of an element of y, above which it looks unscaled


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
        validation: Either groups (their negative ELBO is `val_loss`, nats per member), or an object with `context`,
            `x_new` and `y_new` (the error of generating y_new is `val_mse`): it decides what the best checkpoint is.
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
    _check_data(model, train, validation)
    _check_options(objective, optimizer, lr_schedule, trainer_options)
    if early_stopping is not None and validation is None:
        raise DataError("early_stopping: expected validation data to judge by, got none. Try validation=held_out.")
    whole = {"epochs": epochs, "batch_size": batch_size, "checkpoint_every": checkpoint_every}
    _check_numbers(
        whole, learning_rate=learning_rate, gradient_clip=gradient_clip, early_stopping=early_stopping,
        seed=seed, num_workers=num_workers,
    )  # fmt: skip
    assert isinstance(model, nn.Module)
    _warn_of_scale(model, train)
    path = Path(folder) if folder is not None else None
    checkpoint = _resume_from(resume, path)
    given_seed = seed
    if seed is None:
        seed = secrets.randbelow(2**31)
    held_out = None if validation is None else _as_dataset(validation)
    module = TrainingModule(
        model=model,
        objective=objective or ELBO(),
        optimizer=optimizer or _adam(learning_rate),
        schedule=_cosine if lr_schedule == "cosine" else lr_schedule,
        train=train,
        validation=held_out,
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
            **({} if path is None and checkpoint is None else {"checksum of the data": _checksum(train)}),
        },
    )
    monitor = "val_mse" if isinstance(held_out, HeldOutDataset) else "val_loss"
    last, best, end = None, None, None
    if path is not None:
        last = ModelCheckpoint(
            path, "last", monitor=None, every_n_epochs=checkpoint_every, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        end = _SaveEnd(path / "last.ckpt", checkpoint_every)
        if held_out is not None:
            # at the end of the epoch, not of its validation: the best epoch is in its own history
            best = ModelCheckpoint(
                path, "best", monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
            )
    chosen = [callback for callback in (end, last, best, *callbacks) if callback is not None]
    if early_stopping is not None:
        chosen.append(EarlyStopping(monitor, patience=early_stopping, check_on_train_epoch_end=False))
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
                "limit_val_batches": None if held_out is not None else 0,
                "default_root_dir": path,
                **trainer_options,
            }
        )
        model.train()
        _run(trainer, module, checkpoint, given_seed)
    model.eval()
    # a file of an earlier run in this folder is not this run's
    last_is_ours = not trainer.interrupted or checkpoint is not None or bool(last and last.best_model_path)
    return FitResult(
        history=pd.DataFrame(module.history),
        folder=path,
        last_checkpoint=_existing(path, "last.ckpt") if last_is_ours else None,
        best_checkpoint=_existing(path, "best.ckpt") if best is not None and best.best_model_path else None,
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


def _checksum(data: GroupedDataset) -> int:
    """A number of all features and sizes, and of a million values of y at equal distances (a LazyDataset's rows)."""
    rows = (data.rows if isinstance(data, LazyDataset) else data).flat()
    y = rows.y.flatten()
    parts = [rows.x, rows.group, y[:: max(1, y.numel() // 2**20)]]
    content = [part.contiguous().cpu().view(torch.uint8).numpy().tobytes() for part in parts]
    return zlib.crc32(b"".join(content), data.labels_digest or 0)


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


def _run(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None, seed: int | None) -> None:
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
    if _stopped_early(content):
        trainer.fit_loop.max_epochs = finished
    _fit_or_interrupt(trainer, module, checkpoint)


def _stopped_early(content: dict[str, Any]) -> bool:
    states = [state for name, state in content["callbacks"].items() if name.startswith("EarlyStopping")]
    return any(state["wait_count"] >= state["patience"] for state in states)


def _fit_or_interrupt(trainer: lightning.Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:  # how Lightning ends on ctrl-C
        if trainer.received_sigterm:  # whoever sends it wants the process to end, and to say that it is not done
            raise SystemExit(128 + signal.SIGTERM) from end
        if not trainer.interrupted:
            raise


def _existing(path: Path | None, name: str) -> Path | None:
    return path / name if path is not None and (path / name).exists() else None


def _resume_from(resume: bool | str | Path, path: Path | None) -> Path | None:
    if resume is False:
        return None
    if resume is True:
        if path is None:
            raise DataError("resume: expected a folder to resume from, got folder=None. Try folder='runs/...'.")
        return _existing(path, "last.ckpt")
    if not Path(resume).is_file():
        raise MissingFileError(f"resume: no file {resume}. Try resume=True for the last checkpoint of the folder.")
    return Path(resume)


def _as_dataset(validation: Any) -> Dataset:
    return validation if isinstance(validation, GroupedDataset) else HeldOutDataset(validation)


def _check_data(model: Any, train: Any, validation: Any) -> None:
    if not isinstance(model, HasTerms) or not isinstance(model, nn.Module):
        raise DataError(f"model: expected an FGPVAE, got {type(model).__name__}. Try FGPVAE(encoder, decoder, prior).")
    for name, value in (("train", train), ("validation", validation)):
        grouped = isinstance(value, GroupedDataset)
        if not grouped and not (name == "validation" and (value is None or isinstance(value, HeldOut))):
            raise DataError(
                f"{name}: expected a GroupedDataset, got {type(value).__name__}. Try GroupedDataset(y, x, group)."
            )


def _warn_of_scale(model: nn.Module, train: GroupedDataset) -> None:
    """Warn of raw units, under which latents are left unused: networks start near 0, and one variance is for all."""
    if type(getattr(model, "likelihood", None)) is not GaussianLikelihood or isinstance(train, LazyDataset):
        return
    batch = train[range(min(len(train), 64))]
    seen = batch.observed.sum((0, 1)).clamp_min(1)
    largest = float((batch.y.double().square().sum((0, 1)) / seen).sqrt().max())
    if largest > _RAW:
        warnings.warn(
            f"y: expected elements of a scale near 1, got one with a root mean square of {largest:.3g}. Training may "
            "end at the mean of y. Try (y - y.mean(0)) / y.std(0), or grey levels in [0, 1].",
            UserWarning,
            stacklevel=3,
        )


def _check_options(objective: Any, optimizer: Any, lr_schedule: Any, trainer_options: dict[str, Any]) -> None:
    if objective is not None and not isinstance(objective, Objective):
        raise DataError(f"objective: expected an Objective, got {type(objective).__name__}. Try ELBO() or GECO(0.02).")
    if optimizer is not None and (isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer)):
        raise DataError(
            f"optimizer: expected a function of the parameters, got {type(optimizer).__name__}. "
            "Try lambda parameters: torch.optim.SGD(parameters, lr=1e-3)."
        )
    if lr_schedule is not None and lr_schedule != "cosine" and not callable(lr_schedule):
        raise DataError(
            f'lr_schedule: expected "cosine" or a function of the optimizer and the number of steps, got '
            f'{lr_schedule!r}. Try "cosine".'
        )
    if "max_epochs" in trainer_options:
        raise DataError("max_epochs: expected it as epochs, got it twice. Try fit(..., epochs=100).")


def _check_numbers(whole: dict[str, Any], **others: Any) -> None:
    for name, value in whole.items():
        if not isinstance(value, int) or value < 1:
            raise DataError(f"{name}: expected an integer >= 1, got {value!r}. Try an integer.")
    for name in ("learning_rate", "gradient_clip"):
        value = others[name]
        if value is not None and not 0 < value < math.inf:
            raise DataError(f"{name}: expected a positive finite number, got {value}. Try 1e-3.")
    for name, smallest in (("early_stopping", 1), ("seed", 0), ("num_workers", 0)):
        value = others[name]
        if value is not None and (not isinstance(value, int) or value < smallest):
            raise DataError(f"{name}: expected an integer >= {smallest}, got {value!r}. Try {name}={smallest}.")


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
