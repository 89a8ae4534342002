"""Base class of the blocks of latent channels."""

from abc import ABC, abstractmethod

import gpytorch
import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.gaussian import require_covariance
from fgp_gpytorch.prior.block_posterior import BlockPosterior
from fgp_gpytorch.saving import Configurable


class ChannelBlock(Configurable, gpytorch.Module, ABC):
    """Latent channels with one form of prior. A `FactorizedGPPrior` contains one or more blocks.

    Inside a block tensors are laid out (*b, G, J, Q), channels before members.

    Args:
        num_channels: J.
        mean: A GPyTorch mean with `batch_shape` [] or [J]; None for zero.

    Attributes:
        is_global: Whether every channel has one value per group.
        has_zero_mean: Whether the prior mean is zero everywhere.
        couples_channels: Whether the channels are correlated with each other. They then share one set of whitened
            variables u, (*b, G, 1, M), and `covariance` contains the covariance within each channel only.
        has_factors: Whether the whitened variables u of `covariance_root` are the same at every x, so that u describes
            a group.

    Raises:
        ArgumentError: If `num_channels` is below 1, or `mean` is not a module.
        ShapeError: If the mean has another batch shape.

    Examples:
        >>> blocks = [LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(3), IndependentChannels(1)]
        >>> [(block.num_channels, block.is_global) for block in blocks]
        [(2, False), (3, True), (1, False)]
        >>> blocks[0].covariance(torch.zeros(5, 4, 1), torch.zeros(5, 3, 1)).shape  # all channels share it
        torch.Size([5, 1, 4, 3])
    """

    num_channels: int
    is_global: bool = False
    couples_channels: bool = False
    has_factors: bool = False

    def __init__(self, num_channels: int, mean: Mean | None = None) -> None:
        super().__init__()
        hint = "Try to leave an empty block out."
        self.num_channels = check.count(num_channels, "num_channels", hint=hint)
        self.mean_module = ZeroMean() if mean is None else mean
        self.has_zero_mean = isinstance(self.mean_module, ZeroMean)
        check.instance(self.mean_module, "mean", torch.nn.Module, "Try gpytorch.means.ConstantMean(), or None.")
        batch_shape = getattr(self.mean_module, "batch_shape", torch.Size(()))
        self.check_batch_shape(batch_shape, f"mean {type(self.mean_module).__name__}")

    @property
    def num_whitened(self) -> int:
        """Sets of whitened variables: one for each channel, or one for all that are coupled."""
        return 1 if self.couples_channels else self.num_channels

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q).

        Raises:
            ShapeError: If the mean does not take D features, or does not return one value per member.
        """
        what = f"mean {type(self.mean_module).__name__}"
        try:
            mean = self.mean_module(x.unsqueeze(-3))
        except (RuntimeError, IndexError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ShapeError(
                f"{what}: expected to take x with D = {x.shape[-1]} features, got an error ({error}). "
                f"Try a mean of as many features, such as LinearMean({x.shape[-1]})."
            ) from error
        if not isinstance(mean, Tensor) or mean.shape[-1:] != x.shape[-2:-1]:
            got = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
            raise ShapeError(
                f"{what}: expected one value for each of {x.shape[-2]} members, got {got}. Try mean.squeeze(-1)."
            )
        return mean

    def add_mean(self, values: Tensor, x: Tensor) -> Tensor:
        """Values (*b, G, J, Q) plus the prior mean at x (*b, G, Q, D)."""
        return values if self.has_zero_mean else self.prior_mean(x) + values

    def residual(self, mean: Tensor, x: Tensor) -> Tensor:
        """Pseudo-means (*b, G, J, Q) less the prior mean at x (*b, G, Q, D)."""
        return mean if self.has_zero_mean else mean - self.prior_mean(x)

    @abstractmethod
    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance of x1 (*b, G, Q1, D) and x2 (*b, G, Q2, D).

        Returns:
            (*b, G, J, Q1, Q2), or with 1 in place of J if all channels share it.

        Raises:
            ShapeError: If the kernel does not take D features.
        """

    @abstractmethod
    def covariance_root(self, x: Tensor) -> Tensor:
        """Phi with Phi Phi' = K(x, x): (*b, G, J or 1, Q, M)."""

    @abstractmethod
    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Condition on pseudo-observations.

        Args:
            x: Auxiliary features, (*b, G, Q, D).
            mean: mu, (*b, G, J, Q), finite everywhere.
            precision: R^2 = 1 / sigma^2, (*b, G, J, Q), 0 for a missing member.

        Returns:
            The block's posterior.
        """

    @abstractmethod
    def kernel_on_rows(self) -> Kernel:
        """The block's covariance as a GPyTorch kernel on flat rows (group, x). It shares the block's parameters."""

    def few_groups_advice(self, num_groups: int) -> str | None:
        """Return what to expect and try if the block learns too much from this many groups, else None."""
        return None

    def joint_covariances(self, x: Tensor) -> list[Tensor]:
        """Prior covariances of independent sets of channels, each (*b, G, N, N), rows by channel, then member.

        Raises:
            DataError: If one is not symmetric, or has a negative eigenvalue beyond rounding.
            NonFiniteError: If one is not finite.
        """
        if self.couples_channels:
            root = self.covariance_root(x).flatten(-3, -2)
            return [root @ root.mT]
        members, covariance = x.shape[-2], self.covariance(x, x)
        if not transforms_active(covariance):
            require_covariance(covariance)
        return list(covariance.expand(*x.shape[:-2], self.num_channels, members, members).unbind(-3))

    def sample(self, x: Tensor, sample_shape: torch.Size) -> Tensor:
        """Draw paths of new groups at x (*b, G, Q, D): (*s, *b, G, J, Q)."""
        root = self.covariance_root(x)
        shape = (*sample_shape, *x.shape[:-2], self.num_whitened, root.shape[-1])
        noise = torch.randn(shape, dtype=x.dtype, device=x.device)
        return self.prior_mean(x) + (root @ noise.unsqueeze(-1)).squeeze(-1)

    def check_batch_shape(self, batch_shape: torch.Size, what: str) -> None:
        """Raise a `ShapeError` unless a kernel's or mean's batch shape is [] or [J]."""
        if tuple(batch_shape) not in ((), (self.num_channels,)):
            raise ShapeError(
                f"{what}: expected batch_shape [] (shared by the block) or [{self.num_channels}] (one per channel), "
                f"got {list(batch_shape)}. Try batch_shape=torch.Size([{self.num_channels}])."
            )
