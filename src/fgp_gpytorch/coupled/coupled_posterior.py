"""Posteriors of some groups under a prior that couples groups."""

from abc import abstractmethod
from typing import Protocol

import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled.group_inputs import GroupInputs
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.prior import Posterior, Prediction, check_new_members


class LowRank(Protocol):
    """A Gaussian over weights u of each of L channels; see `gaussian.LowRankFactor`."""

    @property
    def weights(self) -> Tensor:
        """Mean of u, (L, M)."""
        ...

    def predict_mean(self, root: Tensor) -> Tensor:
        """Mean of Phi u at rows (N, M): (L, N)."""
        ...

    def predict_variance(self, root: Tensor) -> Tensor:
        """Variance of Phi u at rows (N, M): (L, N)."""
        ...

    def rsample_weights(self, sample_shape: torch.Size) -> Tensor:
        """Draws of u, (*s, L, M)."""
        ...


class LowRankPrediction(Prediction):
    """z = Phi u + sqrt(residual) e at the members of G groups, e ~ N(0, 1) independent.

    Args:
        factor: q(u) of each channel.
        root: Phi, (G, Q, M), or (G, 1, M) for channels with one value per group.
        residual: The variance that u does not explain, broadcastable to (G, Q, L); None for 0.
        x: Auxiliary features, (G, Q, D).

    Examples:
        >>> factor = low_rank_factor(torch.eye(2), torch.zeros(1, 2), torch.zeros(1, 2))  # u ~ N(0, I)
        >>> root = torch.tensor([[[3.0, 4.0]]])
        >>> prediction = LowRankPrediction(factor, root, residual=None, x=torch.zeros(1, 1, 1))
        >>> prediction.mean, prediction.variance  # of 3 u_1 + 4 u_2
        (tensor([[[0.]]]), tensor([[[25.]]]))
    """

    def __init__(self, factor: LowRank, root: Tensor, residual: Tensor | None, x: Tensor) -> None:
        self.x, self.factor, self.root, self.residual = x, factor, root, residual

    @property
    def mean(self) -> Tensor:
        """Marginal means, (G, Q, L)."""
        return self._at_members(self.factor.predict_mean(self.root.flatten(0, 1)))

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (G, Q, L)."""
        variance = self._at_members(self.factor.predict_variance(self.root.flatten(0, 1)))
        # the variance is 0 for a group vector of 0, where its square root has no gradient
        return (
            variance.clamp_min(torch.finfo(variance.dtype).tiny) if self.residual is None else variance + self.residual
        )

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and variances, each (G, Q, L)."""
        return self.mean, self.variance

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths, over groups too, (*s, G, Q, L)."""
        noise = None
        if self.residual is not None:
            shape = *sample_shape, *self.x.shape[:2], len(self.factor.weights)
            noise = self.residual.sqrt() * torch.randn(shape, dtype=self.x.dtype, device=self.x.device)
        u = self.factor.rsample_weights(sample_shape)  # shape: (*s, L, M)
        paths = self._at_members(u @ self.root.flatten(0, 1).mT)
        return paths if noise is None else paths + noise

    def _at_members(self, rows: Tensor) -> Tensor:
        """(*s, L, N) to (*s, G, Q, L)."""
        apart = rows.mT.unflatten(-2, self.root.shape[:2])
        return apart.expand(*apart.shape[:-2], self.x.shape[1], -1)


class CoupledPosterior(Posterior):
    """q(Z) of some groups under a prior that couples groups.

    Attributes:
        inputs: The groups and pseudo-observations that it is conditioned on.
        x: Auxiliary features of the members, (G, Q, D).
        scale: How often each member counts.
        at_members: The posterior of z at the members of `inputs`.

    Raises:
        ArgumentError: If `scale` is not a positive number.

    Examples:
        >>> prior = ProductPrior(1, features=LinearFeatures())
        >>> mean = torch.tensor([[[1.0]], [[2.0]]])
        >>> inputs = GroupInputs.of(torch.eye(2), torch.ones(2, 1, 1), mean, torch.ones(2, 1, 1), None, prior.dtype)
        >>> posterior = prior.condition(inputs)
        >>> posterior.predict(torch.ones(1, 5, 1), groups=torch.tensor([1])).mean.shape
        torch.Size([1, 5, 1])
    """

    at_members: Prediction

    def __init__(self, inputs: GroupInputs, scale: float = 1.0) -> None:
        self.inputs, self.x = inputs, inputs.x
        self.scale = check.positive(scale, "scale", hint="Try scale=1.0, or groups of the data set / groups given.")

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and variances at x, each (G, Q, L)."""
        return self.at_members.marginals

    @property
    def mean(self) -> Tensor:
        """Marginal means at x, (G, Q, L)."""
        return self.at_members.mean

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths, over groups too, (*s, G, Q, L)."""
        return self.at_members.rsample_jointly(sample_shape)

    def rsample_marginals(self, sample_shape: torch.Size) -> Tensor:
        """Draw every member by itself, (*s, G, Q, L)."""
        return self.at_members.rsample_marginals(sample_shape)

    def predict(self, x_new: Tensor, groups: Tensor | None = None) -> Prediction:
        """The posterior at other members of its groups.

        Args:
            x_new: Auxiliary features, (G, Q*, D), or (G*, Q*, D) with `groups`.
            groups: Positions of the groups to predict, (G*,), int64; None for all.

        Returns:
            `mean` and `variance` (G, Q*, L), and `rsample`.

        Raises:
            GroupError: If a position is out of range.
            ShapeError: If the groups or the number of features differ from those of `x`.
            ArgumentError: If `x_new` is not numeric, or `groups` are not integers.
            DataError: If `x_new` is not floating, not finite, or on another device.
        """
        if groups is None:
            return super().predict(x_new)
        groups = check.as_tensor(groups, "groups").to(self.x.device)
        check.shape(groups, "groups", ("G*",), "Try [0, 1], or None for all groups.")
        check.choice(groups.dtype, "groups.dtype", (torch.int64, torch.int32), "Try groups.long().")
        if groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < len(self.x):
            raise GroupError(
                f"groups: expected positions from 0 to {len(self.x) - 1}, the groups that were conditioned on, got "
                f"{int(groups.min())} to {int(groups.max())}. Try to condition on all groups."
            )
        inputs = self.inputs.select(groups)
        return self.predict_groups(inputs, check_new_members(x_new, inputs.x))

    def predict_checked(self, x_new: Tensor) -> Prediction:
        """`predict` without its checks."""
        return self.predict_groups(self.inputs, x_new)

    @abstractmethod
    def predict_groups(self, inputs: GroupInputs, x_new: Tensor) -> Prediction:
        """The posterior at x_new (G*, Q*, D) of some of its groups."""

    @abstractmethod
    def join(self, other: "CoupledPosterior") -> "CoupledPosterior":
        """The posterior of the groups of both together, those of `other` after these. Every member counts once."""

    @abstractmethod
    def distribution(self) -> MultitaskMultivariateNormal:
        """The joint distribution of z at `x`: event shape (G Q, L), group after group."""
