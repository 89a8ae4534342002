"""Seconds per epoch of every system on the data of Table 1, measured in turn in one process.

Every system trains by `fit` on the same 3960 images, at its published settings or, if it has none, at its best. The
learning rate is 1e-3, at which no system diverges; the time does not depend on it. The GP-VAE's epoch includes its pass
over all images for the KL.
"""

import dataclasses
import statistics
from typing import Any

import torch

from benchmarks.records import Key, Plan, Record
from benchmarks.studies.table1 import OWN, PUBLISHED, recipe_for
from benchmarks.study import Study
from benchmarks.systems import BUILD, Recipe, train
from benchmarks.timing import THREADS, ratio
from fgp_gpytorch.datasets import rotated_mnist

CVAE, FGP_VAE = "CVAE (published)", "FGP-VAE (published)"
MUST = {FGP_VAE: 1.5}  # over the CVAE


def keys(plan: Plan) -> list[Key]:
    return [] if plan.quick else [{"seed": 0}]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(THREADS)
    rounds, epochs, data = 5, 3, rotated_mnist().train
    recipes = {name: PUBLISHED.get(name) or recipe_for(name, "best") or Recipe() for name in BUILD}
    entries = {f"{name} (published)" if name in PUBLISHED else name: (name, recipes[name]) for name in BUILD}
    entries["FGP-VAE (best)"] = ("FGP-VAE", OWN["FGP-VAE"])
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    models = {}
    for name, (system, recipe) in entries.items():
        torch.manual_seed(key["seed"])
        models[name] = BUILD[system](recipe, len(data))
    for round_number in range(rounds + 1):
        for name, (_, recipe) in entries.items():
            timed = dataclasses.replace(recipe, epochs=epochs, learning_rate=1e-3)
            result = train(models[name], timed, data, seed=key["seed"])
            if round_number > 0:  # the first round warms up
                seconds[name].append(result.seconds_per_epoch)
    return {}, {"seconds": seconds}


def over(record: Record, name: str, below: str) -> dict[str, float]:
    """Quartiles of the times of one system over those of another."""
    return ratio(record["seconds"][name], record["seconds"][below])


def say(record: Record) -> str:
    lines = []
    for name, values in record["seconds"].items():
        bound = f", must be <= {MUST[name]}" if name in MUST else ""
        lines.append(
            f"{name}: {statistics.median(values):.2f} s, {over(record, name, CVAE)['median']:.2f} CVAEs{bound}"
        )
    return "\n".join(lines)


STUDY = Study(
    "epoch_time",
    "Time per epoch",
    "All systems train in turn in one process with 2 threads, for five rounds. Ratios are taken within a round. The "
    "FGP-VAE as published must need at most 1.5 times the time of the CVAE.",
    keys, run, say, alone=True,
)  # fmt: skip
