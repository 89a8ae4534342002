"""Timing side by side in one process, and records of long runs, with everything a number needs to be believed."""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fgp_gpytorch", "torch", "gpytorch", "pyro-ppl", "lightning")


def header(title: str, seed: int | None = None) -> None:
    """Print what the numbers depend on."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"# {title}")
    print(f"# {time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {platform.platform()}")
    print(f"# python {platform.python_version()}, {versions}")
    print(f"# device cpu, {torch.get_num_threads()} threads" + ("" if seed is None else f", seed {seed}"))


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def commit() -> str:
    """Short hash of the commit, marked if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def interleaved(
    tasks: dict[str, Callable[[], object]], repeats: int, warm_up: int = 5, calls: int = 1
) -> dict[str, list[float]]:
    """Time tasks in turn, so that what disturbs the machine disturbs all of them.

    Args:
        tasks: Names and functions.
        repeats: Times that each is measured.
        warm_up: Calls of each before.
        calls: Calls in one measurement.

    Returns:
        Seconds per call, `repeats` numbers for each task.
    """
    for task in tasks.values():
        for _ in range(warm_up):
            task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    gc.disable()
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            for _ in range(calls):
                task()
            seconds[name].append((time.perf_counter() - start) / calls)
    gc.enable()
    return seconds


def show(name: str, seconds: Sequence[float], unit: str = "ms") -> None:
    """Print the median and the quartiles; lower is better."""
    scale = {"ms": 1e3, "s": 1.0}[unit]
    low, middle, high = (
        (scale * q for q in statistics.quantiles(seconds, n=4)) if len(seconds) > 1 else [scale * seconds[0]] * 3
    )
    print(f"{name:58} {middle:9.3f} {unit}  (quartiles {low:.3f} to {high:.3f}, lower is better)")


def ratio(name: str, above: Sequence[float], below: Sequence[float], must: float | None = None) -> float:
    """Print the median over rounds of above / below, measured in the same round; lower is better."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    verdict = "" if must is None else f", must be <= {must}: {'met' if middle <= must else 'MISSED'}"
    print(f"{name:58} {middle:9.3f}     (quartiles {low:.3f} to {high:.3f}, lower is better{verdict})")
    return middle


def recorded(script: str, path: Path, words: Sequence[str], jobs: int) -> dict[str, Any]:
    """The record of a run, which is made in a process of its own if there is none: nothing is run twice.

    Args:
        script: The file to run, with --one, the words and --out path.
        path: The record, JSON.
        words: Arguments that say which run it is.
        jobs: Runs that share the processors; each gets its part of the threads.
    """
    if not path.exists():
        command = [sys.executable, "-W", "ignore", script, *words, "--out", str(path)]
        threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        subprocess.run(command, check=True, env=os.environ | threads)
    return json.loads(path.read_text())


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all: a run that is cut leaves none."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record) + "\n")
    unfinished.replace(path)


def records_main(
    script: str,
    doc: str | None,
    option: str,
    keys: Sequence[Any],
    epochs: int,
    folder: Path,
    file_of: Callable[[Any], str],
    run: Callable[[Any, int, int], dict[str, Any]],
    say: Callable[[dict[str, Any]], str],
    quick: int,
) -> int:
    """The command line of a benchmark with one record for each key and seed; its exit status.

    Args:
        script: The benchmark's file.
        doc: Its description.
        option: Name of the option that picks keys.
        keys: All keys, of one type.
        epochs: Of a run; the records of another number need another folder.
        folder: Of the records.
        file_of: Start of the name of a key's records.
        run: Makes a record of a key, a seed and a number of epochs.
        say: A record in a line.
        quick: How many keys --quick takes.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    kind = type(keys[0])
    add(f"--{option}", nargs="+", type=kind, choices=keys if kind is str else None, default=list(keys), dest="keys")
    add("--seeds", type=int, default=1)
    add("--epochs", type=int, default=epochs, help="the records of another number need another --out")
    add("--jobs", type=int, default=1, help="runs at a time, which share the processors")
    add("--out", type=Path, default=folder)
    short = Path("runs") / f"{folder.name}_quick"
    add("--quick", action="store_true", help=f"two epochs and one seed of the first {quick}, into {short}")
    add("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        key, seed = options.one
        write(options.out, run(kind(key), int(seed), options.epochs))
        return 0
    if options.quick:
        options.epochs, options.seeds, options.out = 2, 1, short
        options.keys = options.keys[:quick]
    elif options.epochs != epochs and options.out == folder:
        parser.error(f"--epochs: the records in this folder are of {epochs} epochs; give --out")
    options.out.mkdir(parents=True, exist_ok=True)

    def missing(each: tuple[Any, int]) -> None:
        key, seed = each
        words = ["--one", str(key), str(seed), "--epochs", str(options.epochs)]
        record = recorded(script, options.out / f"{file_of(key)}_{seed}.json", words, options.jobs)
        print(say(record), flush=True)

    in_turn(missing, [(key, seed) for seed in range(options.seeds) for key in options.keys], options.jobs)
    return 0


def in_turn(task: Callable[[Any], object], items: Iterable[Any], jobs: int) -> None:
    """Do a task for every item, so many at a time; after an error or ctrl-C none is begun."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for _ in pool.map(task, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
