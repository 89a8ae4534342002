"""Channels that vary within a group."""

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.gaussian import (
    DenseFactor,
    DenseMarginals,
    PooledMembers,
    dense_factor,
    dense_marginals,
    pool_repeated,
    precise_limit,
    symmetric_square_root,
)
from fgp_gpytorch.kernels import LocalKernel, kernel_matrix, seen_features
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock


class LocalChannels(ChannelBlock):
    r"""Channels that vary within a group: k1(x_i, x_j) = delta(d_i, d_j) k(w_i, w_j) (paper, Section 3).

    Args:
        num_channels: J.
        kernel: Any GPyTorch kernel on the D features. All channels share a kernel of `batch_shape` []. A kernel of
            `batch_shape` [J] has hyperparameters of its own for each channel. The paper's kernel with scale r is
            `PeriodicKernel()` with `period_length = 2 pi` and `lengthscale = r ** 2`: GPyTorch divides by the
            lengthscale, the paper by its square. `kernels.WithinKernel` makes channels of inner groups.
        mean: A GPyTorch mean with `batch_shape` [] or [J]; None for zero.

    Raises:
        ArgumentError: If `kernel` is not a kernel, or `num_channels` is below 1.
        ShapeError: If the batch shape of the kernel or the mean is neither [] nor [J].

    Example:
        >>> block = LocalChannels(8, gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)))
    """

    def __init__(self, num_channels: int, kernel: Kernel, mean: Mean | None = None) -> None:
        super().__init__(num_channels, mean)
        check.instance(kernel, "kernel", Kernel, "Try LocalChannels(8, gpytorch.kernels.PeriodicKernel()).")
        self.check_batch_shape(kernel.batch_shape, f"kernel {type(kernel).__name__}")
        self.kernel = kernel

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Base kernel within each group: (*b, G, J or 1, Q1, Q2)."""
        return _evaluate(self.kernel, x1.unsqueeze(-3), x2.unsqueeze(-3))

    def covariance_root(self, x: Tensor) -> Tensor:
        """Symmetric square root of the within-group covariance, (*b, G, J or 1, Q, Q).

        Raises:
            ShapeError: If the kernel does not take D features.
            DataError: If the covariance has a negative eigenvalue beyond rounding.
        """
        return symmetric_square_root(self.covariance(x, x))

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Exact GP regression per group and channel (paper, Appendix B)."""
        seen = x[..., seen_features(self.kernel, x.shape[-1])]
        return DenseBlockPosterior(self, x, precision, self.residual(mean, x), seen)

    def kernel_on_rows(self) -> Kernel:
        """`LocalKernel` of the block's kernel."""
        return LocalKernel(self.kernel)


class DenseBlockPosterior(BlockPosterior):
    """Posterior of `LocalChannels`: exact GP regression in every group and channel.

    Attributes:
        covariance: K, (*b, G, J or 1, Q, Q).
        seen: The columns of x that the kernel depends on, (*b, G, 1, Q, D'). Members of equal ones observe one value.
    """

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor, seen: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        self.covariance, self.seen = block.covariance(x, x), seen.unsqueeze(-3)

    @cached_by_grad_mode
    def pooled(self) -> PooledMembers | None:
        """The observations, those of equal x pooled; None if no x repeats, or no such member is precise."""
        k = self.covariance.diagonal(dim1=-2, dim2=-1)
        if not bool((self.precision * k > precise_limit(k.dtype)).any()):
            return None
        return pool_repeated(self.covariance, self.precision, self.residual, self.seen)

    @cached_by_grad_mode
    def members(self) -> DenseMarginals:
        """Marginals and KL at the members."""
        return dense_marginals(self.covariance, self.precision, self.residual, self.seen)

    @cached_by_grad_mode
    def factor(self) -> DenseFactor:
        """The factorization for predictions and the evidence."""
        return dense_factor(self.covariance, self.precision, self.residual, self.pooled)

    @property
    def observations(self) -> tuple[Tensor, Tensor]:
        """Precisions and residuals, those of precise members of equal x pooled, each (*b, G, J, Q)."""
        return super().observations if self.pooled is None else (self.pooled.precision, self.pooled.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        mean, variance, _ = self.members
        return self.block.add_mean(mean, self.x), variance

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        cross = self.block.covariance(self.x, x_new)
        # only the diagonal: every new member is its own group of one
        prior_variance = self.block.covariance(x_new.unsqueeze(-2), x_new.unsqueeze(-2))  # (*b, G, Q*, J or 1, 1, 1)
        prior_variance = prior_variance.squeeze(-1).squeeze(-1).mT
        mean = self.block.add_mean(self.factor.predict_mean(cross), x_new)
        return mean, self.factor.predict_variance(cross, prior_variance)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.members.kl

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.factor.log_evidence()


def _evaluate(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The kernel's matrix. Its errors become a `ShapeError`."""
    try:
        covariance = kernel_matrix(kernel, x1, x2)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        features = x1.shape[-1]
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected to evaluate x with D = {features} features, got an error "
            f"({error}). Try ard_num_dims={features}, or active_dims below {features}."
        ) from error
    members = x1.shape[-2], x2.shape[-2]
    if covariance.shape[-2:] != members:
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected one row for each member, {members}, got "
            f"{tuple(covariance.shape[-2:])}. Try a kernel of one output (no gradients, no tasks)."
        )
    front = torch.broadcast_shapes(x1.shape[:-3], x2.shape[:-3])
    if covariance.shape[:-3] != front:  # for instance the first group's matrix for all groups
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected a matrix for each group, {(*front, 'J or 1')}, got "
            f"{tuple(covariance.shape[:-2])}. Try a forward that keeps the leading dimensions of x1 and x2."
        )
    return covariance
