"""The checks at the public door. Each raises one of our errors: what was expected, what came, what to try.

Code behind the door trusts its arguments. Import the module, so that a call reads as a sentence::

    from fgp_gpytorch import _checks as check

    self.num_channels = check.count(num_channels, "num_channels")

`name` is the argument's name as the caller wrote it. `hint` is the last sentence of the message, such as "Try 0.1.".
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError

T = TypeVar("T")


def count(value: Any, name: str, least: int = 1, hint: str = "") -> int:
    """Require a whole number (NumPy's too) of at least `least`.

    Raises:
        ArgumentError: If it is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name}: expected an integer >= {least}, got {value!r}. {hint or f'Try {name}={least}.'}")
    return int(value)


def positive(value: Any, name: str, *, zero: bool = False, below: float = math.inf, hint: str = "") -> float:
    """Require a real number above 0 (with `zero` at least 0) and below `below`.

    Raises:
        ArgumentError: If it is none.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (0 <= number < below and (zero or number > 0)):
        finite_range = "a finite number >= 0" if zero else "a positive finite number"
        expected = finite_range if below == math.inf else f"a number in {'[' if zero else '('}0, {below:g})"
        raise ArgumentError(f"{name}: expected {expected}, got {value!r}. {hint}".rstrip())
    return number


def choice(value: T, name: str, options: Iterable[T], hint: str = "") -> T:
    """Require one of a few values.

    Raises:
        ArgumentError: If it is none of them.
    """
    options = list(options)
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        listed = ", ".join(map(repr, options))
        raise ArgumentError(f"{name}: expected one of {listed}, got {value!r}. {hint or f'Try {options[0]!r}.'}")
    return value


def instance(value: Any, name: str, kind: type[T] | tuple[type, ...], hint: str = "") -> T:
    """Require an object of a class, or of one of several classes.

    Raises:
        ArgumentError: If it is of another class.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ArgumentError(f"{name}: expected {_article(kinds)} {kinds}, got {_what(value)}. {hint}".rstrip())
    return value  # pyright: ignore[reportReturnType]


def floating(value: Tensor, name: str, hint: str = "") -> Tensor:
    """Require a tensor of a floating-point dtype.

    Raises:
        ArgumentError: If it is no tensor.
        DataError: If its dtype is an integer, boolean or complex one.
    """
    instance(value, name, Tensor, f"Try torch.as_tensor({name}).")
    if not value.is_floating_point():
        hint = hint or f"Try {name}.double() or {name}.float()."
        raise DataError(f"{name}: expected a floating-point dtype, got {value.dtype}. {hint}")
    return value


def shape(value: Tensor, name: str, expected: Sequence[int | str], hint: str = "") -> Tensor:
    """Require a shape. A string such as "Q" stands for any size, "..." in front for any leading dimensions.

    Raises:
        ShapeError: If the shape differs.
    """
    got, sizes = tuple(value.shape), tuple(expected)
    if sizes[:1] == ("...",):
        sizes = sizes[1:]
        fits = len(got) >= len(sizes)
        got = got[len(got) - len(sizes) :] if fits else got
    else:
        fits = len(got) == len(sizes)
    if not fits or any(isinstance(size, int) and size != g for size, g in zip(sizes, got, strict=True)):
        words = ", ".join(map(str, expected))
        raise ShapeError(f"{name}: expected shape ({words}), got {tuple(value.shape)}. {hint}".rstrip())
    return value


def mask(value: Tensor, name: str, expected: Sequence[int | str], hint: str = "") -> Tensor:
    """Require a boolean tensor of a shape: True where something is there.

    Raises:
        ShapeError: If the shape differs.
        DataError: If the dtype is not boolean. Numbers 0 and 1 could be weights, or mean the opposite.
    """
    instance(value, name, Tensor, f"Try torch.as_tensor({name}).")
    shape(value, name, expected, hint)
    if value.dtype != torch.bool:
        raise DataError(f"{name}: expected torch.bool, got {value.dtype}. Try {name}.bool(), where True = observed.")
    return value


def finite(value: Tensor, name: str, where: Tensor | None = None, hint: str = "") -> Tensor:
    """Require finite entries, only where the boolean `where` is True if it is given (it may broadcast).

    Raises:
        DataError: If an entry is NaN or infinite. The message counts them and gives the first index.
    """
    if not value.is_floating_point():
        return value
    bad = ~torch.isfinite(value)
    if where is not None:
        bad = bad & where
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        hint = hint or "Try to drop or impute them. Missing entries belong in a mask (False = not observed)."
        raise DataError(
            f"{name}: expected finite values, got {int(bad.sum())} NaN or infinite entries, the first at index "
            f"{first}. {hint}"
        )
    return value


def device(**tensors: Tensor) -> None:
    """Require all tensors to be on one device.

    Raises:
        DataError: If two devices occur.
    """
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {place}" for name, place in devices.items())
        raise DataError(f"expected tensors on one device, got {listed}. Try batch.to(device) and prior.to(device).")


def as_tensor(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor. A tensor is not copied.

    Raises:
        ArgumentError: If `value` cannot become a numeric tensor.
    """
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"{name}: expected a tensor or an array of numbers, got {_what(value)} ({error}). "
            "Try torch.as_tensor(...) on it first. Strings and None have no numeric value."
        ) from error


def as_sample_shape(value: Any) -> torch.Size:
    """Return the leading shape of draws, a sequence of whole numbers, as a `torch.Size`.

    Raises:
        ArgumentError: If it is a number, or holds anything but whole numbers of at least 0.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not listed or any(not isinstance(n, Integral) or isinstance(n, bool) or n < 0 for n in value):
        hint = f"[{value}]" if type(value) is int else "[20] for twenty draws"
        raise ArgumentError(f"sample_shape: expected a sequence of integers, got {value!r}. Try {hint}.")
    return torch.Size(value)


def _what(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _article(noun: str) -> str:
    return "an" if noun[:1].upper() in "AEIO" else "a"
