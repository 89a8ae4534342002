"""Base classes of predictions and posteriors over latent channels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._shards import draw_normal


class KLTerms(NamedTuple):
    """KL(q || p) of the local and of the global channels.

    Attributes:
        kl_local: KL of the channels that vary within a group, nats, (*b, G).
        kl_global: KL of the channels with one value per group, nats, (*b, G).

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
        >>> posterior = prior.posterior(torch.rand(2, 5, 1), mean=torch.rand(2, 5, 2), variance=torch.ones(2, 5, 2))
        >>> kl_local, kl_global = posterior.kl_terms
        >>> kl_local.shape, torch.equal(kl_local + kl_global, posterior.kl)
        (torch.Size([2]), True)
    """

    kl_local: Tensor
    kl_global: Tensor


class Prediction(ABC):
    """A Gaussian over the latents z of some members.

    Attributes:
        x: Auxiliary features of the members, (*b, G, Q, D).

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(1)])
        >>> posterior = prior.posterior(torch.rand(1, 2, 1), mean=torch.zeros(1, 2, 1), variance=torch.ones(1, 2, 1))
        >>> together, apart = posterior.rsample([3]), posterior.rsample([3], marginals=True)
        >>> [torch.allclose(draw[:, 0, 0], draw[:, 0, 1]) for draw in (together, apart)]  # one value per group
        [True, False]
    """

    x: Tensor

    @property
    @abstractmethod
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and variances of z, each (*b, G, Q, L)."""

    @property
    def mean(self) -> Tensor:
        """Marginal means of z, (*b, G, Q, L)."""
        return self.marginals[0]

    @property
    def variance(self) -> Tensor:
        """Marginal variances of z, (*b, G, Q, L)."""
        return self.marginals[1]

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws coherent paths: a global channel has one value per group. True draws every member by
                itself, which is cheaper, and enough for a likelihood that factorizes over members.

        Returns:
            (*s, *b, G, Q, L).

        Raises:
            ArgumentError: If `sample_shape` is not a sequence of integers.
        """
        shape = check.as_sample_shape(sample_shape)
        return self.rsample_marginals(shape) if marginals else self.rsample_jointly(shape)

    def rsample_marginals(self, sample_shape: torch.Size) -> Tensor:
        """Draw every member by itself, (*s, *b, G, Q, L)."""
        mean, variance = self.marginals
        noise = draw_normal((*sample_shape, *mean.shape), mean.dtype, mean.device, group_dim=-3, member_dim=-2)
        return mean + variance.sqrt() * noise

    @abstractmethod
    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths, (*s, *b, G, Q, L)."""


class Posterior(Prediction):
    """q(Z | Y, X), conditioned on pseudo-observations.

    A posterior is a snapshot. Make a new one after a parameter changes. Values are computed when they are read.

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(1)])
        >>> posterior = prior.posterior(torch.rand(1, 2, 1), mean=torch.zeros(1, 2, 1), variance=torch.ones(1, 2, 1))
        >>> prior_of_z = torch.distributions.Normal(0.0, 1.0)
        >>> q = torch.distributions.Normal(posterior.mean[0, 0, 0], posterior.variance[0, 0, 0].sqrt())
        >>> torch.allclose(posterior.kl, torch.distributions.kl_divergence(q, prior_of_z))
        True
    """

    @property
    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G): summed over members and channels.

        Under a prior that couples groups, only the sum over groups is defined; every group gets an equal share.
        """
        kl_local, kl_global = self.kl_terms
        return kl_local + kl_global

    @property
    @abstractmethod
    def kl_terms(self) -> KLTerms:
        """The KL of local and of global channels, nats, each (*b, G)."""

    def predict(self, x_new: Tensor) -> Prediction:
        """The posterior at other members of the same groups.

        Args:
            x_new: Auxiliary features, (*b, G, Q*, D).

        Returns:
            `mean` and `variance` (*b, G, Q*, L), and `rsample`.

        Raises:
            ShapeError: If the groups or the number of features differ from those of `x`.
            ArgumentError: If `x_new` is not a tensor.
            DataError: If `x_new` is not floating, not finite, or on another device.
        """
        return self.predict_checked(check_new_members(x_new, self.x))

    @abstractmethod
    def predict_checked(self, x_new: Tensor) -> Prediction:
        """`predict` for an `x_new` that was checked."""

    @abstractmethod
    def distribution(self) -> MultitaskMultivariateNormal:
        """The joint distribution of z at `x`, one task per channel.

        Returns:
            Batch shape (*b, G), event shape (Q, L). Under a prior that couples groups: no batch shape, event shape
            (G Q, L), group after group.
        """


def check_new_members(x_new: Tensor, x: Tensor) -> Tensor:
    """Require features (*b, G, Q*, D) of members of the groups of `x` (*b, G, Q, D).

    Returns:
        `x_new` in the dtype of `x`.

    Raises:
        ShapeError: If the groups or the number of features differ.
        ArgumentError: If `x_new` is not a tensor.
        DataError: If `x_new` is not floating, not finite, or on another device.

    Examples:
        >>> check_new_members(torch.zeros(2, 7, 1), x=torch.zeros(2, 3, 1, dtype=torch.float64)).dtype
        torch.float64
        >>> check_new_members(torch.zeros(7, 1), x=torch.zeros(2, 3, 1))
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.ShapeError: x_new: expected shape (2, Q*, 1), got (7, 1). ...
    """
    x_new = check.as_reals(x_new, "x_new", like=x)
    hint = "It needs the groups of this posterior, in their order. Try prior.sample(x) for new groups."
    check.shape(x_new, "x_new", (*x.shape[:-2], "Q*", x.shape[-1]), hint)
    check.device(x_new=x_new, x=x)
    return check.finite(x_new, "x_new").to(x.dtype)
