"""Who answers: each system is fitted to the training groups, then asked about the test groups."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.league import glyphs, joint_gaussian, mixed_model, networks, ours, peers, speakers
from benchmarks.league.gaussian_process import fit_gp
from benchmarks.league.rules import RULES, rule_belief
from benchmarks.league.scores import Belief, scores
from benchmarks.league.tasks import Question, Task

Predict = Callable[[], Belief | dict[str, float]]
OURS = "TableModel, default"
CVAE, LOCAL_CVAE = "CVAE of the context", "CVAE with local channels"
FAST = ("last value", "own mean", "linear rule", "mean at x", "GP a column", "GP a column, mean at x")
SLOW = ("mixed model", CVAE, LOCAL_CVAE)
FOR_GAPS, JOINT = "linear interpolation", "Gaussian of the columns"
FOR_GLYPHS = {
    "mean of given styles": glyphs.fit_mean_of_given, "mean image": glyphs.fit_mean_image,
    "nearest style": glyphs.fit_nearest_style, "blend of nearest": glyphs.fit_blend,
    "ridge regression": glyphs.fit_regression,
}  # fmt: skip


def systems_of(task: Task) -> list[str]:
    """Return the systems that take part in a task, ours last."""
    if task.name == "which speaker":
        return [*speakers.CODES, CVAE, OURS]
    if task.table == "glyphs":
        return [*FOR_GLYPHS, OURS]
    if task.name in ("imputation", "lost columns"):
        return [*FAST[:4], FOR_GAPS, JOINT, *FAST[4:], "mixed model", *peers.PEERS, OURS]
    if task.name.startswith("gap"):
        return [*FAST[:4], FOR_GAPS, *FAST[4:], *SLOW, *peers.PEERS, OURS]
    return [*FAST, *SLOW, OURS]


def answers(system: str) -> bool:
    """Whether the packages of a system are installed."""
    return ours.installed() if system == OURS else peers.installed() if system in peers.PEERS else True


def fitted(system: str, question: Question, seed: int) -> Predict:
    """Fit a system to the training groups; return what predicts the target."""
    if system in RULES:
        return lambda: rule_belief(question, system)
    if system in peers.PEERS:
        return peers.fit_peer(question, seed, system)
    if system in FOR_GLYPHS:
        return FOR_GLYPHS[system](question, seed)
    fits: dict[str, Callable[[], Predict]] = {
        "GP a column": lambda: fit_gp(question, seed, with_mean_at_x=False),
        "GP a column, mean at x": lambda: fit_gp(question, seed, with_mean_at_x=True),
        "mixed model": lambda: mixed_model.fit_mixed_model(question, seed),
        JOINT: lambda: joint_gaussian.fit_joint_gaussian(question, seed),
        CVAE: lambda: networks.fit_cvae(question, seed, local=False),
        LOCAL_CVAE: lambda: networks.fit_cvae(question, seed, local=True),
        OURS: lambda: ours.fit_table_model(question, seed),
    }
    return fits[system]()


def evaluated(task: Task, system: str, question: Question, seed: int) -> dict[str, Any]:
    """Fit, predict and score a system; return the scores and the seconds of processor time."""
    started = time.process_time()
    if task.name == "which speaker":
        found = {"accuracy": speaker_accuracy(system, question, seed)}
        return found | {"fit_seconds": time.process_time() - started, "predict_seconds": 0.0}
    predict = fitted(system, question, seed)
    learned = time.process_time()
    belief = predict()
    seconds = {"fit_seconds": learned - started, "predict_seconds": time.process_time() - learned}
    return (scores(question, belief) if isinstance(belief, Belief) else belief) | seconds


def speaker_accuracy(system: str, question: Question, seed: int) -> float:
    """Return the share of test utterances whose speaker is found from their codes."""
    if system in speakers.CODES:
        codes = [speakers.CODES[system](question, rows) for rows in (question.train, question.context)]
    else:
        how: Any = ours if system == OURS else networks
        model = ours.trained(question, seed) if system == OURS else networks.trained(question, seed, local=False)
        codes = [how.codes(question, model, rows) for rows in (question.train, question.context)]
    return speakers.accuracy(question, *codes)
