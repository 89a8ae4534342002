"""Checks at the door: each raises one of our errors, with expected, got and a thing to try."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError, ShapeError


def as_tensor(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor (no copy where it already is one).

    Raises:
        DataError: If `value` cannot become a numeric tensor.
    """
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: expected a tensor or an array of numbers, got {type(value).__name__} ({error}). "
            "Try torch.as_tensor(...) on it first; strings and None have no numeric value."
        ) from error


def as_sample_shape(value: Any, expected: str = "a sequence of integers") -> torch.Size:
    """Return the leading shape of draws, a sequence of integers, as a `torch.Size`.

    Raises:
        DataError: If it is a number, or not of whole numbers.
    """
    whole = isinstance(value, Sequence) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in value)
    if not whole or any(int(n) < 0 for n in value):
        hint = f"[{value}]" if isinstance(value, int) else "[20] for twenty draws"
        raise DataError(f"sample_shape: expected {expected}, got {value!r}. Try {hint}.")
    return torch.Size(value)


def check_floating(value: Tensor, name: str) -> None:
    """Require a floating-point dtype.

    Raises:
        DataError: If the value is no tensor, or its dtype an integer, boolean or complex one.
    """
    if not isinstance(value, Tensor):
        raise DataError(f"{name}: expected a torch.Tensor, got {type(value).__name__}. Try torch.as_tensor({name}).")
    if not value.is_floating_point():
        raise DataError(
            f"{name}: expected a floating-point dtype, got {value.dtype}. Try {name}.double() or {name}.float()."
        )


def check_finite(value: Tensor, name: str, where: Tensor | None = None) -> None:
    """Require finite entries, only where the boolean `where` (broadcastable) is True if it is given.

    Raises:
        DataError: If an entry is NaN or infinite; the message counts them and gives the first index.
    """
    if not value.is_floating_point():
        return
    bad = ~torch.isfinite(value)
    if where is not None:
        bad = bad & where
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"{name}: expected finite values, got {int(bad.sum())} NaN or infinite entries, the first at index "
            f"{first}. Try to drop or impute them; entries that are missing belong in a mask (False = not observed)."
        )


def check_shape(value: Tensor, name: str, expected: tuple[int | str, ...], hint: str = "") -> None:
    """Require the trailing dimensions of `value` to equal `expected`; a string stands for any size, "..." for any dims.

    Raises:
        ShapeError: If they do not.
    """
    open_front = bool(expected) and expected[0] == "..."
    sizes = expected[1:] if open_front else expected
    got = tuple(value.shape)
    enough = len(got) >= len(sizes) if open_front else len(got) == len(sizes)
    tail = got[len(got) - len(sizes) :] if enough else ()
    if not enough or any(isinstance(e, int) and e != g for e, g in zip(sizes, tail, strict=True)):
        words = ", ".join(str(e) for e in expected)
        raise ShapeError(f"{name}: expected shape ({words}), got {got}." + (f" {hint}" if hint else ""))


def check_same_device(**tensors: Tensor) -> None:
    """Require every tensor to be on one device.

    Raises:
        DataError: If two devices occur.
    """
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DataError(f"expected tensors on one device, got {listed}. Try batch.to(device) and prior.to(device).")


def check_new_members(x_new: Tensor, x: Tensor) -> None:
    """Require finite features (G, Q*, D) of new members of the groups of `x` (G, Q, D).

    Raises:
        ShapeError: If the groups or the number of features differ.
        DataError: If `x_new` is not floating, not finite, or on another device.
    """
    check_floating(x_new, "x_new")
    check_shape(x_new, "x_new", (x.shape[0], "Q*", x.shape[-1]), "One row for each group.")
    check_same_device(x_new=x_new, x=x)
    check_finite(x_new, "x_new")
