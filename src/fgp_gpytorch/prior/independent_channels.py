"""Channels that are independent between members: the latents of a plain VAE."""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch.gaussian import RankOneFactor, rank_one_factor
from fgp_gpytorch.kernels import IndependentKernel
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.channel_block import ChannelBlock


class IndependentChannels(ChannelBlock):
    r"""Standard normal latents, independent over members: K = I (paper, Section 3: "recovers a standard VAE").

    Members are different observations even where x repeats. The posterior of a new member is its prior.

    Args:
        num_channels: Channels of the block.

    Raises:
        ArgumentError: If `num_channels` is below 1.

    Examples:
        >>> prior = FactorizedGPPrior([IndependentChannels(1)])
        >>> x, mean, variance = torch.zeros(1, 1, 1), torch.tensor([[[4.0]]]), torch.ones(1, 1, 1)
        >>> posterior = prior.posterior(x, mean, variance)
        >>> posterior.mean, posterior.predict(torch.zeros(1, 1, 1)).mean  # of the member, of a new one
        (tensor([[[2.]]], dtype=torch.float64), tensor([[[0.]]], dtype=torch.float64))
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)

    def prior_mean(self, x: Tensor) -> Tensor:
        """Zero, (*b, G, 1, Q)."""
        return x.new_zeros(*x.shape[:-2], 1, x.shape[-2])

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The identity if both are the same members (the same tensor), else zero: (*b, G, 1, Q1, Q2)."""
        shape = (*x1.shape[:-2], 1, x1.shape[-2], x2.shape[-2])
        if x1 is x2:
            return torch.eye(x1.shape[-2], dtype=x1.dtype, device=x1.device).expand(shape)
        return x1.new_zeros(shape)

    def covariance_root(self, x: Tensor) -> Tensor:
        """The identity, (*b, G, 1, Q, Q)."""
        return self.covariance(x, x)

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Every member is a group of one."""
        return IndependentBlockPosterior(self, x, precision, mean)

    def kernel_on_rows(self) -> Kernel:
        """`IndependentKernel`."""
        return IndependentKernel()


class IndependentBlockPosterior(BlockPosterior):
    """Posterior of `IndependentChannels`: N(mu / (1 + sigma^2), sigma^2 / (1 + sigma^2)) for every member."""

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        one = torch.ones((), dtype=precision.dtype, device=precision.device)
        self.factor: RankOneFactor = rank_one_factor(one, precision.unsqueeze(-1), residual.unsqueeze(-1))

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self.block.add_mean(self.factor.mean(), self.x), self.factor.variance()

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """The prior's mean and variance, each (*b, G, J, Q*)."""
        mean = x_new.new_zeros(*self.precision.shape[:-1], x_new.shape[-2])
        return self.block.add_mean(mean, x_new), torch.ones_like(mean)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.factor.kl().sum(-1)

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.factor.log_evidence().sum(-1)
