"""Moments and quantiles of mixtures of equally likely draws."""

from collections.abc import Callable

import torch
from torch import Tensor


def mixture_variance(means: Tensor, variances: Tensor) -> Tensor:  # shape: 2 x (S, *shape) -> (*shape)
    """Variance of a mixture: E[Var] + Var[E] over S equally likely draws (the law of total variance).

    Args:
        means: Mean of each draw.
        variances: Variance of each draw.

    Examples:
        >>> mixture_variance(means=torch.tensor([0.0, 2.0]), variances=torch.tensor([0.5, 0.5]))
        tensor(1.5000)
    """
    return variances.mean(0) + (means - means.mean(0)).square().mean(0)


def smooth_mixture(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:  # shape: 2 x (S, *shape) -> same
    """A smooth mixture with the mean and the variance of S equally likely Gaussian draws.

    Draws far apart, compared with their variances, would leave the density between and beyond them to chance. Each
    becomes a kernel of width h, and moves towards the mean of all (West 1993, "Approximating posterior distributions by
    mixtures").

    Args:
        means: Mean of each draw.
        variances: Variance of each draw.

    Returns:
        Mean and variance of each kernel.

    Examples:
        >>> means = torch.tensor([-3.0, -1.0, 1.0, 3.0])
        >>> moved, widened = smooth_mixture(means, torch.full([4], 0.01))
        >>> moved
        tensor([-1.9573, -0.6524,  0.6524,  1.9573])
        >>> mixture_variance(moved, widened), mixture_variance(means, torch.full([4], 0.01))
        (tensor(5.0100), tensor(5.0100))
    """
    center, between = means.mean(0), means.var(0, unbiased=False)
    width = len(means) ** -0.4  # h squared
    return center + (1 - width) ** 0.5 * (means - center), variances + width * between


def mixture_quantile(
    cdf: Callable[[Tensor], Tensor], probability: float | Tensor, low: Tensor, high: Tensor, tolerance: Tensor | None
) -> Tensor:
    """Quantiles of a distribution that is given by its cdf, by bisection.

    Args:
        cdf: Values to probabilities, each the shape of `low`, not decreasing.
        probability: In (0, 1). It broadcasts against `low`.
        low: A value that is not above the quantile.
        high: A value that is not below the quantile, the shape of `low`.
        tolerance: Largest error for continuous values, positive. It broadcasts against `low`. None searches the
            smallest integer whose cdf reaches the probability. This search is exact.

    Returns:
        The shape of `low`. An error cannot be smaller than the spacing of floating-point numbers at the quantile.

    Examples:
        >>> means = torch.tensor([[0.0], [2.0]])  # a mixture of N(0, 1) and N(2, 1)
        >>> cdf = lambda value: torch.distributions.Normal(means, 1.0).cdf(value).mean(0)
        >>> low, high = torch.tensor([-9.0]), torch.tensor([9.0])
        >>> mixture_quantile(cdf, 0.5, low, high, tolerance=torch.tensor(1e-4)).round(decimals=3)
        tensor([1.])
    """
    if tolerance is None:
        low, high = low.floor() - 1, high.ceil() + 1  # rounding may have moved a bound over an integer
    enough = 1.0 if tolerance is None else 2 * tolerance
    for _ in range(200):  # halves any interval of float64 to its spacing
        wide = high - low > enough  # an element that is done stays, so that answers do not depend on other elements
        if not bool(wide.any()):
            break
        middle = low + (high - low) / 2
        middle = middle.floor() if tolerance is None else middle
        above = cdf(middle) >= probability
        low, high = torch.where(wide & ~above, middle, low), torch.where(wide & above, middle, high)
    return high if tolerance is None else low + (high - low) / 2
