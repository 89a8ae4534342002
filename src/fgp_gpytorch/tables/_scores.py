"""Scores of a table's forecasts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgp_gpytorch.likelihoods import GaussianElements, smooth_mixture
from fgp_gpytorch.metrics.scores import crps_of_sorted, interval_of_sorted, log_mean_exp
from fgp_gpytorch.tables.columns import Column


def scores_of(
    column: Column, part: Any, output: Tensor, truth: np.ndarray, values: np.ndarray | None
) -> dict[str, float]:
    """Mean scores of the forecasts of one column.

    Args:
        column: The column.
        part: Its part of the likelihood.
        output: The decoder's outputs for it, (S, n, outputs).
        truth: Its true values as elements, (n, elements).
        values: The true values (n,) of a column of numbers; None for labels.

    Returns:
        The scores. Names have no CRPS and no coverage; two values have no coverage, as their interval says nothing.
    """
    if not len(truth):
        return {"mse": np.nan, "nll": np.nan, "crps": np.nan, "coverage_90": np.nan, "n": 0}
    y = torch.from_numpy(truth)
    if isinstance(part, GaussianElements):
        means, variances = smooth_mixture(part.mean(output), part.variance(output))
        log_prob = torch.distributions.Normal(means, variances.sqrt()).log_prob(y).sum(-1)
    else:
        log_prob = part.log_prob(output, y.expand(len(output), *y.shape)).sum(-1)
    nll = -(log_mean_exp(log_prob).numpy(force=True) + column.density_factor(truth)).mean()
    if column.num_elements > 1:
        error = part.mean(output).mean(0).numpy(force=True) - truth
        return {"mse": (error**2).sum(-1).mean(), "nll": nll, "crps": np.nan, "coverage_90": np.nan, "n": len(truth)}
    if values is None:
        value, draws = truth[:, 0], part.sample(output)[..., 0].numpy(force=True)
        mean = part.mean(output).mean(0)[..., 0].numpy(force=True)
    else:
        value = values
        draws = column.values(part.sample(output).numpy(force=True))
        mean = column.best(part, output)
    ordered = torch.from_numpy(np.sort(draws, axis=0).astype(np.float64))
    low, high = (bound.numpy() for bound in interval_of_sorted(ordered, 0.9))
    crps = crps_of_sorted(ordered, torch.from_numpy(value.astype(np.float64))).mean()
    inside = float(((low <= value) & (value <= high)).mean()) if column.kind != "binary" else np.nan
    return {
        "mse": ((mean - value) ** 2).mean(), "nll": nll, "crps": float(crps), "coverage_90": inside, "n": len(truth),
    }  # fmt: skip


def mean_scores(parts: list[dict[str, float]]) -> dict[str, float]:
    """Scores of all parts together, each weighted by its number of values."""
    weights = np.array([part["n"] for part in parts])
    if not weights.any():
        return parts[0]
    used = [part for part in parts if part["n"]]
    mean = {name: np.average([part[name] for part in used], weights=weights[weights > 0]) for name in used[0]}
    return {**mean, "n": int(weights.sum())}
