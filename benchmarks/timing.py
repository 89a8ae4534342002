"""Times of tasks that are measured in turn, in one process."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

THREADS = 2  # of every study that measures times


def interleaved(
    tasks: dict[str, Callable[[], object]], repeats: int, warm_up: int = 5, calls: int = 1
) -> dict[str, list[float]]:
    """Time tasks in turn, so that a disturbance of the machine disturbs all of them.

    Args:
        tasks: Names and functions.
        repeats: Number of measurements of each task.
        warm_up: Number of calls of each task before the first measurement.
        calls: Number of calls in one measurement.

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


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of some measurements."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high}


def times(seconds: dict[str, list[float]], unit: str) -> dict[str, dict[str, float | str]]:
    """Return the quartiles of each task's times, in ms or s."""
    scale = {"ms": 1e3, "s": 1.0}[unit]
    return {name: {"unit": unit, **quartiles([scale * s for s in values])} for name, values in seconds.items()}


def ratio(above: Sequence[float], below: Sequence[float], must: float | None = None) -> dict[str, float]:
    """Return the quartiles of above / below, each measured in the same round, with the bound that must hold."""
    found = quartiles([a / b for a, b in zip(above, below, strict=True)])
    return found if must is None else found | {"must": must}


def peak_memory_gb() -> float:
    """Return the largest resident memory of this process so far, GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def added_memory_gb(task: Callable[[], object]) -> float:
    """Return the largest resident memory during a task less that before it, GB.

    Linux forgets the largest one so far. Elsewhere an earlier peak may hide that of the task.
    """
    gc.collect()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_gb()
    kept = task()
    after = _high_water_gb()
    del kept
    return after - before


def _high_water_gb() -> float:
    if sys.platform != "linux":
        return peak_memory_gb()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6
