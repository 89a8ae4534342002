"""A learned periodic mean."""

import math

import torch
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ShapeError


class FourierMean(Mean):
    r"""m(x) = constant + sum_k a_k cos(2 pi k x / period) + b_k sin(2 pi k x / period), k = 1 ... harmonics.

    Under the paper's prior, a stationary kernel with mean zero, a draw is as likely as the same draw turned: there is
    no upright. This mean is what all groups share at each angle.

    Args:
        harmonics: Number of harmonics.
        period: Period of x, in its units (2 pi for radians).
        batch_shape: [] for one mean of all channels of a block, [J] for one mean each.
        feature: Which of the D features is x.

    Attributes:
        constant: (*batch_shape,), 0 at the start.
        coefficients: a and b, (*batch_shape, 2, harmonics), 0 at the start.

    Raises:
        ArgumentError: If `harmonics` is not a positive integer, `period` not a positive finite number, `feature` not
            an integer of at least 0, or `batch_shape` not a sequence of sizes.
        ShapeError: In use, if x has too few features.

    Examples:
        >>> mean = FourierMean(2, batch_shape=torch.Size([8]))
        >>> mean(torch.rand(5, 1)).shape
        torch.Size([8, 5])
        >>> block = LocalChannels(8, gpytorch.kernels.PeriodicKernel(), mean)
    """

    def __init__(
        self,
        harmonics: int = 1,
        period: float = 2 * math.pi,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008  # GPyTorch's own way
        feature: int = 0,
    ) -> None:
        super().__init__()
        self.harmonics = check.count(harmonics, "harmonics", hint="Try 1, or ConstantMean().")
        self.period = check.positive(period, "period", hint="Try 2 * math.pi for radians.")
        self.feature = check.count(feature, "feature", least=0, hint="Try 0, the position of x among the features.")
        hint = "Try torch.Size([8]) for eight channels."
        sizes = check.instance(batch_shape, "batch_shape", (tuple, list), hint)
        self.batch_shape = torch.Size([check.count(size, "batch_shape", hint=hint) for size in sizes])
        self.constant = torch.nn.Parameter(torch.zeros(self.batch_shape))
        self.coefficients = torch.nn.Parameter(torch.zeros(*self.batch_shape, 2, self.harmonics))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (*b, N) at x (*b, N, D). Batch dimensions broadcast against `batch_shape`."""
        if self.feature >= x.shape[-1]:
            raise ShapeError(
                f"feature: expected one of the {x.shape[-1]} features of x, got {self.feature}. Try feature=0."
            )
        order = torch.arange(1, self.harmonics + 1, dtype=x.dtype, device=x.device)
        phase = (2 * math.pi / self.period) * x[..., self.feature, None] * order  # (*b, N, harmonics)
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1)
        weights = self.coefficients.to(x.dtype).flatten(-2)  # (*batch_shape, 2 harmonics)
        return self.constant.to(x.dtype).unsqueeze(-1) + (waves * weights.unsqueeze(-2)).sum(-1)
