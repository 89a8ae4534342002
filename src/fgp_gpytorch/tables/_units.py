"""Columns that are probably not what they seem: in other units, with codes of missing values, or counts."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportAssignmentType=false

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.tables.columns import Gaussian

_FAR = 50.0  # standard deviations: a table in other units, if most values are so far
_OUTLIER = 10.0  # standard deviations: a value that is worth a look
_CODE, _LOG_CODE = 50.0, 20.0  # a value so many deviations from the middle, as it is and as a logarithm
_ZEROS = 0.2  # the share of zeros in a column of counts


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
        outliers = (away > 1) & (np.abs(seen) > _OUTLIER)
        number = max(int(outliers.sum()), int((away > 0.5).sum()) if 2 * (away > 0.5).sum() > len(seen) else 0)
        if number:
            outside.append(f"{expected}{number} of {len(seen)} values far outside")
    if outside:
        check.warn(
            f"y: {outside[0]}{_others(outside)}. They spoil the forecasts of their groups. Try the units of that "
            "table, and NaN for codes of missing values such as 9999."
        )


def warn_of_kinds(columns: Sequence[Gaussian], df: pd.DataFrame) -> None:
    """Warn of training columns with values far from all others, and of counts with many zeros.

    Args:
        columns: Columns of real numbers.
        df: The training table.
    """
    codes, counts = [], []
    for column in columns:
        values = df[column.name].to_numpy(dtype=np.float64, na_value=np.nan)
        seen = values[~np.isnan(values)]
        far = far_from_middle(seen) > _CODE
        if far.any() and seen.min() > 0:  # skewed, not wrong
            far = far_from_middle(np.log(seen)) > _LOG_CODE
        if far.any():
            low, high = np.quantile(seen, (0.25, 0.75))
            first = seen[int(far.argmax())]
            codes.append((column.name, first, f"{int(far.sum())} of {len(seen)} values such as {first:g}", low, high))
        whole = seen.min() == 0 and bool((seen == np.round(seen)).all()) and len(np.unique(seen)) > 2
        if whole and (seen == 0).mean() >= _ZEROS:
            counts.append((column.name, (seen == 0).mean()))
    if codes:
        name, first, got, low, high = codes[0]
        check.warn(
            f"y: expected {name!r} near the middle half of its values, {low:g} to {high:g}, got {got}{_others(codes)}. "
            f"They spoil the forecasts of all groups. Try NaN if {first:g} is a code of a missing value."
        )
    if counts:
        name, share = counts[0]
        check.warn(
            f"y: expected real numbers in column {name!r}, got counts of which {share:.0%} are 0{_others(counts)}. "
            f"Their intervals will reach below 0. Try Count({name!r})."
        )


def far_from_middle(values: np.ndarray) -> np.ndarray:
    """Distances from the median, in standard deviations of a normal distribution with the same quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return np.abs(values - middle) / ((high - low) / 1.349) if high > low else np.zeros(len(values))


def _others(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more columns like that" if len(found) > 1 else ""
