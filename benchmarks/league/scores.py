"""Scores of predictive distributions, in standard deviations of the training rows, averaged over columns."""

import dataclasses

import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.league.tasks import Question
from fgp_gpytorch.likelihoods import smooth_mixture

Z90 = stats.norm.ppf(0.95)


@dataclasses.dataclass(frozen=True)
class Belief:
    """A predictive distribution of the values of a target table.

    Attributes:
        mean: (rows, columns), in the table's own units.
        sd: Standard deviations of the same shape; None = no statement.
        draws: (draws, rows, columns), for distributions that are no Gaussians; None = a Gaussian.
        draw_sd: Observation noise about each draw, which broadcasts with the draws. The belief is their smooth mixture.
    """

    mean: np.ndarray
    sd: np.ndarray | None = None
    draws: np.ndarray | None = None
    draw_sd: np.ndarray | None = None


def scores(question: Question, belief: Belief) -> dict[str, float]:
    """Score a belief about the target.

    - `mse`: squared error of the mean, in training variances.
    - `nll`: -log p, nats per value. Continuous columns have densities per training standard deviation; the others have
      probabilities of their levels. A Gaussian's probability of a level is that of the interval around the level.
    - `crps`: in training standard deviations.
    - `coverage_90`: of central intervals, continuous columns only.

    Each score is the mean over the values of a column, averaged over columns.
    """
    columns = [column_scores(question, belief, n) for n in range(len(question.table.y))]
    return {name: float(value) for name, value in pd.DataFrame([c for c in columns if c]).mean().items()}


def column_scores(question: Question, belief: Belief, number: int) -> dict[str, float]:
    """Score one column. Empty if none of its values is asked for."""
    name = question.table.y[number]
    center, scale = question.mean[name], question.scale[name]
    truth = question.target[name].to_numpy(dtype=float)
    asked = ~np.isnan(truth)
    if not asked.any():
        return {}
    y, mean = (truth[asked] - center) / scale, (belief.mean[asked, number] - center) / scale
    assert np.isfinite(mean).all(), name
    found = {"mse": float(np.mean((y - mean) ** 2))}
    if belief.sd is None and belief.draws is None:
        return found
    if belief.draws is None:
        assert belief.sd is not None
        mu, sd = mean[None], belief.sd[None, asked, number] / scale
    else:
        assert belief.draw_sd is not None
        mu = (belief.draws[:, asked, number] - center) / scale
        sd = np.broadcast_to(belief.draw_sd, belief.draws.shape)[:, asked, number] / scale
        mu, variance = smooth_mixture(torch.from_numpy(mu), torch.from_numpy(sd**2))
        mu, sd = mu.numpy(), variance.sqrt().numpy()
    if name in question.table.levels:
        levels = (np.array(question.table.levels[name]) - center) / scale
        return found | discrete_scores(y, levels, level_probabilities(levels, mu, sd))
    return found | mixture_scores(y, mu, sd)


def mixture_scores(y: np.ndarray, mu: np.ndarray, sd: np.ndarray) -> dict[str, float]:
    """Score equal mixtures of Gaussians (components, values); one component is a Gaussian."""
    log_density = np.logaddexp.reduce(stats.norm.logpdf(y, mu, sd), axis=0) - np.log(len(mu))
    cumulative = stats.norm.cdf(y, mu, sd).mean(0)
    # CRPS = E|Y - y| - E|Y - Y'| / 2, both in closed form; pairs of components are each with the next one
    if len(mu) == 1:
        crps = folded(mu - y, sd)[0] - sd[0] / np.sqrt(np.pi)
    else:
        spread = np.mean([folded(mu - np.roll(mu, k, 0), np.hypot(sd, np.roll(sd, k, 0))).mean(0)
                          for k in range(1, min(len(mu), 12))], axis=0)  # fmt: skip
        crps = folded(mu - y, sd).mean(0) - spread / 2
    inside = (cumulative >= 0.05) & (cumulative <= 0.95)
    return {"nll": -float(log_density.mean()), "crps": float(crps.mean()), "coverage_90": float(inside.mean())}


def folded(mu: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return E|X| of Gaussians."""
    z = mu / sd
    return sd * (2 * stats.norm.pdf(z) + z * (2 * stats.norm.cdf(z) - 1))


def level_probabilities(levels: np.ndarray, mu: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return the probability of each level (values, levels): of the interval that is nearer to it than to others."""
    edges = (levels[1:] + levels[:-1]) / 2
    below = stats.norm.cdf(edges, mu[..., None], sd[..., None]).mean(0)
    return np.diff(below, axis=-1, prepend=0.0, append=1.0)


def discrete_scores(y: np.ndarray, levels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Score probabilities of levels. The CRPS of a step function is the sum over its steps."""
    place = np.abs(y[:, None] - levels).argmin(-1)
    own = np.take_along_axis(probabilities, place[:, None], -1)[:, 0]
    steps = np.cumsum(probabilities, -1)[:, :-1] - (place[:, None] <= np.arange(len(levels) - 1))
    crps = (steps**2 * np.diff(levels)).sum(-1)
    return {"nll": -float(np.log(np.maximum(own, 1e-6)).mean()), "crps": float(crps.mean())}


def scored_elsewhere(
    question: Question, mean: np.ndarray, low: np.ndarray, high: np.ndarray, reported: pd.DataFrame
) -> dict[str, float]:
    """Score forecasts (rows, columns) with limits of 90 % intervals. NLL and CRPS are reported in the table's units.

    Args:
        question: The question.
        mean: Predictive means.
        low: Lower limits.
        high: Upper limits.
        reported: The columns `nll` and `crps`, with a row for each column of y. The CRPS of a column with levels, which
            are at equal distances, is in steps of a level.
    """
    found = []
    for number, name in enumerate(question.table.y):
        truth, scale = question.target[name].to_numpy(dtype=float), question.scale[name]
        asked = ~np.isnan(truth)
        if not asked.any():
            continue
        y, m = truth[asked], mean[asked, number]
        assert np.isfinite(m).all(), name
        discrete = name in question.table.levels
        step = float(np.mean(np.diff(question.table.levels[name]))) if discrete else 1.0
        row = {"mse": float(np.mean(((y - m) / scale) ** 2)), "crps": reported.loc[name, "crps"] * step / scale}
        row["nll"] = reported.loc[name, "nll"] - (0.0 if discrete else np.log(scale))
        if not discrete:
            row["coverage_90"] = float(np.mean((low[asked, number] <= y) & (y <= high[asked, number])))
        found.append(row)
    return {name: float(value) for name, value in pd.DataFrame(found).mean().items()}
