"""Base class of the priors over latent channels."""

import gpytorch
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.saving import Configurable


class LatentPrior(Configurable, gpytorch.Module):
    """A prior over L latent channels of grouped members.

    Attributes:
        num_channels: L.
        dtype: Dtype of the Gaussian algebra and the hyperparameters.
        couples_groups: Whether groups depend on each other. If so, a minibatch of groups gives biased gradients.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
        >>> prior.num_channels, prior.is_global, prior.couples_groups, prior.dtype
        (3, tensor([False, False,  True]), False, torch.float64)
        >>> GPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), 4, num_groups=3).prior.couples_groups
        True
    """

    num_channels: int
    dtype: torch.dtype
    couples_groups: bool

    @property
    def is_global(self) -> Tensor:
        """True for the channels that have one value per group, (L,), on the CPU."""
        return torch.zeros(self.num_channels, dtype=torch.bool)

    def log_hyperprior(self) -> Tensor:
        """Log density of the hyperparameters under the GPyTorch priors registered on them, nats, a scalar.

        Objectives add it once per data set, not per batch. A kernel that is used twice counts once.
        """
        parameter = next(self.parameters(), None)
        total = torch.zeros((), dtype=self.dtype, device=None if parameter is None else parameter.device)
        seen = set()
        for _, owner, prior, closure, _ in self.named_priors():
            if (id(owner), id(prior)) not in seen:
                seen.add((id(owner), id(prior)))
                total = total + prior.log_prob(closure(owner)).sum()
        return total

    def kl_effects(self) -> Tensor | None:
        """KL(q || p) of what all groups share, nats, a scalar, once per data set; None if they share nothing."""
        return None

    def warn_of_few_groups(self, num_groups: int) -> None:
        """Warn if a block of channels learns too much from the groups of a data set, so that its intervals are narrow.

        Args:
            num_groups: Groups of the training data.

        Warns:
            UserWarning: For every such block; see `CoregionalizedChannels`.
        """
        for block in self.modules():
            advice = block.few_groups_advice(num_groups) if isinstance(block, ChannelBlock) else None
            if advice is not None:
                check.warn(advice)
