"""Test error and time per epoch for growing data, up to the complete MNIST (the paper's Figure 1(b)).

    python benchmarks/scaling.py [--mnist ROOT] [--epochs 100] [--mnist-epochs 1] [--out docs/results/scaling]
    python benchmarks/scaling.py --quick [--mnist ROOT]

Sets: 1, 2, 5 and 10 classes of 400 digits each, in memory, with 11 of 15 views of 360 of them to train on; `mnist`, all
70,000 digits with 11 of 15 views each; `mnist-all`, all 70,000 with all 16 views, 1.12 million images, of which none is
left to test on. The last two are rotated on the fly. ROOT is a folder as torchvision lays it out.

Every set has a process of its own, for its peak memory. In it, training steps on the set are timed in turn with steps
on the smallest set, so that what disturbs the machine disturbs both: their ratio per image is the scaling. Then `fit`
trains from the start. A set whose record, of the same settings, is in --out is not run again.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import harness
from fgp_gpytorch import ELBO, GroupedDataset, fit
from fgp_gpytorch.datasets import HeldOutViews, complete_mnist, rotated_mnist, rotating_digits
from fgp_gpytorch.metrics import held_out_mse
from step_time import stepper
from systems import Recipe, fgp_vae
from table1 import FGP_VAE_BEST

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "scaling"
CLASSES = (3, 0, 1, 2, 4, 5, 6, 7, 8, 9)  # the paper's digit first
NUM_CLASSES = {"1": 1, "2": 2, "5": 5, "10": 10}
COMPLETE = ("mnist", "mnist-all")
HELD_OUT, VIEWS, TESTED = 7, 11, 2700  # 157.5 degrees; as many tests as with ten classes
BATCH_SIZE = 20
MUST_RATIO, MUST_MEMORY_GB = 1.1, 2.0
RECIPE = FGP_VAE_BEST


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is run of a set."""

    epochs: int
    seed: int
    threads: int
    rounds: int = 15  # of timed steps
    steps: int | None = None  # of an epoch, None for all
    tested: int = TESTED


def load(name: str, root: Path | None, seed: int) -> tuple[GroupedDataset, HeldOutViews | None]:
    """The training views and the views to predict."""
    if name in NUM_CLASSES:
        data = rotated_mnist(CLASSES[: NUM_CLASSES[name]])
        return data.train, data.test
    assert root is not None
    images, digits = complete_mnist(root)
    if name == "mnist-all":
        return rotating_digits(images), None
    others = torch.tensor([angle for angle in range(16) if angle != HELD_OUT])
    chosen = torch.rand(len(images), len(others), generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :VIEWS]
    train = rotating_digits(images, torch.zeros(len(images), 16, dtype=torch.bool).scatter(1, others[chosen], True))
    tested = torch.arange(TESTED) * len(images) // TESTED
    new = rotating_digits(images[tested], (torch.arange(16) == HELD_OUT).expand(TESTED, 16)).in_memory().flat()
    return train, HeldOutViews(
        train.subset(tested), new.x.unsqueeze(1), new.y.unsqueeze(1), instance=tested, digit=digits[tested]
    )


def first_groups(held_out: HeldOutViews, count: int) -> HeldOutViews:
    """Every n-th group, about `count` in all."""
    index = torch.arange(0, len(held_out.context), max(1, len(held_out.context) // count))
    parts = {name: getattr(held_out, name)[index] for name in ("x_new", "y_new", "instance", "digit")}
    return HeldOutViews(held_out.context.subset(index), **parts)


def step_ratio(train: GroupedDataset, smallest: GroupedDataset, budget: Budget) -> dict[str, Any]:
    """Seconds per image of training steps on a set and on the smallest, measured in turn."""
    steps = {}
    for name, data in (("this", train), ("smallest", smallest)):
        torch.manual_seed(budget.seed)
        steps[name] = stepper(fgp_vae(RECIPE, len(data)), DataLoader(data, BATCH_SIZE, shuffle=True))
    seconds = harness.interleaved(steps, budget.rounds, warm_up=5, calls=9)
    images = {"this": train.num_members / len(train), "smallest": smallest.num_members / len(smallest)}
    per_image = {name: [s / BATCH_SIZE / images[name] for s in values] for name, values in seconds.items()}
    ratios = [this / other for this, other in zip(per_image["this"], per_image["smallest"], strict=True)]
    return {
        "step_seconds_per_image": statistics.median(per_image["this"]),
        "step_seconds_per_image_smallest": statistics.median(per_image["smallest"]),
        "step_ratio": statistics.median(ratios),
        "step_ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def run(name: str, root: Path | None, budget: Budget) -> dict[str, Any]:
    """Time, train and test one set."""
    torch.set_num_threads(budget.threads)
    started = time.perf_counter()
    train, test = load(name, root, budget.seed)
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
    return {
        "set": name, "groups": groups, "images": images, "budget": dataclasses.asdict(budget),
        "recipe": dataclasses.asdict(RECIPE), "share_of_epoch": share, "loading_seconds": loading,
        "test_mse": None if test is None else held_out_mse(model, test),
        "tested": 0 if test is None else len(test.context),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch / share,
        "seconds_per_image": training.seconds_per_epoch / share / images,
        **ratio,
        "peak_memory_gb": harness.peak_memory_gb(),
        "date": time.strftime("%Y-%m-%d"), "commit": harness.commit(),
        "versions": {package: version(package) for package in harness.PACKAGES},
    }  # fmt: skip


def show(records: list[dict[str, Any]]) -> bool:
    """Print the table; whether the complete sets keep within their bounds."""
    smallest = next((r["seconds_per_image"] for r in records if r["set"] == "1"), None)
    print("MSE: per pixel, ink 1, paper 0; time: wall clock, of images trained on; everything: lower is better")
    print(f"{'set':10}{'images':>10}{'epochs':>8}{'test MSE':>10}{'s/epoch':>10}{'us/image':>10}"
          f"{'ratio':>8}{'of steps':>10}{'GB':>7}")  # fmt: skip
    for r in records:
        error = "-" if r["test_mse"] is None else f"{r['test_mse']:.4f}"
        ratio = "-" if smallest is None else f"{r['seconds_per_image'] / smallest:.2f}"
        counts = f"{r['set']:10}{r['images']:10d}{r['budget']['epochs']:8d}{error:>10}"
        times = f"{r['seconds_per_epoch']:10.2f}{1e6 * r['seconds_per_image']:10.1f}{ratio:>8}{r['step_ratio']:10.2f}"
        print(f"{counts}{times}{r['peak_memory_gb']:7.2f}")
    if any(r["share_of_epoch"] < 1 for r in records):
        print("time per epoch is that of some steps, scaled up; MSE is of hardly trained models")
    kept = True
    for r in records:
        bounds = [("ratio of steps", r["step_ratio"], MUST_RATIO)]
        if r["set"] in COMPLETE:
            bounds.append(("peak memory in GB", r["peak_memory_gb"], MUST_MEMORY_GB))
        for words, value, bound in bounds:
            met = value <= bound
            print(f"{r['set']}: {words} {value:.3f}, must be <= {bound}: {'met' if met else 'MISSED'}")
            kept = kept and met
    return kept


def budget_of(name: str, options: argparse.Namespace) -> Budget:
    epochs = options.mnist_epochs if name in COMPLETE else options.epochs
    budget = Budget(epochs, options.seed, options.threads)
    return dataclasses.replace(budget, epochs=1, rounds=4, steps=30, tested=40) if options.quick else budget


def finished(path: Path, budget: Budget) -> bool:
    """Whether there is a record of just this run."""
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    # a record that is older than a field of the recipe was made with its default
    recipe = dataclasses.asdict(Recipe()) | record["recipe"]
    return record["budget"] == dataclasses.asdict(budget) and recipe == dataclasses.asdict(RECIPE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mnist", type=Path, metavar="ROOT", help="folder of the complete MNIST; without it its sets are left out")
    add("--only", nargs="+", choices=[*NUM_CLASSES, *COMPLETE], help="sets (default: all)")
    add("--epochs", type=int, default=100, help="of the sets in memory (default 100)")
    add("--mnist-epochs", type=int, default=1, help="of the complete sets (default 1)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=RECORDS, help="folder of the records (default docs/results/scaling)")
    add("--quick", action="store_true", help="30 steps of every set, into runs/scaling_quick")
    add("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.out = Path("runs/scaling_quick")
    names = options.only or [*NUM_CLASSES, *(COMPLETE if options.mnist else ())]
    if options.mnist is None and set(names) & set(COMPLETE):
        parser.error("--only: the complete sets need --mnist ROOT")
    if options.one:
        record = run(options.one, options.mnist, budget_of(options.one, options))
        (options.out / f"{options.one}.json").write_text(json.dumps(record) + "\n")
        return 0
    warnings.filterwarnings("ignore", ".*torch.jit.*")
    torch.set_num_threads(options.threads)
    harness.header("FGP-VAE on growing data, networks of Table A.1, 20 digits a step", options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    records = []
    for name in names:
        path = options.out / f"{name}.json"
        if options.quick or not finished(path, budget_of(name, options)):
            subprocess.run([sys.executable, "-W", "ignore", __file__, "--one", name, *sys.argv[1:]], check=True)
        records.append(json.loads(path.read_text()))
    kept = show(records)
    print(f"the records are in {options.out}")
    return 0 if kept or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
