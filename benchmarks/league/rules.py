"""Rules that need no model. Their spread is that of their errors on the training groups."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

Rule = Callable[[Question, pd.DataFrame, pd.DataFrame, str], np.ndarray]


def last_value(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The last known value of the group."""
    known = context.dropna(subset=name).sort_values(question.table.x).groupby(question.table.group)[name].last()
    return known.reindex(target[question.table.group]).fillna(question.mean[name]).to_numpy()


def own_mean(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The mean of the known values of the group."""
    known = context.groupby(question.table.group)[name].mean()
    return known.reindex(target[question.table.group]).fillna(question.mean[name]).to_numpy()


def linear_rule(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The least-squares line of the group; its mean if it has one known value."""
    table, found = question.table, own_mean(question, context, target, name).copy()
    known = dict(iter(context.dropna(subset=name).groupby(table.group)))
    for label, positions in target.groupby(table.group).indices.items():
        rows = known.get(label)
        if rows is not None and rows[table.x[0]].nunique() > 1:
            x, center = rows[table.x[0]], rows[table.x[0]].mean()
            slope = ((x - center) * rows[name]).sum() / ((x - center) ** 2).sum()
            found[positions] += slope * (target[table.x[0]].to_numpy()[positions] - center)
    return found


def interpolation(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The line between the neighbours in x; beyond the known values the nearest of them."""
    table, found = question.table, np.full(len(target), question.mean[name])
    known = dict(iter(context.dropna(subset=name).groupby(table.group)))
    for label, positions in target.groupby(table.group).indices.items():
        rows = known.get(label)
        if rows is not None:
            rows = rows.sort_values(table.x[0])
            found[positions] = np.interp(target[table.x[0]].to_numpy()[positions], rows[table.x[0]], rows[name])
    return found


def population_mean(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The mean of the training groups at x."""
    return mean_at_x(question, target, name)


def mean_at_x(question: Question, rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return the mean of the training groups at the x of rows, interpolated between values of x.

    If fewer than five training rows share a value of x on average, values are joined into at most 20 bins.
    With several x, the mean of the rows with the same x.
    """
    table = question.table
    known = question.train.dropna(subset=name)
    if len(table.x) > 1:
        found = known.groupby(table.x)[name].mean().reindex(pd.MultiIndex.from_frame(rows[table.x]))
        return found.fillna(question.mean[name]).to_numpy()
    bins = x = known[table.x[0]]
    if len(x) < 5 * x.nunique():
        bins = pd.qcut(x, max(1, min(20, len(x) // 5)), labels=False, duplicates="drop")
    middle = known.groupby(bins.to_numpy())[[table.x[0], name]].mean().sort_values(table.x[0])
    return np.interp(rows[table.x[0]], middle[table.x[0]], middle[name])


RULES: dict[str, Rule] = {
    "last value": last_value,
    "own mean": own_mean,
    "linear rule": linear_rule,
    "mean at x": population_mean,
    "linear interpolation": interpolation,
}


def rule_belief(question: Question, system: str) -> Belief:
    """Predict by a rule. Each column has one standard deviation: the root mean square of its training errors."""
    table, rule = question.table, RULES[system]
    mean, sd = np.empty((2, len(question.target), len(table.y)))
    context, target = question.practice
    for number, name in enumerate(table.y):
        mean[:, number] = rule(question, question.context, question.target, name)
        errors = rule(question, context, target, name) - target[name].to_numpy(dtype=float)
        sd[:, number] = max(float(np.sqrt(np.nanmean(errors**2))), 1e-3 * question.scale[name])
    return Belief(mean, sd)
