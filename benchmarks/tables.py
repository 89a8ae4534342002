"""Write the generated parts of README.md and docs, and the pages of docs/experiments, from the records.

python -m benchmarks.tables [--check]
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import device_pages
from benchmarks.evaluation import SIZES
from benchmarks.league import page as league
from benchmarks.markdown import SD, spread, table, wrapped
from benchmarks.records import HERE, Plan, Record, identity
from benchmarks.studies import (
    STUDIES,
    ablations,
    beyond_memory,
    coverage,
    epoch_time,
    large_groups,
    long_groups,
    reference,
    rivals,
    scaling,
    streaming,
    table1,
)
from benchmarks.studies.several_devices import device_record
from benchmarks.systems import BUILD

ROOT = HERE.parent
TO_COME = "to come"
PRESETS = ("short", "paper", "best", "larger", "any_context")
LARGER = ("larger", "any_context")  # with networks of our own
PAPER = {"test_mse": ["0.0284", "0.0004"], "extrapolation_mse": ["0.0316", "0.0005"]}
PAPER_MSE = {"CVAE": ["0.0796", "0.0023"], "GP-VAE": ["0.0370", "0.0012"], "FGP-VAE": ["0.0284", "0.0004"]}
PAPER_SECONDS = {"CVAE": ["0.39", "0.01"], "GP-VAE": ["19.10", "0.66"], "FGP-VAE": ["1.41", "0.08"]}
GP_VAE_COST, SVGP_COST = "O(N M + M^2 (M + m V)), M = m M_view, V views", "O(n M^2 + M^3), batches of n"
COMPLEXITY = {
    "GP-VAE": GP_VAE_COST, "GP-VAE, representation network": GP_VAE_COST,
    "SVGP-VAE": SVGP_COST, "SVGP-VAE, representation network": SVGP_COST,
    "FGP-VAE": "O(P Q^3)", "FGP-VAE, any context": "O(P Q^3)",
    "FGP-VAE, inducing points": "O(P Q M^2 + M^3)",
    "FGP-VAE, coregionalized": "O(P L Q R^2)", "FGP-VAE, coregionalized, any context": "O(P L Q R^2)",
    "FGP-VAE, correlated by PCA": "O(P Q^3 + N m^2)", "FGP-VAE, correlated, learned": "O(P Q^3 + N m^2)",
    "FGP-VAE, correlated, representation network": "O(P Q^3 + N m^2)",
}  # fmt: skip
# tables of `evaluation.py`: columns, with the figure's name in a record and its digits
PARTS = {"seen digits": "test", "unseen digits": "extrapolation"}
SCORES = {
    "NLL": ("negative log likelihood", 3),
    "CRPS": ("crps", 4),
    "50 %": ("coverage 50", 3),
    "90 %": ("coverage 90", 3),
}
READ = {
    "angle in local, R^2": "local feature r2", "angle in global, R^2": "global feature r2",
    "digit in local": "local group accuracy", "digit in global": "global group accuracy", "gap": "mean gap",
}  # fmt: skip
Columns = Mapping[str, tuple[str, int]]
CALIBRATION = {
    f"{head}, {part}": (f"{key} {name}", n) for part, key in PARTS.items() for head, (name, n) in SCORES.items()
}
CONTEXTS = {part: {str(n): (f"{key} MSE from {n} views", 4) for n in SIZES} for part, key in PARTS.items()}
ALONE = {head: (f"disentanglement alone {name}", 3) for head, name in READ.items()}
TOGETHER = {head: (f"disentanglement {name}", 3) for head, name in READ.items()}
PATHS = {"digit in local, given the angle": ("disentanglement local path accuracy", 3)}
MEAN_CODE = {part: (f"{key} MSE of the mean code", 4) for part, key in PARTS.items()}
SWAP = {
    "against the giver of global latents": ("swap to global", 4),
    "against the giver of local latents": ("swap to local", 4), "not mixed": ("swap unswapped", 4),
}  # fmt: skip
# figures that would not mean what their column says, by the end of their name: the pages say why
NO_CONTEXT, OWN_VECTORS = {"VAE", "CVAE"}, {"SVGP-VAE", "FGP-VAE, correlated by PCA", "FGP-VAE, correlated, learned"}
NOT_SHOWN = {
    "negative log likelihood": NO_CONTEXT,
    "local group accuracy": OWN_VECTORS,
    "local path accuracy": OWN_VECTORS | NO_CONTEXT | {"GP-VAE"},
    "global group accuracy": OWN_VECTORS,
    "mean gap": OWN_VECTORS,
}


def label(system: str, block: str) -> str:
    """Name a system, with a mark if it has its published settings."""
    return system if block == "best" else f"{system}, published"


def systems_of(plan: Plan, protocol: str = "equal") -> list[tuple[str, str, list[Record]]]:
    """Return block, system and runs, seeds in order, of the systems with runs that did not diverge."""
    found = []
    for block in table1.BLOCKS:
        for system in BUILD:
            runs = plan.read("table1", protocol=protocol, block=block, system=system)
            runs = sorted((r for r in runs if not r.diverged), key=lambda r: r.key["seed"])
            if runs:
                found.append((block, system, runs))
    return found


# README.md, docs/results.md and docs/performance.md


def results(plan: Plan) -> str:
    """The paper's networks, then ours."""
    one_image = ["-", ""]
    paper = ["paper, best epoch on the test set", "paper's", "1000", "5"]
    rows = [[*paper, *PAPER["test_mse"], *PAPER["extrapolation_mse"], *one_image]]
    named = {f"`--preset {preset}`": plan.read("presets", preset=preset) for preset in PRESETS if preset not in LARGER}
    ours = {"FGP-VAE, coregionalized": "coregionalized channels (`--preset coregionalized`)"}
    ours |= {"FGP-VAE, coregionalized, any context": "coregionalized channels, contexts of any size"}
    named |= {name: plan.read("table1", protocol="equal", block="best", system=system) for system, name in ours.items()}
    larger = {f"`--preset {preset}`": plan.read("presets", preset=preset) for preset in LARGER}
    for name, runs in (named | larger).items():
        if runs:
            cells = [cell for figure in PAPER for cell in spread([run[figure] for run in runs], 4)]
            cells += spread([run["evaluation"]["extrapolation MSE from 1 views"] for run in runs], 4)
            networks = "larger" if name in larger else "paper's"
            rows.append([name, networks, str(runs[0].settings["epochs"]), str(len(runs)), *cells])
    heads = ["MSE per pixel", "networks", "epochs", "seeds", "seen digits +-", "unseen digits +-"]
    return table([*heads, "unseen digits, one image given +-"], rows)


def overview(plan: Plan) -> str:
    """Errors of all systems in one table, equal views."""
    errors = [["paper, FGP-VAE, best epoch", "5", *PAPER["test_mse"], *PAPER["extrapolation_mse"], "-", ""]]
    shown = {("published", "FGP-VAE"), *(("best", system) for system in BUILD)}
    for block, system, runs in systems_of(plan):
        if (block, system) in shown:
            cells = [cell for name in PAPER for cell in spread([run.result.get(name) for run in runs], 4)]
            cells += spread([run["evaluation"].get("extrapolation MSE from 1 views") for run in runs], 4)
            errors.append([label(system, block), str(len(runs)), *cells])
    for record in plan.read("reference"):
        means = [record[part]["mean_image_at_nearest_angles"] for part in PARTS.values()]
        errors.append(["mean image at the nearest angles", "-", *(c for m in means for c in (f"{m:.4f}", "")), "-", ""])
    heads = ["MSE per pixel", "seeds", "seen digits +-", "unseen digits +-", "unseen digits, one image given +-"]
    return table(heads, errors)


def speed(plan: Plan) -> str:
    """Ratios of times that must keep below a bound, and the posterior beside its rivals."""
    rows = []
    for record in plan.read("step_time"):
        threads = record.key["threads"]
        rows += [[name, str(threads), *numbers(r), bound(r.get("must"))] for name, r in record["ratios"].items()]
    for record in plan.read("epoch_time"):
        r = epoch_time.over(record, epoch_time.FGP_VAE, epoch_time.CVAE)
        rows.append(
            ["epoch of FGP-VAE (paper) over CVAE", "2", *numbers(r), bound(epoch_time.MUST[epoch_time.FGP_VAE])]
        )
    for record in plan.read("scaling", set="mnist"):
        low, high = record["step_ratio_quartiles"]
        r = {"median": record["step_ratio"], "low": low, "high": high}
        rows.append(
            ["image of complete MNIST over one of the smallest set", "2", *numbers(r), bound(scaling.MUST_RATIO)]
        )
    for record in plan.read("posterior")[1:]:  # the page of the study has the smallest one too
        for name, times_longer in record["times_longer"].items():
            rows.append([f"posterior, {record['rows']} rows: {name} over ours", "2", f"{times_longer:.1f}", "", "", ""])
    return table(["ratio of times", "threads", "median", "low quartile", "high quartile", "must be at most"], rows)


def numbers(r: Mapping[str, float], digits: int = 3) -> list[str]:
    return [f"{r[name]:.{digits}f}" for name in ("median", "low", "high")]


def bound(must: float | None) -> str:
    return "" if must is None else f"{must:g}"


# the example


def presets(plan: Plan) -> str:
    runs = {preset: plan.read("presets", preset=preset) for preset in PRESETS}

    def row(name: str, read: Callable[[list[Record]], list[str]]) -> list[str]:
        return [name, *(cell for found in runs.values() for cell in (read(found) if found else [TO_COME, ""]))]

    def single(read: Callable[[Record], Any]) -> Callable[[list[Record]], list[str]]:
        return lambda found: [str(read(found[0])), ""]

    figures = {
        "test MSE, posterior mean": ("test_mse", 4), "test MSE, one sample of z": ("test_mse_sample", 4),
        "extrapolation MSE, posterior mean": ("extrapolation_mse", 4),
        "extrapolation MSE, one sample of z": ("extrapolation_mse_sample", 4),
        "training MSE (sampled z)": ("training_mse", 4), "seconds per epoch": ("seconds_per_epoch", 2),
    }  # fmt: skip
    rows = [row("seeds", lambda found: [str(len(found)), ""])]
    rows += [row(head, lambda f, n=n, d=d: spread([r[n] for r in f], d)) for head, (n, d) in figures.items()]
    rows.append(row("peak memory, GB", lambda found: [f"{max(r['peak_memory_gb'] for r in found):.2f}", ""]))
    for name in ("threads", "date", "commit"):
        rows.append(row(name, single(lambda r, name=name: r.made[name])))
    for name in ("torch", "gpytorch", "lightning"):
        rows.append(row(name, single(lambda r, name=name: r.made["versions"][name])))
    return table(["", *(f"{preset} {SD}" for preset in PRESETS)], rows)


def each_seed(plan: Plan) -> str:
    rows = [
        [record.key["preset"], str(record.key["seed"]), *(f"{record[name]:.4f}" for name in PAPER)]
        for preset in PRESETS
        for record in plan.read("presets", preset=preset)
    ]
    return table(["preset", "seed", "test MSE", "extrapolation MSE"], rows)


def preset_evaluation(plan: Plan) -> str:
    found = {preset: [r["evaluation"] for r in plan.read("presets", preset=preset)] for preset in PRESETS}
    rows = [["seeds", *(cell for runs in found.values() for cell in (str(len(runs)), ""))]]
    for name in dict.fromkeys(name for runs in found.values() for run in runs[:1] for name in run):
        digits = 4 if "MSE" in name or "swap" in name else 3
        cells = (cell for runs in found.values() for cell in spread([run.get(name) for run in runs], digits))
        rows.append([name.replace("_", " "), *cells])
    return table(["", *(f"{preset} {SD}" for preset in PRESETS)], rows)


def settings_trials(plan: Plan) -> str:
    rows = []
    for r in plan.read("settings"):
        s = r.settings
        cells = [str(s["num_local"]), f"{s['learning_rate']:g}", f"{s['member_dropout']:.2f}", f"{s['beta']:g}"]
        cells += [str(s["batch_size"]), str(r.key["epochs"]), f"{22.5 * r.key['angle']:g}"]
        rows.append([r.key["name"], *cells, f"{r['unseen_angle_mse']:.4f}", f"{r['unseen_digit_mse']:.4f}"])
    heads = ["candidate", "J", "rate", "dropout", "beta", "batch", "epochs", "held-out angle, degrees"]
    return table([*heads, "MSE, unseen angle", "MSE, unseen digits"], rows)


def rival_trials(plan: Plan) -> str:
    """What was chosen for each system, and the errors of the other trials."""
    rows = []
    for system in BUILD:
        found = sorted(plan.read("rivals", system=system), key=rivals.score)
        if found:
            recipe = found[0].key["recipe"]
            scores = [f"{rivals.score(found[n]):.4f}" if len(found) > 1 else "-" for n in (1, -1)]
            cells = [f"{recipe['learning_rate']:g}", f"{recipe['beta']:g}", str(recipe["batch_size"])]
            cells += ["cosine" if recipe["cosine"] else "constant", other_settings(system, recipe)]
            rows.append([system, str(len(found)), f"{rivals.score(found[0]):.4f}", *scores, *cells])
    heads = ["system", "trials", "lowest MSE", "next MSE", "highest MSE", "rate", "beta", "batch", "schedule", "other"]
    return table(heads, rows)


def other_settings(system: str, recipe: Mapping[str, Any]) -> str:
    """The settings of a recipe that only some systems have."""
    listed = []
    if "GP-VAE" in system and system != "FGP-VAE":
        listed.append(f"{'R' if 'coregionalized' in system else 'm'} = {recipe['num_factors']}")
    if system == "SVGP-VAE":
        listed.append(f"M = {recipe['num_inducing']}")
    dropout = recipe["member_dropout"]
    if dropout != 0:
        between = isinstance(dropout, list)
        listed.append(f"dropout {dropout[0]:g} to {dropout[1]:g}" if between else f"dropout {dropout:.2f}")
    if system.startswith("FGP-VAE"):
        own = "" if "coregionalized" in system else f"J = {recipe['num_local']}, "
        listed.append(f"{own}{'learned' if recipe['learn_lengthscale'] else 'fixed'} r")
    return ", ".join(listed)


# Table 1


SYSTEMS = {
    "VAE": "Independent latents (K = I). Its best guess at a new angle is a mean image.",
    "CVAE": "Both networks take the angle. Its best guess is the mean image at this angle.",
    "CVAE of the context": "Pools one code from the images of the context. Both networks take the angle.",
    "CVAE of the context, any context": "The same with `member_dropout=(0, 1)`.",
    "GP-VAE": "Casale et al. 2018, with the exact bound and learned group vectors. It has no answer for new digits.",
    "GP-VAE, representation network": "The group vectors are a function of the images (Appendix C).",
    "SVGP-VAE": "Jazbec et al. 2021 in the Titsias form: inducing points over group vector and angle.",
    "SVGP-VAE, representation network": "The group vectors are a function of the images, unlike in its paper.",
    "FGP-VAE": "The paper's model: local and global channels.",
    "FGP-VAE, any context": "`member_dropout=(0, 1)`, learned means and variances of the prior, beta 1.",
    "FGP-VAE, inducing points": "Local channels through 8 learned angles, shared by all digits (the conclusion).",
    "FGP-VAE, coregionalized": "Ours: 16 channels share 16 factors of their digit. Their loadings vary with the angle.",
    "FGP-VAE, coregionalized, any context": "The same with `member_dropout=(0, 1)` and beta 1, not tuned.",
    "FGP-VAE, correlated by PCA": "Global channels correlated between digits, with group vectors of a PCA.",
    "FGP-VAE, correlated, learned": "The same with learned group vectors.",
    "FGP-VAE, correlated, representation network": "The same with group vectors from the images.",
}


def about_systems(plan: Plan) -> str:
    return table(["system", "what it is"], [[name, SYSTEMS[name]] for name in BUILD])


def beside_the_paper(plan: Plan) -> str:
    """The paper's Table 1 with our figures, at published settings where there are any, equal views."""
    runs_of = {(block, system): runs for block, system, runs in systems_of(plan)}
    times = [record["seconds"] for record in plan.read("epoch_time")]
    rows = []
    for system in BUILD:
        block = "published" if system in table1.PUBLISHED else "best"
        runs = runs_of.get((block, system), [])
        ours = [
            spread([run[n] for run in runs], 4) if runs else [TO_COME, ""]
            for n in ("best_epoch_test_mse", "test_mse_mean")
        ]
        seconds = times[0].get(f"{system} (published)" if block == "published" else system) if times else None
        rows.append([
            label(system, block) if block == "published" else f"{system}, its best",
            *PAPER_MSE.get(system, ["-", ""]), *ours[0], *ours[1], COMPLEXITY.get(system, "-"),
            *PAPER_SECONDS.get(system, ["-", ""]),
            TO_COME if seconds is None else f"{statistics.median(seconds):.2f}",
        ])  # fmt: skip
    heads = ["", "paper, best epoch +-", "ours, best epoch +-", "ours, last epoch, mean of draws +-", "GP complexity"]
    return table([*heads, "s per epoch, paper +-", "s per epoch, ours in turn"], rows)


def systems(plan: Plan, protocol: str) -> str:
    """Every system on one protocol, and the systems without a run."""
    names = ("test_mse", "test_mse_mean", "best_epoch_test_mse", "extrapolation_mse")
    costs = ("seconds_per_epoch", "peak_memory_gb")
    found = {(block, system): runs for block, system, runs in systems_of(plan, protocol)}
    rows, missing = [], []
    for block in table1.BLOCKS:
        for system in BUILD if block == "best" else table1.PUBLISHED:
            lost = plan.read("table1", protocol=protocol, block=block, system=system)
            lost = sum(record.diverged for record in lost)
            runs = found.get((block, system), [])
            if runs:
                cells = [cell for name in names for cell in spread([run.result.get(name) for run in runs], 4)]
                cells += [cell for name in costs for cell in spread([run[name] for run in runs], 2)]
            else:
                cells = ["-", ""] * 6
            if runs or lost:
                rows.append([block, system, str(len(runs)), str(lost), *cells])
            else:
                missing.append(label(system, block) if block == "published" else f"{system}, at its best")
    heads = ["settings", "system", "seeds", "diverged", "test MSE, mean of z +-", "test MSE, mean of draws +-"]
    heads += ["test MSE, best epoch +-", "extrapolation MSE +-", "s per epoch +-", "GB +-"]
    return table(heads, rows) + (f"\n\nNo run yet: {'; '.join(missing)}." if missing else "")


def other_digits(plan: Plan) -> str:
    """The head of the table on digits that nothing was chosen by."""
    rows = []
    for protocol, arguments in table1.PROTOCOLS.items():
        for system in table1.HEAD if "digits" in arguments else ():
            for record in plan.read("table1", protocol=protocol, block="best", system=system):
                rows.append([protocol, system, str(record.key["seed"]), *both_errors(record)])
    return table(["digit", "system", "seed", "MSE, seen digits", "MSE, unseen digits"], rows)


def both_errors(record: Record) -> list[str]:
    """Test MSE and extrapolation MSE, if the system has one."""
    return [f"{record[name]:.4f}" if name in record.result else "n/a" for name in PAPER]


def compared(plan: Plan, columns: Columns) -> str:
    """Some figures of every system that has them, on equal views."""
    rows = []
    for block, system, records in systems_of(plan):
        shown = [name for name, _ in columns.values() if not hidden(system, name)]
        runs = [record["evaluation"] for record in records]
        runs = [run for run in runs if any(figure(run, name) is not None for name in shown)]
        if runs:
            rows.append([label(system, block), str(len(runs))])
            for name, digits in columns.values():
                rows[-1] += ["-", ""] if hidden(system, name) else spread([figure(run, name) for run in runs], digits)
    return table(["", "seeds", *(f"{head} {SD}" for head in columns)], rows)


def hidden(system: str, name: str) -> bool:
    """Whether a figure of a system would not mean what its column says."""
    return any(name.endswith(ending) and system in names for ending, names in NOT_SHOWN.items())


def figure(figures: Mapping[str, float | None], name: str) -> float | None:
    """A figure by its name with blanks for underscores."""
    return next((value for key, value in figures.items() if key.replace("_", " ") == name), None)


def training_errors(plan: Plan) -> str:
    """Error at the training images and at the unseen angle, of the same models, on equal views."""
    rows = []
    for block, system, records in systems_of(plan):
        runs = [r for r in records if "training MSE" in r["evaluation"]]
        errors = [[r["evaluation"]["training MSE"] for r in runs], [r["test_mse"] for r in runs]]
        if runs:
            over = spread([test / train for train, test in zip(*errors, strict=True)], 2)
            rows.append([label(system, block), str(len(runs)), *spread(errors[0], 4), *spread(errors[1], 4), *over])
    return table(["", "seeds", "training images +-", "unseen angle +-", "second over first +-"], rows)


def failed(plan: Plan) -> str:
    """Runs of the CVAE of the context on ragged views, at the rate that its trials chose."""
    rows = [
        [r.key["system"], r.key["protocol"], f"{r.settings['learning_rate']:g}",
         "-" if r.diverged else f"{r['training_mse']:.4f}", "-" if r.diverged else f"{r['test_mse']:.4f}",
         r["diverged"].split(", in the batch")[0] if r.diverged else "the training error stays high"]
        for r in plan.read("table1_failed")
    ]  # fmt: skip
    return table(["system", "views", "rate", "training MSE", "test MSE", "what happened"], rows)


# the other studies


def ablation_rows(plan: Plan) -> str:
    rows = []
    for choice in ablations.CHOICES:
        runs = plan.read("ablations", choice=choice)
        cells = [spread([r[n] for r in runs], 4) for n in ("test_mse", "extrapolation_mse", "training_mse")]
        cells.append(spread([r["kl"] for r in runs], 0))
        rows.append([choice, str(len(runs)), *(c for pair in cells for c in (pair if runs else (TO_COME, "")))])
    return table(
        ["choice", "seeds", "test MSE +-", "extrapolation MSE +-", "training MSE +-", "KL, nats per group +-"], rows
    )


def scaling_rows(plan: Plan) -> str:
    names = {"mnist": "complete MNIST, 11 views", "mnist-all": "complete MNIST, 16 views"}
    rows = []
    for r in sorted(plan.read("scaling"), key=lambda r: r["images"]):
        name = r.key["set"]
        rows.append([
            names.get(name, f"{name} class{'es' * (name != '1')}"), f"{r['images']:,}",
            str(r.settings["budget"]["epochs"]), "-" if r["test_mse"] is None else f"{r['test_mse']:.4f}",
            f"{r['seconds_per_epoch']:.2f}", f"{r['step_ratio']:.2f}", f"{r['peak_memory_gb']:.2f}",
        ])  # fmt: skip
    heads = ["set", "training images", "epochs", "test MSE", "s per epoch", "time per image over the smallest's"]
    return table([*heads, "peak memory, GB"], rows)


def angles(plan: Plan) -> str:
    names = {"test_mse": 4, "extrapolation_mse": 4, "extrapolation_mse_of_known": 4}
    names |= {"hidden_degrees": 1, "unseen_degrees": 1}
    rows = []
    for known in sorted({r.key["known"] for r in plan.read("unknown_angles")}, reverse=True):
        runs = plan.read("unknown_angles", known=known)
        cells = [cell for name, digits in names.items() for cell in spread([r[name] for r in runs], digits)]
        rows.append([f"{100 * known:g} %", str(len(runs)), *cells])
    heads = [
        "angles known",
        "seeds",
        "test MSE +-",
        "unseen digits, no angle given +-",
        "unseen digits, angles given +-",
    ]
    return table([*heads, "hidden angles off by, degrees +-", "unseen digits' off by, degrees +-"], rows)


def patients(plan: Plan) -> str:
    runs: dict[str, dict[int, Record]] = {}
    for r in plan.read("patients"):
        runs.setdefault(r.key["system"], {})[r.key["fold"]] = r
    classical = runs.get("GP of each value", {})
    names = ("mse", "negative_log_likelihood", "crps", "coverage_90")
    rows = []
    for system, folds in sorted(runs.items(), key=lambda item: -statistics.mean(r["mse"] for r in item[1].values())):
        gain = [classical[fold]["mse"] - r["mse"] for fold, r in folds.items() if fold in classical]
        scores = [spread([r.result.get(name) for r in folds.values()], 3) for name in names]
        gained = ["-", ""] if folds is classical else spread(gain, 3)
        rows.append([system, str(len(folds)), *(cell for pair in scores for cell in pair), *gained])
    heads = ["system", "folds", "MSE +-", "negative log likelihood +-", "CRPS +-", "coverage of 90 % +-"]
    return table([*heads, "MSE below the GP's by +-"], rows)


def prior_draws(plan: Plan) -> str:
    sources = {"prior": "prior", "gaussian": "fitted Gaussian", "mixture": "fitted mixture"}
    sources |= {"context": "11 views of new threes"}
    columns = {
        "recognised": 2, "from_upright_mse": 4, "two_digits_mse": 3, "nearest_mse": 3, "smallest_nearest_mse": 3,
    }  # fmt: skip
    rows, records = [], plan.read("prior_samples")
    for r in records:
        name = f"`--preset {r.key['system']}`" if r.key["block"] == "preset" else label(r.key["system"], r.key["block"])
        for source, words in sources.items():
            rows.append([name, words, *(f"{r['mean'][source][column]:.{d}f}" for column, d in columns.items())])
    for r in records[:1]:
        rows.append(["real threes", "", *(f"{r['mean']['real'][column]:.{d}f}" for column, d in columns.items())])
    heads = ["model", "drawn from", "taken for a three", "MSE, turned, against itself", "against another draw"]
    return table([*heads, "MSE to the nearest training three", "the smallest"], rows)


def coverages(plan: Plan) -> str:
    """Coverage of each prior with its standard error over replicates, each of which is one draw of all groups."""
    rows = []
    for prior, (_, variants) in coverage.PRIORS.items():
        for learned in variants:
            records = plan.read("coverage", prior=prior, learned=learned)
            for r in sorted(records, key=lambda r: r.key["groups"]):
                cells = [f"{r.key['groups']:,}", str(r.settings["replicates"])]
                for way in ("fixed", "learned"):
                    for values in r.result.get(way, {"50": (), "90": ()}).values():
                        mean, deviation = spread(values, 3)
                        cells += [mean, f"{float(deviation) / math.sqrt(len(values)):.3f}" if deviation else ""]
                rows.append([prior, learned, *cells])
    heads = [f"{way}, {level} % | s.e." for way in ("fixed", "learned") for level in coverage.QUANTILES]
    heads = [part for head in heads for part in head.split(" | ")]
    return table(["prior", "learned", "groups", "replicates", *heads], rows)


def excess(plan: Plan) -> str:
    """Measured coverage of learned loadings beside what `fit` warns of."""
    rows = []
    for prior in coverage.PRIORS:
        records = plan.read("coverage", prior=prior, learned=coverage.LOADINGS_AND_KERNEL)
        for r in sorted(records, key=lambda r: r.key["groups"]):
            block = coverage.PRIORS[prior][0](None, torch.zeros(0, 2)).prior.blocks[0]
            size, groups = block.num_channels * block.features.num_features, r.key["groups"]
            measured = spread(r["learned"]["90"], 2)[0]
            rows.append(
                [prior, f"{groups:,}", f"{groups / size:.1f}", measured, f"{block.expected_coverage(groups):.2f}"]
            )
    return table(["prior", "groups G", "G / (J M)", "90 %, measured", "90 %, by the rule"], rows)


def reference_errors(plan: Plan) -> str:
    rows = [
        [name, *(f"{record[part][key]:.4f}" for part in PARTS.values())]
        for record in plan.read("reference")
        for key, name in reference.LABELS.items()
    ]
    return table(["no learning", "test MSE", "extrapolation MSE"], rows)


def epoch_times(plan: Plan) -> str:
    rows = []
    for record in plan.read("epoch_time"):
        for name, values in record["seconds"].items():
            cells = [f"{statistics.median(values):.2f}"]
            for below in (epoch_time.CVAE, epoch_time.FGP_VAE):
                cells += ["1", "", ""] if name == below else numbers(epoch_time.over(record, name, below), 2)
            rows.append([name, *cells])
    heads = ["system", "s per epoch", "over the CVAE", "low quartile", "high quartile"]
    return table([*heads, "over the FGP-VAE", "low quartile", "high quartile"], rows)


def step_times(plan: Plan) -> str:
    rows = [
        [name, str(record.key["threads"]), t["unit"], *numbers(t)]
        for record in plan.read("step_time")
        if record.key["part"] != "pieces"
        for name, t in record["tasks"].items()
    ]
    return table(["task", "threads", "unit", "median", "low quartile", "high quartile"], rows)


def step_pieces(plan: Plan) -> str:
    """Medians of the pieces of a step, ms, with a column for each number of threads."""
    records = plan.read("step_time", part="pieces")
    names = dict.fromkeys(name for record in records for name in record["tasks"])
    rows = [[name, *(f"{record['tasks'][name]['median']:.2f}" for record in records)] for name in names]
    return table(["ms", *(f"threads: {record.key['threads']}" for record in records)], rows)


def step_ratios(plan: Plan) -> str:
    rows = []
    for record in plan.read("step_time"):
        for name, r in record["ratios"].items():
            met = "" if "must" not in r else "met" if r["median"] <= r["must"] else "MISSED"
            rows.append([name, str(record.key["threads"]), *numbers(r), bound(r.get("must")), met])
    return table(["ratio", "threads", "median", "low quartile", "high quartile", "must be at most", ""], rows)


def posterior_times(plan: Plan) -> str:
    rows = []
    for r in plan.read("posterior"):
        for name, t in r["tasks"].items():
            longer = f"{r['times_longer'][name]:.1f}" if name in r["times_longer"] else "1"
            rows.append([str(r["rows"]), str(r.key["groups"]), name, *numbers(t), longer, f"{r['peak_memory_gb']:.2f}"])
    heads = ["rows", "groups", "way", "ms", "low quartile", "high quartile", "times as long as ours", "peak memory, GB"]
    return table(heads, rows)


def large_group_times(plan: Plan) -> str:
    rows = []
    for r in plan.read("large_groups"):
        for way, t in r["tasks"].items():
            longer = f"{r['times_longer'][way]:.1f}" if way in r["times_longer"] else ""
            rows.append([f"{r.key['members']:,}", way, *numbers(t), longer, f"{r['added_memory_gb'][way]:.2f}"])
    heads = ["members", "way", "s", "low quartile", "high quartile", "times as long as the state space", "memory, GB"]
    return table(heads, rows)


def large_group_slopes(plan: Plan) -> str:
    records = plan.read("large_groups")
    ways = [way for way in large_groups.WAYS if any(way in record["tasks"] for record in records)]
    found = [(way, large_groups.slope(records, way)) for way in ways]
    return table(["way", "slope"], [[way, f"{slope:.2f}"] for way, slope in found if slope is not None])


def epochs_on_disk(plan: Plan) -> str:
    rows = []
    for r in plan.read("beyond_memory"):
        for e in r["epochs"]:
            done = [f"{r['file_gb']:.1f}", f"{r['members']:,}", str(e["workers"]), f"{e['share']:.0%}"]
            memory = [f"{e['resident_gb']:.2f}", f"{e['anonymous_gb']:.2f}"]
            rows.append([*done, f"{e['members_a_second']:.0f}", *memory, bound(beyond_memory.MUST_GB)])
    heads = ["file, GB", "members", "workers", "of an epoch", "members/s", "resident, GB", "with workers, GB"]
    return table([*heads, "must be at most"], rows)


def rates_on_disk(plan: Plan) -> str:
    rows = []
    for r in plan.read("beyond_memory"):
        for way, t in r["members_a_second"].items():
            over = r["rate_over_memory"].get(way)
            rows.append([way, *numbers(t, 0), *([""] * 4 if over is None else [*numbers(over), bound(over["must"])])])
    heads = ["way", "members/s", "low quartile", "high quartile", "over memory", "low quartile", "high quartile"]
    return table([*heads, "must be at least"], rows)


def long_group_scores(plan: Plan, kind: str) -> str:
    """Means and standard deviations over the folds that all systems with a run have, in one kind of stretch."""
    names, rows = {"mse": 3, "crps": 3, "nll": 3, "coverage_90": 3}, []
    scored = [system for system in long_groups.SYSTEMS if system != long_groups.DENSE]
    found: dict[str, dict[int, Record]] = {system: {} for system in scored}
    for system, runs in found.items():
        runs |= {r.key["fold"]: r for r in plan.read("long_groups", system=system) if kind in r.result}
    folds = [set(runs) for runs in found.values() if runs]
    common = sorted(set.intersection(*folds)) if folds else []
    for system, runs in found.items():
        if runs:
            values = {name: [runs[fold][kind][name] for fold in common] for name in names}
            rows.append([system, str(len(common)), *(c for n, d in names.items() for c in spread(values[n], d))])
    missing = [system for system, runs in found.items() if not runs]
    scores = table(["system", "folds", "MSE +-", "CRPS +-", "NLL +-", "coverage of 90 % +-"], rows)
    return scores + (f"\n\nNo run yet: {', '.join(missing)}." if missing else "")


def long_group_costs(plan: Plan) -> str:
    names, rows = {"fit_seconds": 0, "predict_seconds": 1, "added_memory_gb": 2}, []
    for system in long_groups.SYSTEMS:
        runs = [r for r in plan.read("long_groups", system=system) if "fit_seconds" in r.result]
        if runs:
            rows.append([system, *(spread([r[name] for r in runs], digits)[0] for name, digits in names.items())])
    return table(["system", "fit, s", "predict, s", "memory, GB"], rows)


def long_groups_dense(plan: Plan) -> str:
    lines = []
    for record in plan.read("long_groups", system=long_groups.DENSE):
        lines += [wrapped(f"> {record['refused']}").replace("\n", "\n> ")]
    return "\n\n".join(lines) or TO_COME


def streamed(plan: Plan) -> str:
    rows = []
    for r in plan.read("streaming"):
        for way, t in r["tasks"].items() if r.key["task"] == "generate" else ():
            longer = r["times_longer"].get(way)
            must = [f"{1000 * streaming.MUST_MEMORY_GB:.0f}" if way == streaming.STREAM else ""]
            many, timed = (f"{r.settings[n] * r.settings['members']:,}" for n in ("groups", "timed_groups"))
            times = [*numbers(t), "" if longer is None else f"{longer['median']:.2f}"]
            rows.append([way, f"{1000 * r['added_memory_gb'][way]:.0f}", *must, many, *times, timed])
    heads = ["way", "memory, MB", "must be at most", "of images"]
    heads += ["s", "low quartile", "high quartile", "over one batch", "for images"]
    return table(heads, rows)


def padded(plan: Plan) -> str:
    rows = []
    for r in plan.read("streaming"):
        if r.key["task"] == "generate":
            continue
        memory = r["added_memory_gb"]
        parts = {"time": r["time_ratio"]["median"]}
        if "memory" in streaming.MUST[r.key["task"]]:
            parts["memory"] = memory[streaming.TOGETHER] / max(memory[streaming.ALONE], 1e-3)
        for name, value in parts.items():
            rows.append([r.key["task"], name, f"{value:.2f}", f"{streaming.MUST[r.key['task']][name]}"])
    return table(["groups", "of", "together over alone", "must be at most"], rows)


def process_differences(plan: Plan) -> str:
    parts = "parameters", "history"
    rows = [[r.key["case"], *(f"{r[part]:.1e}" for part in parts)] for r in plan.read("processes")]
    return table(["case", *(f"largest difference, {part}" for part in parts)], rows)


def cost(plan: Plan) -> str:
    """Minutes that the recorded runs trained, and the estimate for the missing ones."""
    names = {"rivals": "trials of the rivals", "table1": "Table 1"}
    names |= {"unknown_angles": "angles that were not observed", "ablations": "ablations"}
    rows, everything, absent, later = [], [], 0, 0.0
    for study, name in names.items():
        runs = [r for r in plan.read(study) if not r.diverged or "seconds" in r.result]
        known = {identity(r.key) for r in plan.read(study)}
        planned = table1.planned(plan) if study == "table1" else STUDIES[study].keys(plan)
        missing = [key for key in planned if identity(key) not in known]
        minutes: dict[str, list[float]] = {}
        for run in runs:
            minutes.setdefault(run.key.get("system", study), []).append(minutes_of(run))
        found = [m for of_system in minutes.values() for m in of_system]
        more = sum(statistics.mean(minutes.get(key.get("system", study), found or [0.0])) for key in missing)
        everything, absent, later = everything + found, absent + len(missing), later + more
        if found:
            spent = [f"{statistics.median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}"]
            hours = [f"{sum(found) / 60:.1f}", f"{(sum(found) + more) / 60:.1f}"]
            rows.append([name, str(len(found)), str(len(missing)), *spent, *hours])
    hours = [f"{sum(everything) / 60:.1f}", f"{(sum(everything) + later) / 60:.1f}"]
    rows.append(["all", str(len(everything)), str(absent), "", "", "", *hours])
    heads = ["experiment", "runs", "missing", "minutes a run, median", "least", "most", "hours so far", "hours in all"]
    return table(heads, rows)


def minutes_of(run: Record) -> float:
    """Minutes of training."""
    return (run["seconds"] if "seconds" in run.result else run["seconds_per_epoch"] * run.settings["epochs"]) / 60


# pages


class Section(NamedTuple):
    """A part of a page: heading, sentence, and a table or the name of a figure in docs/images."""

    heading: str
    sentence: str
    content: Callable[[Plan], str] | str


def of(columns: Columns) -> Callable[[Plan], str]:
    """The table of these columns."""
    return lambda plan: compared(plan, columns)


SECTIONS: dict[str, list[Section]] = {
    "presets": [
        Section("Errors", "Means and standard deviations over seeds.", presets),
        Section("Each seed", "", each_seed),
        Section(
            "Calibration, small contexts, latent channels",
            "The same figures as those of [all systems](table1.md).",
            preset_evaluation,
        ),
        Section(
            "Latent paths of one digit",
            "Band: two posterior standard deviations. Dots: the encoder's output.",
            "latents",
        ),
        Section("Digits never seen", "`best`, seed 0. Red frames mark angles that were not given.", "unseen_digits"),
    ],
    "settings": [
        Section(
            "Trials",
            "`paper` and `best` are the presets, and the other rows change one of their settings.",
            settings_trials,
        ),
    ],
    "rivals": [
        Section(
            "Trials",
            "Errors of VAE and CVAE are of the mean of draws, the others of the lower of the two predictions. R or "
            "m: factors, M: inducing points, r: lengthscale.",
            rival_trials,
        ),
    ],
    "table1": [
        Section(
            "The systems",
            'Rows marked "published" have published settings. All others are at their best.',
            about_systems,
        ),
        Section(
            "Beside the paper's table",
            'Equal views. "Best epoch" selects on the test set, as the paper does (we look every 20 epochs).',
            beside_the_paper,
        ),
        Section(
            "Equal views: 11 of 15 of each digit",
            '"Mean of draws" averages 64 decoded draws before the error is taken. "n/a": the system has no answer '
            "for new digits. Seconds are of two runs at a time: compare those of [epoch_time](epoch_time.md).",
            lambda plan: systems(plan, "equal"),
        ),
        Section(
            "Ragged views: 75 % of all, 6 to 15 of each digit",
            "All settings are those of trials on equal views, except the rate of the CVAE of the context.",
            lambda plan: systems(plan, "ragged"),
        ),
        Section(
            "Runs that failed",
            "The CVAE of the context on ragged views, at the learning rate that its trials on equal views chose.",
            failed,
        ),
        Section(
            "Other digits",
            "Equal views of 360 digits of another class. No setting was chosen by these digits.",
            other_digits,
        ),
        Section(
            "Training errors",
            "Decoded posterior means of the same models. VAE and CVAE share nothing between views and are left out.",
            training_errors,
        ),
        Section(
            "Mean code of the CVAE",
            "The average of the codes of a digit's images, decoded at the new angle.",
            of(MEAN_CODE),
        ),
        Section(
            "Calibration",
            "NLL in nats per pixel (199 decoded draws), CRPS in grey levels, coverage of the central 50 % and 90 % "
            'intervals. "-": the NLL of VAE and CVAE does not converge.',
            of(CALIBRATION),
        ),
        Section(
            "Context sizes, seen digits",
            "MSE at the unseen angle by the number of images in the context.",
            of(CONTEXTS["seen digits"]),
        ),
        Section("Context sizes, unseen digits", "The same for digits never seen.", of(CONTEXTS["unseen digits"])),
        Section("Context sizes, as a figure", "Dotted lines: published settings.", "context_sizes"),
        Section(
            "Disentanglement, each image alone",
            "R^2 of a linear probe for the angle, accuracy of naming one of 360 digits (chance 0.003), mean gap of "
            'mutual information. "-": the system has a vector of each digit, which names it.',
            of(ALONE),
        ),
        Section(
            "Disentanglement, given the digit's other images",
            "The same for the posterior given the other images of the digit.",
            of(TOGETHER),
        ),
        Section(
            "Digits named by their latent path",
            "Local latents from one half of a digit's images are compared with the paths of all 360 digits from the "
            "other halves.",
            of(PATHS),
        ),
        Section(
            "Swapped latents",
            "MSE of local latents of one digit, decoded with the global latents of another.",
            of(SWAP),
        ),
        Section(
            "Swapped latents, as a figure",
            "`best`, held-out angle. Local latents of the row's digit, global latents of the column's.",
            "swap_best",
        ),
        Section("All systems, seen digits", "Seed 0 (the paper's Figure 1(a)).", "systems_test"),
        Section("All systems, unseen digits", "Seed 0, systems that accept new digits (Figure D.1).", "systems_unseen"),
    ],
    "unknown_angles": [
        Section(
            "Errors",
            "If no angle is known, the turn and reflection that fit the training images best are applied.",
            angles,
        ),
    ],
    "ablations": [
        Section("Choices", "The test set is used here, and no setting was chosen by these runs.", ablation_rows),
    ],
    "scaling": [
        Section(
            "Sets",
            "Classes of 400 digits are in memory. The complete MNIST is rotated on the fly and tested on 2,700 digits.",
            scaling_rows,
        ),
        Section(
            "Error and time",
            "More classes at equal epochs mean more steps, so the errors do not show a trend with the size.",
            "scaling",
        ),
    ],
    "prior_samples": [
        Section(
            "Draws",
            "Fractions taken for a three (higher is better), and MSE per pixel of a draw's upright view turned to "
            "the other angles. The last two columns tell memory from imagination: means and minima over digits of "
            "the MSE to the nearest training three, over all angles. Draws that repeat training threes would be much "
            "nearer than new threes generated from 11 views.",
            prior_draws,
        ),
    ],
    "patients": [
        Section("Forecasts", "Means and standard deviations over folds.", patients),
    ],
    "reference": [
        Section("Errors", "Squared grey levels per pixel.", reference_errors),
    ],
    "coverage": [
        Section(
            "Intervals of the latents at held-out members",
            '"Fixed" is the prior that the data were drawn from. "Learned" maximizes the evidence from another start. '
            "J channels, R factors, M features. Standard errors are over replicates: each is one data set.",
            coverages,
        ),
        Section(
            "What to take from it",
            "Kernels and variances cost no coverage, even with 60 groups. Loadings and group vectors are point "
            "estimates, and the intervals leave out their errors. For loadings the squared error is about "
            "1 + 2.2 J M / G times the variance, for any R: the coverage comes back with more groups. More groups do "
            "not help group vectors: each has one of its own. `ProductPrior` predicts from the best mean-field q.",
            excess,
        ),
    ],
    "epoch_time": [
        Section("Times", "Medians, and ratios with their quartiles.", epoch_times),
    ],
    "step_time": [
        Section("Times", "", step_times),
        Section("Pieces of a step", "Medians, of the paper's model.", step_pieces),
        Section("Ratios", "", step_ratios),
    ],
    "posterior": [
        Section("Times", "Medians and quartiles. Peak memory is that of the process so far.", posterior_times),
    ],
    "large_groups": [
        Section(
            "Times and memory",
            "Medians and quartiles. Memory is what the computation adds to the process.",
            large_group_times,
        ),
        Section(
            "Slopes",
            "Of the logarithm of time over the logarithm of the members, from the smallest to the largest group of the "
            "way: 1 is linear.",
            large_group_slopes,
        ),
    ],
    "beyond_memory": [
        Section(
            "Memory",
            "Resident memory is the largest of the process (`ru_maxrss`), with pages of files. The other figure is the "
            "largest sum of anonymous and shared memory of the process and its workers.",
            epochs_on_disk,
        ),
        Section(
            "Rates",
            "Epochs on a part of the file, in memory and on disk in turn. Medians and quartiles; ratios are taken "
            "within a round.",
            rates_on_disk,
        ),
    ],
    "long_groups": [
        *(
            Section(heading, sentence, functools.partial(long_group_scores, kind=kind))
            for kind, heading, sentence in (
                ("gap", "Gaps", "All columns are lost. NLL in nats a value, of densities per standard deviation."),
                ("lost columns", "Lost columns", "Three of the eight columns, drawn for each stretch, are lost."),
            )
        ),
        Section(
            "Cost",
            "Seconds of processor time on one thread, means over folds. Memory is what the run adds to the process.",
            long_group_costs,
        ),
        Section("Dense inference", "The error of the same model with dense inference, one airport.", long_groups_dense),
    ],
    "streaming": [
        Section(
            "Generating images",
            "From 11 images of each group, at another angle. `one batch` pads the whole data set, and a network takes "
            "all members at once. The result of 88,000 images holds 276 MB. `generate_batches` yields it part by part.",
            streamed,
        ),
        Section(
            "Padding",
            "Loss and gradient with dense inference, of all groups in one batch. They are divided by those of the "
            "group of 500 alone, or by the sum of batches of one group (Zipf sizes 500, 250, 166, ... of 64 groups).",
            padded,
        ),
    ],
    "tables": [
        Section("Overview", league.ABOUT, league.overview),
        *(Section(*league.heading(task), functools.partial(league.systems, task)) for task in league.TASKS),
        Section("Sources", "", league.sources),
    ],
    "more_tables": [
        Section(
            "Errors",
            "MSE of the last 30 % of the rows of new groups. The other systems are last value, own mean, linear rule, "
            "mean at x, and a Gaussian process a column with and without the mean at x. When a table gets a common "
            "curve, knots of the mean and a logarithmic x was decided on these tables: they are no test of those "
            "choices. The [league](tables.md) is.",
            league.more,
        ),
    ],
    "several_devices": [
        Section(
            "Constants",
            "Times are lines through the steps of several batch sizes, in lower quartiles: other programs only add "
            "time. Those of the GPU are of the bare steps of [its check](device_check.md); `fit` adds work of the "
            "processor to them.",
            device_pages.constants,
        ),
        Section(
            "All-reduce of two processes",
            "gloo, on one machine. The model is 2 messages plus the bytes over the bandwidth.",
            device_pages.all_reduces,
        ),
        Section(
            "Two processes beside the model",
            "Each process has so many groups in a step. They share a processor with each other, which the model "
            "leaves out.",
            device_pages.two_processes,
        ),
        Section(
            "Predicted efficiency, the same groups for each device",
            "The time of a step alone over the time in n devices. Interconnects are assumptions: latency of a message "
            "and bandwidth of a device. An all-reduce takes the faster of a ring, 2 (n - 1) (latency + bytes / n / "
            "bandwidth), and a tree, 2 log2(n) (latency + bytes / bandwidth). An all-gather takes log2(n) rounds. In "
            "the last column both take rings, as an all-gather may. No message is hidden behind computation.",
            device_pages.efficiencies,
        ),
        Section(
            "Predicted speed-up of one minibatch",
            "How many times faster n devices take the steps of one device with the whole minibatch. Devices without a "
            "group of their own gain nothing.",
            device_pages.speed_ups,
        ),
    ],
    "processes": [
        Section("Differences", "A difference is |a - b| / max(1, |b|), after three epochs.", process_differences),
    ],
}


def page(study: str, plan: Plan) -> str:
    """The page of a study."""
    declared = STUDIES[study]
    lines = [f"# {declared.title}", wrapped(declared.about), f"    {declared.command()}"]
    records = f"[records](../../benchmarks/records/{study}.jsonl)"
    made = "The command makes the missing runs. `benchmarks/tables.py` generates this page from the"
    lines.append(wrapped(f"{made} {records}."))
    if not plan.read(study):
        lines.append("No run has a record yet.")
        return "\n\n".join(lines) + "\n"
    for heading, sentence, content in SECTIONS[study]:
        lines.append(f"## {heading}")
        if sentence:
            lines.append(wrapped(sentence))
        lines.append(f"![{heading}](../images/{content}.png)" if isinstance(content, str) else content(plan))
    return "\n\n".join(lines) + "\n"


def index(plan: Plan) -> str:
    """The page that lists the others."""
    lines = ["# Experiments", "One page for each study, with all its tables. [Results](../results.md) is the summary."]
    pages = {name: study.title for name, study in STUDIES.items()}
    if plan.folder == HERE:
        pages["device_check"] = "Check of a GPU"
    lines.append("\n".join(f"- [{title}]({name}.md)" for name, title in pages.items()))
    about_cost = (
        "Hours of training on one thread, two runs at a time on machines of two cores. "
        '"In all" counts the missing runs of the plan at the mean of their system, or of all if it has no run.'
    )
    lines += ["## Cost", wrapped(about_cost), cost(plan)]
    return "\n\n".join(lines) + "\n"


def documents(plan: Plan) -> dict[Path, str]:
    """Every document that has generated parts, as it should be. Plans with other folders have only the study pages."""
    docs = ROOT / "docs" if plan.folder == HERE else plan.folder / "docs"
    found = {docs / "experiments" / f"{name}.md": page(name, plan) for name in STUDIES}
    found[docs / "experiments" / "README.md"] = index(plan)
    if plan.folder == HERE:
        found[docs / "experiments" / "device_check.md"] = device_pages.device_page(device_record())
        parts = {"results": results(plan), "overview": overview(plan), "patients": patients(plan), "speed": speed(plan)}
        parts |= {"pieces": step_pieces(plan), "large groups": large_group_times(plan)}
        for path in (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "performance.md"):
            text = path.read_text()
            for name, content in parts.items():
                text = replaced(text, name, content)
            found[path] = text
    return found


def replaced(text: str, section: str, content: str) -> str:
    """Replace what is between the marks of a section, if the text has them."""
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    if start not in text:
        return text
    head, rest = text.split(start)
    return f"{head}{start}\n{content}\n{end}{rest.split(end)[1]}"


def stale(plan: Plan) -> list[Path]:
    """The documents that differ from the records."""
    return [p for p, text in documents(plan).items() if not p.exists() or p.read_text() != text]


def write(plan: Plan) -> None:
    """Write all documents."""
    for path, text in documents(plan).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a table is not up to date")
    if not parser.parse_args(arguments).check:
        write(Plan())
        return 0
    for path in (found := stale(Plan())):
        print(f"{path} differs from the records: run python -m benchmarks.tables", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
