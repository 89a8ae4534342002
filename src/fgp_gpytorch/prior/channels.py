"""Blocks of latent channels, each with its kernel."""

from abc import ABC, abstractmethod

import gpytorch
import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, Mean, ZeroMean
from gpytorch.priors import Prior
from torch import Tensor

from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.gaussian import symmetric_square_root
from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from fgp_gpytorch.prior.block_posterior import BlockPosterior, DenseBlockPosterior, RankOneBlockPosterior
from fgp_gpytorch.saving import Configurable


class ChannelBlock(Configurable, gpytorch.Module, ABC):
    """Latent channels that share a form of prior: what `FactorizedGPPrior` is made of.

    Inside a block tensors are laid out (*b, G, J, Q), channels before members.

    Attributes:
        num_channels: J, the channels of this block.
        factorizes_over_groups: Whether groups are independent under the block's prior, which is what makes a
            minibatch of groups an unbiased sample of the objective.
        has_zero_mean: Whether `prior_mean` is zero everywhere, so that nobody need compute it.
        couples_channels: Whether the channels are correlated with each other: one set of whitened variables u then
            serves all of them, (*b, G, 1, M) in place of (*b, G, J, M), and `covariance` is each channel's own.
    """

    num_channels: int
    factorizes_over_groups: bool = True
    couples_channels: bool = False
    has_zero_mean: bool = False

    @property
    def num_whitened(self) -> int:
        """Sets of whitened variables: one for each channel, or one for all that are coupled."""
        return 1 if self.couples_channels else self.num_channels

    @abstractmethod
    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""

    @abstractmethod
    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance of x1 (*b, G, Q1, D) and x2 (*b, G, Q2, D).

        Returns:
            (*b, G, J, Q1, Q2), or with 1 in the place of J where all channels share it.
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
        """The block's covariance as an ordinary GPyTorch kernel on flat rows (group, x); parameters are shared."""


class LocalChannels(ChannelBlock):
    r"""Channels that vary within a group: k1(x_i, x_j) = delta(d_i, d_j) k(w_i, w_j) (paper, Section 3).

    Args:
        num_channels: J.
        kernel: Any GPyTorch kernel on the D features. With `batch_shape=[]` all channels share it, with
            `batch_shape=[J]` each has its own hyperparameters. The paper's kernel with scale r is
            `PeriodicKernel()` with `period_length = 2 pi` and `lengthscale = r ** 2`: GPyTorch divides by the
            lengthscale where the paper divides by its square.
        mean: A GPyTorch mean with `batch_shape` [] or [J], or None for zero.

    Raises:
        ShapeError: If the kernel's or the mean's batch shape is neither [] nor [J], or `num_channels` is below 1.

    Example:
        >>> block = LocalChannels(8, gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)))
    """

    def __init__(self, num_channels: int, kernel: Kernel, mean: Mean | None = None) -> None:
        super().__init__()
        check_num_channels(num_channels)
        if not isinstance(kernel, Kernel):
            raise ShapeError(
                f"kernel: expected a gpytorch.kernels.Kernel, got {type(kernel).__name__}. "
                "Try LocalChannels(8, gpytorch.kernels.PeriodicKernel())."
            )
        _check_batch_shape(kernel.batch_shape, num_channels, f"kernel {type(kernel).__name__}")
        self.num_channels = num_channels
        self.kernel = kernel
        self.mean_module = mean if mean is not None else ZeroMean()
        self.has_zero_mean = isinstance(self.mean_module, ZeroMean)
        check_mean(self.mean_module, num_channels)

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""
        return mean_at(self.mean_module, x)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Base kernel within each group: (*b, G, J or 1, Q1, Q2)."""
        return _evaluate(self.kernel, x1.unsqueeze(-3), x2.unsqueeze(-3))

    def covariance_root(self, x: Tensor) -> Tensor:
        """Symmetric square root of the within-group covariance, (*b, G, J or 1, Q, Q)."""
        return symmetric_square_root(self.covariance(x, x))

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Exact GP regression per group and channel (paper, Appendix B)."""
        residual = mean if self.has_zero_mean else mean - self.prior_mean(x)
        return DenseBlockPosterior(self, x, precision, residual)

    def kernel_on_rows(self) -> Kernel:
        """`LocalKernel` of the block's kernel."""
        return LocalKernel(self.kernel)


class GlobalChannels(ChannelBlock):
    r"""Channels with one value per group: k2(x_i, x_j) = variance * delta(d_i, d_j) (paper, Section 3: variance 1).

    Args:
        num_channels: Channels of the block (L - J of the paper).
        variance: Prior variance, a number or one per channel. It is fixed unless you ask otherwise
            (`block.raw_variance.requires_grad_()`): the decoder can rescale a latent by itself.
        mean: `ConstantMean(batch_shape=[] or [num_channels])`, or None for zero.
        variance_prior: A GPyTorch prior on the variance.
        variance_constraint: A GPyTorch constraint, `Positive()` if None.

    Raises:
        ShapeError: If a variance has the wrong length, the mean is not constant, or `num_channels` is below 1.
        DataError: If a variance is not positive, or outside its constraint.
    """

    raw_variance: torch.nn.Parameter
    raw_variance_constraint: Interval

    def __init__(
        self,
        num_channels: int,
        variance: float | Tensor = 1.0,
        mean: Mean | None = None,
        variance_prior: Prior | None = None,
        variance_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        check_num_channels(num_channels)
        value = torch.as_tensor(variance, dtype=torch.float64)  # the prior converts: 1.0 should stay 1 to all digits
        if value.dim() > 1 or (value.dim() == 1 and len(value) != num_channels):
            raise ShapeError(
                f"variance: expected a number or shape ({num_channels},), got {tuple(value.shape)}. "
                "Try one variance for each channel of the block."
            )
        if not bool((value > 0).all()):
            raise DataError(f"variance: expected positive values, got {value.tolist()}. Try variance=1.0.")
        self.num_channels = num_channels
        self.mean_module = mean if mean is not None else ZeroMean()
        self.has_zero_mean = isinstance(self.mean_module, ZeroMean)
        check_mean(self.mean_module, num_channels)
        if not isinstance(self.mean_module, (ConstantMean, ZeroMean)):
            raise ShapeError(
                f"mean: expected a ConstantMean, got {type(self.mean_module).__name__}: a global channel has one value "
                "per group. Try LocalChannels for a mean that depends on x."
            )
        shape = (num_channels,) if value.dim() == 1 else (1,)
        raw = torch.zeros(shape, dtype=value.dtype)
        self.register_parameter("raw_variance", torch.nn.Parameter(raw, requires_grad=False))
        self.register_constraint("raw_variance", variance_constraint or Positive())
        try:
            self.initialize(variance=value.expand(shape))
        except RuntimeError as error:
            raise DataError(
                f"variance: expected a value that the constraint {self.raw_variance_constraint} allows, got "
                f"{value.tolist()}. Try variance= a number inside it."
            ) from error
        if variance_prior is not None:
            self.register_prior("variance_prior", variance_prior, _get_variance, lambda m, v: m.initialize(variance=v))

    @property
    def variance(self) -> Tensor:
        """Prior variance, (num_channels,) or (1,)."""
        return self.raw_variance_constraint.transform(self.raw_variance)

    @variance.setter
    def variance(self, value: Tensor | float) -> None:
        value = torch.as_tensor(value).to(self.raw_variance)
        self.initialize(raw_variance=self.raw_variance_constraint.inverse_transform(value))

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""
        return mean_at(self.mean_module, x)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The variance at every pair: (*b, G, J or 1, Q1, Q2)."""
        variance = self.variance.to(x1.dtype)
        return variance[:, None, None].expand(*x1.shape[:-2], -1, x1.shape[-2], x2.shape[-2])

    def covariance_root(self, x: Tensor) -> Tensor:
        """sqrt(variance) 1, (*b, G, J or 1, Q, 1)."""
        return self.variance.to(x.dtype).sqrt()[:, None, None].expand(*x.shape[:-2], -1, x.shape[-2], 1)

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Pool the members (paper, Appendix B: N(mu-bar, sigma-bar^2))."""
        residual = mean if self.has_zero_mean else mean - self.prior_mean(x)
        return RankOneBlockPosterior(self, x, precision, residual, self.variance.to(x.dtype))

    def kernel_on_rows(self) -> Kernel:
        """`GlobalKernel`, scaled by the variance."""
        kernel = gpytorch.kernels.ScaleKernel(GlobalKernel(), batch_shape=torch.Size(()))
        kernel.to(self.raw_variance)
        kernel.batch_shape = torch.Size([self.num_channels]) if len(self.raw_variance) > 1 else torch.Size(())
        kernel.raw_outputscale_constraint = self.raw_variance_constraint
        kernel.raw_outputscale = self.raw_variance
        return kernel


def _get_variance(block: GlobalChannels) -> Tensor:
    return block.variance


def mean_at(mean_module: Mean, x: Tensor) -> Tensor:
    """A mean at x (*b, G, Q, D), channels before members: broadcastable to (*b, G, J, Q)."""
    try:
        mean = mean_module(x.unsqueeze(-3))
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ShapeError(
            f"mean {type(mean_module).__name__}: expected to take x with D = {x.shape[-1]} features, got an error "
            f"({error}). Try a mean of as many features, such as LinearMean({x.shape[-1]})."
        ) from error
    if not isinstance(mean, Tensor) or mean.shape[-1:] != x.shape[-2:-1]:
        got = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
        raise ShapeError(
            f"mean {type(mean_module).__name__}: expected one value for each of {x.shape[-2]} members, got {got}. "
            "Try mean.squeeze(-1)."
        )
    return mean


def _evaluate(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    try:
        with gpytorch.settings.lazily_evaluate_kernels(False):
            covariance = kernel(x1, x2).to_dense()
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected to evaluate x with D = {x1.shape[-1]} features, got an error "
            f"({error}). Try ard_num_dims={x1.shape[-1]}, or active_dims below {x1.shape[-1]}."
        ) from error
    if covariance.shape[-2:] != (x1.shape[-2], x2.shape[-2]):
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected one row for each member, ({x1.shape[-2]}, {x2.shape[-2]}), got "
            f"{tuple(covariance.shape[-2:])}. Try a kernel of one output (no gradients, no tasks)."
        )
    front = torch.broadcast_shapes(x1.shape[:-3], x2.shape[:-3])
    if covariance.shape[:-3] != front:  # such as the first group's for all of them
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected a matrix for each group, {(*front, 'J or 1')}, got "
            f"{tuple(covariance.shape[:-2])}. Try a forward that keeps the leading dimensions of x1 and x2."
        )
    return covariance


def check_num_channels(num_channels: int) -> None:
    """Raise a `ShapeError` if a block would be empty."""
    if not isinstance(num_channels, int) or isinstance(num_channels, bool) or num_channels < 1:
        raise ShapeError(
            f"num_channels: expected an integer >= 1, got {num_channels!r}. "
            "Leave a block out instead of making it empty."
        )


def _check_batch_shape(batch_shape: torch.Size, num_channels: int, what: str) -> None:
    if tuple(batch_shape) not in ((), (num_channels,)):
        raise ShapeError(
            f"{what}: expected batch_shape [] (shared by the block) or [{num_channels}] (one per channel), "
            f"got {list(batch_shape)}. Try batch_shape=torch.Size([{num_channels}])."
        )


def check_mean(mean: Mean, num_channels: int) -> None:
    """Raise a `ShapeError` if a mean is none, or has another batch shape than [] or [J]."""
    if not isinstance(mean, torch.nn.Module):
        raise ShapeError(
            f"mean: expected a GPyTorch mean, got {type(mean).__name__}. Try gpytorch.means.ConstantMean(), or None."
        )
    batch_shape = getattr(mean, "batch_shape", torch.Size(()))
    _check_batch_shape(batch_shape, num_channels, f"mean {type(mean).__name__}")
