"""The checks at the public door. Each raises one of our errors: what was expected, what came, what to try.

Code behind the door trusts its arguments. Import the module, so that a call reads as a sentence::

    from fgp_gpytorch import _checks as check

    self.num_channels = check.count(num_channels, "num_channels")

`name` is the argument's name as the caller wrote it. `hint` is the last sentence of the message, such as "Try 0.1.".
"""

import datetime
import importlib
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError

T = TypeVar("T")


def warn(message: str) -> None:
    """Warn at the line of the user's program that led here."""
    names = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(inspect.currentframe())]
    ours = [level for level, name in enumerate(names) if Path(name).is_relative_to(Path(__file__).parent)]
    warnings.warn(message, UserWarning, stacklevel=ours[-1] + 2)


def number(value: Any) -> Any:
    """Return a value of NumPy or PyTorch without dimensions as Python's own, any other value as it is."""
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 else value


def count(value: Any, name: str, least: int = 1, hint: str = "") -> int:
    """Require a whole number (NumPy's and PyTorch's too) of at least `least`.

    Raises:
        ArgumentError: If it is none.
    """
    plain = number(value)
    if not isinstance(plain, Integral) or isinstance(plain, bool) or plain < least:
        hint = _repaired(hint, f"Try {name}={least}.")
        raise ArgumentError(f"{name}: expected an integer >= {least}, got {value!r}. {hint}")
    return int(plain)


def positive(value: Any, name: str, *, zero: bool = False, below: float = math.inf, hint: str = "") -> float:
    """Require a real number (NumPy's and PyTorch's too) above 0 (with `zero` at least 0) and below `below`.

    Raises:
        ArgumentError: If it is none.
    """
    plain = number(value)
    plain = float(plain) if isinstance(plain, Real) and not isinstance(plain, bool) else math.nan
    if not (0 <= plain < below and (zero or plain > 0)):
        finite_range = "a finite number >= 0" if zero else "a positive finite number"
        expected = finite_range if below == math.inf else f"a number in {'[' if zero else '('}0, {below:g})"
        hint = _repaired(hint, f"Try {name}={min(1.0, below / 2):g}.")
        raise ArgumentError(f"{name}: expected {expected}, got {value!r}. {hint}")
    return plain


def choice(value: T, name: str, options: Iterable[T], hint: str = "") -> T:
    """Require one of a few values.

    Raises:
        ArgumentError: If it is none of them.
    """
    options = list(options)
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        listed = ", ".join(map(repr, options))
        hint = _repaired(hint, f"Try {options[0]!r}.")
        raise ArgumentError(f"{name}: expected one of {listed}, got {value!r}. {hint}")
    return value


def instance(value: Any, name: str, kind: type[T] | tuple[type, ...], hint: str = "") -> T:
    """Require an object of a class, or of one of several classes.

    Raises:
        ArgumentError: If it is of another class.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        expected = f"{_article(kinds)} {kinds}"
        raise ArgumentError(f"{name}: expected {expected}, got {_what(value)}. {_repaired(hint, f'Try {expected}.')}")
    return value  # pyright: ignore[reportReturnType]


def floating(value: Tensor, name: str, hint: str = "") -> Tensor:
    """Require a tensor of a floating-point dtype.

    Raises:
        ArgumentError: If it is no tensor.
        DataError: If its dtype is an integer, boolean or complex one.
    """
    instance(value, name, Tensor, f"Try torch.as_tensor({name}).")
    if not value.is_floating_point():
        hint = _repaired(hint, f"Try {name}.double() or {name}.float().")
        raise DataError(f"{name}: expected a floating-point dtype, got {value.dtype}. {hint}")
    return value


def shape(value: Tensor, name: str, expected: Sequence[int | str], hint: str = "") -> Tensor:
    """Require a shape. A string such as "Q" stands for any size, "..." in front for any leading dimensions.

    Raises:
        ArgumentError: If it is no tensor.
        ShapeError: If the shape differs.
    """
    if not isinstance(value, Tensor):
        instance(value, name, Tensor, f"Try torch.as_tensor({name}).")
    got, sizes = tuple(value.shape), tuple(expected)
    if sizes[:1] == ("...",):
        sizes = sizes[1:]
        fits = len(got) >= len(sizes)
        got = got[len(got) - len(sizes) :] if fits else got
    else:
        fits = len(got) == len(sizes)
    if not fits or any(isinstance(size, int) and size != g for size, g in zip(sizes, got, strict=True)):
        words = ", ".join(map(str, expected))
        hint = _repaired(hint, f"Try {name} of that shape.")
        raise ShapeError(f"{name}: expected shape ({words}), got {tuple(value.shape)}. {hint}")
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
        DataError: If an entry is NaN or infinite. The message counts them and gives the first index. Also if the tensor
            has no values, on the device "meta".
    """
    if value.is_meta:
        raise DataError(f"{name}: expected a tensor with values, got one on meta. Try {name} on the model's device.")
    if not value.is_floating_point():
        return value
    bad = ~torch.isfinite(value)
    if where is not None:
        bad = bad & where
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        hint = _repaired(hint, "Try to drop or impute them. Missing entries belong in a mask (False = not observed).")
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
    """Return `value` as a tensor. A tensor is not copied, and the index of a pandas object is ignored.

    Raises:
        ArgumentError: If `value` cannot become a numeric tensor.
        DataError: If it contains dates.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, pd.Series | pd.DataFrame | pd.Index):
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        # PyTorch has no read-only tensors. It would warn, and a write would change the caller's array.
        value = value.copy()
    _refuse_dates(value, name)
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"{name}: expected a tensor or an array of numbers, got {_what(value)} ({error}). "
            "Try torch.as_tensor(...) on it first. Strings and None have no numeric value."
        ) from error


def as_reals(value: Any, name: str, like: Tensor | None = None, hint: str = "") -> Tensor:
    """Return real numbers as a floating tensor. A tensor must be floating; lists and arrays of integers are float64.

    Args:
        value: A tensor, an array, columns of a table or a list.
        name: Of the argument.
        like: A tensor whose device lists and arrays are placed on.
        hint: The last sentence of the message about another dtype.

    Raises:
        ArgumentError: If `value` is not numeric.
        DataError: If it is complex, or a tensor of integers.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, Real):
            value = torch.tensor(float(value), dtype=torch.float64)  # PyTorch would round it to its default dtype
        elif isinstance(value, list | tuple) and not any(isinstance(row, Tensor) for row in value):
            value = _rectangle(value)  # float64, where PyTorch would round to its default dtype
        value = as_tensor(value, name)
        value = value if value.is_floating_point() or value.is_complex() else value.double()
        value = value if like is None else value.to(like.device)
    return floating(value, name, hint)


def package(name: str) -> Any:
    """Import a package that the library can do without, or a module of it.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        whole = name.partition(".")[0]
        raise ImportError(f"expected the package {whole}, got no such package. Try pip install {whole}.") from error


def as_sample_shape(value: Any) -> torch.Size:
    """Return the leading shape of draws, a sequence of whole numbers, as a `torch.Size`.

    Raises:
        ArgumentError: If it is a number, or holds anything but whole numbers of at least 0.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    sizes: list[Any] = [number(n) for n in value] if listed else [None]
    if any(not isinstance(n, Integral) or isinstance(n, bool) or n < 0 for n in sizes):
        hint = f"[{value}]" if type(value) is int else "[20] for twenty draws"
        raise ArgumentError(f"sample_shape: expected a sequence of integers, got {value!r}. Try {hint}.")
    return torch.Size(sizes)


def _repaired(hint: str, default: str) -> str:
    """Return a hint that says what to try: with `default` after it, unless it already does."""
    return hint if re.search(r"\btry\b", hint, re.IGNORECASE) else f"{hint} {default}".strip()


def _refuse_dates(value: Any, name: str) -> None:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal length
        return
    first = array.flat[0] if array.dtype == object and array.size else None
    if array.dtype.kind in "mM" or isinstance(first, datetime.date | datetime.timedelta):
        raise DataError(
            f"{name}: expected numbers, got dates or time steps ({array.dtype}). Try t = pd.to_datetime(pd.Series("
            f"{name})) and (t - t.min()).dt.total_seconds() / 86400, which counts days."
        )


def _rectangle(rows: Any) -> Any:
    """Return lists of numbers as an array, lists of unequal length as they are: PyTorch's error names them."""
    try:
        array = np.asarray(rows)
    except ValueError:
        return rows
    return rows if array.dtype == object else array


def _what(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _article(noun: str) -> str:
    return "an" if noun[:1].upper() in "AEIO" else "a"
