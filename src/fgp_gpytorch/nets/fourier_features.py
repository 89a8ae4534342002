"""Auxiliary features as inputs of networks."""

import math

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.saving import Configurable


class FourierFeatures(Configurable, nn.Module):
    r"""An angle as a point on the circle: cos(2 pi k x / period), sin(2 pi k x / period) for k = 1 ... harmonics.

    Args:
        harmonics: Number of harmonics; 1 determines the position of x on the circle.
        period: Period of x, in its units (2 pi for radians).

    Shape:
        Input (*batch, D); output (*batch, 2 * harmonics * D).

    Raises:
        ArgumentError: If `harmonics` is not a positive integer, or `period` not a positive finite number.

    Examples:
        >>> FourierFeatures(period=24)(torch.tensor([[0.0], [4.0], [24.0]])).round(decimals=4).abs()  # hours of a day
        tensor([[1.0000, 0.0000],
                [0.5000, 0.8660],
                [1.0000, 0.0000]])
    """

    def __init__(self, harmonics: int = 1, period: float = 2 * math.pi) -> None:
        super().__init__()
        self.harmonics = check.count(harmonics, "harmonics")
        self.period = check.positive(period, "period", hint="Try 2 * math.pi for radians.")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features.

        Raises:
            ArgumentError: If x is no tensor.
        """
        check.instance(x, "x", Tensor, "Try torch.as_tensor(x).")
        order = torch.arange(1, self.harmonics + 1, dtype=x.dtype, device=x.device)
        phase = (2 * math.pi / self.period) * x.unsqueeze(-1) * order
        return torch.cat([phase.cos(), phase.sin()], dim=-1).flatten(-2)
