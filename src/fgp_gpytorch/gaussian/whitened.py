"""The posterior of whitened variables u ~ N(0, I), z = m + Phi u, K = Phi Phi'.

z itself has no density where K is singular (a global channel, a repeated x); u always has one, and the KL between
posterior and prior is the same for both. Joint samples and the Pyro pair are drawn through it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.gaussian.precision import root_precision


class WhitenedFactor(NamedTuple):
    """q(u) = N(C^-T C^-1 Phi' R^2 r, B^-1), B = I_M + Phi' R^2 Phi = C C'.

    Attributes:
        root: Phi, (*b, Q, M).
        cholesky: C, (*b, M, M).
        mean: Posterior mean of u, (*b, M).
        precision: B, (*b, M, M).
    """

    root: Tensor
    cholesky: Tensor
    mean: Tensor
    precision: Tensor

    def rsample(self, noise: Tensor) -> Tensor:
        """Phi u for u = mean + C^-T noise.

        Args:
            noise: Standard normal, (*s, *b, M).

        Returns:
            z less the prior mean, (*s, *b, Q).
        """
        step = torch.linalg.solve_triangular(self.cholesky.mT, noise.unsqueeze(-1), upper=True)
        return (self.root @ (self.mean.unsqueeze(-1) + step)).squeeze(-1)


def whitened_factor(root: Tensor, precision: Tensor, residual: Tensor) -> WhitenedFactor:
    """Condition u on the pseudo-observations of z = Phi u.

    Args:
        root: Phi, (*b, Q, M).
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Returns:
        The factor.
    """
    scale = root_precision(precision)
    scaled = scale.unsqueeze(-1) * root  # R Phi
    b = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device) + scaled.mT @ scaled
    cholesky = torch.linalg.cholesky(b)
    mean = torch.cholesky_solve(scaled.mT @ (scale * residual).unsqueeze(-1), cholesky).squeeze(-1)
    return WhitenedFactor(root, cholesky, mean, b)
