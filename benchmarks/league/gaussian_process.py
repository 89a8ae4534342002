"""The classical model of one column: a Gaussian process of each group, with hyperparameters that all groups share.

    y_gi = m(x_gi) + f_g(x_gi) + noise        m: a constant, or the mean of the training groups at x
    k(x, x') = level + amplitude Matern_3/2(|x - x'| / lengthscale)

The evidence is exact: groups are independent, so it is a sum over groups. L-BFGS maximizes it from two starts. With
several x there is a lengthscale for each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.league.rules import mean_at_x
from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

STARTS = (0.2, 1.0)  # of the lengthscale, in standard deviations of x
Groups = tuple[Tensor, Tensor, Tensor]  # x (G, Q, D), y (G, Q), observed (G, Q)


def fit_gp(question: Question, seed: int, with_mean_at_x: bool) -> Callable[[], Belief]:
    """Fit a Gaussian process to each column; return a function that predicts the target."""
    labels = np.sort(question.train[question.table.group].unique())
    known = {name: fitted(grouped(question, question.train, labels, name, with_mean_at_x)) for name in question.table.y}

    def predict() -> Belief:
        columns = [predicted_column(question, name, known[name], with_mean_at_x) for name in question.table.y]
        mean, sd = np.stack(columns, axis=-1)
        return Belief(mean, sd)

    return predict


def trend(question: Question, rows: pd.DataFrame, name: str, with_mean_at_x: bool) -> np.ndarray:
    """Return the part of the mean that is not learned, in the table's units."""
    return mean_at_x(question, rows, name) if with_mean_at_x else np.full(len(rows), question.mean[name])


def grouped(question: Question, rows: pd.DataFrame, labels: np.ndarray, name: str, with_mean_at_x: bool) -> Groups:
    """Return the residuals of one column, standardised, and the standardised x, in groups in the order of labels."""
    x = question.train[question.table.x]
    y = (rows[name].to_numpy(dtype=float) - trend(question, rows, name, with_mean_at_x)) / question.scale[name]
    inputs = ((rows[question.table.x] - x.mean()) / x.std()).to_numpy(dtype=float)
    return padded(pd.Series(labels).searchsorted(rows[question.table.group]), len(labels), inputs, y)


def predicted_column(
    question: Question, name: str, parameters: Tensor, with_mean_at_x: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of one column at the rows of the target, in the table's units."""
    target, group = question.target, question.table.group
    labels = np.sort(target[group].unique())
    known = question.context[question.context[group].isin(labels)]
    context, (x_new, *_) = (grouped(question, rows, labels, name, with_mean_at_x) for rows in (known, target))
    with torch.no_grad():
        mean, variance = predicted(parameters, context, x_new)
    there = place_of(target[group], labels)
    scale = question.scale[name]
    return (
        trend(question, target, name, with_mean_at_x) + scale * mean[there].numpy(),
        scale * variance[there].sqrt().numpy(),
    )


def place_of(groups: pd.Series, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return for each row the place of its group, and its place in its group."""
    place = groups.groupby(groups).cumcount().to_numpy()
    return torch.tensor(pd.Series(labels).searchsorted(groups)), torch.tensor(place)


def padded(group: np.ndarray, groups: int, x: np.ndarray, y: np.ndarray) -> Groups:
    """Sort rows into groups of equal size. A value that is missing is not observed."""
    place = pd.Series(group).groupby(group).cumcount().to_numpy(copy=True)
    most = int(place.max(initial=0)) + 1
    seen = ~np.isnan(y)
    tensors = (torch.zeros(groups, most, x.shape[1]), torch.zeros(groups, most), torch.zeros(groups, most))
    inputs, values, observed = (tensor.double() for tensor in tensors)
    inputs[group, place] = torch.tensor(x)
    values[group, place] = torch.tensor(np.where(seen, y, 0.0))
    observed[group, place] = torch.tensor(seen).double()
    return inputs, values, observed.bool()


def covariance(parameters: Tensor, x: Tensor, x_new: Tensor) -> Tensor:
    """k(x, x_new), (*, Q, Q*)."""
    level, amplitude, lengthscales = parameters[0].exp(), parameters[1].exp(), parameters[4:].exp()
    difference = (x.unsqueeze(-2) - x_new.unsqueeze(-3)) / lengthscales
    squared = difference.square().sum(-1)
    r = math.sqrt(3) * torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
    return level + amplitude * (1 + r) * torch.exp(-r)


def factor(parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """Return the Cholesky factor of each covariance (*, Q, Q). A missing member has a row of the identity."""
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    eye = torch.eye(x.shape[-2], dtype=x.dtype)
    return torch.linalg.cholesky(torch.where(both, covariance(parameters, x, x) + parameters[2].exp() * eye, eye))


class Patterns(NamedTuple):
    """Groups that share inputs and missing members have one covariance, and one matrix of second moments.

    Attributes:
        x: Inputs of each pattern, (U, Q, D).
        observed: (U, Q).
        count: Groups of each pattern, (U,).
        moments: Sums over groups of y y', y 1' + 1 y', and 1 1', observed members only, (3, U, Q, Q).
    """

    x: Tensor
    observed: Tensor
    count: Tensor
    moments: Tensor

    @classmethod
    def of(cls, groups: Groups) -> "Patterns":
        """Collect the groups of each pattern."""
        x, y, observed = groups
        keys = torch.cat([(x * observed.unsqueeze(-1)).flatten(1), observed.double()], -1)
        _, index, count = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
        first = torch.zeros(len(count), dtype=torch.long).scatter_(0, index.flip(0), torch.arange(len(x)).flip(0))
        y, one = (y * observed).unsqueeze(-1), observed.double().unsqueeze(-1)
        products = torch.stack([y @ y.mT, y @ one.mT + one @ y.mT, one @ one.mT])
        moments = torch.zeros(3, len(count), *products.shape[2:]).double().index_add_(1, index, products)
        return cls(x[first], observed[first], count.double(), moments)


def evidence(parameters: Tensor, patterns: Patterns) -> Tensor:
    """Return the log marginal likelihood of all groups."""
    root = factor(parameters, patterns.x, patterns.observed)
    yy, y1, one = patterns.moments
    squares = yy - parameters[3] * y1 + parameters[3] ** 2 * one
    log_root = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    observed = (patterns.observed.sum(-1) * patterns.count).sum()
    fit = (torch.cholesky_inverse(root) * squares).sum()
    return -0.5 * fit - (patterns.count * log_root).sum() - 0.5 * math.log(2 * math.pi) * observed


def fitted(groups: Groups) -> Tensor:
    """Maximize the evidence. Returns log level, log amplitude, log noise, mean, log lengthscales."""
    patterns, observed = Patterns.of(groups), groups[2].sum()
    trials = [maximized(patterns, observed, start) for start in STARTS]
    return min(trials, key=lambda trial: trial[0] if math.isfinite(trial[0]) else math.inf)[1]


def maximized(patterns: Patterns, observed: Tensor, start: float) -> tuple[float, Tensor]:
    """Return the negative evidence per value, and the parameters, that L-BFGS finds from a lengthscale."""
    raw = torch.tensor([-0.7, -0.7, -2.3, 0.0, *[math.log(start)] * patterns.x.shape[-1]]).double().requires_grad_()
    optimizer = torch.optim.LBFGS([raw], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -evidence(bounded(raw), patterns) / observed
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found = bounded(raw)
        return -float(evidence(found, patterns) / observed), found


def bounded(raw: Tensor) -> Tensor:
    """Keep variances and lengthscales where the Cholesky factor exists."""
    return torch.cat([raw[:2].clamp(-14, 7), raw[2:3].clamp(-9, 3), raw[3:4], raw[4:].clamp(-5, 5)])


def predicted(parameters: Tensor, context: Groups, x_new: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of new observations (G, Q*), given the groups' contexts."""
    x, y, observed = context
    root = factor(parameters, x, observed)
    cross = covariance(parameters, x, x_new) * observed.unsqueeze(-1)
    residual = ((y - parameters[3]) * observed).unsqueeze(-1)
    half, white = (torch.linalg.solve_triangular(root, part, upper=False) for part in (cross, residual))
    mean = parameters[3] + (half * white).sum(-2)
    prior = parameters[0].exp() + parameters[1].exp() + parameters[2].exp()
    return mean, prior - half.square().sum(-2)
