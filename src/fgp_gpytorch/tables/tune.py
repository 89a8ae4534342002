"""Choose options of a table model by groups that it was not trained on."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportAssignmentType=false

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.tables.columns import Gaussian
from fgp_gpytorch.tables.table_model import TableModel


class Tuning(NamedTuple):
    """The result of `tune`.

    Attributes:
        model: The best model, fitted to all groups.
        trials: A row for each combination of options: its options, and `nll` at held-out groups (nats a value, columns
            in training standard deviations, averaged over columns). Lower is better. Sorted.
    """

    model: TableModel
    trials: pd.DataFrame


def tune(
    model: TableModel,
    df: pd.DataFrame,
    options: Mapping[str, Sequence[Any]],
    held_out: float = 0.2,
    seed: int = 0,
    **fit_options: Any,
) -> Tuning:
    """Fit a model with every combination of options, and keep the one that predicts held-out groups best.

    Each is asked for the second half of every held-out group from its first half.

    Args:
        model: A model, fitted or not, whose columns and other options are kept.
        df: The training table.
        options: Values to try for each option of `TableModel`, such as {"channels": [1, 2, 4], "beta": [0.5, 1.0]}.
        held_out: Fraction of the groups that judge. They are not those that `fit` holds out for itself.
        seed: Of the held-out groups and of every fit.
        **fit_options: Of `TableModel.fit`.

    Raises:
        ArgumentError: If an option is not one of `TableModel`, or has no values.
        DataError: If there are too few groups.

    Examples:
        >>> df = pd.DataFrame({"boy": np.arange(60) // 6, "age": np.arange(60) % 6 / 5})
        >>> df["height"] = 140 + 8 * df.age + df.boy
        >>> tuning = tune(TableModel("height", "age", "boy"), df, {"channels": [1, 2]})
        >>> sorted(tuning.trials["channels"]), len(tuning.model.forecast(df, at={"age": [1.0]}))
        ([1, 2], 10)
    """
    check.instance(model, "model", TableModel, "Try TableModel(y, x, group).")
    check.instance(df, "df", pd.DataFrame, "Try pd.DataFrame(df).")
    check.instance(options, "options", Mapping, 'Try {"channels": [1, 2, 4]}.')
    known = model.options()
    for name, values in options.items():
        if name not in known or isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ArgumentError(
                f"options: expected lists of values for some of {list(known)}, got {name!r}: {values!r}. Try "
                '{"channels": [1, 2, 4]}.'
            )
    group = model.group[0]
    labels = pd.unique(df[group])
    number = round(check.positive(held_out, "held_out", below=1, hint="Try 0.2.") * len(labels))
    if number < 1 or len(labels) - number < 2:
        raise DataError(f"df: expected more groups to hold some out, got {len(labels)}. Try a larger held_out.")
    chosen = np.random.default_rng(check.count(seed, "seed", least=0)).permutation(labels)[:number]
    judges = df[df[group].isin(chosen)].sort_values([group, model.x[0].name])
    others = df[~df[group].isin(chosen)]
    place, size = judges.groupby(group).cumcount(), judges.groupby(group)[group].transform("size")
    first = place < (size + 1) // 2
    target = judges[~first]
    trials = []
    for values in itertools.product(*options.values()):
        own = dict(zip(options, values, strict=True))
        candidate = model.with_options(**own).fit(others, seed=seed, **fit_options)
        found = candidate.score(judges[first], target)["nll"]
        units = [np.log(others[c.name].std()) if isinstance(c, Gaussian) else 0.0 for c in model.y]
        trials.append({**own, "nll": float((found - np.array(units)).mean())})
    table = pd.DataFrame(trials)
    best = trials[int(table["nll"].argmin())]
    winner = model.with_options(**{name: value for name, value in best.items() if name != "nll"})
    return Tuning(winner.fit(df, seed=seed, **fit_options), table.sort_values("nll", ignore_index=True))
