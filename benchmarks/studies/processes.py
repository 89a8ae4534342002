"""Training in two processes beside training in one, with the same global minibatch.

Each case is a run of `benchmarks.processes` in float64. The difference of two numbers is |a - b| / max(1, |b|).
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import CASES, EPOCHS, train_here
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study

QUICK = ("member dropout", "held-out members")  # the tests run others
CUT = "maximum-likelihood variance"  # the case that is cut and resumed
RESUMED = {"resumed in one": (2, 1), "resumed in two": (1, 2)}  # the processes before and after the cut
MUST = 1e-12


def keys(plan: Plan) -> list[Key]:
    """One key for each case, and the cut and resumed runs of the first."""
    names = QUICK if plan.quick else (*CASES, *RESUMED)
    return [{"case": name, "seed": 3} for name in names]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train twice, and return the largest differences."""
    case = key["case"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case in RESUMED:
            before, after = RESUMED[case]
            case = CUT
            train(case, before, folder / "other", epochs=1)
            other = train(case, after, folder / "other")
        else:
            other = train(case, 2, folder / "other")
        one = train(case, 1, folder / "one")
    return {"epochs": EPOCHS}, {part: difference(one[part], other[part]) for part in ("parameters", "history")}


def train(case: str, processes: int, folder: Path, epochs: int = EPOCHS) -> dict[str, Any]:
    """The result of a run in this process or in several new ones. It goes on if the folder has a run."""
    if processes == 1:
        return train_here(case, 1, folder, epochs)
    out = folder.parent / "result.pt"
    options = ["--processes", str(processes), "--folder", str(folder), "--epochs", str(epochs), "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.processes", case, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return torch.load(out, weights_only=True)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two records of tensors."""
    assert one.keys() == other.keys()
    assert not any(bool(tensor.isnan().any()) for tensor in one.values())
    # bounds of parameters are infinite, and equal
    pairs = [(other[name], b) for name, b in one.items()]
    return max(float(torch.where(a == b, 0.0, (a - b).abs() / b.abs().clamp_min(1)).max()) for a, b in pairs)


def say(record: Record) -> str:
    """A line with the bound that must hold."""
    largest = max(record["parameters"], record["history"])
    return f"{record.key['case']}: {largest:.1e} ({'met' if largest <= MUST else 'MISSED'}: <= {MUST:g})"


STUDY = Study(
    "processes",
    "Two processes beside one",
    "A run in two processes is compared with a run in one that has the same global minibatch. Groups are ragged, and "
    "the last minibatch of an epoch has one group. Its parameters and its history may differ by 1e-12 at most.",
    keys, run, say,
)  # fmt: skip
