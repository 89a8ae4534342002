"""Channels that share a few factors of each group: a learned covariance between channels and over x."""

import math

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from gpytorch.priors import NormalPrior
from torch import Tensor

from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.gaussian import LowRankFactor, WhitenedFactor, low_rank_factor
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior, once_per_grad_mode
from fgp_gpytorch.prior.channels import ChannelBlock, check_mean, check_num_channels, mean_at
from fgp_gpytorch.prior.fourier_root import FourierRoot
from fgp_gpytorch.prior.nystrom_root import NystromRoot


class CoregionalizedChannels(ChannelBlock):
    r"""Channels that are correlated with each other: R factors of a group, by loadings that vary with x.

        z_pj(x) = m_j(x) + sum_r psi_jr(x) g_pr,   g_p ~ N(0, I_R),   psi_jr(x) = sum_f phi_f(x) W_jfr
        Cov(z_pj(x), z_p'k(x')) = delta(p, p') sum_r psi_jr(x) psi_kr(x')

    The paper's local channels are a priori independent, one kernel each, and know nothing of how groups look as a
    rule; here that is learned, as the loadings W. It is a linear model of coregionalization (Alvarez et al. 2012) whose
    latent processes are the M basis functions phi of a kernel, k = phi phi', with a coregionalization matrix of rank R
    over channels and basis functions together; or, the other way round, multivariate functional principal components
    (Happ and Greven 2018), g_p being a group's scores. `GlobalChannels` are a constant phi and W = I; `LocalChannels`
    a W of J M columns that is block diagonal.

    Inference stays exact and within the group: O(J Q R^2), and a group never seen needs no training. W is learned under
    W_jfr ~ N(0, 1 / R), that is psi_jr ~ GP(0, k / R): at an x that no group has, loadings are what the kernel says of
    their neighbours, where W alone could be anything. The log density is a hyperprior (`log_hyperprior`).

    Args:
        num_channels: J.
        num_factors: R. Every group is described by so many numbers; J (1 + 2 H) of a `FourierRoot` lose nothing.
        root: phi, a `FourierRoot` (periodic kernels) or a `NystromRoot` (any kernel), of a kernel without batch shape.
            Its kernel says how smooth the loadings are; its scale is the channels' prior variance.
        mean: A GPyTorch mean with `batch_shape` [] or [J], or None for zero.

    Attributes:
        loadings: W, (J, M, R), drawn from its prior at the start (`torch.manual_seed`): the covariance of each channel
            is then the root's kernel, on average.

    Raises:
        ShapeError: If a number is below 1, or the kernel or mean has another batch shape.
        DataError: If `root` is none.

    Example:
        >>> kernel = gpytorch.kernels.PeriodicKernel()
        >>> kernel.period_length = 2 * math.pi
        >>> kernel.raw_period_length.requires_grad_(False)
        >>> prior = FactorizedGPPrior([CoregionalizedChannels(16, 16, FourierRoot(kernel))])
        >>> scores = prior.posterior(x, mean, variance).whitened_distributions()[0].mean  # (G, 1, 16)
    """

    couples_channels = True

    def __init__(
        self, num_channels: int, num_factors: int, root: FourierRoot | NystromRoot, mean: Mean | None = None
    ) -> None:
        super().__init__()
        check_num_channels(num_channels)
        if not isinstance(num_factors, int) or isinstance(num_factors, bool) or num_factors < 1:
            raise ShapeError(f"num_factors: expected an integer >= 1, got {num_factors!r}. Try {num_channels}.")
        if not isinstance(root, FourierRoot | NystromRoot):
            raise DataError(
                f"root: expected a FourierRoot or a NystromRoot, got {type(root).__name__}. "
                "Try FourierRoot(gpytorch.kernels.PeriodicKernel()), or NystromRoot(kernel, points) of any kernel."
            )
        if root.kernel.batch_shape:
            raise ShapeError(
                f"root: expected a kernel without batch shape, got {list(root.kernel.batch_shape)}: all channels share "
                "its basis functions, and W is a channel's own. Try a kernel without batch_shape."
            )
        self.num_channels, self.num_factors, self.root = num_channels, num_factors, root
        self.mean_module = mean if mean is not None else ZeroMean()
        self.has_zero_mean = isinstance(self.mean_module, ZeroMean)
        check_mean(self.mean_module, num_channels)
        scale = 1 / math.sqrt(num_factors)
        self.loadings = torch.nn.Parameter(scale * torch.randn(num_channels, root.num_features, num_factors))
        self.register_prior("loadings_prior", NormalPrior(0.0, scale), "loadings")

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D): broadcastable to (*b, G, J, Q)."""
        return mean_at(self.mean_module, x)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Within-group covariance of every channel with itself, (*b, G, J, Q1, Q2)."""
        return self.covariance_root(x1) @ self.covariance_root(x2).mT

    def covariance_root(self, x: Tensor) -> Tensor:
        """psi at x (*b, G, Q, D), one root of all channels together: (*b, G, J, Q, R)."""
        features = self.root.forward(x)  # phi, shape: (*b, G, Q, M)
        return features.to(x.dtype).unsqueeze(-3) @ self.loadings.to(x.dtype)

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """Condition the group's factors on the pseudo-observations of all channels."""
        residual = mean if self.has_zero_mean else mean - self.prior_mean(x)
        return CoregionalizedBlockPosterior(self, x, precision, residual)

    def kernel_on_rows(self) -> Kernel:
        """There is none: a kernel of one output has no covariance between channels.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "block: expected channels that are independent of each other, got CoregionalizedChannels, whose covariance "
            "between channels no kernel of one output has. Try prior.posterior, or prior(x) for the joint distribution."
        )


class CoregionalizedBlockPosterior(BlockPosterior):
    """Posterior of `CoregionalizedChannels`: N(u, B^-1) of a group's R factors (`gaussian.low_rank`)."""

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        self._root = block.covariance_root(x)

    @property
    @once_per_grad_mode
    def factor(self) -> LowRankFactor:
        """q of the factors, all channels' members as its rows: batch (*b, G), rows J Q."""
        return low_rank_factor(self._root.flatten(-3, -2), self.precision.flatten(-2), self.residual.flatten(-2))

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self._at(self._root, self.x)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        return self._at(self.block.covariance_root(x_new), x_new)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, 1): a J-th of the block's, which its channels have together."""
        return (self.factor.kl() / self.block.num_channels).unsqueeze(-1)

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, 1): a J-th of the block's."""
        return (self.factor.log_evidence() / self.block.num_channels).unsqueeze(-1)

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint samples at the members (and x_new), (*s, *b, G, J, Q + Q*)."""
        x = self.x if x_new is None else torch.cat([self.x, x_new], dim=-2)
        factors = self.factor.rsample_weights(sample_shape)[..., None, :, None]  # shape: (*s, *b, G, 1, R, 1)
        return self._with_mean((self._root_with(x_new) @ factors).squeeze(-1), x)

    def whitened(self, x_new: Tensor | None = None) -> WhitenedFactor:
        """q of the factors, one set for all channels: batch (*b, G, 1), rows J (Q + Q*)."""
        factor, root = self.factor, self._root_with(x_new)
        precision = factor.cholesky @ factor.cholesky.mT
        return WhitenedFactor(
            root=root.flatten(-3, -2).unsqueeze(-3), cholesky=factor.cholesky.unsqueeze(-3),
            mean=factor.weights.unsqueeze(-2), precision=precision.unsqueeze(-3),
        )  # fmt: skip

    def _root_with(self, x_new: Tensor | None) -> Tensor:
        if x_new is None:
            return self._root
        return torch.cat([self._root, self.block.covariance_root(x_new)], dim=-2)

    def _at(self, root: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, shape = root.flatten(-3, -2), root.shape[-3:-1]
        mean, variance = self.factor.predict_mean(rows), self.factor.predict_variance(rows)
        # 0 where no factor has a loading, and the square root has no gradient there
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return self._with_mean(mean.unflatten(-1, shape), x), variance.unflatten(-1, shape)
