"""The posterior of angles that were not observed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.models._projected_normal import CircularProjectedNormal


class AnglePosterior:
    """q(w | y) of angles: a projected normal on the circle.

    Attributes:
        concentration: Vectors (G, Q, 2). The direction is the middle of the distribution, the length its concentration.
        period: Period of the angle, in its unit.

    Examples:
        >>> posterior = AnglePosterior(torch.tensor([[[0.0, 3.0], [-3.0, 0.0]]]), period=360.0)
        >>> posterior.mean  # degrees
        tensor([[ 90., 180.]])
        >>> posterior.log_prob(torch.tensor([[90.0, 90.0]])).exp()  # densities, a degree
        tensor([[2.0891e-02, 3.0858e-05]])
    """

    def __init__(self, concentration: Tensor, period: float) -> None:
        self.concentration, self.period = concentration, period

    @property
    def mean(self) -> Tensor:
        """The middle of the distribution, in [0, period), (G, Q)."""
        return angle_of(self.concentration, self.period)

    def log_prob(self, angle: Tensor) -> Tensor:
        """Log density at angles (*s, G, Q), per unit of the angle.

        Raises:
            ArgumentError: If `angle` is not numeric.
        """
        angle = check.as_reals(angle, "angle", like=self.concentration)
        direction = direction_of(angle.to(self.concentration.dtype), self.period)
        density = CircularProjectedNormal(self.concentration).log_prob(direction)
        return density + math.log(2 * math.pi / self.period)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw angles, (*sample_shape, G, Q), in [0, period).

        Raises:
            ArgumentError: If `sample_shape` is not a sequence of integers.
        """
        direction = CircularProjectedNormal(self.concentration).sample(check.as_sample_shape(sample_shape))
        return angle_of(direction, self.period)


def angle_of(direction: Tensor, period: float) -> Tensor:
    """Angle in [0, period) of vectors (*b, 2), shape (*b)."""
    angle = torch.atan2(direction[..., 1], direction[..., 0]).remainder(2 * math.pi) * (period / (2 * math.pi))
    return torch.where(angle >= period, 0.0, angle)  # rounding makes a tiny negative angle a whole turn


def direction_of(angle: Tensor, period: float) -> Tensor:
    """Unit vectors (*b, 2) of angles (*b)."""
    phase = 2 * math.pi / period * angle
    return torch.stack([phase.cos(), phase.sin()], dim=-1)
