"""Write the tables of README.md and docs/results.md from the records in docs/results.

    python benchmarks/results_page.py [--check]

The records are results.json of `examples/rotated_mnist.py` by preset, the lines of `benchmarks/choose_settings.py` and
`choose_rivals.py`, the folders that the other benchmarks filled, and what `step_time.py` and `posterior.py` printed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import paper_tables
import table1
from paper_tables import spread

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "results"
PRESETS = ("short", "paper", "best")
OUR_PRIOR = {
    "FGP-VAE, coregionalized": "channels correlated with each other (`--preset coregionalized`)",
    "FGP-VAE, coregionalized, any context": "the same for contexts of any size, settings not tuned (`table1.py`)",
}
PAPER = {"test_mse": "0.0284 +- 0.0004", "extrapolation_mse": "0.0316 +- 0.0005"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a table is not up to date")
    options = parser.parse_args()
    stale = False
    page = {"results": results_table(), "runs": runs_table(), "settings": settings_table(), "speed": speed()}
    page |= {"evaluation": evaluation_table()}
    page |= {"reference rows": reference_table()} | paper_tables.all_tables()
    for name, sections in {"README.md": {"results": results_table()}, "docs/results.md": page}.items():
        path = ROOT / name
        before = path.read_text()
        after = before
        for section, table in sections.items():
            after = replaced(after, section, table)
        stale |= after != before
        if not options.check:
            path.write_text(after)
    if options.check and stale:
        print("the tables differ from the records: run python benchmarks/results_page.py", file=sys.stderr)
    return int(options.check and stale)


def replaced(text: str, section: str, table: str) -> str:
    """The text with what stands between the section's two markers replaced."""
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{table}\n{end}{rest.split(end)[1]}"


def record(preset: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{preset}.json").read_text())


def results_table() -> str:
    lines = [
        "| rotated MNIST, MSE per pixel, lower is better | unseen angle (test) | unseen digits (extrapolation) |",
        "| --- | --- | --- |",
        f"| paper, best epoch on the test set, 5 seeds | {PAPER['test_mse']} | {PAPER['extrapolation_mse']} |",
    ]
    for preset in PRESETS:
        r = record(preset)
        seeds, epochs = len(r["seeds"]), r["settings"]["epochs"]
        label = f"`--preset {preset}`, {epochs} epochs, last epoch, {seeds} seed{'s' * (seeds > 1)}"
        lines.append(f"| {label} | {cell(r, 'test_mse')} | {cell(r, 'extrapolation_mse')} |")
    runs = table1.read(RECORDS / "table1")
    for system, label in OUR_PRIOR.items():
        found = runs.get(("equal", "best", system), [])
        if found:
            seeds = f"{len(found)} seed{'s' * (len(found) > 1)}"
            cells = [spread([run[name] for run in found], 4) for name in PAPER]
            lines.append(
                f"| {label}, {found[0]['recipe']['epochs']} epochs, last epoch, {seeds} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def runs_table() -> str:
    lines = ["| | " + " | ".join(PRESETS) + " |", "| --- |" + " --- |" * len(PRESETS)]
    rows = {
        "test MSE, posterior mean": lambda r: cell(r, "test_mse"),
        "test MSE, one sample of z": lambda r: cell(r, "test_mse_sample"),
        "extrapolation MSE, posterior mean": lambda r: cell(r, "extrapolation_mse"),
        "extrapolation MSE, one sample of z": lambda r: cell(r, "extrapolation_mse_sample"),
        "training MSE (sampled z)": lambda r: cell(r, "training_mse"),
        "seconds per epoch": lambda r: cell(r, "seconds_per_epoch", 2),
        "test MSE of each seed": lambda r: ", ".join(f"{v:.4f}" for v in r["metrics"]["test_mse"]["values"]),
        "peak memory of the run, GB": lambda r: f"{r['peak_memory_gb']:.2f}",
        "threads": lambda r: str(r["machine"]["threads"]),
        "date, commit": lambda r: f"{r['date']}, {r['commit']}",
        "torch, gpytorch, lightning": lambda r: ", ".join(r["versions"][k] for k in ("torch", "gpytorch", "lightning")),
    }
    for label, read in rows.items():
        lines.append(f"| {label} | " + " | ".join(read(record(preset)) for preset in PRESETS) + " |")
    return "\n".join(lines)


def settings_table() -> str:
    lines = [
        "| candidate | J | rate | dropout | beta | batch | epochs | held-out angle | unseen angle | unseen digits |",
        "| " + "--- | " * 10,
    ]
    for line in (RECORDS / "choose_settings.jsonl").read_text().splitlines():
        c = json.loads(line)
        angle = f"{22.5 * c['angle']:g}°"
        lines.append(
            f"| {c['name']} | {c['num_local']} | {c['learning_rate']:g} | {c['member_dropout']:.2f} | {c['beta']:g} "
            f"| {c['batch_size']} | {c['epochs']} | {angle} "
            f"| {c['unseen_angle_mse']:.4f} | {c['unseen_digit_mse']:.4f} |"
        )
    return "\n".join(lines)


def evaluation_table() -> str:
    """What `benchmarks/evaluate.py` found of the models of each preset."""
    records = {preset: json.loads((RECORDS / f"evaluation_{preset}.json").read_text()) for preset in PRESETS}
    lines = ["| | " + " | ".join(PRESETS) + " |", "| --- |" + " --- |" * len(PRESETS)]
    lines.append("| seeds | " + " | ".join(str(len(record["runs"])) for record in records.values()) + " |")
    first = {preset: record["runs"][0] for preset, record in records.items()}
    for name in first["short"]:
        if not all(name in run for run in first.values()):
            continue  # a figure that older records do not have
        digits = 4 if "MSE" in name or "swap" in name else 3
        cells = (spread([run[name] for run in record["runs"]], digits) for record in records.values())
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reference_table() -> str:
    """Predictions that need no learning, as `benchmarks/reference_rows.py --json` wrote them."""
    record = json.loads((RECORDS / "reference_rows.json").read_text())
    names = {
        "mean_image": "mean training image, all angles",
        "mean_image_at_nearest_angles": "mean training image at the nearest angles",
        "nearest_view": "nearest view of the same digit",
        "neighbouring_views": "average of the two neighbouring views",
        "rotated_nearest_view": "oracle: nearest view, rotated",
    }
    lines = ["| no learning | test MSE | extrapolation MSE |", "| --- | --- | --- |"]
    lines += [
        f"| {label} | {record['test'][key]:.4f} | {record['extrapolation'][key]:.4f} |" for key, label in names.items()
    ]
    return "\n".join(lines)


def speed() -> str:
    """What the benchmarks printed, as they printed it."""
    return "\n\n".join(
        f"    python benchmarks/{name}.py\n\n```\n{(RECORDS / f'{name}.txt').read_text().strip()}\n```"
        for name in ("step_time", "posterior")
    )


def cell(r: dict[str, Any], name: str, digits: int = 4) -> str:
    figure = r["metrics"][name]
    spread = "" if figure["sd"] is None else f" +- {figure['sd']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
