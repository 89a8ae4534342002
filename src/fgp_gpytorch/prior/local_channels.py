"""Channels that vary within a group."""

from typing import Literal, get_args

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.gaussian import (
    DenseFactor,
    DenseMarginals,
    MarkovTerm,
    PooledMembers,
    dense_factor,
    dense_marginals,
    pool_repeated,
    precise_limit,
    symmetric_square_root,
)
from fgp_gpytorch.kernels import LocalKernel, kernel_matrix, markov_terms, seen_features
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.state_space_posterior import StateSpaceBlockPosterior, state_space_prior_draws

Inference = Literal["auto", "dense", "state_space"]

_DENSE_MEMBERS = 256  # up to here the dense algebra is faster
_MOST_BYTES = 2**32  # of the covariance matrices of a batch; the dense algebra holds about six times as much


class LocalChannels(ChannelBlock):
    r"""Channels that vary within a group: k1(x_i, x_j) = delta(d_i, d_j) k(w_i, w_j) (paper, Section 3).

    Inference is exact. "dense" takes any kernel and costs O(Q^3) per group. "state_space" takes sums of `MaternKernel`
    (nu = 1/2, 3/2, 5/2) and `ConstantKernel`, scaled or not, on one feature. It costs O(Q): 100,000 members take
    seconds. "auto" takes the state space for such kernels in groups of more than 256 members, else the dense algebra.

    Args:
        num_channels: J.
        kernel: Any GPyTorch kernel on the D features. All channels share a kernel of `batch_shape` []. A kernel of
            `batch_shape` [J] has hyperparameters of its own for each channel. The paper's kernel with scale r is
            `PeriodicKernel()` with `period_length = 2 pi` and `lengthscale = r ** 2`: GPyTorch divides by the
            lengthscale, the paper by its square. `kernels.WithinKernel` makes channels of inner groups.
        mean: A GPyTorch mean with `batch_shape` [] or [J]; None for zero.
        inference: "auto", "dense" or "state_space".

    Raises:
        ArgumentError: If `kernel` is not a kernel, `num_channels` is below 1, or `inference` is another word.
        ShapeError: If the batch shape of the kernel or the mean is neither [] nor [J].
        DataError: In use, if the kernel has no state space, or its dense matrices take more than 4 GiB.

    Example:
        >>> block = LocalChannels(8, gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)))
    """

    def __init__(
        self, num_channels: int, kernel: Kernel, mean: Mean | None = None, inference: Inference = "auto"
    ) -> None:
        super().__init__(num_channels, mean)
        check.instance(kernel, "kernel", Kernel, "Try LocalChannels(8, gpytorch.kernels.PeriodicKernel()).")
        self.check_batch_shape(kernel.batch_shape, f"kernel {type(kernel).__name__}")
        self.kernel = kernel
        check.choice(inference, "inference", get_args(Inference), 'Try "auto".')
        self.inference = inference

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Base kernel within each group: (*b, G, J or 1, Q1, Q2).

        Raises:
            ShapeError: If the kernel does not take D features.
            DataError: If the matrices take more than 4 GiB.
        """
        matrices = max(1, self.kernel.batch_shape.numel()) * x1.shape[:-2].numel()
        size = matrices * x1.shape[-2] * x2.shape[-2] * x1.element_size()
        if size > _MOST_BYTES:
            raise DataError(
                f"x: expected groups whose covariance matrices take at most {_MOST_BYTES / 2**30:g} GiB, got "
                f"{matrices} of {x1.shape[-2]} x {x2.shape[-2]} members with {size / 2**30:.3g} GiB. Try a sum of "
                "MaternKernel and ConstantKernel on one feature, for which marginals, KL, predictions and draws take "
                "O(Q), CoregionalizedChannels, fewer groups at a time, or smaller groups."
            )
        return _evaluate(self.kernel, x1.unsqueeze(-3), x2.unsqueeze(-3))

    def covariance_root(self, x: Tensor) -> Tensor:
        """Symmetric square root of the within-group covariance, (*b, G, J or 1, Q, Q).

        Raises:
            ShapeError: If the kernel does not take D features.
            DataError: If the covariance has a negative eigenvalue beyond rounding.
        """
        return symmetric_square_root(self.covariance(x, x))

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Exact GP regression per group and channel (paper, Appendix B).

        Raises:
            DataError: If `inference` is "state_space" and the kernel has none, or the dense matrices are too large.
        """
        chain = self._chain(x, mean, precision)
        if chain is not None:
            return StateSpaceBlockPosterior(self, x, precision, self.residual(mean, x), *chain)
        seen = x[..., seen_features(self.kernel, x.shape[-1])]
        return DenseBlockPosterior(self, x, precision, self.residual(mean, x), seen)

    def sample(self, x: Tensor, sample_shape: torch.Size) -> Tensor:
        """Draw paths of new groups at x (*b, G, Q, D): (*s, *b, G, J, Q)."""
        chain = self._chain(x)
        if chain is None:
            return super().sample(x, sample_shape)
        return self.add_mean(state_space_prior_draws(*chain, x, self.num_channels, sample_shape), x)

    def kernel_on_rows(self) -> Kernel:
        """`LocalKernel` of the block's kernel."""
        return LocalKernel(self.kernel)

    def _chain(self, x: Tensor, *others: Tensor) -> tuple[list[MarkovTerm], int] | None:
        """Terms and column of the state space, if it is to be used for groups at x (*b, G, Q, D)."""
        many = x.shape[-2] > _DENSE_MEMBERS and not transforms_active(x, *others)
        if self.inference == "dense" or (self.inference == "auto" and not many):
            return None
        found = markov_terms(self.kernel, x.shape[-1])
        if found is None and self.inference == "state_space":
            raise DataError(
                f"kernel: expected a sum of MaternKernel and ConstantKernel on one feature for "
                f"inference='state_space', got {type(self.kernel).__name__}. Try inference='auto'."
            )
        return found


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
