"""Channels with one value per group."""

import gpytorch
import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import Prior
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.gaussian import RankOneMarginals, rank_one_factor, rank_one_marginals
from fgp_gpytorch.kernels import GlobalKernel
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock


class GlobalChannels(ChannelBlock):
    r"""Channels with one value per group: k2(x_i, x_j) = variance * delta(d_i, d_j) (paper, Section 3: variance 1).

    Args:
        num_channels: Channels of the block (L - J of the paper).
        variance: Prior variance, a number or one per channel. It is fixed, because the decoder can rescale a latent.
            `block.raw_variance.requires_grad_()` makes it learned.
        mean: `ConstantMean(batch_shape=[] or [num_channels])`; None for zero.
        variance_prior: A GPyTorch prior on the variance.
        variance_constraint: A GPyTorch constraint; None for `Positive()`.

    Raises:
        ArgumentError: If `num_channels` is below 1, or another argument has the wrong type.
        ShapeError: If the variance has the wrong length, or the mean is not constant.
        DataError: If a variance is not positive and finite, or outside its constraint.

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(1)])
        >>> x, mean, variance = torch.rand(1, 2, 1), torch.full((1, 2, 1), 3.0), torch.ones(1, 2, 1)
        >>> prior.posterior(x, mean, variance).predict(torch.rand(1, 1, 1)).mean  # 2 * 3 / (2 + 1)
        tensor([[[2.]]], dtype=torch.float64)
    """

    is_global = True
    has_factors = True
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
        super().__init__(num_channels, mean)
        num_channels = self.num_channels
        value = check.as_reals(check.number(variance), "variance", hint="Try variance=1.0.")
        if isinstance(check.number(variance), bool):
            raise ArgumentError(f"variance: expected a number, got {variance!r}. Try variance=1.0.")
        value = value.double()  # the prior converts it: 1.0 stays 1 to all digits
        if value.dim() > 1 or (value.dim() == 1 and len(value) != num_channels):
            raise ShapeError(
                f"variance: expected a number or shape ({num_channels},), got {tuple(value.shape)}. "
                "Try one variance for each channel of the block."
            )
        if not bool(((value > 0) & (value < torch.inf)).all()):
            raise DataError(f"variance: expected positive finite values, got {value.tolist()}. Try variance=1.0.")
        check.instance(variance_prior, "variance_prior", (Prior, type(None)), "Try gpytorch.priors.GammaPrior(2, 1).")
        hint = "Try gpytorch.constraints.Positive()."
        check.instance(variance_constraint, "variance_constraint", (Interval, type(None)), hint)
        if not (self.has_zero_mean or isinstance(self.mean_module, ConstantMean)):
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
                f"{value.tolist()}. Try a variance inside it."
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

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The variance at every pair: (*b, G, J or 1, Q1, Q2)."""
        variance = self.variance.to(x1.dtype)
        return variance[:, None, None].expand(*x1.shape[:-2], -1, x1.shape[-2], x2.shape[-2])

    def covariance_root(self, x: Tensor) -> Tensor:
        """sqrt(variance) 1, (*b, G, J or 1, Q, 1)."""
        return self.variance.to(x.dtype).sqrt()[:, None, None].expand(*x.shape[:-2], -1, x.shape[-2], 1)

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Pool the members (paper, Appendix B: N(mu-bar, sigma-bar^2))."""
        return RankOneBlockPosterior(self, x, precision, self.residual(mean, x), self.variance.to(x.dtype))

    def kernel_on_rows(self) -> Kernel:
        """`GlobalKernel`, scaled by the variance."""
        kernel = gpytorch.kernels.ScaleKernel(GlobalKernel(), batch_shape=torch.Size(()))
        kernel.to(self.raw_variance)
        kernel.batch_shape = torch.Size([self.num_channels]) if len(self.raw_variance) > 1 else torch.Size(())
        kernel.raw_outputscale_constraint = self.raw_variance_constraint
        kernel.raw_outputscale = self.raw_variance
        return kernel


class RankOneBlockPosterior(BlockPosterior):
    """Posterior of `GlobalChannels`: one value per group and channel."""

    def __init__(
        self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor, prior_variance: Tensor
    ) -> None:
        super().__init__(block, x, precision, residual)
        self.prior_variance = prior_variance

    @cached_by_grad_mode
    def value(self) -> RankOneMarginals:
        """Mean, variance and KL of the one value, each (*b, G, J)."""
        return rank_one_marginals(self.prior_variance, self.precision, self.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self.predict(self.x)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*): the same at every member."""
        mean = self.block.add_mean(self.value.mean.unsqueeze(-1), x_new)
        variance = self.value.variance.unsqueeze(-1)
        shape = (*variance.shape[:-1], x_new.shape[-2])
        return mean.expand(shape), variance.expand(shape)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.value.kl

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return rank_one_factor(self.prior_variance, self.precision, self.residual).log_evidence()


def _get_variance(block: GlobalChannels) -> Tensor:
    return block.variance
