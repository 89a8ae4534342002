"""The tables of docs/experiments/several_devices.md, and the page of the device check."""

from typing import Any

from benchmarks.device_cases import FITS, OPERATIONS, PRIORS
from benchmarks.device_check import PARTS
from benchmarks.markdown import table, wrapped
from benchmarks.records import Plan, Record
from benchmarks.studies.several_devices import (
    ASSUMED,
    DEVICES,
    MODELS,
    TIME,
    Link,
    Step,
    all_reduce,
    device_record,
    link_of,
    messages,
    speed_up,
    step_of,
    step_of_gpu,
    weak,
)

NOT_RUN = "not run"
ON_CPU, MINIBATCHES = (1, 20, 200), (20, 200, 2000, 20_000)


# docs/experiments/device_check.md


def device_page(check: dict[str, Any]) -> str:
    """The record of the check. Everything that it lacks has not run on a GPU."""
    made, device = check["made"], check["device"]
    on_gpu = device["type"] == "cuda" and not check["quick"]
    parts = check["parts"] if on_gpu else {}
    about = (
        "The command checks the library on a machine with CUDA and writes the "
        "[record](../../benchmarks/records/device_check.json). `benchmarks/tables.py` generates this page from it. "
        f'Parts and cases that are newer than the record are marked "{NOT_RUN}". The short form (`ARGS="--device cpu '
        '--quick"`) runs in CI and leaves no record here.'
    )
    lines = ["# Check of a GPU", "    make device-check", wrapped(about)]
    if on_gpu:
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        machine = f"{device['name']}, CUDA {device['CUDA']}, {made['date']}, commit {made['commit']}"
        lines.append(wrapped(f"Record: {machine}, {versions}."))
    rows = [[name, *_outcome(parts.get(name))] for name in PARTS]
    lines += ["## Parts", table(["part", "outcome", "s", "peak memory on the device, MB"], rows)]
    lines += ["## Differences from the CPU", "The largest difference over the largest entry."]
    rows = [
        [f"{part}: {name}", _number(parts.get(part, {}).get("differences", {}).get(name))]
        for part, names in {"operations": OPERATIONS, "training": FITS}.items()
        for name in names
    ]
    lines.append(table(["case", "difference"], rows))
    kinds = [f"{precision}, {kind}" for precision in ("float64", "float32") for kind in ("values", "gradients")]
    found = parts.get("algebra", {})
    sizes = [title.removeprefix("local, ") for title in found if title.startswith("local, ")]
    rows = [
        [f"{name}, {size}", *(_number(found.get(f"{name}, {size}", {}).get(kind)) for kind in kinds)]
        for name in PRIORS
        for size in sizes or ["all sizes"]
    ]
    lines += ["## Algebra on the GPU beside the CPU", table(["prior", *kinds], rows)]
    return "\n\n".join([*lines, "## Times", _times(parts)]) + "\n"


def _outcome(part: dict[str, Any] | None) -> list[str]:
    if part is None or part.get("100,000 members") == "not available":  # the record is older than the state space
        return [NOT_RUN, "", ""]
    return ["passed" if part["passed"] else "FAILED", f"{part['seconds']:.1f}", f"{part['peak memory']['peak']:.0f}"]


def _number(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.1e}"


def _times(parts: dict[str, Any]) -> str:
    steps = {n: p for n, p in parts.get("step time", {}).items() if isinstance(p, dict) and "times" in p}
    rows = [
        [
            f"step, {name}", *(f"{p['times'][m]['median']:.1f} ms" for m in ("FGP-VAE", "VAE")),
            f"{p['FGP-VAE over VAE']['median']:.2f}", f"{p['peak memory']['FGP-VAE']['peak']:.0f}",
        ]
        for name, p in steps.items()
    ]  # fmt: skip
    rows = rows or [["step", NOT_RUN, NOT_RUN, "", ""]]
    epoch = parts.get("paper epoch", {}).get("second epoch")
    rows.append(["an epoch of the paper's run", f"{epoch['seconds']:.2f} s" if epoch else NOT_RUN, "", "", ""])
    large = parts.get("state space", {})
    name, seconds, peak = "one group of 100,000 members, state space: posterior, KL and gradient", NOT_RUN, ""
    if "times" in large:
        seconds = f"{large['times']['100,000 members']['median']:.2f} s"
        peak = f"{large['peak memory of the largest group']['peak']:.0f}"
    rows.append([name, seconds, "", "", peak])
    return table(["work", "FGP-VAE", "VAE", "ratio", "peak memory, MB"], rows)


# docs/experiments/several_devices.md


def _records(plan: Plan) -> tuple[Link | None, dict[str, Record]]:
    """The measured interconnect, and the records of the models."""
    found = {r.key["part"]: r for r in plan.read("several_devices")}
    link = link_of(found["all-reduce"]) if "all-reduce" in found else None
    return link, {name: found[name] for name in MODELS if name in found}


def _steps(plan: Plan) -> dict[str, tuple[Step, list[int]]]:
    """The steps of all models and devices, with batch sizes to show."""
    records = _records(plan)[1]
    found = {f"{name}, a thread of the CPU": (step_of(record), list(ON_CPU)) for name, record in records.items()}
    check = device_record()
    gpu = step_of_gpu(records["paper"], check) if "paper" in records else None
    return found if gpu is None else found | {f"paper, {check['device']['name']}": gpu}


def constants(plan: Plan) -> str:
    rows = []
    records = _records(plan)[1]
    for name, (step, _) in _steps(plan).items():
        record = records[name.split(",")[0]]
        sent = [f"{step.gradient:,}", f"{sum(step.buffers):,}", str(step.gathered)]
        times = [f"{1e3 * step.fixed:.2f}", f"{1e3 * step.per_group:.4f}"]
        rows.append([name, f"{record['parameters']:,}", *sent, str(sum(record["messages"].values())), *times])
    heads = ["model, device", "parameters", "bytes of gradients", "of buffers", "of terms, a group", "messages"]
    return table([*heads, "step without groups, ms", "each group, ms"], rows)


def all_reduces(plan: Plan) -> str:
    rows, link = [], _records(plan)[0]
    for record in plan.read("several_devices", part="all-reduce"):
        assert link is not None
        for size, t in record["all_reduce"].items():
            cells = [f"{1e3 * t[name]:.3f}" for name in ("median", "low", "high")]
            rows.append([f"{int(size):,}", *cells, f"{1e3 * all_reduce(int(size), 2, link, rings=True):.3f}"])
        rows.append(["fitted", f"{1e6 * link.latency:.0f} us a message", f"{link.bandwidth / 1e9:.2f} GB/s", "", ""])
    return table(["bytes", "ms", "low quartile", "high quartile", "the model, ms"], rows)


def two_processes(plan: Plan) -> str:
    link, records = _records(plan)
    rows = []
    for name, r in records.items():
        step = step_of(r)
        for groups in r["alone"] if link is not None else ():
            one, two = (r[part][groups][TIME] for part in ("alone", "together"))
            predicted = messages(step, int(groups), 2, link)
            efficiency = one / (one + predicted)
            cells = [f"{1e3 * seconds:.1f}" for seconds in (one, two, predicted)]
            rows.append([name, groups, *cells, f"{one / two:.2f}", f"{efficiency:.2f}"])
    heads = ["model", "groups of a process", "step alone, ms", "in two processes, ms", "messages, predicted, ms"]
    return table([*heads, "efficiency, measured", "predicted"], rows)


def efficiencies(plan: Plan) -> str:
    rows = []
    for name, (step, sizes) in _steps(plan).items():
        for groups in sizes:
            for title, link in ASSUMED.items():
                cells = [f"{weak(step, groups, n, link):.3f}" for n in DEVICES]
                rings = f"{weak(step, groups, DEVICES[-1], link, rings=True):.3f}"
                rows.append([name, f"{groups:,}", title, *cells, rings])
    heads = ["model, device", "groups of a device", "interconnect", *map(str, DEVICES), f"{DEVICES[-1]}, rings alone"]
    return table(heads, rows)


def speed_ups(plan: Plan) -> str:
    rows = []
    for name, (step, _) in _steps(plan).items():
        for minibatch in MINIBATCHES:
            for title, link in ASSUMED.items():
                cells = [f"{speed_up(step, minibatch, n, link):.1f}" for n in DEVICES]
                rows.append([name, f"{minibatch:,}", title, *cells])
    return table(["model, device", "groups of a minibatch", "interconnect", *map(str, DEVICES)], rows)
