"""What `fit` asks of its arguments."""

import math
import warnings
from typing import Any

import torch
from torch import nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods import DiagonalGaussianLikelihood, GaussianLikelihood
from fgp_gpytorch.objectives import Objective
from fgp_gpytorch.objectives.objective import HasTerms

_RAW = 20.0  # root mean square of an element of y, above which it looks unscaled


def check_data(model: Any, train: Any, validation: Any) -> None:
    """Raise a DataError unless there is a model, and data of this package."""
    if not isinstance(model, HasTerms) or not isinstance(model, nn.Module):
        raise DataError(f"model: expected an FGPVAE, got {type(model).__name__}. Try FGPVAE(encoder, decoder, prior).")
    for name, value in (("train", train), ("validation", validation)):
        if name == "train" or not (value is None or isinstance(value, HeldOut)):
            check.instance(value, name, GroupedDataset, "Try GroupedDataset(y, x, group).")


def check_options(objective: Any, optimizer: Any, lr_schedule: Any, trainer_options: dict[str, Any]) -> None:
    """Raise a DataError if an argument is of another kind."""
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


def check_numbers(whole: dict[str, Any], **others: Any) -> None:
    """Raise a DataError if a number is out of range."""
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


def warn_of_scale(model: nn.Module, train: GroupedDataset) -> None:
    """Warn of raw units, under which latents are left unused: networks start near 0, and variances near 1."""
    gaussian = type(getattr(model, "likelihood", None)) in (GaussianLikelihood, DiagonalGaussianLikelihood)
    if not gaussian or train.is_lazy:
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
