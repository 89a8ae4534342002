"""How the other systems' settings were chosen: thirteen trials each, as many as the FGP-VAE had, on training data.

    python benchmarks/choose_rivals.py [--only "GP-VAE" ...] [--jobs 2]
    python benchmarks/choose_rivals.py --quick      # two epochs of two trials of each, into runs

From the 360 training digits, 40 are held out whole, and one of the 15 angles is taken out of training altogether, as
157.5 degrees is in the test (benchmarks/choose_settings.py does the same for the FGP-VAE). First a grid of nine
learning rates and weights of the KL, then four changes that the system is given to, of the best of these. The
coregionalized FGP-VAE had thirteen trials more, of a first form of its prior; so the strongest rival, SVGP-VAE, has a
second round: thirteen changes of the best of its first. A system is judged by the error at the angle taken out, of the
digits trained on: of the decoded mean of z or of the mean of 64 decoded draws, whichever is lower. Every trial is a
line of the records and is never run twice. A system with object vectors is tuned with learned ones; with vectors of a
PCA or of a network it takes the same settings.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import harness
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.metrics import held_out_mse
from systems import Recipe, ask, train_system

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "choose_rivals.jsonl"
EPOCHS, ANGLE, SEED = 200, 3, 0
GRID = [
    {"learning_rate": rate, "beta": beta, "cosine": True} for rate in (1e-3, 3e-3, 1e-2) for beta in (0.15, 0.4, 1.0)
]
DROPOUT = 2 / 11
# what each is changed by after the grid
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
# a second round: changes of the best of the first
SECOND_ROUND: dict[str, list[dict[str, Any]]] = {
    "SVGP-VAE": [
        {"beta": 0.15}, {"beta": 1.0}, {"learning_rate": 5e-3}, {"learning_rate": 2e-2}, {"cosine": False},
        {"batch_size": 10}, {"batch_size": 40}, {"batch_size": 40, "learning_rate": 2e-2},
        {"num_factors": 12}, {"num_factors": 24}, {"num_inducing": 32}, {"num_inducing": 128},
        {"num_inducing": 128, "num_factors": 24},
    ],
}  # fmt: skip
# one system with object vectors from elsewhere: it takes the settings of the one that learns them
SETTINGS_OF = {
    "GP-VAE, representation network": "GP-VAE",
    "SVGP-VAE, representation network": "SVGP-VAE",
    "FGP-VAE, correlated by PCA": "FGP-VAE, correlated, learned",
    "FGP-VAE, correlated, representation network": "FGP-VAE, correlated, learned",
}
# what the FGP-VAE's own choice is, where a system shares it
START = {
    "FGP-VAE, coregionalized": {"num_factors": 16, "learn_lengthscale": True, "member_dropout": DROPOUT},
    "FGP-VAE, correlated, learned": {"num_local": 12, "learn_lengthscale": True, "member_dropout": DROPOUT},
}


def num_trials(system: str) -> int:
    """How many trials a system has when they are complete."""
    return len(GRID) + len(CHANGES[system]) + len(SECOND_ROUND.get(system, []))


def judge(system: str, recipe: Recipe) -> dict[str, Any]:
    split = rotated_mnist().validation(held_out_angle_index=ANGLE)
    started = time.perf_counter()
    try:
        model, training = train_system(system, recipe, split.train, SEED)
    except NonFiniteError as error:
        return {"diverged": str(error), "seconds": time.perf_counter() - started}
    figures: dict[str, Any] = {"training_mse": float(training.history["mse"].iloc[-1])}
    asked = ask(model, split.train, split.test, split.extrapolation)
    for name, part in (("unseen_angle", asked.test), ("unseen_digit", asked.extrapolation)):
        if part is not None:
            torch.manual_seed(SEED)
            figures[f"{name}_mse"] = held_out_mse(*part)
            figures[f"{name}_mse_mean"] = held_out_mse(*part, sample=True, num_samples=64)
    return figures | {"seconds": time.perf_counter() - started}


def score(record: dict[str, Any]) -> float:
    """The error that a trial is judged by; infinite if it diverged."""
    return min(record.get("unseen_angle_mse", math.inf), record.get("unseen_angle_mse_mean", math.inf))


def recipe_of(system: str, changes: dict[str, Any], epochs: int) -> Recipe:
    return Recipe(**{**START.get(system, {}), **changes, "epochs": epochs})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trial(system: str, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one trial; if there is none it is run, and its line is added to the others'."""
    fields = dataclasses.asdict(recipe)
    for record in read(options.out):
        if record["system"] == system and record["recipe"] == fields:
            return record
    with tempfile.TemporaryDirectory() as folder:
        words = ["--one", system, json.dumps(fields)]
        record = harness.recorded(__file__, Path(folder) / "trial.json", words, options.jobs)
    with options.out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{system}: {score(record):.4f} {json.dumps(record['recipe'])} {record['seconds']:.0f} s", flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    add("--jobs", type=int, default=1, help="systems at a time, which share the processors")
    add("--out", type=Path, default=RECORDS)
    add("--quick", action="store_true", help="two epochs of two trials of each, into runs/choose_rivals_quick.jsonl")
    add("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        system, recipe = options.one[0], Recipe(**json.loads(options.one[1]))
        record = {"system": system, "recipe": dataclasses.asdict(recipe), "angle": ANGLE, "seed": SEED}
        harness.write(options.out, record | judge(system, recipe) | {"commit": harness.commit()})
        return 0
    epochs, grid, rounds = EPOCHS, GRID, [CHANGES, SECOND_ROUND]
    if options.quick:
        epochs, grid, rounds = 2, GRID[:1], [{system: changes[:1] for system, changes in CHANGES.items()}]
        options.out = Path("runs/choose_rivals_quick.jsonl")
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def run_all(system: str) -> None:
        """The trials of one system that have no record: of the grid, then round by round changes of the best so far."""
        trials = [trial(system, recipe_of(system, changed, epochs), options) for changed in grid]
        for changes in rounds:
            best = min(trials, key=score)["recipe"]
            trials += [trial(system, Recipe(**{**best, **changed}), options) for changed in changes.get(system, [])]

    harness.in_turn(run_all, options.only, options.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
