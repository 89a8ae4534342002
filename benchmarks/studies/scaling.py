"""Test error and time per epoch for growing data, up to the complete MNIST (the paper's Figure 1(b)).

Sets: 1, 2, 5 and 10 classes of 400 digits each, in memory, with 11 of 15 views of 360 of them to train on; `mnist`, all
70,000 digits with 11 of 15 views each; `mnist-all`, all 70,000 with all 16 views, 1.12 million images, without a test.
The last two are rotated on the fly. They need the environment variable FGP_MNIST_ROOT, a folder as torchvision lays it
out. Training steps on a set are timed in turn with steps on the smallest set: their ratio per image is the scaling.
"""

import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.datasets import complete_mnist, rotating_digits
from benchmarks.records import Key, Plan, Record
from benchmarks.studies.step_time import stepper
from benchmarks.studies.table1 import FGP_VAE_BEST
from benchmarks.study import Study
from benchmarks.systems import fgp_vae
from benchmarks.timing import THREADS, interleaved, peak_memory_gb
from fgp_gpytorch import ELBO, GroupedDataset, fit
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.metrics import held_out_mse

ROOT = os.environ.get("FGP_MNIST_ROOT")
CLASSES = (3, 0, 1, 2, 4, 5, 6, 7, 8, 9)  # the paper's digit first
NUM_CLASSES = {"1": 1, "2": 2, "5": 5, "10": 10}
COMPLETE = ("mnist", "mnist-all")
HELD_OUT, VIEWS, TESTED = 7, 11, 2700  # 157.5 degrees; as many tests as with ten classes
BATCH_SIZE = 20
MUST_RATIO, MUST_MEMORY_GB = 1.1, 2.0
RECIPE = FGP_VAE_BEST


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of a set is run."""

    epochs: int
    seed: int
    threads: int
    rounds: int = 15  # of timed steps
    steps: int | None = None  # of an epoch, None for all
    tested: int = TESTED


def load(name: str, root: str | Path | None, seed: int) -> tuple[GroupedDataset, HeldOut | None]:
    """Return the training views and the views to predict."""
    if name in NUM_CLASSES:
        data = rotated_mnist(CLASSES[: NUM_CLASSES[name]])
        return data.train, data.test
    assert root is not None
    images, _ = complete_mnist(root)
    if name == "mnist-all":
        return rotating_digits(images), None
    others = torch.tensor([angle for angle in range(16) if angle != HELD_OUT])
    chosen = torch.rand(len(images), len(others), generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :VIEWS]
    train = rotating_digits(images, torch.zeros(len(images), 16, dtype=torch.bool).scatter(1, others[chosen], True))
    tested = torch.arange(TESTED) * len(images) // TESTED
    new = rotating_digits(images[tested], (torch.arange(16) == HELD_OUT).expand(TESTED, 16)).in_memory().flat()
    return train, HeldOut(train.subset(tested), new.x.unsqueeze(1), new.y.unsqueeze(1))


def first_groups(held_out: HeldOut, count: int) -> HeldOut:
    """Every n-th group, about `count` in all."""
    index = torch.arange(0, len(held_out.context), max(1, len(held_out.context) // count))
    return HeldOut(held_out.context.subset(index), held_out.x_new[index], held_out.y_new[index])


def step_ratio(train: GroupedDataset, smallest: GroupedDataset, budget: Budget) -> dict[str, Any]:
    """Seconds per image of training steps on a set and on the smallest, measured in turn."""
    steps = {}
    for name, data in (("this", train), ("smallest", smallest)):
        torch.manual_seed(budget.seed)
        steps[name] = stepper(fgp_vae(RECIPE, len(data)), DataLoader(data, BATCH_SIZE, shuffle=True))
    seconds = interleaved(steps, budget.rounds, warm_up=5, calls=9)
    images = {"this": train.num_members / len(train), "smallest": smallest.num_members / len(smallest)}
    per_image = {name: [s / BATCH_SIZE / images[name] for s in values] for name, values in seconds.items()}
    ratios = [this / other for this, other in zip(per_image["this"], per_image["smallest"], strict=True)]
    return {
        "step_seconds_per_image": statistics.median(per_image["this"]),
        "step_seconds_per_image_smallest": statistics.median(per_image["smallest"]),
        "step_ratio": statistics.median(ratios),
        "step_ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def keys(plan: Plan) -> list[Key]:
    """The smallest set alone in the quick form. The complete sets only if their folder is known."""
    names = ["1"] if plan.quick else [*NUM_CLASSES, *(COMPLETE if ROOT else ())]
    return [{"set": name, "seed": 0} for name in names]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time, train and test one set."""
    name = key["set"]
    budget = Budget(1 if name in COMPLETE else 100, key["seed"], THREADS)
    if plan.quick:
        budget = dataclasses.replace(budget, epochs=1, rounds=4, steps=30, tested=40)
    torch.set_num_threads(budget.threads)
    started = time.perf_counter()
    train, test = load(name, ROOT, budget.seed)
    loading = time.perf_counter() - started
    images, groups = train.num_members, len(train)
    ratio = step_ratio(train, load("1", None, budget.seed)[0], budget)
    torch.manual_seed(budget.seed)
    model = fgp_vae(RECIPE, groups)
    training = fit(
        model, train, objective=ELBO(RECIPE.beta), epochs=budget.epochs, batch_size=BATCH_SIZE,
        learning_rate=RECIPE.learning_rate, lr_schedule="cosine" if RECIPE.cosine else None, seed=budget.seed,
        folder=None, progress=False, accelerator="cpu", devices=1, limit_train_batches=budget.steps,
    )  # fmt: skip
    if training.interrupted:
        raise KeyboardInterrupt
    batches = -(-groups // BATCH_SIZE)
    share = 1.0 if budget.steps is None else min(1.0, budget.steps / batches)
    if test is not None and budget.tested < len(test.context):
        test = first_groups(test, budget.tested)
    return {"budget": dataclasses.asdict(budget), "recipe": dataclasses.asdict(RECIPE)}, {
        "groups": groups, "images": images, "share_of_epoch": share, "loading_seconds": loading,
        "test_mse": None if test is None else held_out_mse(model, test),
        "tested": 0 if test is None else len(test.context),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch / share,
        "seconds_per_image": training.seconds_per_epoch / share / images,
        **ratio,
        "peak_memory_gb": peak_memory_gb(),
    }  # fmt: skip


def say(record: Record) -> str:
    """A line with the bounds that must hold."""
    bounds = [("ratio of steps", record["step_ratio"], MUST_RATIO)]
    if record.key["set"] in COMPLETE:
        bounds.append(("peak memory in GB", record["peak_memory_gb"], MUST_MEMORY_GB))
    kept = (
        f"{what} {value:.3f} ({'met' if value <= bound else 'MISSED'}: <= {bound})" for what, value, bound in bounds
    )
    return f"set {record.key['set']}: {record['seconds_per_epoch']:.2f} s per epoch, {', '.join(kept)}"


STUDY = Study(
    "scaling",
    "Growing data",
    "The time of a training step per image is compared with that on the smallest set, in turn in one process, at the "
    "settings of `best`. It must be at most 1.1 times as long, and the complete MNIST must need at most 2 GB.",
    keys, run, say, alone=True,
)  # fmt: skip
