"""Memory and rate of training on a file that need not fit in memory.

The file has 10 GB of float32: vectors of 16,384 elements, 16 members a group. A small perceptron reads them, because
the paper's networks take several times as long for each byte, which would hide the cost of reading. One epoch of `fit`
runs on the whole file in a process of its own, and its memory is watched. Then `fit` runs in turn on a part of the file
in memory and on disk. The file leaves the page cache of the system before every run, so it is read from the disk.
"""

import dataclasses
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import torch

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import peak_memory_gb, quartiles, ratio
from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels, fit
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

ELEMENTS, VIEWS, BATCH_SIZE, CURVES = 128 * 128, 16, 20, 32
GROUP_BYTES = 4 * ELEMENTS * VIEWS
MUST_GB, MUST_RATE = 2.0, 0.8
MEMORY, THREADS = "memory", 1  # workers need the other core


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is read."""

    gigabytes: float  # of the file
    part_gigabytes: float  # of the part that is trained on in memory, too
    shares: dict[int, float]  # of the epoch that is run, by the number of workers
    rounds: int


WHOLE, QUICK = Budget(10.0, 1.0, {0: 1.0, 2: 0.1}, 5), Budget(0.1, 0.02, {0: 1.0}, 2)


def keys(plan: Plan) -> list[Key]:
    return [{"gigabytes": (QUICK if plan.quick else WHOLE).gigabytes, "seed": 0}]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    budget = QUICK if plan.quick else WHOLE
    groups = math.ceil(1e9 * budget.gigabytes / GROUP_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.2 * groups * GROUP_BYTES:
            raise OSError(f"{folder}: expected {1.2 * budget.gigabytes:.1f} GB of free space, got {free / 1e9:.1f} GB")
        path = Path(folder) / "y.raw"
        write(path, groups, key["seed"])
        found = []
        for workers, share in budget.shares.items():
            steps = math.ceil(share * groups / BATCH_SIZE)
            found.append({"workers": workers, "share": share, **alone(epoch, path, groups, workers, steps)})
        part = min(groups, math.ceil(1e9 * budget.part_gigabytes / GROUP_BYTES))
        rates = alone(rounds, path, groups, part, budget.rounds, list(budget.shares))
    return {"budget": dataclasses.asdict(budget), "elements": ELEMENTS, "views": VIEWS, "threads": THREADS}, {
        "members": groups * VIEWS,
        "file_gb": groups * GROUP_BYTES / 1e9,
        "part_members": part * VIEWS,
        "epochs": found,
        "members_a_second": {way: quartiles(values) for way, values in rates.items()},
        "rate_over_memory": {
            way: ratio(values, rates[MEMORY], MUST_RATE) for way, values in rates.items() if way != MEMORY
        },
    }


def alone(task: Any, *arguments: Any) -> Any:
    """Run a task in a new process. Its workers start as they do by default on this system, not as it did."""
    usual = multiprocessing.get_all_start_methods()[0]
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=multiprocessing.set_start_method, initargs=(usual, True)
    ) as pool:
        return pool.submit(task, *arguments).result()


def write(path: Path, groups: int, seed: int) -> None:
    """Write groups of vectors that turn with the angle, one after the other: a few curves with many amplitudes."""
    generator = np.random.default_rng(seed)
    x = 2 * np.pi / VIEWS * np.arange(VIEWS)[:, None]
    place = 2 * np.pi * np.linspace(0, 1, ELEMENTS)
    curves = [
        sum(np.sin(n * place) * turn for n, turn in zip(waves, (np.cos(x), np.sin(x), 1.0), strict=True))
        + 0.1 * generator.normal(size=(VIEWS, ELEMENTS))
        for waves in generator.integers(1, 9, size=(CURVES, 3))
    ]
    bank = [curve.astype(np.float32) for curve in curves]
    with path.open("wb") as file:
        for _ in range(groups):
            (bank[generator.integers(CURVES)] * np.float32(generator.uniform(0.1, 0.5))).tofile(file)
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Remove a file from the page cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def on_disk(path: Path, groups: int, part: int | None = None) -> LazyDataset:
    """The first groups of a file."""
    number = VIEWS * (groups if part is None else part)
    array = np.memmap(path, np.float32, "r", shape=(number, ELEMENTS))
    member = np.arange(number)
    return LazyDataset.from_array(array, 2 * np.pi / VIEWS * (member % VIEWS), member // VIEWS)


def train(data: GroupedDataset, workers: int, steps: int | None = None) -> float:
    """Train for one epoch or some steps of it; returns members a second."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(8, gpytorch.kernels.PeriodicKernel()), GlobalChannels(8)])
    model = FGPVAE(MLPEncoder((ELEMENTS,), 16, (32,)), MLPDecoder(16, (ELEMENTS,), (32,)), prior)
    result = fit(
        model, data, epochs=1, batch_size=BATCH_SIZE, num_workers=workers, seed=0, folder=None, progress=False,
        accelerator="cpu", devices=1, limit_train_batches=steps,
        learning_rate=1e-4,  # at 1e-3 the pseudo-variances of so many elements fall to 1e-33, and training diverges
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    groups = len(data) if steps is None else min(steps * BATCH_SIZE, len(data))
    return groups * VIEWS / result.seconds_per_epoch


def epoch(path: Path, groups: int, workers: int, steps: int) -> dict[str, float]:
    """Train on the file. Returns the rate and the peak memory, GB."""
    forget(path)
    with watched_memory() as peak:
        rate = train(on_disk(path, groups), workers, steps)
    return {"members_a_second": rate, "resident_gb": peak_memory_gb(), "anonymous_gb": max(peak, default=math.nan)}


def rounds(path: Path, groups: int, part: int, number: int, workers: Sequence[int]) -> dict[str, list[float]]:
    """Train in turn on a part of the file in memory and on disk. Returns members a second, `number` for each."""
    disk = on_disk(path, groups, part)
    ways = {MEMORY: (disk.in_memory(), 0), **{f"file, {n} workers": (disk, n) for n in workers}}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    train(disk, 0, steps=3)  # warm up
    for _ in range(number):
        for way, (data, used) in ways.items():
            forget(path)
            rates[way].append(train(data, used))
    return rates


@contextmanager
def watched_memory(interval: float = 0.05) -> Iterator[list[float]]:
    """Collect the anonymous and shared memory of this process and its workers, GB, while something runs (Linux).

    Pages that processes share count once for each, so the sum is an upper bound.
    """
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            try:
                seen.append(sum(anonymous_gb(process) for process in family(os.getpid())))
            except OSError:  # a process has ended
                continue

    thread = threading.Thread(target=watch, daemon=True)
    if Path("/proc/self/status").exists():
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        time.sleep(2 * interval)


def family(process: int) -> list[int]:
    """A process and those that it has started."""
    found = [process]
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        found += [grandchild for child in file.read_text().split() for grandchild in family(int(child))]
    return found


def anonymous_gb(process: int) -> float:
    """Resident memory of a process that is no file, GB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1e6


def say(record: Record) -> str:
    lines = [f"{record['file_gb']:.1f} GB, {record['members']:,} members"]
    for r in record["epochs"]:
        met = "met" if r["resident_gb"] <= MUST_GB else "MISSED"
        lines.append(
            f"{r['workers']} workers, {r['share']:.0%} of an epoch: {r['members_a_second']:.0f} members/s, "
            f"{r['resident_gb']:.2f} GB resident ({met}: <= {MUST_GB}), {r['anonymous_gb']:.2f} GB anonymous in all"
        )
    for way, r in record["rate_over_memory"].items():
        met = "met" if r["median"] >= MUST_RATE else "MISSED"
        lines.append(f"{way}: {r['median']:.2f} of the rate in memory ({met}: >= {MUST_RATE})")
    return "\n".join(lines)


STUDY = Study(
    "beyond_memory",
    "Data beyond memory",
    "`fit` trains on a file of float32 vectors of 16,384 elements, 16 members a group and 20 groups a batch, with one "
    "thread. The networks are perceptrons with 32 hidden units: those of the paper take several times as long for "
    "each byte, which would hide the cost of reading. The system's page cache forgets the file before every run. "
    "Memory must be at most 2 GB, and the rate at least 0.8 of that in memory.",
    keys, run, say, alone=True,
)  # fmt: skip
