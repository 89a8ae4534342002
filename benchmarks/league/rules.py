"""Rules that need no model. Their spread is that of their errors on the training groups."""

from collections.abc import Callable, Iterator

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
    found = own_mean(question, context, target, name).copy()
    for x, y, positions, x_new in by_group(question, context, target, name):
        center = x.mean()
        spread = ((x - center) ** 2).sum()
        if spread > 0:
            found[positions] += ((x - center) * y).sum() / spread * (x_new - center)
    return found


def interpolation(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The line between the neighbours in x; beyond the known values the nearest of them."""
    found = np.full(len(target), question.mean[name])
    for x, y, positions, x_new in by_group(question, context, target, name):
        found[positions] = np.interp(x_new, x, y)
    return found


def by_group(
    question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each group with known values: x in order and y of these, places of its target rows, and their x."""
    table = question.table
    known = context.dropna(subset=name).sort_values(table.x[0])
    x, y, x_new = (part.to_numpy() for part in (known[table.x[0]], known[name], target[table.x[0]]))
    indices = known.groupby(table.group).indices
    for label, positions in target.groupby(table.group).indices.items():
        if label in indices:
            yield x[indices[label]], y[indices[label]], positions, x_new[positions]


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
    """Predict by a rule of the list."""
    return belief_of(question, RULES[system])


def belief_of(question: Question, rule: Rule) -> Belief:
    """Predict by a rule. Each column has one standard deviation: the root mean square of its training errors."""
    table = question.table
    mean, sd = np.empty((2, len(question.target), len(table.y)))
    context, target = question.practice
    for number, name in enumerate(table.y):
        mean[:, number] = rule(question, question.context, question.target, name)
        errors = rule(question, context, target, name) - target[name].to_numpy(dtype=float)
        sd[:, number] = max(float(np.sqrt(np.nanmean(errors**2))), 1e-3 * question.scale[name])
    return Belief(mean, sd)
