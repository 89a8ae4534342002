"""Posterior of one block of channels, laid out (*b, G, J, Q)."""

from abc import ABC, abstractmethod
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor


class BlockPrior(Protocol):
    """The methods of a `ChannelBlock` that its posterior calls."""

    num_channels: int
    is_global: bool
    couples_channels: bool

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""
        ...

    def add_mean(self, values: Tensor, x: Tensor) -> Tensor:
        """Values (*b, G, J, Q) plus the prior mean at x."""
        ...

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance, (*b, G, J or 1, Q1, Q2)."""
        ...

    def covariance_root(self, x: Tensor) -> Tensor:
        """Phi with Phi Phi' = K(x, x), (*b, G, J or 1, Q, M)."""
        ...


def with_new_members(
    x: Tensor, precision: Tensor, residual: Tensor, x_new: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, precisions and residuals of the members, followed by new ones that are not observed: R^2 = 0.

    Args:
        x: Auxiliary features, (*b, G, Q, D).
        precision: R^2, (*b, G, J, Q).
        residual: mu less the prior mean, (*b, G, J, Q).
        x_new: Those of new members, (*b, G, Q*, D); None for none.
    """
    if x_new is None:
        return x, precision, residual
    padding = (0, x_new.shape[-2])
    pad = torch.nn.functional.pad
    return torch.cat([x, x_new], dim=-2), pad(precision, padding), pad(residual, padding)


class BlockPosterior(ABC):
    """Posterior of a block of channels given pseudo-observations. A snapshot: a changed parameter needs a new one.

    Attributes:
        block: The block.
        x: Auxiliary features, (*b, G, Q, D).
        precision: R^2 = 1 / sigma^2, (*b, G, J, Q), 0 for a missing member.
        residual: mu less the prior mean, (*b, G, J, Q).

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(1)])
        >>> posterior = prior.posterior(torch.rand(1, 2, 1), 3 * torch.ones(1, 2, 1), torch.ones(1, 2, 1))
        >>> mean, variance = posterior.blocks[0].marginals()
        >>> mean, variance.shape  # (G, J, Q)
        (tensor([[[2., 2.]]], dtype=torch.float64), torch.Size([1, 1, 2]))
    """

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        self.block, self.x, self.precision, self.residual = block, x, precision, residual

    def replace_block(self, block: BlockPrior) -> None:
        """Let the answers have the prior mean of another block, whose covariance is the same."""
        self.block = block

    @abstractmethod
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""

    @abstractmethod
    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q || p) of every channel, nats, (*b, G, J)."""

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """log Z of every channel, nats, shaped as `kl`."""

    @property
    def observations(self) -> tuple[Tensor, Tensor]:
        """Precisions and residuals that joint draws condition on, each (*b, G, J, Q)."""
        return self.precision, self.residual

    def whitened(self, x_new: Tensor | None = None) -> LowRankFactor:
        """q(u) with z = m + Phi u, and Phi at the members (and then x_new): batch (*b, G, J), rows Q + Q*."""
        x, precision, residual = with_new_members(self.x, *self.observations, x_new)
        return low_rank_factor(self.block.covariance_root(x), precision, residual)

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint draws at the members (and x_new), (*s, *b, G, J, Q + Q*)."""
        factor = self.whitened(x_new)
        x = self.x if x_new is None else torch.cat([self.x, x_new], dim=-2)
        paths = factor.root @ factor.rsample_weights(sample_shape).unsqueeze(-1)
        return self.block.add_mean(paths.reshape(*paths.shape[:-3], self.block.num_channels, x.shape[-2]), x)

    def joint_covariances(self) -> list[Tensor]:
        """Posterior covariances of independent sets of channels, each (*b, G, N, N), rows by channel, then member."""
        factor = self.whitened()
        return list(factor.covariance(factor.root).unbind(-3))

    def whitened_distribution(self) -> dist.TorchDistribution:
        """q(u) as a Pyro distribution: batch (*b, G), event (J, M)."""
        factor = self.whitened()
        # the distribution computes its own Cholesky factor of B^-1: C^-T is upper triangular
        precision = factor.cholesky @ factor.cholesky.mT
        return dist.MultivariateNormal(factor.weights, precision_matrix=precision, validate_args=False).to_event(1)
