"""Base class of the priors over latent channels."""

import gpytorch
import torch
from torch import Tensor

from fgp_gpytorch.saving import Configurable


class LatentPrior(Configurable, gpytorch.Module):
    """A prior over L latent channels of grouped members.

    Attributes:
        num_channels: L.
        dtype: Dtype of the Gaussian algebra and the hyperparameters.
        couples_groups: Whether groups depend on each other. If so, a minibatch of groups gives biased gradients.
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
