"""The projected normal on the circle, with a density that is accurate in its tails."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.tensor_utils import safe_normalize
from torch import Tensor

from fgp_gpytorch._shards import draw_normal

_FAR = 100.0  # where the density's tail takes its asymptotic form


class CircularProjectedNormal(dist.ProjectedNormal):
    r"""Pyro's `ProjectedNormal` in the plane, with an exact log density.

        log p(u) = -||c||^2 / 2 - log 2 pi + log(1 + t Phi(t) / phi(t)),   t = c'u

    (Hernandez-Stumpfhauser et al. 2017, eq. 1, identity covariance). Pyro clamps the last term from below. Far from the
    middle its density is then too high, and its gradient points away from the middle. Computed in float64.

    Args:
        concentration: c, (*b, 2).
    """

    def __init__(self, concentration: Tensor, *, validate_args: bool | None = False) -> None:
        super().__init__(concentration, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CircularProjectedNormal":
        """See Pyro's `expand`."""
        return CircularProjectedNormal(self.concentration.expand((*torch.Size(batch_shape), 2)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw unit vectors, (*s, *b, 2), with gradients."""
        shape, c = self._extended_shape(torch.Size(sample_shape)), self.concentration
        return safe_normalize(c + draw_normal(shape, c.dtype, c.device, group_dim=-3, member_dim=-2))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of unit vectors (*s, *b, 2), per radian."""
        c = self.concentration.double()
        t = (c * value).sum(-1)
        far, ahead = t < -_FAR, t >= 0
        # every form takes only its own t: entries that `where` drops need a finite gradient too
        forward = torch.where(ahead, t, 0.0)
        density = 0.5 * torch.erfc(-forward / math.sqrt(2))  # Phi
        front = 0.5 * forward.square() + torch.log(
            (-0.5 * forward.square()).exp() + math.sqrt(2 * math.pi) * forward * density
        )
        backward = torch.where(ahead | far, -1.0, t)
        back = torch.log1p(math.sqrt(math.pi / 2) * backward * torch.special.erfcx(-backward / math.sqrt(2)))
        beyond = torch.where(far, t, -_FAR)
        tail = -2 * (-beyond).log() + torch.log1p(-3 / beyond.square())
        ratio = torch.where(ahead, front, torch.where(far, tail, back))
        return (ratio - 0.5 * c.square().sum(-1) - math.log(2 * math.pi)).to(self.concentration.dtype)
