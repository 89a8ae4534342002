"""The trials that chose the settings of all other systems, on training data alone.

The data are those of `settings.py`. A system has nine trials of learning rate and weight of the KL. Then come four
changes of the best of these that concern the system. SVGP-VAE, the strongest rival, has a second round of thirteen
changes. A trial is judged by the error at the angle that was taken out, of the digits trained on: of the decoded mean
of z or of the mean of 64 decoded draws, whichever is lower. A system with group vectors is tuned with learned ones.
"""

import dataclasses
import math
import time
from typing import Any

import torch

from benchmarks.records import Key, Plan, Record, identity
from benchmarks.study import Study
from benchmarks.systems import Recipe, ask, train_system
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.metrics import held_out_mse

EPOCHS, ANGLE, SEED = 200, 3, 0
GRID = [
    {"learning_rate": rate, "beta": beta, "cosine": True} for rate in (1e-3, 3e-3, 1e-2) for beta in (0.15, 0.4, 1.0)
]
DROPOUT = 2 / 11
# the changes of each system after the grid
CHANGES: dict[str, list[dict[str, Any]]] = {
    "VAE": [{"batch_size": 10}, {"batch_size": 40}, {"cosine": False}, {"learning_rate": 2e-2}],
    "CVAE": [{"batch_size": 10}, {"batch_size": 40}, {"cosine": False}, {"learning_rate": 2e-2}],
    "CVAE of the context": [
        {"batch_size": 10}, {"member_dropout": DROPOUT}, {"member_dropout": 2 * DROPOUT}, {"learning_rate": 2e-2},
    ],
    "GP-VAE": [{"batch_size": 10}, {"num_factors": 4}, {"num_factors": 16}, {"num_factors": 32}],
    "SVGP-VAE": [{"batch_size": 40}, {"num_factors": 16}, {"num_factors": 32}, {"num_inducing": 128}],
    "FGP-VAE, coregionalized": [
        {"num_factors": 32}, {"member_dropout": 0.0}, {"member_dropout": [0.0, 1.0]}, {"learn_lengthscale": False},
    ],
    "FGP-VAE, correlated, learned": [
        {"num_factors": 16}, {"num_factors": 64}, {"member_dropout": 0.0}, {"learn_lengthscale": False},
    ],
}  # fmt: skip
# a second round of changes, of the best of the first
SECOND_ROUND: dict[str, list[dict[str, Any]]] = {
    "SVGP-VAE": [
        {"beta": 0.15}, {"beta": 1.0}, {"learning_rate": 5e-3}, {"learning_rate": 2e-2}, {"cosine": False},
        {"batch_size": 10}, {"batch_size": 40}, {"batch_size": 40, "learning_rate": 2e-2},
        {"num_factors": 12}, {"num_factors": 24}, {"num_inducing": 32}, {"num_inducing": 128},
        {"num_inducing": 128, "num_factors": 24},
    ],
}  # fmt: skip
# systems that take the settings of another: theirs with learned group vectors
SETTINGS_OF = {
    "GP-VAE, representation network": "GP-VAE",
    "SVGP-VAE, representation network": "SVGP-VAE",
    "FGP-VAE, correlated by PCA": "FGP-VAE, correlated, learned",
    "FGP-VAE, correlated, representation network": "FGP-VAE, correlated, learned",
}
# settings of the FGP-VAE that these systems share
START = {
    "FGP-VAE, coregionalized": {"num_factors": 16, "learn_lengthscale": True, "member_dropout": DROPOUT},
    "FGP-VAE, correlated, learned": {"num_local": 12, "learn_lengthscale": True, "member_dropout": DROPOUT},
}


def num_trials(system: str) -> int:
    """How many trials a system has when they are complete."""
    return len(GRID) + len(CHANGES[system]) + len(SECOND_ROUND.get(system, []))


def score(record: Record) -> float:
    """The error that a trial is judged by. Infinite if it diverged."""
    return min(record.result.get(name, math.inf) for name in ("unseen_angle_mse", "unseen_angle_mse_mean"))


def recipe_of(system: str, changes: dict[str, Any], epochs: int) -> Recipe:
    return Recipe(**{**START.get(system, {}), **changes, "epochs": epochs})


def chosen(system: str, plan: Plan) -> Recipe | None:
    """The settings of the lowest error, for 1000 epochs. None if trials are missing."""
    trials = plan.read("rivals", system=SETTINGS_OF.get(system, system))
    if len(trials) < num_trials(SETTINGS_OF.get(system, system)):
        return None
    return Recipe(**{**min(trials, key=score).key["recipe"], "epochs": 1000})


def keys(plan: Plan) -> list[Key]:
    """The trials of the grid, then round by round changes of the best so far."""
    epochs, grid, rounds = EPOCHS, GRID, [CHANGES, SECOND_ROUND]
    if plan.quick:
        epochs, grid, rounds = 2, GRID[:1], [{system: changes[:1] for system, changes in CHANGES.items()}]
    systems = list(CHANGES)[:2] if plan.quick else CHANGES  # table1 trains others in its quick form
    known = {identity(record.key): record for record in plan.read("rivals")}
    found = []
    for system in systems:
        own = [key_of(system, recipe_of(system, changed, epochs)) for changed in grid]
        for changes in rounds:
            records = [known.get(identity(key)) for key in own]
            if None in records:
                break
            best = min((record for record in records if record), key=score).key["recipe"]
            own += [key_of(system, Recipe(**{**best, **changed})) for changed in changes.get(system, [])]
        found += own
    return found


def key_of(system: str, recipe: Recipe) -> Key:
    return {"system": system, "recipe": dataclasses.asdict(recipe), "angle": ANGLE, "seed": SEED}


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    split = rotated_mnist().validation(held_out_angle_index=key["angle"])
    started = time.perf_counter()
    try:
        model, training = train_system(key["system"], Recipe(**key["recipe"]), split.train, key["seed"])
    except NonFiniteError as error:
        return {}, {"diverged": str(error), "seconds": time.perf_counter() - started}
    figures: dict[str, Any] = {"training_mse": float(training.history["mse"].iloc[-1])}
    asked = ask(model, split.train, split.test, split.extrapolation)
    for name, part in (("unseen_angle", asked.test), ("unseen_digit", asked.extrapolation)):
        if part is not None:
            torch.manual_seed(key["seed"])
            figures[f"{name}_mse"] = held_out_mse(*part)
            figures[f"{name}_mse_mean"] = held_out_mse(*part, sample=True, num_samples=64)
    return {}, figures | {"seconds": time.perf_counter() - started}


def say(record: Record) -> str:
    recipe = {name: record.key["recipe"][name] for name in ("learning_rate", "beta", "batch_size")}
    return f"{record.key['system']}, {recipe}: MSE {score(record):.4f}, {record['seconds']:.0f} s"


STUDY = Study(
    "rivals",
    "Trials of the other systems' settings",
    "Each system has thirteen trials, as many as the FGP-VAE, and SVGP-VAE has twenty-six. They are judged by the "
    "error at an angle that was taken out of training (67.5 degrees), after 200 epochs, with one seed.",
    keys, run, say,
)  # fmt: skip
