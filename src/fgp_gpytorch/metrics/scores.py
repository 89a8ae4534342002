"""Scores of a predictive distribution that is given by draws. Pure functions of tensors."""

import math

import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError, ShapeError


def log_mean_exp(log_prob: Tensor) -> Tensor:
    """Log density of the mixture of S equally likely draws: log 1/S sum_s exp log_prob_s.

    Args:
        log_prob: Log density under each draw, nats, (S, *shape).

    Returns:
        Nats, (*shape).
    """
    return log_prob.logsumexp(0) - math.log(len(log_prob))


def crps_of_samples(samples: Tensor, y: Tensor) -> Tensor:
    r"""Continuous ranked probability score of each element, from draws. Lower is better.

        CRPS = E|X - y| - 1/2 E|X - X'|   (Gneiting and Raftery 2007, "Strictly proper scoring rules", eq. 21)

    The second mean is over pairs of different draws, the "fair" form (Ferro 2014, "Fair scores for ensemble
    forecasts"), which is unbiased for every S; a single element can then be slightly below 0. With draws in ascending
    order the pairs cost a sort: sum_{s < t} |x_s - x_t| = sum_s (2 s - S - 1) x_(s).

    Args:
        samples: S draws of the predictive distribution, (S, *shape), S at least 2.
        y: What happened, (*shape).

    Returns:
        Units of y, (*shape).

    Raises:
        ShapeError: If the shapes do not fit.
        DataError: If there are fewer than two draws.
    """
    _check(samples, y, 2)
    return _crps_of_sorted(samples.sort(0).values, y)


def central_interval(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    r"""Ends of the interval that holds `level` of the predictive distribution, as much left out below as above.

    The quantile of probability p stands at rank p (S + 1) of the ordered draws, linearly interpolated between
    neighbours (Hyndman and Fan 1996, "Sample quantiles in statistical packages", definition 6). With S = 19, 39, ...
    199 the ranks of 5, 25, 75 and 95 % are integers, and then the interval holds a further draw of the same
    distribution with probability `level` exactly, however few draws there are. Definition 7, the default of
    `torch.quantile`, gives intervals that are too narrow.

    Args:
        samples: S draws, (S, *shape), at least as many as put both ranks within 1 to S.
        level: Probability inside, in (0, 1).

    Returns:
        Lower and upper end, units of the draws, each (*shape).

    Raises:
        DataError: If the level is outside (0, 1), or there are too few draws for it.
    """
    return _interval_of_sorted(samples.sort(0).values, level)


def _interval_of_sorted(ordered: Tensor, level: float) -> tuple[Tensor, Tensor]:
    if not 0 < level < 1:
        raise DataError(f"level: expected a probability in (0, 1), got {level}. Try 0.9.")
    tail = (1 - level) / 2
    rank = tail * (len(ordered) + 1)
    if rank < 1 - 1e-9:
        raise DataError(
            f"samples: expected at least {math.ceil(1 / tail - 1 - 1e-9)} draws for an interval of {level:.0%}, got "
            f"{len(ordered)}. Try num_samples=199."
        )
    return _at_rank(ordered, rank), _at_rank(ordered, len(ordered) + 1 - rank)


def _at_rank(ordered: Tensor, rank: float) -> Tensor:
    below = min(max(math.floor(rank + 1e-9), 1), len(ordered))
    above = min(below + 1, len(ordered))
    return torch.lerp(ordered[below - 1], ordered[above - 1], max(rank - below, 0.0))


def _crps_of_sorted(ordered: Tensor, y: Tensor) -> Tensor:
    number = len(ordered)
    rank = torch.arange(1, number + 1, dtype=ordered.dtype, device=ordered.device)
    pairs = torch.tensordot(2 * rank - number - 1, ordered, dims=1) / (number * (number - 1))
    return (ordered - y).abs().mean(0) - pairs


def _check(samples: Tensor, y: Tensor, least: int) -> None:
    if samples.shape[1:] != y.shape:
        raise ShapeError(
            f"samples: expected (S, *shape of y) = (S, {', '.join(map(str, y.shape))}), got {tuple(samples.shape)}. "
            "Try y without a dimension of draws."
        )
    if len(samples) < least:
        raise DataError(f"samples: expected at least {least} draws, got {len(samples)}. Try num_samples=199.")
