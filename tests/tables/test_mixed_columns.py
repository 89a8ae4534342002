"""A column of counts or categories keeps its course over x beside columns of numbers."""

import numpy as np
import pandas as pd
import pytest

from fgp_gpytorch import TableModel
from fgp_gpytorch.tables import Categorical, Column, Count


def make_table(seed: int, num_groups: int = 40) -> pd.DataFrame:
    """Counts, and categories, whose rate goes up and down over t, beside a number that is linear in t."""
    rng = np.random.default_rng(seed)
    group, t = np.repeat(np.arange(num_groups), 8), np.tile(np.arange(8.0), num_groups)
    level = rng.normal(size=num_groups)[group]
    log_rate = 0.5 + 2 * np.sin(t / 2) + level
    line = 5 - 2 * level + 0.3 * t + 0.3 * rng.normal(size=len(t))
    kind = np.where(log_rate + 0.3 * rng.normal(size=len(t)) > 1.5, "many", "few")
    return pd.DataFrame({"g": group, "t": t, "line": line, "count": rng.poisson(np.exp(log_rate)), "kind": kind})


def forecast_at_the_end(y: list[Column | str], df: pd.DataFrame) -> tuple[pd.Series, float]:
    past, future = df[df["t"] < 5], df[df["t"] >= 5]
    model = TableModel(y, "t", "g", hidden=(), calibrate=False).fit(df, max_steps=0)
    answers = model.forecast(past, future)
    if "category" in answers:
        answers = answers[answers["category"] == "many"]
    name = y[0].name if isinstance(y[0], Column) else y[0]
    return answers[answers["variable"] == name].groupby("t")["mean"].mean(), model.elbo_


@pytest.mark.parametrize("column", [Count("count"), Categorical("kind")])
def test_number_beside_a_column_of_another_kind_does_not_flatten_its_course(column):
    df = make_table(0)
    truth = df[df["t"] >= 5].assign(kind=df["kind"] == "many").groupby("t")[column.name].mean()
    mean, _ = forecast_at_the_end([column, "line"], df)
    assert np.all(np.abs(mean - truth) < 0.35 * truth.max())
    assert mean[7.0] < 0.5 * mean[5.0]


def test_joint_start_is_at_least_as_probable_as_that_of_each_column_alone():
    df = make_table(2)
    elbos = [forecast_at_the_end(y, df)[1] for y in ([Count("count")], ["line"], [Count("count"), "line"])]
    assert elbos[2] > (elbos[0] + elbos[1]) / 2
