"""Figures of forecasts."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportAssignmentType=false

import math
from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

_COLUMNS = 3
_DATES = 5  # at most, on an axis


def forecast_figure(
    rows: pd.DataFrame, forecast: pd.DataFrame, groups: Sequence[Any], y: Hashable, x: Hashable,
    levels: Sequence[Hashable],
) -> Figure:  # fmt: skip
    """A panel for each group: its rows, the median, and the 5 to 95 % interval, a curve for each inner group.

    Args:
        rows: The table.
        forecast: A tidy forecast.
        groups: Labels.
        y: The column to plot.
        x: The column of the horizontal axis.
        levels: The columns of groups, outermost first.
    """
    group, inner = levels[0], list(levels[1:])
    across = min(_COLUMNS, len(groups))
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(3.4 * across, 2.7 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    axes = list(panels.flat)
    chosen = forecast[forecast["variable"] == y]
    named = "category" in chosen.columns and chosen["category"].notna().any()
    for axis, label in zip(axes, groups, strict=False):
        own = chosen[chosen[group] == label].sort_values(x)
        keys = [*inner, "category"] if named else inner
        for label_of, part in own.groupby(keys, sort=False, observed=True) if keys else [((), own)]:
            line = axis.plot(part[x], part["mean" if named else "q50"], label=label_of[-1] if named else None)[0]
            if not named:
                axis.fill_between(part[x], part["q05"], part["q95"], alpha=0.2, color=line.get_color(), linewidth=0)
        if not named and pd.api.types.is_numeric_dtype(rows[y]):
            mine = rows[rows[group] == label]
            axis.plot(mine[x], mine[y].to_numpy(dtype=float, na_value=math.nan), "k.", markersize=4)
        if pd.api.types.is_datetime64_any_dtype(forecast[x].dtype):
            locator = AutoDateLocator(maxticks=_DATES)
            axis.xaxis.set_major_locator(locator)
            axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axis.set_title(str(label), fontsize=10)
        axis.set_xlabel(str(x))
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis in panels[:, 0]:
        axis.set_ylabel(str(y))
    if named:
        axes[0].legend(fontsize=8)
    elif not inner:
        axes[0].legend(["median", "90 % interval", "given"], fontsize=8)
    return figure
