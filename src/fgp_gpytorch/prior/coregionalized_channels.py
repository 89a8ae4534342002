"""Correlated channels: a learned covariance between channels and over x."""

import math

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from gpytorch.priors import NormalPrior
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.feature_maps import NystromFeatures, PeriodicFeatures
from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock

_QUANTILE_90 = 1.6448536269514722
_EXCESS = 2.2  # of the squared error over the variance, for each J M / G
_ENOUGH_GROUPS = 8  # groups for each of J M: the expected coverage of 90 % intervals is 0.85


class CoregionalizedChannels(ChannelBlock):
    r"""Correlated channels: linear functions of R factors per group, with loadings that vary with x.

        z_pj(x) = m_j(x) + sum_r psi_jr(x) g_pr,   g_p ~ N(0, I_R),   psi_jr(x) = sum_f phi_f(x) W_jfr
        Cov(z_pj(x), z_p'k(x')) = delta(p, p') sum_r psi_jr(x) psi_kr(x')

    Inference is exact and costs O(J Q R^2) per group. A new group needs no training. The loadings W are learned under
    W_jfr ~ N(0, 1 / R), that is psi_jr ~ GP(0, k / R) for k = phi phi'. So the kernel interpolates the loadings at an x
    that no group has. The log density of W is part of `log_hyperprior`.

    - The paper's local channels are independent a priori, with one kernel each. Here W correlates the channels.
    - `GlobalChannels` are the case of constant phi and W = I, `LocalChannels` that of a block diagonal W.
    - W is a point estimate, so the intervals leave out its error. With few groups they are too narrow: of 60 groups
      drawn from the model, 90 % intervals contain about 70 % (J = 4, M = 9) or 50 % (M = 25). With 1,000 groups they
      contain 88 % and 86 %. Below 8 J M groups `fit` warns.
    - This is a linear model of coregionalization (Alvarez et al. 2012) of rank R over channels and features together.
      It is also multivariate functional PCA (Happ and Greven 2018), with g_p as the scores of a group.

    Args:
        num_channels: J.
        num_factors: R, factors per group. J M factors for M features restrict nothing.
        features: phi: `PeriodicFeatures` (periodic kernels) or `NystromFeatures` (any kernel) of a kernel without batch
            shape. The kernel sets how smooth the loadings are, and its scale the channels' prior variance.
        mean: A GPyTorch mean with `batch_shape` [] or [J]; None for zero.

    Attributes:
        loadings: W, (J, M, R), drawn from its prior at the start (`torch.manual_seed`). The covariance of each channel
            is then the kernel, on average.

    Raises:
        ArgumentError: If a number is below 1, or `features` is not a feature map.
        ShapeError: If the kernel or the mean has another batch shape.

    Examples:
        >>> kernel = gpytorch.kernels.PeriodicKernel()
        >>> kernel.period_length = 2 * math.pi
        >>> fixed = kernel.raw_period_length.requires_grad_(False)
        >>> prior = FactorizedGPPrior([CoregionalizedChannels(16, 16, PeriodicFeatures(kernel))])
        >>> posterior = prior.posterior(torch.rand(2, 5, 1), mean=torch.zeros(2, 5, 16), variance=torch.ones(2, 5, 16))
        >>> posterior.whitened_distributions()[0].mean.shape  # 16 numbers that describe each of two groups
        torch.Size([2, 1, 16])
    """

    couples_channels = True
    has_factors = True

    def __init__(
        self,
        num_channels: int,
        num_factors: int,
        features: PeriodicFeatures | NystromFeatures,
        mean: Mean | None = None,
    ) -> None:
        super().__init__(num_channels, mean)
        self.num_factors = check.count(num_factors, "num_factors", hint=f"Try {self.num_channels}.")
        check.instance(
            features, "features", (PeriodicFeatures, NystromFeatures),
            "Try PeriodicFeatures(gpytorch.kernels.PeriodicKernel()), or NystromFeatures(kernel, points).",
        )  # fmt: skip
        if features.kernel.batch_shape:
            raise ShapeError(
                f"features: expected a kernel without batch shape, got {list(features.kernel.batch_shape)}: all "
                "channels share its features, and each has its own W. Try a kernel without batch_shape."
            )
        self.features = features
        scale = 1 / math.sqrt(self.num_factors)
        shape = self.num_channels, features.num_features, self.num_factors
        self.loadings = torch.nn.Parameter(scale * torch.randn(shape))
        self.register_prior("loadings_prior", NormalPrior(0.0, scale), "loadings")

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance of every channel with itself, (*b, G, J, Q1, Q2)."""
        return self.covariance_root(x1) @ self.covariance_root(x2).mT

    def covariance_root(self, x: Tensor) -> Tensor:
        """psi at x (*b, G, Q, D), a root of the joint covariance of all channels: (*b, G, J, Q, R)."""
        features = self.features.forward(x)  # phi, shape: (*b, G, Q, M)
        # one matrix product of all members; matmul would copy the loadings for every group
        psi = features.to(x.dtype) @ self.loadings.to(x.dtype).transpose(0, 1).flatten(1)  # shape: (*b, G, Q, J R)
        return psi.unflatten(-1, (self.num_channels, self.num_factors)).transpose(-3, -2)

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Condition the group's factors on the pseudo-observations of all channels."""
        return CoregionalizedBlockPosterior(self, x, precision, self.residual(mean, x))

    def expected_coverage(self, num_groups: int) -> float:
        """The coverage to expect of 90 % intervals of new members' latents, if W is learned from this many groups.

        The excess 2.2 J M / G of the squared error, for any R, was fitted to data drawn from the model with 2 to 6
        members a group (docs/experiments/coverage.md).
        """
        excess = _EXCESS * self.num_channels * self.features.num_features / num_groups
        return math.erf(_QUANTILE_90 / math.sqrt(2 * (1 + excess)))

    def few_groups_advice(self, num_groups: int) -> str | None:
        """Return what to expect and try if there are under 8 J M groups and the loadings are learned, else None."""
        per_factor = self.num_channels * self.features.num_features  # J M
        if not self.loadings.requires_grad or num_groups >= _ENOUGH_GROUPS * per_factor:
            return None
        product = f"J M = {self.num_channels} x {self.features.num_features}"
        return (
            f"CoregionalizedChannels: expected at least {_ENOUGH_GROUPS * per_factor} groups, {_ENOUGH_GROUPS} for "
            f"each of {product} loadings of a factor, got {num_groups}. The loadings are a point "
            "estimate: 90 % intervals of new members' latents may contain only about "
            f"{100 * self.expected_coverage(num_groups):.0f} % of the truths. Try more groups, fewer channels or "
            "features (harmonics=, points), a fixed kernel, or LocalChannels."
        )

    def kernel_on_rows(self) -> Kernel:
        """Raise an error: no kernel of one output has the covariance between channels.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "block: expected channels that are independent of each other, got CoregionalizedChannels. No kernel of one "
            "output has their covariance. Try prior.posterior, or prior(x) for the joint distribution."
        )


class CoregionalizedBlockPosterior(BlockPosterior):
    """Posterior of `CoregionalizedChannels`: N(u, B^-1) of a group's R factors (`gaussian.low_rank`)."""

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        self.root = block.covariance_root(x)

    @cached_by_grad_mode
    def factor(self) -> LowRankFactor:
        """q of the factors: batch (*b, G), rows J Q, by channel and then by member."""
        return low_rank_factor(self.root.flatten(-3, -2), self.precision.flatten(-2), self.residual.flatten(-2))

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self._at(self.root, self.x)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        return self._at(self.block.covariance_root(x_new), x_new)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J): each channel gets a J-th of the block's KL."""
        return self._shares(self.factor.kl())

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J): each channel gets a J-th of the block's."""
        return self._shares(self.factor.log_evidence())

    def whitened(self, x_new: Tensor | None = None) -> LowRankFactor:
        """q of the factors, one set for all channels: batch (*b, G, 1), rows J (Q + Q*)."""
        root = self.root
        if x_new is not None:
            root = torch.cat([root, self.block.covariance_root(x_new)], dim=-2)
        one_set = self.factor._replace(root=root.flatten(-3, -2))
        return LowRankFactor(
            one_set.root.unsqueeze(-3), one_set.precision.unsqueeze(-2), one_set.residual.unsqueeze(-2),
            one_set.cholesky.unsqueeze(-3), one_set.weights.unsqueeze(-2),
        )  # fmt: skip

    def _shares(self, value: Tensor) -> Tensor:
        channels = self.block.num_channels
        return (value / channels).unsqueeze(-1).expand(*value.shape, channels)

    def _at(self, root: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, shape = root.flatten(-3, -2), root.shape[-3:-1]
        mean, variance = self.factor.predict_mean(rows), self.factor.predict_variance(rows)
        # 0 where no factor has a loading: the square root has no gradient there
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return self.block.add_mean(mean.unflatten(-1, shape), x), variance.unflatten(-1, shape)
