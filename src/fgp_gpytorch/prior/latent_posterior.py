"""The approximate posterior of all latent channels, q(Z | Y, X) of the paper's Section 3."""

from collections.abc import Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.prior.block_posterior import BlockPosterior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.multitask import multitask_normal
from fgp_gpytorch.prior.posterior import KLTerms, Posterior, Prediction, check_new_members


class LatentPaths(NamedTuple):
    """The same coherent draws at the members and at new members.

    Attributes:
        members: (*s, *b, G, Q, L).
        new: (*s, *b, G, Q*, L).

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(1)])
        >>> posterior = prior.posterior(torch.rand(2, 5, 1), mean=torch.rand(2, 5, 1), variance=torch.ones(2, 5, 1))
        >>> members, new = posterior.rsample_paths(torch.rand(2, 3, 1), sample_shape=[4])
        >>> members.shape, new.shape, torch.allclose(members[:, :, 0], new[:, :, 0])  # one value per group
        (torch.Size([4, 2, 5, 1]), torch.Size([4, 2, 3, 1]), True)
    """

    members: Tensor
    new: Tensor


class LatentPosterior(Posterior):
    r"""q(Z | Y, X): J exact GP posteriors and L - J Gaussians per group (paper, Section 3 and Appendix B).

    Made by `FactorizedGPPrior.posterior`.

    Attributes:
        x: Auxiliary features, (*b, G, Q, D).
        mask: True where a member is conditioned on, (*b, G, Q); None for all.
        blocks: The posterior of each block of channels.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
        >>> x, mask = torch.rand(2, 5, 1), torch.arange(5) < torch.tensor([[5], [3]])
        >>> posterior = prior.posterior(x, torch.rand(2, 5, 2), torch.ones(2, 5, 2), mask)
        >>> posterior.mean.shape, posterior.log_evidence.shape, posterior.distribution().event_shape
        (torch.Size([2, 5, 2]), torch.Size([2]), torch.Size([5, 2]))
    """

    def __init__(self, blocks: Sequence[BlockPosterior], x: Tensor, mask: Tensor | None) -> None:
        self.blocks, self.x, self.mask = tuple(blocks), x, mask

    @cached_by_grad_mode
    def marginals(self) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Marginal means and variances at x, each (*b, G, Q, L)."""
        means, variances = zip(*(block.marginals() for block in self.blocks), strict=True)
        return torch.cat(means, dim=-2).mT, torch.cat(variances, dim=-2).mT

    @property
    def kl_terms(self) -> KLTerms:
        """The KL of local and of global channels, nats, each (*b, G)."""
        terms = [torch.zeros_like(self.x[..., 0, 0])] * 2
        for block in self.blocks:
            terms[block.block.is_global] = terms[block.block.is_global] + block.kl().sum(-1)
        return KLTerms(*terms)

    @property
    def kl_channels(self) -> Tensor:
        """KL(q || p) of every channel, nats, (*b, G, L)."""
        return torch.cat([block.kl() for block in self.blocks], dim=-1)

    @property
    def kl_blocks(self) -> tuple[Tensor, ...]:
        """KL(q || p) of every block of channels, nats, each (*b, G)."""
        return tuple(block.kl().sum(-1) for block in self.blocks)

    @property
    def log_evidence(self) -> Tensor:
        """log Z(Y, X) of the pseudo-observations, summed over members and channels, nats, (*b, G)."""
        return torch.stack([block.log_evidence().sum(-1) for block in self.blocks]).sum(0)

    def predict_checked(self, x_new: Tensor) -> "LatentPrediction":
        """`predict` without its checks."""
        return LatentPrediction(self, x_new)

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths at x, (*s, *b, G, Q, L)."""
        return torch.cat([block.rsample(sample_shape) for block in self.blocks], dim=-2).mT

    def rsample_paths(self, x_new: Tensor, sample_shape: Sequence[int] = ()) -> LatentPaths:
        """Draw z jointly at x and at x_new: one path per group and channel.

        Args:
            x_new: Auxiliary features, (*b, G, Q*, D).
            sample_shape: Leading shape s of the draws.

        Returns:
            The same draws at the members (*s, *b, G, Q, L) and at the new ones (*s, *b, G, Q*, L).

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            ArgumentError: If `x_new` is not a tensor, or `sample_shape` is not a sequence of integers.
            DataError: If x_new is not floating, not finite, or on another device.
        """
        return self.paths_at(check_new_members(x_new, self.x), check.as_sample_shape(sample_shape))

    def paths_at(self, x_new: Tensor, sample_shape: torch.Size) -> LatentPaths:
        """`rsample_paths` without its checks."""
        old, new = self.x.shape[-2], x_new.shape[-2]
        joint = torch.cat([block.rsample(sample_shape, x_new) for block in self.blocks], dim=-2).mT
        return LatentPaths(*joint.split([old, new], dim=-2))

    def distribution(self) -> MultitaskMultivariateNormal:
        """The joint distribution of z at x: batch shape (*b, G), event shape (Q, L)."""
        return multitask_normal(self.mean, [part for block in self.blocks for part in block.joint_covariances()])

    def whitened_distributions(self) -> tuple[dist.TorchDistribution, ...]:
        """q(u) of every block as a Pyro distribution, batch (*b, G), event (J, M). z = m + Phi u has no density."""
        return tuple(block.whitened_distribution() for block in self.blocks)


class LatentPrediction(Prediction):
    """The posterior at new members of known groups, made by `LatentPosterior.predict`.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel())])
        >>> x, mean, variance = torch.zeros(1, 1, 1), torch.tensor([[[4.0]]]), torch.ones(1, 1, 1)
        >>> posterior = prior.posterior(x, mean, variance)
        >>> prediction = posterior.predict(torch.tensor([[[0.0], [99.0]]]))  # at the member's x, and far away
        >>> prediction.mean[0, :, 0].detach(), prediction.variance[0, :, 0].detach()
        (tensor([2.0000, 0.0000], dtype=torch.float64), tensor([0.5000, 1.0000], dtype=torch.float64))
    """

    def __init__(self, posterior: LatentPosterior, x_new: Tensor) -> None:
        self.x, self.posterior = x_new, posterior
        means, variances = zip(*(block.predict(x_new) for block in posterior.blocks), strict=True)
        self._marginals = torch.cat(means, dim=-2).mT, torch.cat(variances, dim=-2).mT

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Marginal means and variances at x_new, each (*b, G, Q*, L)."""
        return self._marginals

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths at x_new, (*s, *b, G, Q*, L)."""
        return self.posterior.paths_at(self.x, sample_shape).new
