"""Seconds per epoch of every system on the data of Table 1, measured in turn in one process.

    python benchmarks/epoch_time.py [--threads 2] [--rounds 5] [--epochs 3] [--json docs/results/epoch_time.json]

Every system trains by `fit` on the same 3960 images as in Table 1, at its published settings or, if it has none, at
its best, but for a learning rate of 1e-3 (the time does not depend on it). The GP-VAE's epoch has its pass over all
images for the KL in it.
"""

import argparse
import dataclasses
import platform
import statistics
import time
import warnings
from pathlib import Path

import torch

import harness
from fgp_gpytorch.datasets import rotated_mnist
from systems import BUILD, Recipe, train
from table1 import OWN, PUBLISHED, recipe_for

MUST = {"FGP-VAE (published)": 1.5}  # over the CVAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--epochs", type=int, default=3, help="in a round")
    add("--json", type=Path, help="write the seconds to this file as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", ".*torch.jit.*")
    data = rotated_mnist().train
    recipes = {name: PUBLISHED.get(name) or recipe_for(name, "best") or Recipe() for name in BUILD}
    entries = {f"{name} (published)" if name in PUBLISHED else name: (name, recipes[name]) for name in BUILD}
    entries["FGP-VAE (best)"] = ("FGP-VAE", OWN["FGP-VAE"])
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    models = {}
    for name, (system, recipe) in entries.items():
        torch.manual_seed(0)
        models[name] = BUILD[system](recipe, len(data))
    harness.header(f"seconds per epoch of {data.num_members} images, networks of Table A.1", seed=0)
    for round_number in range(options.rounds + 1):
        for name, (_, recipe) in entries.items():
            # a rate at which nobody diverges, however often training starts anew: the time does not depend on it
            timed = dataclasses.replace(recipe, epochs=options.epochs, learning_rate=1e-3)
            result = train(models[name], timed, data, seed=0)
            if round_number > 0:  # the first warms up
                seconds[name].append(result.seconds_per_epoch)
    for name, values in seconds.items():
        harness.show(name, values, "s")
    print()
    for name, values in seconds.items():
        if not name.startswith("CVAE ("):
            harness.ratio(f"{name} over CVAE", values, seconds["CVAE (published)"], MUST.get(name))
    harness.ratio("GP-VAE over FGP-VAE (both published)", seconds["GP-VAE (published)"], seconds["FGP-VAE (published)"])
    if options.json is not None:
        record = {
            "threads": options.threads, "seconds": seconds, "date": time.strftime("%Y-%m-%d"),
            "commit": harness.commit(), "machine": platform.platform(), "torch": torch.__version__,
            "median": {name: statistics.median(values) for name, values in seconds.items()},
        }  # fmt: skip
        harness.write(options.json, record)


if __name__ == "__main__":
    main()
