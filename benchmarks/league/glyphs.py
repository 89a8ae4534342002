"""Rules for letters in styles: each letter is given in a few styles and asked for in the others.

Images of one letter are compared in the given styles only. What a rule chooses, it chooses among the training letters,
each predicted without its own block (its accents).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

TEMPERATURES = (0.3, 1.0, 3.0, 10.0)  # squared distances that halve a weight e-fold, in squared grey levels
Images = tuple[np.ndarray, np.ndarray]  # given (letters, styles, pixels), asked (letters, styles, pixels)


def fit_blend(question: Question, seed: int) -> Callable[[], Belief]:
    """Mix the training letters in the asked style. Weights fall with the distance in the given styles."""
    labels, (given, asked) = arrays(question, *question.practice)
    block = question.table.rows.groupby(question.table.group)[question.table.block].first()[labels].to_numpy()
    other = block[:, None] != block[None]
    squares = distances(given, given)
    trials = [blended(squares, asked, t, other) for t in TEMPERATURES]
    errors = [float(np.mean((trial - asked) ** 2)) for trial in trials]
    best = int(np.argmin(errors))
    sd = np.sqrt(np.mean((trials[best] - asked) ** 2, axis=0))

    def predict() -> Belief:
        _, (new, _) = arrays(question, question.context, question.target)
        mean = blended(distances(new, given), asked, TEMPERATURES[best])
        return belief(question, mean, sd)

    return predict


def fit_nearest_style(question: Question, seed: int) -> Callable[[], Belief]:
    """Repeat the image of the nearest given style."""
    table = question.table
    styles = [np.unique(part[table.x].to_numpy(), axis=0) for part in (question.context, question.target)]
    unit = question.train[table.x].std().to_numpy()
    nearest = (((styles[1][:, None] - styles[0][None]) / unit) ** 2).sum(-1).argmin(-1)
    return fixed_rule(question, lambda given, asked: given[:, nearest])


def fit_mean_of_given(question: Question, seed: int) -> Callable[[], Belief]:
    """Repeat the mean of the letter's given images."""
    return fixed_rule(
        question, lambda given, asked: np.broadcast_to(given.mean(1, keepdims=True), (len(given), *asked))
    )


def fit_mean_image(question: Question, seed: int) -> Callable[[], Belief]:
    """Repeat the mean of the training letters in the asked style."""
    _, (_, known) = arrays(question, *question.practice)
    mean = known.mean(0)
    return fixed_rule(question, lambda given, asked: np.broadcast_to(mean, (len(given), *asked)))


def fixed_rule(question: Question, rule: Callable[[np.ndarray, tuple[int, int]], np.ndarray]) -> Callable[[], Belief]:
    """Predict by a function of the given images and of the shape (styles, pixels) of the asked ones."""
    _, (given, asked) = arrays(question, *question.practice)
    sd = np.sqrt(np.mean((rule(given, asked.shape[1:]) - asked) ** 2, axis=0))

    def predict() -> Belief:
        _, (new, _) = arrays(question, question.context, question.target)
        return belief(question, rule(new, asked.shape[1:]), sd)

    return predict


def fit_regression(question: Question, seed: int) -> Callable[[], Belief]:
    """Ridge regression of the asked images on the given ones, of all pixels at once."""
    labels, (given, asked) = arrays(question, *question.practice)
    block = question.table.rows.groupby(question.table.group)[question.table.block].first()[labels].to_numpy()
    shape, x, y = asked.shape, given.reshape(len(given), -1), asked.reshape(len(asked), -1)
    center_x, center_y = x.mean(0), y.mean(0)
    folds = pd.factorize(block)[0] % 5

    def solved(train: np.ndarray, ridge: float, new: np.ndarray) -> np.ndarray:
        """Return predictions by the dual form: letters are fewer than pixels."""
        gram = (x[train] - center_x) @ (x[train] - center_x).T
        dual = np.linalg.solve(gram + ridge * np.eye(len(gram)), y[train] - center_y)
        return center_y + (new - center_x) @ (x[train] - center_x).T @ dual

    trials = {}
    for ridge in (1.0, 10.0, 100.0):
        guess = np.empty_like(y)
        for fold in range(5):
            guess[folds == fold] = solved(folds != fold, ridge, x[folds == fold])
        trials[ridge] = guess
    best = min(trials, key=lambda ridge: float(np.mean((trials[ridge] - y) ** 2)))
    sd = np.sqrt(np.mean((trials[best] - y) ** 2, axis=0)).reshape(shape[1:])

    def predict() -> Belief:
        _, (new, _) = arrays(question, question.context, question.target)
        mean = solved(np.ones(len(x), dtype=bool), best, new.reshape(len(new), -1))
        return belief(question, mean.reshape(len(new), *shape[1:]), sd)

    return predict


def arrays(question: Question, context: pd.DataFrame, target: pd.DataFrame) -> tuple[list, Images]:
    """Return labels, and images (letters, styles, pixels) of context and target. Letters and styles are sorted."""
    table, found = question.table, []
    labels = sorted(context[table.group].unique())
    for rows in (context, target):
        rows = rows.sort_values([table.group, *table.x])
        found.append(rows[table.y].to_numpy(dtype=float).reshape(len(labels), -1, len(table.y)))
    return labels, (found[0], found[1])


def belief(question: Question, mean: np.ndarray, sd: np.ndarray) -> Belief:
    """Return images as rows in the order of the target."""
    table = question.table
    order = question.target.reset_index(drop=True).sort_values([table.group, *table.x]).index
    flat, spread = np.empty((2, len(order), len(table.y)))
    flat[order] = mean.reshape(-1, len(table.y))
    spread[order] = np.broadcast_to(np.maximum(sd, 1e-3), mean.shape).reshape(-1, len(table.y))
    return Belief(flat, spread)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return squared distances (letters, other letters) over all given images."""
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    return np.maximum((one**2).sum(-1)[:, None] + (other**2).sum(-1) - 2 * one @ other.T, 0.0)


def blended(
    squares: np.ndarray, asked: np.ndarray, temperature: float, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Return the weighted mean of the asked images of the allowed letters."""
    logits = -squares / temperature
    if allowed is not None:
        logits = np.where(allowed, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("gh,hsp->gsp", weights / weights.sum(-1, keepdims=True), asked, optimize=True)
