"""Imputation from the other columns of the row: one joint Gaussian of all columns, the same for every row.

    y ~ N(m, S),   y_lost | y_known ~ N(m_l + S_lk S_kk^-1 (y_k - m_k),  S_ll - S_lk S_kk^-1 S_kl)

m and S maximize the likelihood of the training rows, missing values included, by EM (Little and Rubin 2002, 11.2).
"""

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

ITERATIONS, RIDGE = 50, 1e-6


def fit_joint_gaussian(question: Question, seed: int) -> Callable[[], Belief]:
    """Fit the Gaussian; return a function that predicts the lost values of each row from its known ones."""
    table = question.table
    mean, covariance = maximum_likelihood(
        ((question.train[table.y] - question.mean) / question.scale).to_numpy(dtype=float)
    )

    def predict() -> Belief:
        keys = [table.group, *table.x]
        known = question.target[keys].merge(question.context, on=keys, how="left", validate="one_to_one")
        rows = ((known[table.y] - question.mean) / question.scale).to_numpy(dtype=float)
        filled, variance = np.empty_like(rows), np.empty_like(rows)
        for seen, positions in patterns(rows):
            filled[positions], spread = conditional(rows[positions], seen, mean, covariance)
            variance[positions] = spread.diagonal()
        scale = question.scale.to_numpy()
        return Belief(question.mean.to_numpy() + scale * filled, scale * np.sqrt(np.maximum(variance, RIDGE)))

    return predict


def maximum_likelihood(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return m and S of standardised rows, NaN = missing."""
    mean, covariance = np.zeros(rows.shape[1]), np.eye(rows.shape[1])
    groups = [pattern for pattern in patterns(rows) if pattern[0].any()]
    for _ in range(ITERATIONS if np.isnan(rows).any() else 1):
        total, squares, count = np.zeros_like(mean), np.zeros_like(covariance), 0
        for seen, positions in groups:
            filled, spread = conditional(rows[positions], seen, mean, covariance)
            total += filled.sum(0)
            squares += filled.T @ filled + len(positions) * spread
            count += len(positions)
        mean = total / count
        covariance = squares / count - np.outer(mean, mean) + RIDGE * np.eye(len(mean))
    return mean, covariance


def patterns(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield which columns are known, and the rows with these."""
    kinds, number = np.unique(~np.isnan(rows), axis=0, return_inverse=True)
    for n, seen in enumerate(kinds):
        yield seen, np.flatnonzero(number == n)


def conditional(
    rows: np.ndarray, seen: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected rows, and the covariance of what is lost (zero for known columns)."""
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, ~seen)])
    filled, spread = rows.copy(), np.zeros_like(covariance)
    filled[:, ~seen] = mean[~seen] + (rows[:, seen] - mean[seen]) @ gain
    spread[np.ix_(~seen, ~seen)] = covariance[np.ix_(~seen, ~seen)] - covariance[np.ix_(~seen, seen)] @ gain
    return filled, spread
