"""What several devices cost and gain: a cost model of a training step, from measured constants.

Two processes on this machine measure the times of steps and all-reduces, and list the messages of a step. The model
predicts the efficiency of more devices. Interconnects of clusters are assumptions.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.records import HERE, Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import quartiles
from examples.rotated_mnist import PRESETS, build

MODELS = ("paper", "larger")
GROUPS = (5, 20, 80)  # of one process, in a step
ROUNDS, STEPS = 3, 10
BYTES = (4, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
DEVICES = (8, 64, 512)
VALUE = 8  # bytes of a gathered value
TIME = "low"  # the lower quartile is the constant: other programs only add time
DEVICE_RECORD = HERE / "records" / "device_check.json"


class Link(NamedTuple):
    """An interconnect: seconds until a message arrives, and bytes a second of one device."""

    latency: float
    bandwidth: float


ASSUMED = {"A: 10 us, 25 GB/s": Link(1e-5, 25e9), "B: 50 us, 1.25 GB/s": Link(5e-5, 1.25e9)}


class Step(NamedTuple):
    """A training step of one device.

    Attributes:
        fixed: Seconds of a step without groups.
        per_group: Seconds of each group.
        gradient: Bytes of all gradients, which one all-reduce sums.
        buffers: Bytes of each broadcast of buffers.
        gathered: Bytes of each group that one all-gather collects: the terms of its loss.
    """

    fixed: float
    per_group: float
    gradient: int
    buffers: tuple[int, ...]
    gathered: int

    def alone(self, groups: float) -> float:
        """Seconds of the step of so many groups, without messages."""
        return self.fixed + self.per_group * groups


def all_reduce(size: float, devices: int, link: Link, rings: bool = False) -> float:
    """Seconds to sum so many bytes: the faster of a ring and of a tree, up and down.

    In a ring each device sends 2 (n - 1) parts of size / n. (Thakur, Rabenseifner and Gropp 2005, without the time of
    additions.)
    """
    ring = 2 * (devices - 1) * (link.latency + size / devices / link.bandwidth)
    return ring if rings else min(ring, 2 * broadcast(size, devices, link))


def broadcast(size: float, devices: int, link: Link) -> float:
    """Seconds to send so many bytes from one device to all, along a tree."""
    return math.ceil(math.log2(devices)) * (link.latency + size / link.bandwidth)


def all_gather(size: float, devices: int, link: Link, rings: bool = False) -> float:
    """Seconds to collect so many bytes of each device on all: in a ring, or in twice as large parts in each round."""
    rounds = devices - 1 if rings else math.ceil(math.log2(devices))
    return rounds * link.latency + (devices - 1) * size / link.bandwidth


def messages(step: Step, groups: float, devices: int, link: Link, rings: bool = False) -> float:
    """Seconds of all messages of a step. None is hidden behind computation."""
    if devices == 1:
        return 0.0
    return (
        all_reduce(step.gradient, devices, link, rings)
        + sum(broadcast(size, devices, link) for size in step.buffers)
        + all_gather(step.gathered * groups, devices, link, rings)
    )


def weak(step: Step, groups: int, devices: int, link: Link, rings: bool = False) -> float:
    """Efficiency if every device has so many groups: the time of one device alone over the time of all."""
    alone = step.alone(groups)
    return alone / (alone + messages(step, groups, devices, link, rings))


def speed_up(step: Step, minibatch: int, devices: int, link: Link) -> float:
    """How many times faster devices take the steps of one device, if they share its minibatch."""
    own = math.ceil(minibatch / devices)
    return step.alone(minibatch) / (step.alone(own) + messages(step, own, devices, link))


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The non-negative intercept and slope of (x, y) with the smallest relative errors, in the mean square."""
    x, y = torch.tensor(points, dtype=torch.float64).unbind(-1)
    design = torch.stack([1 / y, x / y], -1)
    intercept, slope = torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution.flatten().tolist()
    if intercept < 0:
        return 0.0, float((x / y).sum() / (x / y).square().sum())
    return intercept, slope


def link_of(record: Record) -> Link:
    """The latency and the bandwidth of the measured all-reduces of two processes: each sends two halves."""
    start, per_byte = line([(int(size), t[TIME]) for size, t in record["all_reduce"].items()])
    return Link(start / 2, 1 / per_byte)


def step_of(record: Record) -> Step:
    """The step of one process of this machine."""
    fixed, per_group = line([(int(g), t[TIME]) for g, t in record["alone"].items()])
    return Step(fixed, per_group, record["gradient"], tuple(record["buffers"]), record["gathered"])


def step_of_gpu(record: Record, check: dict[str, Any]) -> tuple[Step, list[int]] | None:
    """The step of the paper's model on the GPU of a device check, and its batch sizes; None without a GPU.

    Args:
        record: Of the paper's model, with the bytes of its messages.
        check: The record of `device_check`.
    """
    parts = check["parts"].get("step time", {})
    points = [
        (int(name.split()[0]), part["times"]["FGP-VAE"][TIME] / 1e3)
        for name, part in parts.items()
        if isinstance(part, dict) and "times" in part
    ]
    if check["device"]["type"] != "cuda" or len(points) < 2:
        return None
    return step_of(record)._replace(**dict(zip(("fixed", "per_group"), line(points), strict=True))), [
        groups for groups, _ in points
    ]


def device_record() -> dict[str, Any]:
    return json.loads(DEVICE_RECORD.read_text())


def keys(plan: Plan) -> list[Key]:
    models = () if plan.quick else MODELS
    return [{"part": "all-reduce", "seed": 0}, *({"part": name, "seed": 0} for name in models)]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    if key["part"] == "all-reduce":
        sizes, steps = BYTES[:3] if plan.quick else BYTES, 10 if plan.quick else 100
        found = measured(2, "all-reduce", "--bytes", *sizes, "--steps", steps)
        return {"processes": 2, "backend": "gloo"}, {"all_reduce": {n: quartiles(s) for n, s in found.items()}}
    alone: dict[str, list[float]] = {str(n): [] for n in GROUPS}
    together: dict[str, list[float]] = {str(n): [] for n in GROUPS}
    sent: list[Any] = []
    for _ in range(ROUNDS):  # in turn
        for processes, seconds in ((1, alone), (2, together)):
            found = measured(processes, key["part"], "--groups", *GROUPS, "--steps", STEPS)
            for name, part in found.items():
                seconds[name] += part["seconds"]
                sent = part["messages"]  # of the largest batch and two processes, at the end
    model = build(PRESETS[key["part"]])
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtypes = dict.fromkeys(b.dtype for b in model.buffers())
    named = {name: [size for kind, size in sent if kind == name] for name, _ in sent}
    return {"threads of a process": 1, "backend": "gloo"}, {
        "parameters": sum(p.numel() for p in parameters),
        "gradient": bytes_of(parameters),
        "buffers": [bytes_of(b for b in model.buffers() if b.dtype == dtype) for dtype in dtypes],
        "gathered": VALUE * sum(named["all_gather"]) // GROUPS[-1],
        "messages": {name: len(sizes) for name, sizes in named.items()},
        "alone": {name: quartiles(values) for name, values in alone.items()},
        "together": {name: quartiles(values) for name, values in together.items()},
    }


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def measured(processes: int, *arguments: Any) -> dict[str, Any]:
    """Run `benchmarks.shared_steps` under torchrun, and return what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "benchmarks.shared_steps", *map(str, arguments), "--out", str(out)]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(out.read_text())


def say(record: Record) -> str:
    if record.key["part"] == "all-reduce":
        link = link_of(record)
        return f"all-reduce: {1e6 * link.latency:.0f} us a message, {link.bandwidth / 1e9:.2f} GB/s"
    step = step_of(record)
    return f"{record.key['part']}: {1e3 * step.fixed:.1f} ms + {1e3 * step.per_group:.2f} ms a group"


STUDY = Study(
    "several_devices",
    "Several devices",
    "A cost model of a training step on several devices, and what it predicts. Steps of `fit`, their messages and "
    "all-reduces are measured with two processes of one thread on one machine. The two interconnects are assumptions.",
    keys, run, say, alone=True,
)  # fmt: skip
