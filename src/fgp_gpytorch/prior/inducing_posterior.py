"""The sparse posterior of the SVGP-VAE."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fgp_gpytorch._shapes import as_sample_shape, check_new_members
from fgp_gpytorch.gaussian.low_rank import LowRankFactor, low_rank_factor
from fgp_gpytorch.gaussian.precision import masked_precision


class HasFeatures(Protocol):
    """What a posterior asks of the prior it belongs to; see `InducingPrior`."""

    dtype: torch.dtype

    def features(self, group_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Phi (N, M) and the residual variance (N,)."""
        ...


class InducingPosterior:
    r"""q(z, u) = p(z | u) q(u), q(u) = N(B^-1 s Phi' R^2 mu, B^-1), B = I + s Phi' R^2 Phi (Jazbec et al. 2021).

    A snapshot, made by `InducingPrior.condition`: after a parameter changes, make a new one.

    Attributes:
        x: Auxiliary features of the members, (G, Q, D).
        factor: q(u), L channels of M variables.
        scale: How often each row was counted.
    """

    def __init__(
        self,
        prior: HasFeatures,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> None:
        observed = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        x, mean, variance = x.to(prior.dtype), mean.to(prior.dtype), variance.to(prior.dtype)
        self.x, self.group_index, self.scale = x, group_index, scale
        self._prior, self._given = prior, (x, mean, variance, observed)
        root, residual = prior.features(_rows(group_index, x), x.flatten(0, 1))
        where = observed.flatten().unsqueeze(-1)
        precision = scale * masked_precision(variance.flatten(0, 1), where).mT  # shape: (L, N)
        targets = torch.where(where, mean.flatten(0, 1), 0.0).mT
        self.factor: LowRankFactor = low_rank_factor(root, precision.contiguous(), targets.contiguous())
        self._at_members = InducingPrediction(self.factor, root, residual, x)

    @property
    def mean(self) -> Tensor:
        """Marginal means of z, (G, Q, L)."""
        return self._at_members.mean

    @property
    def variance(self) -> Tensor:
        """Marginal variances of z, (G, Q, L)."""
        return self._at_members.variance

    @property
    def kl_channels(self) -> Tensor:
        """KL(q(u) || p(u)) of every channel, nats, (L,): that of the whole data set, not of a group."""
        return self.factor.kl()

    def predict(self, x_new: Tensor) -> "InducingPrediction":
        """The posterior at other members of the same groups.

        Args:
            x_new: Auxiliary features, (G, Q*, D).

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            DataError: If x_new is not floating, not finite, or on another device.
        """
        check_new_members(x_new, self.x)
        return self.predict_groups(self.group_index, x_new)

    def predict_groups(self, group_index: Tensor, x_new: Tensor) -> "InducingPrediction":
        """As `predict`, at members of any groups that have object vectors.

        Args:
            group_index: (G*,), int64.
            x_new: (G*, Q*, D).

        Returns:
            An object with `mean` and `variance` (G*, Q*, L) and `rsample`.

        Raises:
            GroupError: If a group has no object vector.
        """
        x_new = x_new.to(self.x.dtype)
        root, residual = self._prior.features(_rows(group_index, x_new), x_new.flatten(0, 1))
        return InducingPrediction(self.factor, root, residual, x_new)

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at x, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths (over groups as well); True draws every member by itself.

        Returns:
            (*s, G, Q, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        return self._at_members.rsample(sample_shape, marginals)


class InducingPrediction:
    """The posterior at new members, made by `InducingPosterior.predict`.

    Attributes:
        x: The members' features, (G, Q*, D).
    """

    def __init__(self, factor: LowRankFactor, root: Tensor, residual: Tensor, x: Tensor) -> None:
        self.x, self._factor, self._root, self._residual = x, factor, root, residual

    @property
    def mean(self) -> Tensor:
        """Marginal means, (G, Q*, L)."""
        return self._members_first(self._factor.predict_mean(self._root))

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (G, Q*, L)."""
        return self._members_first(self._factor.predict_variance(self._root) + self._residual)

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z, with gradients; see `InducingPosterior.rsample`."""
        shape = as_sample_shape(sample_shape)
        noise = torch.randn(
            *shape, *self.x.shape[:-1], self._factor.weights.shape[0], dtype=self.x.dtype, device=self.x.device
        )
        if marginals:
            return self.mean + self.variance.sqrt() * noise
        u = self._factor.rsample_weights(shape)  # shape: (*s, L, M)
        paths = self._members_first((self._root @ u.unsqueeze(-1)).squeeze(-1))
        return paths + self._residual.reshape(*self.x.shape[:-1], 1).sqrt() * noise

    def _members_first(self, rows: Tensor) -> Tensor:
        """(*s, L, G Q*) to (*s, G, Q*, L)."""
        return rows.mT.unflatten(-2, self.x.shape[:-1])


def _rows(group_index: Tensor, x: Tensor) -> Tensor:
    return group_index.unsqueeze(-1).expand(x.shape[:-1]).flatten()
