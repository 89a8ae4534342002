"""Imputation by PyPOTS (`pip install pypots`, or this project's extra `peers`): SAITS, BRITS and GPVAE.

Series are standardised and padded by missing steps. The networks have the sizes of the papers' smallest tables, and the
epochs are the same for all tables. As for the rules, the spread of a column is that of its errors on the training
groups.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

PEERS, EPOCHS = ("SAITS", "BRITS", "GPVAE"), 60


def installed() -> bool:
    """Whether PyPOTS can be imported."""
    return importlib.util.find_spec("pypots") is not None


def fit_peer(question: Question, seed: int, system: str, epochs: int = EPOCHS) -> Callable[[], Belief]:
    """Train one of PyPOTS' models on the training groups; return a function that predicts the target."""
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # PyPOTS draws from NumPy's global generator
    table = question.table
    rows = (question.train, question.context)
    steps = max(int(part.groupby(table.group).size().max()) for part in (*rows, *question.practice))
    steps = max(steps, *(int(merged_size(question, *pair).max()) for pair in pairs(question)))
    model = built(system, steps, len(table.y), epochs)
    model.fit({"X": series(question, question.train, question.train, steps)[0]})

    def predict() -> Belief:
        mean = imputed(question, model, question.context, question.target, steps)
        context, target = question.practice
        errors = imputed(question, model, context, target, steps) - target[table.y].to_numpy(dtype=float)
        sd = np.sqrt(np.nanmean(errors**2, axis=0))
        return Belief(mean, np.broadcast_to(sd, mean.shape))

    return predict


def pairs(question: Question) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return contexts with their targets."""
    return [(question.context, question.target), question.practice]


def built(system: str, steps: int, features: int, epochs: int) -> Any:
    """Return an untrained model."""
    from pypots import imputation

    common = {"n_steps": steps, "n_features": features, "epochs": epochs, "batch_size": 32, "verbose": False}
    if system == "SAITS":
        return imputation.SAITS(**common, n_layers=2, d_model=64, n_heads=4, d_k=16, d_v=16, d_ffn=128, dropout=0.1)
    if system == "BRITS":
        return imputation.BRITS(**common, rnn_hidden_size=64)
    return imputation.GPVAE(**common, latent_size=min(features, 16), window_size=min(steps, 24))


def merged_size(question: Question, context: pd.DataFrame, target: pd.DataFrame) -> pd.Series:
    """Return the number of rows of each group, known or asked for."""
    return keys_of(question, context, target).groupby(question.table.group).size()


def keys_of(question: Question, context: pd.DataFrame, target: pd.DataFrame) -> pd.DataFrame:
    """Return the rows (group, x) of context and target, each once and in order."""
    columns = [question.table.group, *question.table.x]
    return pd.concat([context[columns], target[columns]]).drop_duplicates().sort_values(columns, ignore_index=True)


def series(
    question: Question, context: pd.DataFrame, target: pd.DataFrame, steps: int
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return standardised known values (groups, steps, columns), and the place of each row (group, x)."""
    table = question.table
    keys = keys_of(question, context, target)
    keys["place"] = keys.groupby(table.group).cumcount()
    keys["number"] = keys.groupby(table.group).ngroup()
    rows = keys.merge(context, on=[table.group, *table.x], how="left")
    known = np.full((int(keys["number"].max()) + 1, steps, len(table.y)), np.nan)
    values = ((rows[table.y] - question.mean) / question.scale).to_numpy(dtype=float)
    known[rows["number"], rows["place"]] = values
    return known.astype(np.float32), keys


def imputed(question: Question, model: Any, context: pd.DataFrame, target: pd.DataFrame, steps: int) -> np.ndarray:
    """Return the imputed values at the rows of the target, in the table's units."""
    table = question.table
    known, keys = series(question, context, target, steps)
    filled = np.asarray(model.predict({"X": known})["imputation"])
    if filled.ndim == 4:  # draws
        filled = filled.mean(1)
    place = target[[table.group, *table.x]].merge(keys, on=[table.group, *table.x], how="left")
    found = filled[place["number"], place["place"]].astype(float)
    return question.mean.to_numpy() + question.scale.to_numpy() * found
