"""The tables of docs/results.md that come from the records of the paper's evaluation."""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ablations
import choose_rivals
import table1
from systems import BUILD

RECORDS = Path(__file__).parent.parent / "docs" / "results"
TO_COME = "to come"
PAPER_MSE = {"CVAE": "0.0796 +- 0.0023", "GP-VAE": "0.0370 +- 0.0012", "FGP-VAE": "0.0284 +- 0.0004"}
PAPER_SECONDS = {"CVAE": "0.39 +- 0.01", "GP-VAE": "19.10 +- 0.66", "FGP-VAE": "1.41 +- 0.08"}
COMPLEXITY = {
    "VAE": "-", "CVAE": "-", "CVAE of the context": "-", "CVAE of the context, any context": "-",
    "GP-VAE": "O(N M + M^2 (M + m V)), M = m M_view, V views",
    "GP-VAE, representation network": "O(N M + M^2 (M + m V)), M = m M_view, V views",
    "SVGP-VAE": "O(n M^2 + M^3), batches of n",
    "SVGP-VAE, representation network": "O(n M^2 + M^3), batches of n",
    "FGP-VAE": "O(P Q^3)", "FGP-VAE, any context": "O(P Q^3)", "FGP-VAE, coregionalized": "O(P L Q R^2)",
    "FGP-VAE, coregionalized, any context": "O(P L Q R^2)",
    "FGP-VAE, correlated by PCA": "O(P Q^3 + N m^2)",
    "FGP-VAE, correlated, learned": "O(P Q^3 + N m^2)",
    "FGP-VAE, correlated, representation network": "O(P Q^3 + N m^2)",
}  # fmt: skip
# tables of what a squared error does not show: columns, with the figure's name in a record and its digits
PARTS = {"seen digits": "test", "unseen digits": "extrapolation"}
SCORES = {
    "NLL": ("negative log likelihood", 3),
    "CRPS": ("crps", 4),
    "50 %": ("coverage 50", 3),
    "90 %": ("coverage 90", 3),
}
VIEWS = (1, 2, 4, 8, 11, 15)
# what a record has but does not mean what the column says: why is beside the tables
NO_CONTEXT, OWN_VECTORS = {"VAE", "CVAE"}, {"SVGP-VAE", "FGP-VAE, correlated by PCA", "FGP-VAE, correlated, learned"}
NOT_SHOWN = {
    "negative log likelihood": NO_CONTEXT,
    "local group accuracy": OWN_VECTORS,
    "local path accuracy": OWN_VECTORS | NO_CONTEXT | {"GP-VAE"},
    "global group accuracy": OWN_VECTORS,
    "mean gap": OWN_VECTORS,
}
READ = {
    "angle in local, R^2": "local feature r2", "angle in global, R^2": "global feature r2",
    "digit in local": "local group accuracy", "digit in global": "global group accuracy", "gap": "mean gap",
}  # fmt: skip
COMPARED: dict[str, dict[str, tuple[str, int]]] = {
    "calibration": {
        f"{head}, {part}": (f"{key} {name}", digits)
        for part, key in PARTS.items()
        for head, (name, digits) in SCORES.items()
    },
    **{
        f"context sizes, {part}": {str(n): (f"{key} MSE from {n} views", 4) for n in VIEWS}
        for part, key in PARTS.items()
    },
    "disentanglement, alone": {head: (f"disentanglement alone {name}", 3) for head, name in READ.items()},
    "disentanglement": {head: (f"disentanglement {name}", 3) for head, name in READ.items()},
    "told the angle": {"digit in local, told the angle": ("disentanglement local path accuracy", 3)},
    "mean code": {part: (f"{key} MSE of the mean code", 4) for part, key in PARTS.items()},
    "swap": {
        "against the giver of global latents": ("swap to global", 4),
        "against the giver of local latents": ("swap to local", 4), "not mixed": ("swap unswapped", 4),
    },
}  # fmt: skip


def all_tables() -> dict[str, str]:
    """Every table by the name of its place in the page."""
    return {
        "beside the paper": beside_the_paper(),
        **{f"table 1, {protocol}": systems(protocol) for protocol in ("equal", "ragged")},
        "other digits": other_digits(),
        **{name: compared(figures) for name, figures in COMPARED.items()},
        "training errors": training_errors(),
        "rivals": rivals(),
        "ablations": ablation_lines(),
        "scaling": scaling(),
        "unknown angles": unknown_angles(),
        "prior samples": prior_samples(),
        "epoch time": epoch_time(),
        "cost": cost(),
        "patients": patients(),
    }


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    assert all(len(line) == len(heads) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Iterable[float | None], digits: int) -> str:
    """Mean and standard deviation of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    deviation = f" +- {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def records_in(name: str) -> list[dict[str, Any]]:
    """The JSON files of a folder of records, by name."""
    return [json.loads(path.read_text()) for path in sorted((RECORDS / name).glob("*.json"))]


def label(system: str, block: str) -> str:
    return system if block == "best" else f"{system}, published"


def systems(protocol: str) -> str:
    """Every system of `benchmarks/table1.py`, means and standard deviations over the seeds that there are."""
    heads = ["", "seeds", "test MSE, mean of z", "test MSE, mean of draws", "best epoch*", "extrapolation MSE"]
    heads += ["s per epoch", "GB"]
    records, rows, missing = table1.read(RECORDS / "table1"), [], []
    diverged = table1.read(RECORDS / "table1", diverged=True)
    names = ("test_mse", "test_mse_mean", "best_epoch_test_mse", "extrapolation_mse")
    for block in ("published", "best"):
        rows.append([f"**{'as published' if block == 'published' else 'at its best'}**", *[""] * (len(heads) - 1)])
        for system in BUILD:
            runs, lost = (each.get((protocol, block, system), []) for each in (records, diverged))
            seeds = f"{len(runs)}, {len(lost)} diverged" if lost else str(len(runs))
            if lost and not runs:
                rows.append([system, seeds, *["-"] * (len(heads) - 2)])
            elif runs:
                cells = [spread([run.get(name) for run in runs], 4) for name in names]
                cells += [spread([run[name] for run in runs], 2) for name in ("seconds_per_epoch", "peak_memory_gb")]
                rows.append([system, seeds, *cells])
            elif block == "best" or system in table1.PUBLISHED:
                missing.append(label(system, block) if block == "published" else f"{system}, at its best")
    absent = f"\n\nNo run yet: {'; '.join(missing)}." if missing else ""
    return (table(heads, rows) if len(rows) > 2 else "") + absent


def other_digits() -> str:
    """The head of the table on digits that nothing was chosen by: test and extrapolation MSE of each seed."""
    records, rows = table1.read(RECORDS / "table1"), []
    for protocol in table1.PROTOCOLS:
        runs = [records.get((protocol, "best", system), []) for system in table1.HEAD]
        if "digits" in table1.PROTOCOLS[protocol] and any(runs):
            cells = [", ".join(both_errors(run) for run in of_system) or TO_COME for of_system in runs]
            rows.append([protocol, *cells])
    return table(["MSE of each seed, seen / unseen digits", *table1.HEAD], rows)


def both_errors(run: dict[str, Any]) -> str:
    """Test MSE and, of a system that has one, extrapolation MSE."""
    return " / ".join(f"{run[name]:.4f}" for name in ("test_mse", "extrapolation_mse") if name in run)


def beside_the_paper() -> str:
    """The paper's Table 1 with our figures beside it: published settings where there are any, equal views."""
    heads = ["", "paper, best epoch", "ours, best epoch", "ours, last epoch, mean of draws", "GP complexity"]
    heads += ["s per epoch, paper", "s per epoch, ours in turn"]
    records, rows = table1.read(RECORDS / "table1"), []
    path = RECORDS / "epoch_time.json"
    timed = json.loads(path.read_text())["median"] if path.exists() else {}
    for system in BUILD:
        published = system in table1.PUBLISHED
        runs = records.get(("equal", "published" if published else "best", system), [])
        seconds = timed.get(f"{system} (published)" if published else system)
        rows.append([
            label(system, "published") if published else f"{system}, its best",
            PAPER_MSE.get(system, "-"),
            spread([run["best_epoch_test_mse"] for run in runs], 4) if runs else TO_COME,
            spread([run["test_mse_mean"] for run in runs], 4) if runs else TO_COME,
            COMPLEXITY[system],
            PAPER_SECONDS.get(system, "-"),
            TO_COME if seconds is None else f"{seconds:.2f}",
        ])  # fmt: skip
    return table(heads, rows)


def compared(figures: dict[str, tuple[str, int]]) -> str:
    """Some figures of every system that has them, on equal views, means and standard deviations over seeds."""
    records, rows = table1.read(RECORDS / "table1"), []
    for block in ("published", "best"):
        for system in BUILD:
            runs = [run["evaluation"] for run in records.get(("equal", block, system), [])]
            shown = [name for name, _ in figures.values() if not hidden(system, name)]
            runs = [run for run in runs if any(figure(run, name) is not None for name in shown)]
            cells = [
                "-" if hidden(system, name) else spread([figure(run, name) for run in runs], digits)
                for name, digits in figures.values()
            ]
            if runs:
                rows.append([label(system, block), str(len(runs)), *cells])
    return table(["", "seeds", *figures], rows)


def training_errors() -> str:
    """Error at the training images and at the unseen angle, of the same models, on equal views."""
    records, rows = table1.read(RECORDS / "table1"), []
    for block in ("published", "best"):
        for system in BUILD:
            runs = [r for r in records.get(("equal", block, system), []) if "training MSE" in r["evaluation"]]
            errors = [[r["evaluation"]["training MSE"] for r in runs], [r["test_mse"] for r in runs]]
            if runs:
                over = spread([test / train for train, test in zip(*errors, strict=True)], 2)
                rows.append([label(system, block), str(len(runs)), *(spread(e, 4) for e in errors), over])
    return table(["", "seeds", "training images", "unseen angle", "second over first"], rows)


def hidden(system: str, name: str) -> bool:
    """Whether a figure of a system would not mean what its column says."""
    return any(name.endswith(ending) and system in systems for ending, systems in NOT_SHOWN.items())


def figure(figures: dict[str, float | None], name: str) -> float | None:
    """A figure by its name with blanks for underscores."""
    return next((value for key, value in figures.items() if key.replace("_", " ") == name), None)


def rivals() -> str:
    """The trials of `benchmarks/choose_rivals.py`: what was chosen, and what came next."""
    trials, rows = choose_rivals.read(choose_rivals.RECORDS), []
    for system in BUILD:
        found = sorted((r for r in trials if r["system"] == system), key=choose_rivals.score)
        if found:
            scores = [f"{choose_rivals.score(trial):.4f}" for trial in found]
            worst = f"{scores[1]} to {scores[-1]}" if len(scores) > 1 else "-"
            rows.append([system, str(len(found)), scores[0], words(system, found[0]["recipe"]), worst])
    return table(["system", "trials", "lowest error", "its settings", "the others"], rows)


def words(system: str, recipe: dict[str, Any]) -> str:
    """The settings that concern a system."""
    listed = [f"rate {recipe['learning_rate']:g}", f"beta {recipe['beta']:g}", f"batch {recipe['batch_size']}"]
    listed.append("cosine" if recipe["cosine"] else "constant rate")
    if "GP-VAE" in system and system != "FGP-VAE":
        listed.append(f"{'R' if 'coregionalized' in system else 'm'} = {recipe['num_factors']}")
    if system == "SVGP-VAE":
        listed.append(f"M = {recipe['num_inducing']}")
    dropout = recipe["member_dropout"]
    if dropout != 0:
        listed.append(
            f"dropout {dropout[0]:g} to {dropout[1]:g}" if isinstance(dropout, list) else f"dropout {dropout:.2f}"
        )
    if system.startswith("FGP-VAE"):
        own = "" if "coregionalized" in system else f"J = {recipe['num_local']}, "
        listed.append(f"{own}{'learned' if recipe['learn_lengthscale'] else 'fixed'} r")
    return ", ".join(listed)


def ablation_lines() -> str:
    """The choices of `benchmarks/ablations.py`."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in records_in("ablations"):
        runs.setdefault(run["choice"], []).append(run)
    rows = []
    for choice in ablations.CHOICES:
        group = runs.get(choice, [])
        cells = [spread([run[n] for run in group], 4) for n in ("test_mse", "extrapolation_mse", "training_mse")]
        cells.append(spread([run["kl"] for run in group], 0))
        rows.append([choice, str(len(group)), *(cells if group else [TO_COME] * 4)])
    return table(["choice", "seeds", "test MSE", "extrapolation MSE", "training MSE", "KL, nats per group"], rows)


def scaling() -> str:
    """The sets of `benchmarks/scaling.py`."""
    names = {"mnist": "complete MNIST, 11 views", "mnist-all": "complete MNIST, 16 views"}
    rows = []
    for r in sorted(records_in("scaling"), key=lambda r: r["images"]):
        rows.append([
            names.get(r["set"], f"{r['set']} class{'es' * (r['set'] != '1')}"), f"{r['images']:,}",
            str(r["budget"]["epochs"]), "-" if r["test_mse"] is None else f"{r['test_mse']:.4f}",
            f"{r['seconds_per_epoch']:.2f}", f"{r['step_ratio']:.2f}", f"{r['peak_memory_gb']:.2f}",
        ])  # fmt: skip
    heads = ["set", "training images", "epochs", "test MSE", "s per epoch", "time per image over the smallest's*"]
    return table([*heads, "peak memory, GB"], rows)


def unknown_angles() -> str:
    """The runs of `benchmarks/unknown_angles.py`."""
    runs: dict[float, list[dict[str, Any]]] = {}
    for r in records_in("unknown_angles"):
        runs.setdefault(r["known"], []).append(r)
    names = {"test_mse": 4, "extrapolation_mse": 4, "extrapolation_mse_of_known": 4}
    names |= {"hidden_degrees": 1, "unseen_degrees": 1}
    rows = [
        [f"{100 * known:g} %", str(len(group)), *(spread([r[n] for r in group], digits) for n, digits in names.items())]
        for known, group in sorted(runs.items(), reverse=True)
    ]
    heads = ["angles known", "seeds", "test MSE", "unseen digits, no angle given", "unseen digits, angles given"]
    return table([*heads, "hidden angles off by, degrees", "unseen digits' off by, degrees"], rows)


def patients() -> str:
    """The folds of `benchmarks/patients.py`."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for r in records_in("patients"):
        runs.setdefault(r["system"], {})[r["fold"]] = r
    classical = runs.get("GP of each value", {})
    rows = []
    for system, folds in sorted(runs.items(), key=lambda item: -statistics.mean(r["mse"] for r in item[1].values())):
        gain = [classical[fold]["mse"] - r["mse"] for fold, r in folds.items() if fold in classical]
        scores = [
            spread([r.get(name) for r in folds.values()], 3)
            for name in ("mse", "negative_log_likelihood", "crps", "coverage_90")
        ]
        rows.append([system, str(len(folds)), *scores, "-" if folds is classical else spread(gain, 3)])
    heads = ["system", "folds", "MSE", "negative log likelihood", "CRPS", "coverage of 90 %", "MSE below the GP's by"]
    return table(heads, rows)


def prior_samples() -> str:
    """What `benchmarks/prior_samples.py` found, a record a model."""
    heads = ["model", "draws of its prior taken for a three", "digits generated from 11 views", "real digits"]
    heads += ["a draw, turned, against itself", "against another draw"]
    rows = []
    for path in sorted((RECORDS / "prior_samples").glob("*.json")):
        mean = json.loads(path.read_text())["mean"]
        named = [f"{mean[source]['recognised']:.2f}" for source in ("prior", "context", "real")]
        turned = [f"{mean['prior'][name]:.3f}" for name in ("from_upright_mse", "two_digits_mse")]
        rows.append([path.stem.replace("_", " "), *named, *turned])
    return table(heads, rows)


def epoch_time() -> str:
    """What `benchmarks/epoch_time.py` measured: medians, and ratios of what was timed in the same round, quartiles."""
    path = RECORDS / "epoch_time.json"
    if not path.exists():
        return TO_COME
    seconds = json.loads(path.read_text())["seconds"]

    def over(name: str, below: str) -> str:
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(seconds[name], seconds[below], strict=True)], n=4
        )
        return "1" if name == below else f"{middle:.2f} ({low:.2f} to {high:.2f})"

    rows = [
        [name, f"{statistics.median(values):.2f}", over(name, "CVAE (published)"), over(name, "FGP-VAE (published)")]
        for name, values in seconds.items()
    ]
    return table(["system", "s per epoch", "over the CVAE", "over the FGP-VAE"], rows)


def cost() -> str:
    """Minutes that the recorded runs trained, a row an experiment, and what the missing ones of Table 1 would."""
    recorded = [run for runs in table1.read(RECORDS / "table1").values() for run in runs]
    minutes: dict[str, list[float]] = {}
    for run in recorded:
        minutes.setdefault(run["system"], []).append(minutes_of(run))
    everything = argparse.Namespace(seeds=None, protocols=table1.PROTOCOLS, blocks=("published", "best"), only=BUILD)
    missing = [e for e in table1.all_runs(everything) if not table1.path_of(RECORDS / "table1", *e).exists()]
    to_come = sum(statistics.mean(minutes[system]) for system, *_ in missing if system in minutes)
    # minutes of each run; how many are missing and what they would take
    table_1 = [m for found in minutes.values() for m in found]
    experiments: dict[str, tuple[list[float], int, float]] = {
        "trials of the rivals": ([r["seconds"] / 60 for r in choose_rivals.read(choose_rivals.RECORDS)], 0, 0.0),
        "Table 1": (table_1, len(missing), to_come),
        "angles that were not observed": ([minutes_of(r) for r in records_in("unknown_angles")], 0, 0.0),
        "ablations": ([minutes_of(r) for r in records_in("ablations")], 0, 0.0),
    }
    everyone = [m for found, *_ in experiments.values() for m in found]
    rows = [
        [name, str(len(found)), str(absent), f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})",
         f"{sum(found) / 60:.1f}", f"{(sum(found) + more) / 60:.1f}"]
        for name, (found, absent, more) in [*experiments.items(), ("all", (everyone, len(missing), to_come))]
    ]  # fmt: skip
    rows[-1][3] = ""  # runs of all kinds have no common length
    heads = ["experiment", "runs", "missing", "minutes a run, median (least to most)", "hours so far", "hours in all"]
    return table(heads, rows)


def minutes_of(run: dict[str, Any]) -> float:
    """Minutes of training."""
    return run["seconds_per_epoch"] * run["recipe"]["epochs"] / 60
