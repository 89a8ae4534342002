"""A piecewise-linear mean, and sums of means."""

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.saving import Configurable


class PiecewiseLinearMean(Configurable, Mean):
    r"""m(x) = values interpolated linearly between knots, and constant beyond the first and the last knot.

    It is what all groups share at each x. `knots_of` chooses knots at the quantiles of x.

    Args:
        knots: Increasing, (M,), in the units of x.
        batch_shape: [] for one mean of all channels of a block, [J] for one mean each.
        feature: Which of the D features is x.

    Attributes:
        values: The mean at the knots, (*batch_shape, M), 0 at the start.

    Raises:
        ArgumentError: If `feature` is not an integer of at least 0, or `batch_shape` not a sequence of sizes.
        DataError: If there are fewer than two knots, or they do not increase.
        ShapeError: In use, if x has too few features.

    Examples:
        >>> mean = PiecewiseLinearMean([0.0, 1.0, 3.0])
        >>> mean.values.data = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
        >>> mean(torch.tensor([[0.5], [2.0]])).tolist()
        [1.0, 3.0]
    """

    knots: Tensor

    def __init__(
        self,
        knots: Any,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008  # GPyTorch's own way
        feature: int = 0,
    ) -> None:
        super().__init__()
        knots = check.finite(check.as_reals(knots, "knots"), "knots").double()
        if knots.dim() != 1 or len(knots) < 2 or not bool((knots[1:] > knots[:-1]).all()):
            raise DataError(
                f"knots: expected at least two increasing numbers, got {knots.tolist()}. "
                "Try PiecewiseLinearMean.knots_of(x)."
            )
        self.feature = check.count(feature, "feature", least=0, hint="Try 0, the position of x among the features.")
        hint = "Try torch.Size([8]) for eight channels."
        sizes = check.instance(batch_shape, "batch_shape", (tuple, list), hint)
        self.batch_shape = torch.Size([check.count(size, "batch_shape", hint=hint) for size in sizes])
        self.register_buffer("knots", knots)
        self.values = torch.nn.Parameter(torch.zeros(*self.batch_shape, len(knots), dtype=knots.dtype))

    @staticmethod
    def knots_of(x: Tensor, num_knots: int = 12) -> Tensor:
        """Return different quantiles of x (N,) with equal probabilities between them, at most `num_knots`.

        Raises:
            ArgumentError: If `num_knots` is not an integer of at least 2.
            DataError: If x has only one value.
        """
        num_knots = check.count(num_knots, "num_knots", least=2)
        x = check.finite(check.as_reals(x, "x"), "x").flatten().double()
        probabilities = torch.linspace(0, 1, num_knots, dtype=x.dtype, device=x.device)
        knots = x.quantile(probabilities).unique() if x.numel() < 10**7 else x[:: len(x) // 10**6].unique()
        if len(knots) < 2:
            raise DataError(f"x: expected different values, got {float(x[0]):g} only. Try ConstantMean().")
        return knots

    def basis(self, x: Tensor) -> Tensor:
        """Hat functions of all knots at x (*b, N, D), shape (*b, N, M). The mean is their sum weighted by `values`."""
        if self.feature >= x.shape[-1]:
            raise ShapeError(
                f"feature: expected one of the {x.shape[-1]} features of x, got {self.feature}. Try feature=0."
            )
        knots = self.knots.to(x.dtype)
        t = x[..., self.feature].contiguous()
        right = torch.searchsorted(knots, t).clamp(1, len(knots) - 1)
        weight = ((t - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1).unsqueeze(-1)
        hats = torch.nn.functional.one_hot(torch.stack([right - 1, right]), len(knots)).to(x.dtype)
        return (1 - weight) * hats[0] + weight * hats[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (*b, N) at x (*b, N, D). Batch dimensions broadcast against `batch_shape`."""
        return (self.basis(x) @ self.values.to(x.dtype).unsqueeze(-1)).squeeze(-1)


class AdditiveMean(Configurable, Mean):
    """The sum of several means, such as one for each feature.

    Args:
        means: GPyTorch means, with `batch_shape` [] or [J].

    Raises:
        ArgumentError: If there is no mean, or an element is not a module.

    Examples:
        >>> level, slope = gpytorch.means.ConstantMean(), PiecewiseLinearMean([0.0, 1.0])
        >>> level.constant.data, slope.values.data = torch.tensor(2.0), torch.tensor([0.0, 3.0], dtype=torch.float64)
        >>> AdditiveMean([level, slope])(torch.tensor([[0.0], [1.0]])).tolist()
        [2.0, 5.0]
    """

    def __init__(self, means: Sequence[Mean]) -> None:
        super().__init__()
        check.instance(means, "means", (list, tuple), "Try [PiecewiseLinearMean(knots), FourierMean(2, feature=1)].")
        check.count(len(means), "number of means", hint="Try [PiecewiseLinearMean(knots)].")
        for mean in means:
            check.instance(mean, "means", torch.nn.Module, "Try gpytorch.means.ConstantMean().")
        self.means = torch.nn.ModuleList(means)
        shapes = [tuple(getattr(mean, "batch_shape", ())) for mean in means]
        self.batch_shape = torch.Size(max(shapes, key=len))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the means (*b, N) at x (*b, N, D)."""
        total = self.means[0](x)
        for mean in self.means[1:]:
            total = total + mean(x)
        return total
