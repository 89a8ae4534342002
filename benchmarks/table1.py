"""Table 1 of the paper: every system trained on the same data by the same loop, one record a run.

    python benchmarks/table1.py                    # all that is planned and missing in docs/results/table1
    python benchmarks/table1.py --seeds 5          # five seeds of every row, where the plan has fewer
    python benchmarks/table1.py --list             # what there is, and what is missing
    python benchmarks/table1.py --only VAE --seeds 1
    python benchmarks/table1.py --quick            # two epochs of everything, into runs/table1_quick
    python benchmarks/table1.py --evaluate-again --only SVGP-VAE   # after a metric changed: of the saved models

Two blocks: "published" gives the FGP-VAE its paper's settings and the others Adam 1e-3 and beta 1, "best" the
settings that validation chose for it (benchmarks/choose_settings.py, benchmarks/choose_rivals.py). Two protocols, views
of the paper's digit kept equally or raggedly; and three more digits for the rows at the head of the table, which
confirm on data that nothing was chosen by. Every run has a
process of its own, so that its peak memory is its own, and a record that is never made twice: a run that was cut is
simply started again. A record holds all that is measured of the run; of the first seed the model is kept beside it,
from which the figures are drawn.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import choose_rivals
import harness
from evaluate import evaluate
from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.metrics import held_out_mse
from systems import BUILD, Recipe, Watch, ask, load, train_system

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "table1"
# arguments of the data; by other digits than the paper's nothing was chosen
PROTOCOLS: dict[str, dict[str, Any]] = {
    "equal": {"views": 11}, "ragged": {"views": "shuffled"},
    "twos": {"digits": 2}, "fives": {"digits": 5}, "sevens": {"digits": 7},
}  # fmt: skip
HEAD = ("SVGP-VAE", "FGP-VAE", "FGP-VAE, coregionalized")
# Adam 1e-3 with the optimal decoder variance; for the FGP-VAE its paper's GECO, J = 8 and fixed kernel
PUBLISHED = {name: Recipe() for name in ("VAE", "CVAE", "GP-VAE", "SVGP-VAE")} | {"FGP-VAE": Recipe(kappa=0.020)}
FGP_VAE_BEST = Recipe(
    learning_rate=1e-2, cosine=True, beta=0.4, member_dropout=2 / 11, num_local=12, learn_lengthscale=True
)
# the FGP-VAE's own trials are benchmarks/choose_settings.py; with any context it learns to answer from few images too,
# and so does the CVAE, with what its own trials chose otherwise
OWN = {
    "FGP-VAE": FGP_VAE_BEST,
    "CVAE of the context, any context": Recipe(learning_rate=2e-2, cosine=True, member_dropout=(0.0, 1.0)),
    "FGP-VAE, any context": dataclasses.replace(FGP_VAE_BEST, beta=1.0, member_dropout=(0.0, 1.0)),
    # r is fixed, as its trials without any context chose (benchmarks/choose_rivals.py)
    "FGP-VAE, coregionalized, any context": dataclasses.replace(
        FGP_VAE_BEST, beta=1.0, member_dropout=(0.0, 1.0), num_factors=16, learn_lengthscale=False
    ),
}


# on ragged views their rate of 0.02 does not train (docs/results/table1/failed: one diverged, of one the training error
# got stuck at 0.056): they take the next one there that their trials liked
STEADY = {
    "CVAE of the context": Recipe(learning_rate=1e-2, cosine=True, member_dropout=2 / 11),
    "CVAE of the context, any context": Recipe(learning_rate=1e-2, cosine=True, member_dropout=(0.0, 1.0)),
}


def recipe_for(system: str, block: str, protocol: str = "equal") -> Recipe | None:
    """The settings of a system in a block; None if there are none (yet)."""
    if block == "published":
        return PUBLISHED.get(system)
    if protocol == "ragged" and system in STEADY:
        return STEADY[system]
    if system in OWN:
        return OWN[system]
    tuned = choose_rivals.SETTINGS_OF.get(system, system)
    trials = [r for r in choose_rivals.read(choose_rivals.RECORDS) if r["system"] == tuned]
    if len(trials) < choose_rivals.num_trials(tuned):
        return None
    return Recipe(**{**min(trials, key=choose_rivals.score)["recipe"], "epochs": 1000})


def run(system: str, block: str, protocol: str, seed: int, epochs: int | None, save: Path | None) -> dict[str, Any]:
    """Train and test one system with one seed, and save the model if it is asked for; a run that diverges says so."""
    recipe = recipe_for(system, block, protocol) or Recipe()
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    data, all_views = data_of(protocol)
    watch = Watch(data.train, data.test, every=20)
    of_run = {
        "system": system, "block": block, "protocol": protocol, "seed": seed, "recipe": dataclasses.asdict(recipe),
        "date": time.strftime("%Y-%m-%d"), "commit": harness.commit(),
        "versions": {name: version(name) for name in ("torch", "gpytorch", "lightning")},
    }  # fmt: skip
    try:
        model, training = train_system(system, recipe, data.train, seed, [watch])
    except NonFiniteError as error:
        return {**of_run, "diverged": str(error), "curve": watch.errors}
    asked = ask(model, data.train, data.test, data.extrapolation)
    figures: dict[str, float] = {}
    for name in ("test", "extrapolation"):
        if getattr(asked, name) is not None:
            part = getattr(asked, name)
            torch.manual_seed(seed)
            figures[f"{name}_mse"] = held_out_mse(*part)
            figures[f"{name}_mse_sample"] = held_out_mse(*part, sample=True)
            figures[f"{name}_mse_mean"] = held_out_mse(*part, sample=True, num_samples=64)
    if save is not None:
        model.save(save)
    return {
        **of_run, **figures,
        "evaluation": evaluate(model, data, all_views),
        "best_epoch_test_mse": min((error for _, error in watch.errors), default=None),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch - watch.seconds / recipe.epochs,
        "curve": watch.errors,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_memory_gb": harness.peak_memory_gb(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def data_of(protocol: str) -> tuple[RotatedMNIST, RotatedMNIST]:
    """The data of a protocol, and the same digits with all 15 views of each."""
    arguments = PROTOCOLS[protocol]
    return rotated_mnist(**arguments), rotated_mnist(**{**arguments, "views": 15})


def planned_seeds(system: str, block: str, protocol: str) -> int:
    """How many seeds of a row are planned: five of every row would take several nights.

    On equal views five, three of the variants "any context" and "representation network"; on ragged ones five of the
    rows at the head, one of the others; of other digits two of the two best rows, one of the FGP-VAE.
    """
    head = block == "best" and system in HEAD
    if protocol == "equal":
        return 3 if system.endswith(("any context", "representation network")) else 5
    if protocol == "ragged":
        return 5 if head else 1
    return (1 if system == "FGP-VAE" else 2) if head else 0


def all_runs(options: argparse.Namespace) -> list[tuple[str, str, str, int]]:
    """One seed of everything before the next."""
    rows = [
        (system, block, protocol)
        for protocol in options.protocols
        for block in options.blocks
        for system in options.only
        if block == "best" or system in PUBLISHED
    ]
    seeds = {row: planned_seeds(*row) if options.seeds is None else options.seeds for row in rows}
    return [(*row, seed) for seed in range(max(seeds.values(), default=0)) for row in rows if seed < seeds[row]]


def path_of(folder: Path, system: str, block: str, protocol: str, seed: int) -> Path:
    return folder / f"{protocol}_{block}_{re.sub('[^a-z0-9]+', '_', system.lower())}_{seed}.json"


def read(folder: Path, diverged: bool = False) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The records of a folder by protocol, block and system, seeds in their order; of runs that diverged on demand."""
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if ("diverged" in record) == diverged:
            runs.setdefault((record["protocol"], record["block"], record["system"]), []).append(record)
    return runs


def run_missing(each: tuple[str, str, str, int], options: argparse.Namespace) -> None:
    """One run, unless there is a record of it."""
    path, name = path_of(options.out, *each), ", ".join(map(str, each))
    if path.exists():
        print(f"{name}: there", flush=True)
        return
    if recipe_for(*each[:3]) is None and not options.quick:
        print(f"{name}: no settings yet, run benchmarks/choose_rivals.py", flush=True)
        return
    if options.list:
        print(f"{name}: missing", flush=True)
        return
    words = ["--one", *map(str, each), *([] if options.epochs is None else ["--epochs", str(options.epochs)])]
    started = time.perf_counter()
    record = harness.recorded(__file__, path, words, options.jobs)
    said = record.get("diverged") or f"test MSE {record['test_mse']:.4f}"
    print(f"{name}: {said}, {time.perf_counter() - started:.0f} s", flush=True)


def evaluate_again(path: Path) -> None:
    """Write into a record what `evaluate` says now of the model that is saved beside it, and by which commit."""
    record = json.loads(path.read_text())
    record["evaluation"] = evaluate(load(path.with_suffix(".pt")), *data_of(record["protocol"]))
    record["evaluated"] = harness.commit()
    harness.write(path, record)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=BUILD, default=list(BUILD), help="systems")
    add("--blocks", nargs="+", choices=("published", "best"), default=["published", "best"])
    add("--protocols", nargs="+", choices=PROTOCOLS,
        help="equal: 11 of 15 views; ragged: 75 %% of all, 6 to 15 of each digit; the others: equal, of another digit; "
        "default: all, with --seeds or --quick the first two")  # fmt: skip
    add("--seeds", type=int, help="so many of every row that is asked for, in place of the plan (`planned_seeds`)")
    add("--jobs", type=int, default=1, help="runs at a time, which share the processors")
    add("--epochs", type=int, help="instead of the recipe's; the records then need another folder")
    add("--out", type=Path, default=RECORDS, help="folder of the records")
    add("--quick", action="store_true", help="two epochs and one seed of everything, into runs/table1_quick")
    add("--list", action="store_true", help="say what is there and what is missing")
    add("--evaluate-again", action="store_true", help="train nothing, evaluate the saved models of these systems anew")
    add("--one", nargs=4, metavar=("SYSTEM", "BLOCK", "PROTOCOL", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds, options.out = 2, 1, Path("runs/table1_quick")
    elif options.epochs is not None and options.out == RECORDS:
        parser.error("--epochs: the records of whole runs are in this folder; give --out")
    if options.protocols is None:
        options.protocols = list(PROTOCOLS) if options.seeds is None else ["equal", "ragged"]
    if options.one:
        system, block, protocol, seed = (*options.one[:3], int(options.one[3]))
        save = options.out.with_suffix(".pt") if seed == 0 else None
        harness.write(options.out, run(system, block, protocol, seed, options.epochs, save))
        return 0
    if options.evaluate_again:
        for path in (path_of(options.out, *each) for each in all_runs(options)):
            if path.exists() and path.with_suffix(".pt").exists():
                evaluate_again(path)
                print(f"{path.name}: evaluated", flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    harness.in_turn(lambda each: run_missing(each, options), all_runs(options), options.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
