"""The settings of a training run."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedDataset, HeldOut, LazyDataset
from fgp_gpytorch.errors import ArgumentError, CheckpointError
from fgp_gpytorch.objectives import GECO, Objective

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]

_LEAST = {
    "epochs": 1, "batch_size": 1, "checkpoint_every": 1, "num_workers": 0, "early_stopping": 1, "seed": 0,
    "max_steps": 1, "kl_warmup_steps": 1, "batch_members": 1,
}  # fmt: skip
_OPTIONAL = {"gradient_clip", "early_stopping", "seed", "max_steps", "kl_warmup_steps", "batch_members"}
MAY_CHANGE = {"epochs", "max_steps", "checkpoint_every", "num_workers", "early_stopping"}  # when a run is resumed


@dataclass(frozen=True)
class RunSettings:
    """Settings of `fit`, which documents them. The constructor checks them.

    Raises:
        ArgumentError: If a number is out of range, or a value has the wrong type.

    Examples:
        >>> options = dict(epochs=100, batch_size=20, learning_rate=1e-3, optimizer=None, lr_schedule="cosine")
        >>> options |= dict(gradient_clip=None, early_stopping=None, seed=0, checkpoint_every=1, num_workers=0)
        >>> RunSettings(ELBO(), **options).plain()["optimizer"]
        'Adam'
        >>> RunSettings(GECO(0.02), **options, kl_warmup_steps=100)
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.ArgumentError: kl_warmup_steps: expected None for GECO, whose multiplier weighs the KL, ...
    """

    objective: Objective
    epochs: int | None
    batch_size: int | None
    learning_rate: float
    optimizer: OptimizerFactory | None
    lr_schedule: Literal["cosine"] | ScheduleFactory | None
    gradient_clip: float | None
    early_stopping: int | None
    seed: int | None
    checkpoint_every: int
    num_workers: int
    drop_last: bool = False
    max_steps: int | None = None
    kl_warmup_steps: int | None = None
    restore_best: bool = False
    validation_fraction: float | None = None
    batch_members: int | None = None
    bucketing: bool = False

    def __post_init__(self) -> None:
        check.instance(self.objective, "objective", Objective, "Try ELBO() or GECO(0.02).")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ArgumentError(
                f"optimizer: expected a function of the parameters, got {type(self.optimizer).__name__}. "
                "Try lambda parameters: torch.optim.SGD(parameters, lr=1e-3)."
            )
        if not callable(self.lr_schedule):
            hint = 'Try "cosine", or a function of the optimizer and the number of steps.'
            check.choice(self.lr_schedule, "lr_schedule", (None, "cosine"), hint)
        check.choice(self.drop_last, "drop_last", (False, True))
        check.choice(self.restore_best, "restore_best", (False, True))
        check.choice(self.bucketing, "bucketing", (False, True))
        if self.batch_members is not None:
            if self.batch_size is not None:
                raise ArgumentError(
                    f"batch_size: expected None beside batch_members={self.batch_members}, got {self.batch_size}. Try "
                    "one of the two."
                )
            if self.drop_last:
                raise ArgumentError(
                    "drop_last: expected False with batch_members, whose minibatches are about equally full, got True. "
                    "Try drop_last=False, or batch_size=20."
                )
        if self.kl_warmup_steps is not None and isinstance(self.objective, GECO):
            raise ArgumentError(
                f"kl_warmup_steps: expected None for GECO, whose multiplier weighs the KL, got {self.kl_warmup_steps}. "
                "Try ELBO(), or GECO(..., initial_multiplier=10.0)."
            )
        optional = _OPTIONAL if self.max_steps is None else {*_OPTIONAL, "epochs"}
        optional = optional if self.batch_members is None else {*optional, "batch_size"}
        for name in ("learning_rate", "gradient_clip", *_LEAST):
            value = getattr(self, name)
            if value is not None or name not in optional:
                whole, hint = name in _LEAST, "Try 1e-3."
                value = check.count(value, name, _LEAST[name]) if whole else check.positive(value, name, hint=hint)
                object.__setattr__(self, name, value)  # Python's numbers: a checkpoint cannot hold NumPy's

    def plain(self) -> dict[str, Any]:
        """Return the settings as strings, numbers and None. The seed is not among them: `fit` may draw it."""
        schedule = self.lr_schedule
        return {
            "objective": type(self.objective).__qualname__,
            "settings of the objective": self.objective.settings(),
            "optimizer": "Adam" if self.optimizer is None else "your own",
            "learning_rate": self.learning_rate if self.optimizer is None else None,
            "lr_schedule": schedule if schedule is None or isinstance(schedule, str) else "your own",
            "gradient_clip": self.gradient_clip,
            "drop_last": self.drop_last,
            "bucketing": self.bucketing,
            "restore_best": self.restore_best,
            "validation_fraction": self.validation_fraction,
            **{name: getattr(self, name) for name in _LEAST if name != "seed"},
        }


def fingerprint(data: GroupedDataset | HeldOut) -> dict[str, int]:
    """Return numbers that tell data sets apart: their sizes, and a checksum.

    The checksum is over all features and sizes, and over a million values of y as stored, at equal distances. Of an
    array on disk it is over 64 rows.
    """
    if isinstance(data, HeldOut):
        new = [part for part in (data.x_new, _thinned(data.y_new), data.y_new_mask) if part is not None]
        return {**fingerprint(data.context), "checksum of the new members": _checksum(new)}
    parts = [*data.features(), _thinned(data.members.y)]
    if data.members.y_mask is not None:
        parts.append(_thinned(data.members.y_mask))
    rows = data.sample() if isinstance(data, LazyDataset) else None
    if rows is not None:
        parts.append(_thinned(rows))
    checksum = _checksum(parts, data.labels_digest or 0)
    return {"groups": len(data), "members": data.num_members, "checksum of the data": checksum}


def conditions(trainer: lightning.Trainer, settings: RunSettings) -> dict[str, Any]:
    """Return what Lightning adds to the settings, as plain values. Sizes of batches are those of all processes."""
    algorithm = trainer.gradient_clip_algorithm
    return {
        "batch_size": None if settings.batch_size is None else settings.batch_size * trainer.world_size,
        "batch_members": None if settings.batch_members is None else settings.batch_members * trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip": _plain(trainer.gradient_clip_val),
        "gradient_clip_algorithm": "norm" if algorithm is None else str(algorithm.value),
        "precision": trainer.precision,
        "limit_train_batches": repr(trainer.limit_train_batches),  # 1 is a batch, 1.0 all of them
        "limit_val_batches": repr(trainer.limit_val_batches),
        "check_val_every_n_epoch": _plain(trainer.check_val_every_n_epoch),
        "val_check_interval": repr(trainer.val_check_interval),
    }


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return the class and the hyperparameters of an optimizer, as plain values."""
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    return {"class": type(optimizer).__qualname__, "groups": _plain(groups)}


def schedule_settings(schedule: LRScheduler) -> dict[str, Any]:
    """Return the class and the numbers of a schedule at its start, as plain values."""
    return {"class": type(schedule).__qualname__, **_plain(schedule.state_dict())}


def first_difference(mine: Any, saved: Any, name: str) -> str:
    """Name in words the first entry in which two plain values differ."""
    if isinstance(mine, dict) and isinstance(saved, dict):
        key = next(key for key in {**mine, **saved} if mine.get(key) != saved.get(key))
        return first_difference(mine.get(key), saved.get(key), f"{name}: {key}")
    if isinstance(mine, list) and isinstance(saved, list) and len(mine) == len(saved):
        index = next(index for index, pair in enumerate(zip(mine, saved, strict=True)) if pair[0] != pair[1])
        return first_difference(mine[index], saved[index], name if len(mine) == 1 else f"{name} {index}")
    return f"{name} {mine}, there {saved}"


def another_run(different: str, checkpoint: str) -> CheckpointError:
    """Return the error for a checkpoint of another run."""
    return CheckpointError(
        f"{checkpoint}: expected a checkpoint of this run, got one of another: {different}. Try the arguments that the "
        "run was started with, resume=False to start anew, or another folder."
    )


def _plain(value: Any) -> Any:
    """The numbers, strings, lists and dictionaries of a value, in Python's own types. Names stand for other objects."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return type(value).__qualname__


def _thinned(y: Tensor) -> Tensor:
    return y.flatten()[:: max(1, y.numel() // 2**20)]


def _checksum(parts: Iterable[Tensor], start: int = 0) -> int:
    content = [part.contiguous().cpu().view(torch.uint8).numpy().tobytes() for part in parts]
    return zlib.crc32(b"".join(content), start)
