"""Check the library on a device: operations against the CPU, training, times and memory, in one JSON file.

    make device-check                                       # a machine with CUDA, under 4 minutes
    python -m benchmarks.device_check --device cpu --quick  # a short form on any machine
    python -m benchmarks.device_check --only operations     # one part

Every part runs by itself. The record keeps the error of a part that fails, and the others go on. The exit status is 1
if a check failed. Times are of this machine, lower is better.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import device_cases as cases
from benchmarks.records import HERE, made_now
from benchmarks.studies import large_groups
from benchmarks.studies.step_time import VAE, fgp_vae
from benchmarks.timing import interleaved, peak_memory_gb, ratio, times
from examples.rotated_mnist import PRESETS, build, objective_of
from fgp_gpytorch import ELBO, GroupedBatch, GroupedDataset, fit
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.metrics import held_out_mse

SEED = 0
RECORD = HERE / "records" / "device_check.json"  # of a GPU: docs/experiments/device_check.md shows it
OTHER = Path("runs/device_check.json")
# Largest difference from the CPU, as a fraction of the largest entry. Joint draws use square roots of matrices that are
# nearly singular, which keep half of the digits.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
DRAWS = 1e-3
TRAINED = 2e-2  # of a figure after two epochs in float32
MIXED = 0.1  # of a figure after two epochs in bf16-mixed, from that in float32


@dataclass
class Check:
    """The device, and the outcome of the part that runs.

    Attributes:
        device: The device to check.
        quick: Whether to run the short form.
        failures: What was wrong, in words.
        differences: The largest difference from the CPU of each case, as a fraction of the largest entry.
    """

    device: torch.device
    quick: bool
    failures: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)

    def expect(self, holds: bool, what: str) -> None:
        """Note a failure unless a condition holds."""
        if not holds:
            self.failures.append(what)

    @contextmanager
    def isolated(self, name: str) -> Iterator[None]:
        """Note an error as a failure, and go on."""
        try:
            yield
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "site-packages" not in f.filename]
            self.failures.append(f"{name}: {type(error).__name__}: {error} (at {' > '.join(ours[-4:])})")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(self, name: str, case: cases.Case, tolerance: float, on_device: bool = True) -> None:
        """Run a case on the CPU and on the device, and compare all results. The short form on a CPU runs it once.

        Args:
            name: Of the case.
            case: From `device_cases`.
            tolerance: Largest allowed difference.
            on_device: Whether tensors of the result must be on the device.
        """
        with self.isolated(name):
            here = cases.run(case, torch.device("cpu"))
            there = here if self.quick and self.device.type == "cpu" else cases.run(case, self.device)
            self.synchronize()
            self.expect(here.keys() == there.keys(), f"{name}: other results on the device")
            worst = 0.0
            for key in here.keys() & there.keys():
                found = there[key]
                placed = on_device and isinstance(found, Tensor) and found.dim() > 0
                if placed and found.device.type != self.device.type:
                    self.failures.append(f"{name}: {key} is on {found.device}")
                difference = relative_difference(here[key], found)
                worst = max(worst, difference)
                allowed = max(tolerance, DRAWS) if is_drawn(key) else tolerance
                self.expect(difference <= allowed, f"{name}: {key} differs from the CPU's by {difference:.1e}")
            self.differences[name] = worst


def kind_of(key: str) -> str:
    """The kind of a result of `prior_case`."""
    return "draws" if is_drawn(key) else "gradients" if key.startswith("gradient") else "values"


def is_drawn(key: str) -> bool:
    """Whether a result depends on joint draws of latents."""
    return "draw" in key or "paths" in key


def relative_difference(expected: Any, found: Any) -> float:
    """Return the largest difference over the largest entry; infinite if shapes or non-finite entries differ."""
    first, second = (torch.as_tensor(_numbers(value)).detach().cpu().double() for value in (expected, found))
    if first.shape != second.shape or not torch.equal(first.isfinite(), second.isfinite()):
        return math.inf
    first, second = (value[first.isfinite()] for value in (first, second))
    scale = float(first.abs().max()) if first.numel() else 0.0
    return float((first - second).abs().max()) / max(scale, 1e-12) if first.numel() else 0.0


def _numbers(value: Any) -> Any:
    """Replace None, which a metric returns for what it does not have, by NaN."""
    if isinstance(value, list):
        return [math.nan if v is None else v for v in value]
    return value


# The parts.


def operations(check: Check) -> dict[str, Any]:
    """Compare every public operation on tensors of the device with the CPU, in float64."""
    free = {"data", "metrics", "save and load"}
    left_out = cases.LONG if check.quick else ()
    for name in (name for name in cases.OPERATIONS if name not in left_out):
        case = cases.OPERATIONS[name]
        with exact_convolutions():
            check.compare(name, case, TOLERANCE[torch.float64], on_device=name not in free)
    return {"unit": "largest difference / largest entry, float64", "differences": check.differences}


def training(check: Check) -> dict[str, Any]:
    """Compare two epochs of `fit` with the CPU, for all kinds of models and data."""
    chosen = list(cases.FITS.items())
    for name, case in chosen[:2] if check.quick else chosen:
        with exact_convolutions():
            check.compare(name, case, TRAINED, on_device=False)
    return {"unit": "largest difference / largest entry, after two epochs in float32", "differences": check.differences}


def algebra(check: Check) -> dict[str, Any]:
    """Compare the Gaussian algebra in both precisions with the CPU, for small and large groups."""
    sizes = {"8 groups of 6": (8, 6)} if check.quick else {"100 groups of 11": (100, 11), "4 groups of 100": (4, 100)}
    results: dict[str, Any] = {"unit": "largest difference / largest entry"}
    for size, (groups, members) in sizes.items():
        for name, make in cases.PRIORS.items():
            title = f"{name}, {size}"
            with check.isolated(title):
                found = {}
                for device in {torch.device("cpu"), check.device}:
                    for dtype in TOLERANCE:
                        case = partial(cases.prior_case, make, dtype=dtype, groups=groups, members=members)
                        found[device.type, dtype] = cases.run(partial(case, whole=False), device)
                exact = found["cpu", torch.float64]
                rows = {}
                for label, (first, second) in {
                    "float64": (exact, found[check.device.type, torch.float64]),
                    "float32": (found["cpu", torch.float32], found[check.device.type, torch.float32]),
                    "float32 from the CPU's float64": (exact, found[check.device.type, torch.float32]),
                }.items():
                    apart = {key: relative_difference(first[key], second[key]) for key in exact}
                    for kind in ("values", "gradients", "draws"):
                        of_kind = [v for key, v in apart.items() if kind_of(key) == kind]
                        rows[f"{label}, {kind}"] = max(of_kind)
                results[title] = rows
                exact_enough = max(rows[f"float64, {kind}"] for kind in ("values", "gradients"))
                check.expect(exact_enough < TOLERANCE[torch.float64], f"{title}: float64 differs by {exact_enough:.1e}")
                near = rows["float32 from the CPU's float64, values"]
                check.expect(near < TOLERANCE[torch.float32], f"{title}: float32 differs from float64 by {near:.1e}")
    return results


def paper_epoch(check: Check) -> dict[str, Any]:
    """Train the paper's model on rotated MNIST: one epoch to warm up, then one that is timed."""
    data = rotated_mnist(seed=SEED)
    train = data.train.subset(range(40)) if check.quick else data.train
    preset = PRESETS["paper"]
    torch.manual_seed(SEED)
    model = build(preset)
    seconds, result = [], None
    for _ in range(2):
        result = fit(
            model, train, objective=objective_of(preset), epochs=1, batch_size=preset.batch_size,
            learning_rate=preset.learning_rate, seed=SEED, folder=None, **cases.trainer_options(check.device),
        )  # fmt: skip
        seconds.append(result.seconds_per_epoch)
    assert result is not None
    history = {name: float(values.iloc[-1]) for name, values in result.history.items()}
    test = data.test if not check.quick else None
    error = None if test is None else held_out_mse(model.to(check.device), test)
    check.expect(all(map(math.isfinite, history.values())), f"the epoch is not finite: {history}")
    check.expect(history["mse"] < 0.2, f"expected a mean squared error below 0.2, got {history['mse']}")
    return {
        "images": train.num_members, "first epoch": {"unit": "s", "seconds": seconds[0]},
        "second epoch": {"unit": "s", "seconds": seconds[1]}, "history": history, "test mse": error,
    }  # fmt: skip


def repeated(data: GroupedDataset, groups: int, device: torch.device) -> GroupedBatch:
    """Return a batch of so many groups, which repeats those of the data, on the device."""
    return data[torch.arange(groups) % len(data)].to(device)


def step_time(check: Check) -> dict[str, Any]:
    """Time a training step of the paper's FGP-VAE in turn with that of a VAE with the same networks."""
    data = rotated_mnist(seed=SEED).train
    sizes = (20,) if check.quick else (20, 200, 2000) if check.device.type == "cuda" else (20, 200)
    results: dict[str, Any] = {"precision": "float32 networks, float64 algebra", "direction": "lower is better"}
    for groups in sizes:
        with check.isolated(f"{groups} groups"):
            batch = repeated(data, groups, check.device)
            tasks, peaks = {}, {}
            for name, make in {"VAE": VAE, "FGP-VAE": partial(fgp_vae, 8, learn=False)}.items():
                torch.manual_seed(SEED)
                tasks[name] = stepper(make().to(check.device), batch, check)
                tasks[name]()
                start_memory(check)
                tasks[name]()
                peaks[name] = peak_memory(check)
            repeats = 3 if check.quick else 40 if check.device.type == "cuda" else 10
            seconds = interleaved(tasks, repeats, warm_up=5, calls=1)
            results[f"{groups} groups, {int(batch.mask.sum())} images"] = {
                "times": times(seconds, "ms"), "FGP-VAE over VAE": ratio(seconds["FGP-VAE"], seconds["VAE"]),
                "peak memory": peaks,
            }  # fmt: skip
    return results


def stepper(model: Any, batch: GroupedBatch, check: Check) -> Callable[[], None]:
    """Return a training step on one batch, which ends when the device is done."""
    objective = ELBO()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3, fused=True)

    def step() -> None:
        terms = model.terms(batch)
        loss = objective.loss_of(terms) / terms.num_dataset_members
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        check.synchronize()

    return step


def mixed_precision(check: Check) -> dict[str, Any]:
    """Train in bf16-mixed: finite, and close to float32."""
    results: dict[str, Any] = {"unit": "figures of the last epoch"}
    names = ("FGPVAE, images", "SVGPVAE", "LatentAngleFGPVAE")
    for name in names[:1] if check.quick else names:
        with check.isolated(name):
            found = {
                precision: cases.run(partial(cases.fit_case, name=name, precision=precision), check.device)
                for precision in ("32-true", "bf16-mixed")
            }
            rows = {
                precision: {key[9:]: float(v[-1]) for key, v in values.items() if key.startswith("history: ")}
                for precision, values in found.items()
            }
            results[name] = rows
            finite = all(bool(v.isfinite().all()) for v in found["bf16-mixed"].values())
            check.expect(finite, f"{name}: bf16-mixed is not finite")
            for key in ("mse", "log_likelihood"):
                exact, mixed = (rows[precision][key] for precision in ("32-true", "bf16-mixed"))
                apart = abs(mixed - exact) / max(abs(exact), 1e-3)
                check.expect(apart < MIXED, f"{name}: {key} is {mixed} in bf16-mixed, {exact} in float32")
    return results


def workers(check: Check) -> dict[str, Any]:
    """Load batches with two workers and, on a GPU, pinned memory; compare them with batches of this process."""
    data = rotated_mnist(seed=SEED).train.subset(range(100))
    pinned = check.device.type == "cuda"
    loaders = {n: DataLoader(data, batch_size=20, num_workers=n, pin_memory=pinned) for n in (0, 2)}
    for first, second in zip(loaders[0], loaders[2], strict=True):
        check.expect(not pinned or second.y.is_pinned(), "a batch of the workers is not in pinned memory")
        moved = second.to(check.device, non_blocking=True)
        check.synchronize()
        for name in ("y", "x", "mask", "group_index"):
            same = torch.equal(getattr(first, name), getattr(moved, name).cpu())
            check.expect(same, f"{name} of a batch of the workers differs")
    runs = {
        number: cases.run(partial(cases.fit_case, name="FGPVAE, images", num_workers=number), check.device)
        for number in (0, 2)
    }
    apart = max(relative_difference(runs[0][key], runs[2][key]) for key in runs[0])
    check.expect(apart < TRAINED, f"fit with two workers differs by {apart:.1e}")
    return {"pinned": pinned, "difference of fit with two workers": apart}


def state_space(check: Check) -> dict[str, Any]:
    """Posterior, KL and gradient of one large group: as dense inference where it can run, as the CPU where not."""
    members, small = (2000, 300) if check.quick else (100_000, 1000)
    dense, short = (large_groups.task(way, small, SEED, check.device)() for way in ("dense", "state space"))
    from_dense = max(map(relative_difference, dense, short))
    task = large_groups.task("state space", members, SEED, check.device)
    from_cpu = max(map(relative_difference, large_groups.task("state space", members, SEED)(), task()))
    for name, apart in {"dense inference": from_dense, "the CPU": from_cpu}.items():
        check.expect(apart < TOLERANCE[torch.float64], f"the state space differs from {name} by {apart:.1e}")
    start_memory(check)

    def timed() -> None:
        task()
        check.synchronize()

    seconds = interleaved({f"{members:,} members": timed}, 3 if check.quick else 5, warm_up=1)
    return {
        "channels": large_groups.CHANNELS, "precision": "float64", "direction": "lower is better",
        f"difference from dense inference, {small:,} members": from_dense, "difference from the CPU": from_cpu,
        "times": times(seconds, "s"), "peak memory of the largest group": peak_memory(check),
    }  # fmt: skip


PARTS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "operations": operations,
    "training": training,
    "algebra": algebra,
    "step time": step_time,
    "paper epoch": paper_epoch,
    "bf16-mixed": mixed_precision,
    "two workers": workers,
    "state space": state_space,
}


# Memory and the record.


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Switch TF32 off, whose 10 bits would hide differences."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def start_memory(check: Check) -> None:
    """Count peak memory from here."""
    if check.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(check.device)


def peak_memory(check: Check) -> dict[str, Any]:
    """Return peak memory since `start_memory` on a GPU, of the whole process so far elsewhere."""
    if check.device.type == "cuda":
        return {"unit": "MB on the device", "peak": torch.cuda.max_memory_allocated(check.device) / 1e6}
    return {"unit": "MB of the process so far", "peak": 1000 * peak_memory_gb()}


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the device."""
    described: dict[str, Any] = {"type": device.type, "processors": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "name": properties.name, "memory": {"unit": "MB", "total": properties.total_memory / 1e6},
            "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
        }  # fmt: skip
    return described


def run_part(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Run one part, and return its record."""
    check = Check(device, quick)
    start_memory(check)
    started, results = time.perf_counter(), {}
    with check.isolated(name):
        results = PARTS[name](check)
    return {
        "passed": not check.failures, "failures": check.failures, "seconds": time.perf_counter() - started,
        "peak memory": peak_memory(check), **results,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu, ...")
    add("--quick", action="store_true", help="a short form")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"some of: {', '.join(PARTS)}")
    add("--out", type=Path, help=f"the file to write (default: {RECORD} for the whole check on a GPU, else {OTHER})")
    add("--commit", help="of the code, where git cannot tell")
    options = parser.parse_args(arguments)
    device = torch.empty(0, device=options.device).device
    whole = device.type == "cuda" and not options.quick and options.only == list(PARTS)
    out = options.out or (RECORD if whole else OTHER)
    started = time.perf_counter()
    record: dict[str, Any] = {"device": describe(device), "seed": SEED, "quick": options.quick, "made": made_now()}
    if options.commit:
        record["made"]["commit"] = options.commit
    record |= {"passed": None, "seconds": None, "parts": {}}
    for name in options.only:
        part = record["parts"][name] = run_part(name, device, options.quick)
        print(f"{name}: {'passed' if part['passed'] else 'FAILED'} in {part['seconds']:.1f} s", flush=True)
        for failure in part["failures"]:
            print(f"    {failure}", flush=True)
        record["passed"] = all(part["passed"] for part in record["parts"].values())
        record["seconds"] = time.perf_counter() - started
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")  # after every part: a cut keeps what was measured
    print(f"wrote {out}: {'passed' if record['passed'] else 'FAILED'}, {record['seconds']:.0f} s on {device}")
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
