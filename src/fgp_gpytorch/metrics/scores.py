"""Scores of a predictive distribution that is given by draws. Pure functions of tensors."""

import math
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, ShapeError

__all__ = [
    "central_interval",
    "crps_of_samples",
    "crps_of_sorted",
    "gaussian_crps",
    "interval_of_sorted",
    "log_mean_exp",
]


def log_mean_exp(log_prob: Tensor) -> Tensor:  # shape: (S, *shape) -> (*shape)
    """Log density of the mixture of S equally likely draws, nats: log 1/S sum_s exp log_prob_s.

    Raises:
        ArgumentError: If `log_prob` is not numeric.
        DataError: If there is no draw.

    Examples:
        >>> log_mean_exp(torch.tensor([0.2, 0.4]).log()).exp()
        tensor(0.3000)
        >>> log_mean_exp(torch.tensor([-1000.0, -1000.0]))
        tensor(-1000.)
    """
    log_prob = _draws(log_prob, "log_prob")
    return log_prob.logsumexp(0) - math.log(len(log_prob))


def crps_of_samples(samples: Tensor, y: Tensor) -> Tensor:  # shape: (S, *shape), (*shape) -> (*shape)
    r"""Continuous ranked probability score of each element, from draws, in units of y. Lower is better.

        CRPS = E|X - y| - 1/2 E|X - X'|   (Gneiting and Raftery 2007, "Strictly proper scoring rules", eq. 21)

    The second mean is over pairs of different draws, the "fair" form (Ferro 2014, "Fair scores for ensemble
    forecasts"). It is unbiased for every S. A single element can be slightly below 0.

    Args:
        samples: S draws of the predictive distribution, S at least 2.
        y: The observation.

    Raises:
        ShapeError: If the shapes do not fit.
        DataError: If there are fewer than two draws.

    Examples:
        >>> crps_of_samples(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))  # E|X - y| = 1, and E|X - X'| = 2
        tensor([0.])
        >>> crps_of_samples(torch.tensor([[0.0], [2.0]]), torch.tensor([3.0]))
        tensor([1.])
    """
    samples, y = _draws(samples, "samples"), check.as_reals(y, "y")
    if samples.shape[1:] != y.shape:
        raise ShapeError(
            f"samples: expected (S, *shape of y) = (S, {', '.join(map(str, y.shape))}), got {tuple(samples.shape)}. "
            "Try y without a dimension of draws."
        )
    if len(samples) < 2:
        raise DataError(f"samples: expected at least 2 draws, got {len(samples)}. Try num_samples=199.")
    return crps_of_sorted(samples.sort(0).values, y)


def crps_of_sorted(ordered: Tensor, y: Tensor) -> Tensor:  # shape: (S, *shape), (*shape) -> (*shape)
    """As `crps_of_samples`, from sorted draws: sum_{s < t} |x_s - x_t| = sum_s (2 s - S - 1) x_(s)."""
    number = len(ordered)
    rank = torch.arange(1, number + 1, dtype=ordered.dtype, device=ordered.device)
    pairs = torch.tensordot(2 * rank - number - 1, ordered, dims=1) / (number * (number - 1))
    return (ordered - y).abs().mean(0) - pairs


def gaussian_crps(error: Tensor, deviation: Tensor) -> Tensor:  # shape: (*shape), (*shape) -> (*shape)
    """Continuous ranked probability score of Gaussians, in units of y. Lower is better.

    The closed form of Gneiting and Raftery 2007, "Strictly proper scoring rules", equation 21.

    Args:
        error: y less the mean.
        deviation: Standard deviation, above 0.

    Raises:
        ShapeError: If the shapes do not fit.
        DataError: If a standard deviation is not positive.

    Examples:
        >>> gaussian_crps(error=torch.tensor([0.0, 2.0]), deviation=torch.tensor([1.0, 1.0]))
        tensor([0.2337, 1.4528])
        >>> gaussian_crps(error=torch.tensor([2.0]), deviation=torch.tensor([1e-6]))  # then it is the absolute error
        tensor([2.0000])
    """
    error, deviation = check.as_reals(error, "error"), check.as_reals(deviation, "deviation")
    if error.shape != deviation.shape:
        raise ShapeError(
            f"deviation: expected the shape of error, {tuple(error.shape)}, got {tuple(deviation.shape)}. Try "
            "deviation.expand_as(error)."
        )
    if not bool((deviation > 0).all()):
        raise DataError("deviation: expected standard deviations above 0, got others. Try variance.sqrt().")
    u = error / deviation
    density = (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi)
    return deviation * (u * (2 * torch.special.ndtr(u) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def central_interval(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:  # shape: (S, *shape) -> 2 x (*shape)
    r"""Ends of the central interval with the probability `level`, in units of the draws.

    The quantile of probability p has rank p (S + 1) among the ordered draws, linearly interpolated (Hyndman and Fan
    1996, "Sample quantiles in statistical packages", definition 6). With S = 19, 39, ... 199 the ranks of 5, 25, 75
    and 95 % are integers. Then the interval contains a further draw of the same distribution with probability `level`
    exactly. Definition 7, the default of `torch.quantile`, gives intervals that are too narrow.

    Args:
        samples: S draws, so many that both ranks are within 1 to S.
        level: Probability inside, in (0, 1).

    Raises:
        ArgumentError: If the level is outside (0, 1).
        DataError: If there are too few draws for it.

    Examples:
        >>> samples = torch.arange(1.0, 20.0).unsqueeze(-1)  # 19 draws 1, 2, ... 19
        >>> central_interval(samples, 0.9)
        (tensor([1.]), tensor([19.]))
    """
    return interval_of_sorted(_draws(samples, "samples").sort(0).values, level)


def interval_of_sorted(ordered: Tensor, level: float) -> tuple[Tensor, Tensor]:  # shape: (S, *shape) -> 2 x (*shape)
    """As `central_interval`, from sorted draws.

    Raises:
        ArgumentError: If the level is outside (0, 1).
        DataError: If there are too few draws for it.
    """
    tail = (1 - check.positive(level, "level", below=1, hint="It is a probability. Try 0.9.")) / 2
    rank = tail * (len(ordered) + 1)
    if rank < 1 - 1e-9:
        raise DataError(
            f"samples: expected at least {math.ceil(1 / tail - 1 - 1e-9)} draws for an interval of {level:.0%}, got "
            f"{len(ordered)}. Try num_samples=199."
        )
    return _at_rank(ordered, rank), _at_rank(ordered, len(ordered) + 1 - rank)


def _draws(samples: Any, name: str) -> Tensor:  # shape: (S, *shape)
    samples = check.as_reals(samples, name)
    if samples.dim() == 0 or not len(samples):
        raise DataError(f"{name}: expected draws (S, *shape), got {tuple(samples.shape)}. Try num_samples=199.")
    return samples


def _at_rank(ordered: Tensor, rank: float) -> Tensor:
    below = min(max(math.floor(rank + 1e-9), 1), len(ordered))
    above = min(below + 1, len(ordered))
    return torch.lerp(ordered[below - 1], ordered[above - 1], max(rank - below, 0.0))
