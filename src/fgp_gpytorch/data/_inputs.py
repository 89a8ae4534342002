"""What callers hand in (tensors, arrays, pandas columns, lists) as tensors and group codes."""

import zlib
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fgp_gpytorch._shapes import as_tensor, check_finite, check_same_device, check_shape
from fgp_gpytorch.errors import DataError, GroupError, ShapeError

__all__ = ["as_features", "as_mask", "as_numbers", "digest_of", "encode_groups", "expand_mask", "hide_unknown"]


def as_numbers(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor, pandas objects by their rows in order (their index plays no part).

    Raises:
        DataError: If `value` is not numeric.
    """
    if isinstance(value, pd.Series | pd.DataFrame | pd.Index):
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        # PyTorch has no read-only tensors: it would warn, and a write would reach into the pandas column.
        value = value.copy()
    return as_tensor(value, name)


def as_features(x: Any, feature_dim: int) -> Tensor:
    """Return auxiliary features as a floating tensor, with a last dimension D = 1 where it is missing.

    Args:
        x: Features of any real dtype; integers, booleans and lists become float64, in which dates in seconds stay
            apart.
        feature_dim: Number of dimensions before D.

    Raises:
        DataError: If `x` is complex or not numeric.
    """
    if isinstance(x, list | tuple) and not any(isinstance(row, Tensor) for row in x):
        x = np.asarray(x) if _is_rectangular(x) else x
    x = as_numbers(x, "x")
    if x.is_complex():
        raise DataError(f"x: expected real features, got {x.dtype}. Try x.real and x.imag as two features.")
    if not x.is_floating_point():
        x = x.double()
    return x.unsqueeze(-1) if x.ndim == feature_dim else x


def hide_unknown(x: Tensor, x_mask: Any, where: Tensor | None = None) -> Tensor:
    """Features with NaN where they are not known.

    Args:
        x: Features, (..., D).
        x_mask: True where one is known, the shape of `x`, or without D if it is 1; None = everywhere.
        where: Where there is a member at all, broadcastable to `x`; None = everywhere.

    Raises:
        ShapeError: If the mask has another shape.
        DataError: If it is not boolean, or a known feature is not finite.
    """
    if x_mask is None:
        check_finite(x, "x", where)
        return x
    x_mask = as_mask(x_mask, "x_mask")
    x_mask = x_mask.unsqueeze(-1) if (*x_mask.shape, 1) == tuple(x.shape) else x_mask
    check_shape(x_mask, "x_mask", tuple(x.shape), "It has one entry for each feature of each member.")
    check_same_device(x=x, x_mask=x_mask)
    check_finite(x, "x", x_mask if where is None else x_mask & where)
    return x.masked_fill(~x_mask, torch.nan)


def _is_rectangular(rows: Any) -> bool:
    try:
        return np.asarray(rows).dtype != object
    except ValueError:  # rows of unequal length: let PyTorch say so
        return False


def as_mask(mask: Any, name: str) -> Tensor:
    """Return `mask` as a boolean tensor.

    Raises:
        DataError: If its dtype is not boolean: 0/1 numbers could as well be weights, or mean the opposite.
    """
    mask = as_numbers(mask, name)
    if mask.dtype != torch.bool:
        raise DataError(f"{name}: expected a boolean tensor, got {mask.dtype}. Try {name}.bool(), where True = there.")
    return mask


def expand_mask(mask: Tensor, y: Tensor) -> Tensor:  # shape: (G, Q), (G, Q, *shape) -> (G, Q, *shape)
    """Expand a mask over the leading dimensions of `y` to a view of the shape of `y`."""
    return mask.reshape(*mask.shape, *[1] * (y.ndim - mask.ndim)).expand(y.shape)


def encode_groups(group: Any) -> tuple[Tensor, np.ndarray]:  # shape: (N,), (G,)
    """Number the groups 0 to G - 1 in the order of their sorted labels.

    Args:
        group: One label a row: integers, floats that hold exact integers, strings, a pandas categorical
            (sorted by its categories), dates, or any other labels that can be hashed and sorted.

    Returns:
        The number of each row's group, int64, and the G labels that occur.

    Raises:
        GroupError: If a label is missing, complex, or a float that is no exact integer, or if the labels
            cannot be sorted.
        ShapeError: If there is not one label a row.
    """
    labels = _as_series(group)
    missing = labels.isna().to_numpy()
    if missing.any():
        raise GroupError(
            f"group: expected a label in every row, got {int(missing.sum())} missing, the first in row "
            f"{int(missing.argmax())}. Try to drop those rows, or to give each a group of its own."
        )
    if labels.dtype.kind == "c":
        raise GroupError("group: expected labels that can be sorted, got complex numbers. Try integers or strings.")
    if labels.dtype.kind == "f":
        labels = _exact_integers(labels)
    try:
        codes, unique = pd.factorize(labels, sort=True)
    except TypeError as error:
        raise GroupError(
            f"group: expected labels that can be hashed and sorted, got {error}. Try integers or strings."
        ) from error
    unique = np.asarray(unique)
    if unique.dtype == object and any(isinstance(u, float | complex) for u in unique):
        raise GroupError("group: expected labels of one kind, got numbers among other labels. Try group.astype(str).")
    return torch.from_numpy(codes.astype(np.int64)), unique


def digest_of(labels: np.ndarray) -> int | None:
    """A number of labels and their order, the same in every process; the integer 1 is not the string "1".

    Args:
        labels: Sorted labels, (G,).

    Returns:
        None if labels cannot be written down: objects whose `repr` is an address.
    """
    plain = [_plain(label) for label in labels.tolist()]
    if any(type(label).__repr__ is object.__repr__ for label in plain):
        return None
    return 1 + zlib.crc32("\0".join(map(repr, plain)).encode())


def _plain(label: Any) -> Any:
    """A label without NumPy's types, which some ways of making a column leave inside."""
    if isinstance(label, tuple):
        return tuple(_plain(part) for part in label)
    return label.item() if isinstance(label, np.generic) else label


def _as_series(group: Any) -> pd.Series:
    """Return the labels as a Series, which keeps a NaN among strings apart from the word "nan"."""
    if isinstance(group, pd.Series):
        return group
    if isinstance(group, Tensor):
        group = group.detach().cpu()
        # NumPy has no bfloat16; every integer that one can hold is exact in float64 as well.
        group = (group.double() if group.dtype == torch.bfloat16 else group).numpy()
    if group is None or np.isscalar(group) or getattr(group, "ndim", 1) == 0:
        raise ShapeError(f"group: expected one label a row, (N,), got {group!r}. Try [{group!r}] * len(y).")
    try:
        return pd.Series(group)
    except ValueError as error:
        shape = tuple(getattr(group, "shape", ()))
        raise ShapeError(
            f"group: expected one label a row, (N,), got shape {shape}. "
            "Try group[:, 0]; labels of several columns become one with df.groupby(columns).ngroup()."
        ) from error


def _exact_integers(labels: pd.Series) -> pd.Series:
    """Turn floating labels into integers.

    Raises:
        GroupError: If one of them has a fraction, is infinite, or is so large that its neighbours are no
            longer apart.
    """
    values = labels.to_numpy(dtype=labels.dtype.name.lower() if labels.dtype.name.startswith("F") else None)
    largest = 2.0 / float(np.finfo(values.dtype).eps)
    wrong = ~((values == np.floor(values)) & (np.abs(values) < largest))
    if wrong.any():
        row = int(wrong.argmax())
        raise GroupError(
            f"group: expected labels that are exact integers (below {largest:.0f} for {values.dtype}), got "
            f"{values[row]!r} in row {row}. Try group.round().long() if that is meant, or strings."
        )
    return pd.Series(values.astype(np.int64))
