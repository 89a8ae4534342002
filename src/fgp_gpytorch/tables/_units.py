"""Values in other units than those of the training table."""

import warnings
from collections.abc import Sequence

import numpy as np

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.tables.columns import Gaussian

_FAR = 50.0  # standard deviations: a table in other units


def check_units(columns: Sequence[tuple[Gaussian, np.ndarray]]) -> None:
    """Refuse columns that lie far from the training range, and warn of columns that lie outside or have far values."""
    outside: list[str] = []
    for column, elements in columns:
        seen = elements[~np.isnan(elements)]
        low, high = column.warp(np.array([column.low, column.high]))
        away = np.maximum(low - seen, seen - high) / (high - low)  # in widths of the range
        far = (away > 1) & (np.abs(seen) > _FAR)
        expected = f"expected {column.name!r} near the training table's {column.low:g} to {column.high:g}, got "
        if 2 * far.sum() > len(seen):
            raise DataError(
                f"y: {expected}values up to {np.abs(seen).max():.0f} standard deviations away. Try the units of that "
                "table."
            )
        number = max(int(far.sum()), int((away > 0.5).sum()) if 2 * (away > 0.5).sum() > len(seen) else 0)
        if number:
            outside.append(f"{expected}{number} of {len(seen)} values far outside")
    if outside:
        more = f", and {len(outside) - 1} more columns like that" if len(outside) > 1 else ""
        hint = "Try the units of that table, and NaN for codes of missing values such as 9999."
        warnings.warn(f"y: {outside[0]}{more}. {hint}", UserWarning, stacklevel=4)
