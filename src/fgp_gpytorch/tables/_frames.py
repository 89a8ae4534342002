"""DataFrames of questions and answers: what is asked for, and whether a table can be used."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.tables._features import Covariate, Feature

FEWEST_GROUPS = 6  # fewer give intervals that are far too narrow


def group_names(group: Any) -> list[Hashable]:
    """The columns of groups, outermost first.

    Raises:
        ArgumentError: If there is none, or a name is no name.
    """
    names = list(group) if isinstance(group, list) else [group]
    for name in names:
        check.instance(name, "group", Hashable, "Try the name of a column.")
    if not names:
        raise ArgumentError("group: expected the name of a column, got none. Try group='patient'.")
    return names


def require(df: pd.DataFrame, names: Sequence[Hashable], argument: str = "df") -> None:
    """Check that a table has rows, and each of these columns once.

    Raises:
        DataError: If it has not.
    """
    if len(df) == 0:
        raise DataError(f"{argument}: expected at least one row, got none. Try to check the filter before it.")
    if isinstance(df.columns, pd.MultiIndex):
        raise DataError(
            f"{argument}: expected columns of one level, got {df.columns.nlevels} levels. Try df.columns = "
            "['_'.join(map(str, name)) for name in df.columns]."
        )
    absent = [name for name in names if name not in df.columns]
    if absent:
        repair = f"{argument}.reset_index()" if absent[0] in df.index.names else "its name in this table"
        raise DataError(f"{argument}: expected a column {absent[0]!r}, got {list(df.columns)}. Try {repair}.")
    twice = [name for name in names if isinstance(df[name], pd.DataFrame)]
    if twice:
        raise DataError(
            f"{argument}: expected one column {twice[0]!r}, got several. Try df.loc[:, ~df.columns.duplicated()]."
        )


def warn_of_rows(df: pd.DataFrame, keys: list[Hashable], group_sizes: Tensor) -> None:
    """Warn of repeated rows, of few groups, and of many groups with one row.

    Args:
        df: The training table.
        keys: Its columns of groups and x.
        group_sizes: Rows of each group.

    Raises:
        DataError: If every group has one row.
    """
    repeated = df.duplicated(keys)
    if repeated.any():
        first = {key: check.number(df.loc[repeated, key].iloc[0]) for key in keys}
        check.warn(
            f"df: expected one row for each group and x, got {int(repeated.sum())} repeated ones, the first at "
            f"{first}. They count as independent measurements. Try df.drop_duplicates({keys}) if they are copies."
        )
    single, groups = int((group_sizes == 1).sum()), len(group_sizes)
    if groups < FEWEST_GROUPS:
        check.warn(
            f"df: expected at least {FEWEST_GROUPS} groups, got {groups}. They say little of how groups differ, so "
            "intervals for other groups may be too narrow. Try more groups."
        )
    if single == groups:
        raise DataError(
            f"df: expected groups with several rows, got {single} groups of one row each. Try another group column."
        )
    if 2 * single > groups:
        check.warn(
            f"df: expected groups with several rows, got {single} of {groups} groups with one row, which say "
            "nothing about changes within a group. Try a coarser group column."
        )


def warn_of_overlap(df_context: pd.DataFrame, df_target: pd.DataFrame, keys: list[Hashable], y: list[Hashable]) -> None:
    """Warn of values of the targets that the context shows too.

    Args:
        df_context: What the model may see.
        df_target: The true values.
        keys: Their columns of groups and x.
        y: Their columns of measurements.
    """
    overlap = total = 0
    for name in y:
        tables = [df.loc[df[name].notna(), [*keys, name]].drop_duplicates() for df in (df_context, df_target)]
        total += len(tables[1])
        if min(map(len, tables)):
            overlap += int(pd.concat(tables).duplicated().sum())
    if overlap:
        check.warn(
            f"df_target: expected values that the context lacks, got {overlap} of {total} values that are in both "
            "tables. Their errors are too low. Try to take them out of df_context."
        )


def targets_of(
    df: pd.DataFrame, at: Any, group: list[Hashable], features: Sequence[Feature], covariates: Sequence[Covariate]
) -> pd.DataFrame:
    """The groups, x and covariates of forecasts, a row for each.

    Args:
        df: The context.
        at: A table, or values of each column of x, of which every group of the context gets all combinations. Absent
            covariates are those of the last row of the group in the context.
        group: The columns of groups.
        features: The columns of x.
        covariates: The columns of effects.
    """
    keys = [*group, *(column.name for column in (*features, *covariates))]
    given = isinstance(at, pd.DataFrame)
    targets = at if given else df[group].drop_duplicates().merge(grid_of(at, features, covariates), how="cross")
    absent = [covariate.name for covariate in covariates if covariate.name not in targets.columns]
    if absent:
        require(targets, group[:1], "at")
        last = df.drop_duplicates(group[0], keep="last").set_index(group[0])[absent]
        targets = targets.join(last, on=group[0])
    require(targets, keys, "at")
    return targets[keys].reset_index(drop=True)


def grid_of(at: Any, features: Sequence[Feature], covariates: Sequence[Covariate]) -> pd.DataFrame:
    """All combinations of the values of x columns and covariates."""
    if not isinstance(at, Mapping):
        check.instance(at, "at", (Mapping, pd.DataFrame), "Try {'year': range(2000, 2010)}.")
    names = [feature.name for feature in features]
    more = [covariate.name for covariate in covariates if covariate.name in at]
    if set(at) != {*names, *more}:
        raise ArgumentError(f"at: expected values for {names}, got {list(at)}. Try {{{names[0]!r}: [...]}}.")
    columns = []
    for feature in features:
        listed = _listed(at[feature.name])
        if not listed:
            raise DataError(f"at: expected values for {feature.name!r}, got none. Try at least one.")
        if any(isinstance(value, np.ndarray | list) for value in listed):
            raise DataError(
                f"at: expected a list of values for {feature.name!r}, got lists inside a list. Try np.ravel of it."
            )
        columns.append(pd.DataFrame({feature.name: feature.like_training(listed)}))
    columns += [pd.DataFrame({name: _listed(at[name])}) for name in more]
    return functools.reduce(lambda one, other: one.merge(other, how="cross"), columns)


def _listed(values: Any) -> list[Any]:
    """Values of `at` as a list: one value, or several."""
    values = check.number(values)
    return [values] if isinstance(values, str) or not hasattr(values, "__iter__") else list(values)


def fill_gaps(values: pd.Series, gaps: np.ndarray, found: np.ndarray) -> pd.Series:
    """The column with its gaps filled, in its dtype. Integers are rounded."""
    filled = values.copy()
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        found = found.astype(np.float64)
        found = np.round(found) if pd.api.types.is_integer_dtype(values.dtype) else found
        if isinstance(values.dtype, np.dtype):
            found = found.astype(values.dtype)
    filled[gaps] = found
    return filled if len(found) < len(filled) else filled.infer_objects()
