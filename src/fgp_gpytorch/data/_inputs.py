"""Converts what callers pass (tensors, arrays, pandas columns, lists) to tensors and numbers of groups."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, GroupError, ShapeError

__all__ = ["as_features", "as_numbers", "check_observed", "digest_of", "encode_groups", "expand_mask", "hide_unknown"]


def as_numbers(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor. The index of a pandas object is ignored.

    Raises:
        ArgumentError: If `value` is not numeric.
        DataError: If it contains dates.
    """
    return check.as_tensor(value, name)


def as_features(x: Any, feature_dim: int, name: str = "x") -> Tensor:
    """Return real features as a floating tensor. D = 1 is added if there are only `feature_dim` dimensions.

    Integers, booleans and lists become float64, which keeps dates in seconds apart.

    Raises:
        ArgumentError: If `x` is not numeric.
        DataError: If `x` is complex, or contains dates.
    """
    if isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex():
        x = x.double()
    x = check.as_reals(x, name, hint="Try x.real and x.imag as two features.")
    return x.unsqueeze(-1) if x.ndim == feature_dim else x


def hide_unknown(x: Tensor, x_mask: Any, where: Tensor | None = None) -> Tensor:
    """Return features (..., D) with NaN where `x_mask` is False: its shape is that of `x`, or lacks D = 1.

    `where` is True for members, broadcastable to `x`. None = everywhere, for both.

    Raises:
        ShapeError: If the mask has another shape.
        DataError: If the mask is not boolean, or a known feature is not finite.
    """
    if x_mask is None:
        return check.finite(x, "x", where)
    x_mask = as_numbers(x_mask, "x_mask")
    x_mask = x_mask.unsqueeze(-1) if (*x_mask.shape, 1) == tuple(x.shape) else x_mask
    check.mask(x_mask, "x_mask", x.shape, "It has one entry for each feature of each member.")
    check.device(x=x, x_mask=x_mask)
    check.finite(x, "x", x_mask if where is None else x_mask & where)
    return x.masked_fill(~x_mask, torch.nan)


def expand_mask(mask: Tensor, y: Tensor) -> Tensor:  # shape: (G, Q), (G, Q, *shape) -> (G, Q, *shape)
    """Expand a mask over the leading dimensions of `y` to a view of the shape of `y`."""
    return mask.reshape(*mask.shape, *[1] * (y.ndim - mask.ndim)).expand(y.shape)


def check_observed(y_mask: Tensor | None, names: Sequence[Any] = ()) -> None:
    """Require an observed element, and one in every column if an observation is a vector.

    A place of an image may never be observed, such as land on a map of the sea.

    Args:
        y_mask: True where an element of y was observed, (N, *shape); None for everywhere.
        names: Of the columns, for the message; empty for their positions.

    Raises:
        DataError: If nothing was observed.
    """
    if y_mask is None:
        return
    hint = "or allow_unobserved=True for a context to predict from."
    seen = y_mask.any(0)
    if not bool(seen.any()):
        raise DataError(
            f"y: expected an observed element, got none of {y_mask.numel()}. Try ~y_mask if True was to mean missing, "
            f"{hint}"
        )
    if y_mask.ndim == 2 and not bool(seen.all()):
        never = [names[i] if len(names) else i for i in (~seen).nonzero()[:, 0].tolist()]
        raise DataError(
            f"y: expected an observation in every column, got none in column {never[0]!r} ({len(never)} of "
            f"{len(seen)} such columns). Try to leave it out, {hint}"
        )


def encode_groups(group: Any) -> tuple[Tensor, np.ndarray]:  # shape: (N,), (G,)
    """Number the groups 0 to G - 1 in the order of their sorted labels.

    Labels are integers, floats that hold exact integers, strings, a pandas categorical (sorted by its categories),
    dates, or anything else that can be hashed and sorted.

    Returns:
        The number of each member's group, int64, and the G labels that occur.

    Raises:
        GroupError: If a label is missing, complex, or a float that is no exact integer, or if labels cannot be sorted.
        ShapeError: If there is not one label for each member.
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
        raise GroupError(
            "group: expected labels of one kind, got numbers among other labels. Try "
            "group.astype(str), if 1 and '1' are one group."
        )
    return torch.from_numpy(codes.astype(np.int64)), unique


def digest_of(labels: np.ndarray) -> int | None:
    """Return a checksum of labels, the same in every process. The integer 1 differs from the string "1".

    It is None if labels are objects whose `repr` is an address.
    """
    plain = [_plain(label) for label in labels.tolist()]
    if any(type(label).__repr__ is object.__repr__ for label in plain):
        return None
    return 1 + zlib.crc32("\0".join(map(repr, plain)).encode())


def _plain(label: Any) -> Any:
    """Replace NumPy's scalars, which some ways of making a column leave inside, by Python's."""
    if isinstance(label, tuple):
        return tuple(_plain(part) for part in label)
    return label.item() if isinstance(label, np.generic) else label


def _as_series(group: Any) -> pd.Series:
    """Return the labels as a Series, which distinguishes a NaN among strings from the word "nan"."""
    if isinstance(group, pd.Series):
        return group
    if isinstance(group, Tensor):
        group = group.detach().cpu()
        # NumPy has no bfloat16. Every integer of bfloat16 is exact in float64.
        group = (group.double() if group.dtype == torch.bfloat16 else group).numpy()
    if group is None or np.isscalar(group) or getattr(group, "ndim", 1) == 0:
        raise ShapeError(f"group: expected one label a row, (N,), got {group!r}. Try [{group!r}] * len(y).")
    try:
        return pd.Series(group)
    except ValueError as error:
        shape = tuple(getattr(group, "shape", ()))
        raise ShapeError(
            f"group: expected one label a row, (N,), got shape {shape}. "
            "Try group[:, 0]. GroupedDataset.from_dataframe takes several levels."
        ) from error


def _exact_integers(labels: pd.Series) -> pd.Series:
    """Turn floating labels into integers.

    Raises:
        GroupError: If a label has a fraction, is infinite, or is so large that adjacent integers coincide.
    """
    values = labels.to_numpy(dtype=labels.dtype.name.lower() if labels.dtype.name.startswith("F") else None)
    largest = 2.0 / float(np.finfo(values.dtype).eps)
    wrong = ~((values == np.floor(values)) & (np.abs(values) < largest))
    if wrong.any():
        row = int(wrong.argmax())
        raise GroupError(
            f"group: expected labels that are exact integers (below {largest:.0f} for {values.dtype}), got "
            f"{values[row]!r} in row {row}. Try strings, such as group.astype(str)."
        )
    return pd.Series(values.astype(np.int64))
