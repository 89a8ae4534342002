"""The example's presets: the paper's settings, our best ones, and the short run."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.evaluation import errors, evaluate
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.systems import PRESETS, train_preset
from benchmarks.timing import peak_memory_gb
from fgp_gpytorch.datasets import rotated_mnist

SEEDS = {"short": 5, "paper": 5, "best": 5, "larger": 5, "any_context": 5}


def keys(plan: Plan) -> list[Key]:
    seeds = {"short": 1} if plan.quick else SEEDS
    return [{"preset": name, "seed": seed} for name in seeds for seed in range(plan.seeds or seeds[name])]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    preset, data, started = PRESETS[key["preset"]], rotated_mnist(), time.perf_counter()
    if plan.quick:
        preset = dataclasses.replace(preset, epochs=2)
    model, training = train_preset(preset, data.train, key["seed"])
    if key["seed"] == 0 and preset.num_factors is not None:
        plan.weights.mkdir(parents=True, exist_ok=True)
        model.save(weights(plan, key["preset"]))
    return dataclasses.asdict(preset), {
        **errors(model, data, key["seed"]),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch,
        "evaluation": evaluate(model, data, rotated_mnist(views=15)),
        "seconds": time.perf_counter() - started,
        "peak_memory_gb": peak_memory_gb(),
    }


def weights(plan: Plan, preset: str) -> Path:
    """The file of the model of seed 0. Presets with coregionalized channels have one."""
    return plan.weights / f"preset_{preset}_0.pt"


def say(record: Record) -> str:
    name, seed = record.key["preset"], record.key["seed"]
    return f"{name}, seed {seed}: test MSE {record['test_mse']:.4f}, extrapolation {record['extrapolation_mse']:.4f}"


STUDY = Study(
    "presets",
    "Presets of the example",
    "The presets of `examples/rotated_mnist.py`: `paper` has the settings of Appendix A, `best` those that validation "
    "chose, `short` is the default run, with coregionalized channels. These have the paper's networks. `larger` and "
    "`any_context` have larger ones. Errors are of the last epoch.",
    keys, run, say,
)  # fmt: skip
