"""This library's default for tables. All tables get the same settings: none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.league.scores import scored_elsewhere
from benchmarks.league.speakers import POINTS
from benchmarks.league.tasks import Question


def installed() -> bool:
    """Whether the library has its `TableModel`."""
    import fgp_gpytorch

    return hasattr(fgp_gpytorch, "TableModel")


def trained(question: Question, seed: int) -> Any:
    """Fit the model to the training groups."""
    from fgp_gpytorch import TableModel, tables

    table = question.table
    kinds = {name: tables.Binary if len(levels) == 2 else tables.Ordinal for name, levels in table.levels.items()}
    several = question.train[table.y].nunique() > 1  # the corners of images are always black
    y = [kinds[name](name) if name in kinds else name for name in table.y if several[name]]
    return TableModel(y=y, x=table.x, group=table.group).fit(question.train, seed=seed)


def fit_table_model(question: Question, seed: int) -> Callable[[], dict[str, float]]:
    """Fit the model; return a function that predicts and scores the target."""
    model = trained(question, seed)

    def predict() -> dict[str, float]:
        return scores_of(question, model)

    return predict


def scores_of(question: Question, model: Any) -> dict[str, float]:
    """Score the forecasts of a model in training standard deviations. A column with one value is forecast by it."""
    table = question.table
    keys = [table.group, *table.x]
    tidy = model.forecast(question.context, at=question.target[keys])
    columns = {}
    for name, own in tidy.groupby("variable"):
        columns[name] = question.target[keys].merge(own, on=keys, how="left", validate="one_to_one")
    constant = np.ones(len(question.target))
    mean, low, high = (
        np.stack(
            [columns[name][part].to_numpy(float) if name in columns else constant * question.mean[name]
             for name in table.y], axis=-1,
        )
        for part in ("mean", "q05", "q95")
    )  # fmt: skip
    reported = model.score(question.context, question.target).reindex(table.y)
    return scored_elsewhere(question, mean, low, high, reported)


def codes(question: Question, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Return one code for each group: the latents at as many places as the code of resampled frames has."""
    return model.embed(rows, points=POINTS)
