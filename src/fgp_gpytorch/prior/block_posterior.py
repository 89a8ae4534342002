"""Posterior of one block of channels, laid out (*b, G, J, Q)."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.gaussian import (
    DenseFactor,
    DenseMarginals,
    WhitenedFactor,
    dense_factor,
    dense_marginals,
    rank_one_factor,
    whitened_factor,
)

_Value = TypeVar("_Value")


def once_per_grad_mode(method: Callable[[Any], _Value]) -> Callable[[Any], _Value]:
    """Compute once with gradients and once without: a look under `no_grad` must not cost a later loss its graph."""

    @functools.wraps(method)
    def cached(self: Any) -> _Value:
        key = f"{method.__name__} {torch.is_grad_enabled()}"
        if key not in self.__dict__:
            self.__dict__[key] = method(self)
        return self.__dict__[key]

    return cached


class BlockPrior(Protocol):
    """What a posterior asks of the block of channels it belongs to; see `ChannelBlock`."""

    num_channels: int
    has_zero_mean: bool

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""
        ...

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance, (*b, G, J or 1, Q1, Q2)."""
        ...

    def covariance_root(self, x: Tensor) -> Tensor:
        """Phi with Phi Phi' = K(x, x), (*b, G, J or 1, Q, M)."""
        ...


class BlockPosterior(ABC):
    """What a block knows after its pseudo-observations: a snapshot, made anew when a parameter changes."""

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        self.block = block
        self.x = x
        self.precision = precision
        self.residual = residual

    @abstractmethod
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""

    @abstractmethod
    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""

    def whitened(self, x_new: Tensor | None = None) -> WhitenedFactor:
        """q(u) with z = m + Phi u at the members, or at the members and then x_new where it is given."""
        x, precision, residual = self.x, self.precision, self.residual
        if x_new is not None:
            x = torch.cat([x, x_new], dim=-2)
            padding = (0, x_new.shape[-2])  # new members are unobserved: R^2 = 0
            precision = torch.nn.functional.pad(precision, padding)
            residual = torch.nn.functional.pad(residual, padding)
        return whitened_factor(self.block.covariance_root(x), precision, residual)

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint samples at the members (and x_new), (*s, *b, G, J, Q + Q*)."""
        factor = self.whitened(x_new)
        x = self.x if x_new is None else torch.cat([self.x, x_new], dim=-2)
        noise = torch.randn(*sample_shape, *factor.mean.shape, dtype=factor.mean.dtype, device=factor.mean.device)
        return self._with_mean(factor.rsample(noise), x)

    def _with_mean(self, values: Tensor, x: Tensor) -> Tensor:
        """Values (*b, G, J, Q) about the prior mean at x (*b, G, Q, D)."""
        return values if self.block.has_zero_mean else self.block.prior_mean(x) + values

    def whitened_distribution(self) -> dist.TorchDistribution:
        """q(u) as a Pyro distribution: batch (*b, G), event (J, M)."""
        factor = self.whitened()
        # the Cholesky factor of B^-1 is not C^-T (that one is upper triangular): let the distribution make its own
        return dist.MultivariateNormal(factor.mean, precision_matrix=factor.precision, validate_args=False).to_event(1)


class DenseBlockPosterior(BlockPosterior):
    """Posterior of `LocalChannels`: exact GP regression in every group and channel."""

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        self.covariance = block.covariance(x, x)

    @property
    @once_per_grad_mode
    def _members(self) -> DenseMarginals:
        return dense_marginals(self.covariance, self.precision, self.residual)

    @property
    @once_per_grad_mode
    def _factor(self) -> DenseFactor:
        return dense_factor(self.covariance, self.precision, self.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self._with_mean(self._members.mean, self.x), self._members.variance

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        cross = self.block.covariance(self.x, x_new)
        # the diagonal alone: a new member is its own group of one
        prior_variance = self.block.covariance(x_new.unsqueeze(-2), x_new.unsqueeze(-2))  # (*b, G, Q*, J or 1, 1, 1)
        prior_variance = prior_variance.squeeze(-1).squeeze(-1).mT
        mean = self._with_mean(self._factor.predict_mean(cross), x_new)
        return mean, self._factor.predict_variance(cross, prior_variance)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self._members.kl

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self._factor.log_evidence()


class RankOneBlockPosterior(BlockPosterior):
    """Posterior of `GlobalChannels`: one value per group and channel."""

    def __init__(
        self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor, prior_variance: Tensor
    ) -> None:
        super().__init__(block, x, precision, residual)
        self.factor = rank_one_factor(prior_variance, precision, residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self.predict(self.x)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*): the same at every member."""
        mean = self._with_mean(self.factor.mean().unsqueeze(-1), x_new)
        variance = self.factor.variance().unsqueeze(-1)
        shape = (*variance.shape[:-1], x_new.shape[-2])
        return mean.expand(shape), variance.expand(shape)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.factor.kl()

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.factor.log_evidence()
