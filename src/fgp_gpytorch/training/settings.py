"""The settings of a training run."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.objectives import Objective

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]

_LEAST = {"epochs": 1, "batch_size": 1, "checkpoint_every": 1, "num_workers": 0, "early_stopping": 1, "seed": 0}
MAY_CHANGE = {"epochs", "checkpoint_every", "num_workers", "early_stopping"}  # when a run is resumed


@dataclass(frozen=True)
class RunSettings:
    """Settings of `fit`, which documents them. The constructor checks them.

    Raises:
        ArgumentError: If a number is out of range, or a value has the wrong type.
    """

    objective: Objective
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: OptimizerFactory | None
    lr_schedule: Literal["cosine"] | ScheduleFactory | None
    gradient_clip: float | None
    early_stopping: int | None
    seed: int | None
    checkpoint_every: int
    num_workers: int
    drop_last: bool = False

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
        for name in ("learning_rate", "gradient_clip", *_LEAST):
            value = getattr(self, name)
            if value is not None or name not in ("gradient_clip", "early_stopping", "seed"):
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
            **{name: getattr(self, name) for name in _LEAST if name != "seed"},
        }


def fingerprint(data: GroupedDataset) -> dict[str, int]:
    """Return numbers that tell data sets apart: their sizes, and a checksum.

    The checksum is over all features and sizes, and over a million values of y as stored, at equal distances.
    """
    y = data.members.y.flatten()
    parts = [*data.features(), y[:: max(1, y.numel() // 2**20)]]
    content = [part.contiguous().cpu().view(torch.uint8).numpy().tobytes() for part in parts]
    checksum = zlib.crc32(b"".join(content), data.labels_digest or 0)
    return {"groups": len(data), "members": data.num_members, "checksum of the data": checksum}
