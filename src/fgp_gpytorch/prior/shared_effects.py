"""Effects of covariates that all groups share: a global latent."""

from collections.abc import Sequence

import gpytorch
import pyro.distributions as dist
import torch
from gpytorch.constraints import Interval, Positive
from torch import Tensor, nn

from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.feature_maps import checked_map


class SharedEffects(gpytorch.Module):
    r"""Additive functions of x that all groups share, on every latent channel.

        z_pj(x) = f_pj(x) + Phi_j(x) w_j,   w_j ~ N(0, I),   Phi_j(x) = [s_1j phi_1(x), s_2j phi_2(x), ...]

    The weights have the approximate posterior q(w_j) = N(m_j, S_j) with full covariance, independent between channels.
    It starts at the prior. Given w, Phi_j w_j is a part of the prior mean. Made by `FactorizedGPPrior(effects=...)`.

    Args:
        maps: Feature maps phi_e, (*b, N, D) to (*b, N, M_e).
        num_channels: L.

    Attributes:
        scale: s, the prior standard deviation of each effect on each channel, (E, L). It is learned, from 1.
        mean: m, (L, M) with M = sum M_e.
        root: The lower triangular root of S, (L, M, M).

    Raises:
        ArgumentError: If there are no maps, or one is no feature map.

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(2)], effects=[SelectedFeatures(CategoricalFeatures(3), [1])])
        >>> prior.effects.mean.shape  # two channels, three categories and an unknown one
        torch.Size([2, 4])
        >>> prior.effects.kl().item()  # q(w) starts at the prior
        0.0
    """

    maps: Sequence[nn.Module]
    raw_scale: nn.Parameter
    raw_scale_constraint: Interval

    def __init__(self, maps: Sequence[nn.Module], num_channels: int) -> None:
        super().__init__()
        if isinstance(maps, nn.Module) or not len(maps):
            raise ArgumentError(
                f"effects: expected a list of feature maps, got {type(maps).__name__}. Try "
                "effects=[SelectedFeatures(CategoricalFeatures(3), [1])]."
            )
        self.maps = nn.ModuleList([checked_map(part, "effects") for part in maps])  # pyright: ignore
        if len({id(part) for part in maps}) < len(maps):
            raise ArgumentError("effects: expected different maps, got one twice. Try one of them.")
        self.sizes = [int(part.num_features) for part in maps]  # pyright: ignore[reportArgumentType]
        size = sum(self.sizes)
        self.mean = nn.Parameter(torch.zeros(num_channels, size))
        self.raw_root = nn.Parameter(torch.zeros(num_channels, size, size))
        self.register_parameter("raw_scale", nn.Parameter(torch.zeros(len(maps), num_channels)))
        self.register_constraint("raw_scale", Positive())
        self.scale = torch.ones(len(maps), num_channels)

    @property
    def scale(self) -> Tensor:
        """s, (E, L)."""
        return self.raw_scale_constraint.transform(self.raw_scale)

    @scale.setter
    def scale(self, value: Tensor | float) -> None:
        value = torch.as_tensor(value).to(self.raw_scale).expand_as(self.raw_scale)
        self.initialize(raw_scale=self.raw_scale_constraint.inverse_transform(value))

    @property
    def root(self) -> Tensor:
        """The lower triangular root of S, (L, M, M), with a positive diagonal."""
        return self.raw_root.tril(-1) + self.raw_root.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    @root.setter
    def root(self, value: Tensor) -> None:
        diagonal = value.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        self.initialize(raw_root=(value.tril(-1) + diagonal).to(self.raw_root))

    def distribution(self) -> dist.TorchDistribution:
        """q(w): event shape (L, M)."""
        return dist.MultivariateNormal(self.mean, scale_tril=self.root, validate_args=False).to_event(1)

    def prior_distribution(self) -> dist.TorchDistribution:
        """p(w) = N(0, I): event shape (L, M)."""
        zero = torch.zeros_like(self.mean)
        return dist.Normal(zero, torch.ones_like(zero), validate_args=False).to_event(2)

    def kl(self) -> Tensor:
        """KL(q(w) || p(w)), nats, a scalar, once for the whole data set."""
        log_diagonal = self.raw_root.diagonal(dim1=-2, dim2=-1)
        trace = (2 * log_diagonal).exp().sum() + self.raw_root.tril(-1).square().sum()
        return 0.5 * (trace - self.mean.numel() + self.mean.square().sum()) - log_diagonal.sum()

    def sample(self, x: Tensor, sample_shape: torch.Size) -> Tensor:
        """Draw the effects at x (*b, G, Q, D), one draw of q(w) for all groups: (*s, *b, G, L, Q)."""
        weights = self.distribution().rsample(sample_shape)
        return self.values(x, weights.reshape(*sample_shape, *[1] * (x.dim() - 2), *weights.shape[-2:]))

    def values(self, x: Tensor, weights: Tensor) -> Tensor:
        """Phi w at x (*b, G, Q, D) for weights (*s, L, M), broadcast over the batch: (*s, *b, G, L, Q)."""
        return (self._features(x) @ (self._scales() * weights).mT).mT

    def features(self, x: Tensor) -> Tensor:
        """Phi of every channel at x (*b, G, Q, D): (*b, G, L, Q, M)."""
        return self._features(x).unsqueeze(-3) * self._scales().unsqueeze(-2)

    def _features(self, x: Tensor) -> Tensor:  # shape: (*b, G, Q, M)
        return torch.cat([part(x).to(x.dtype) for part in self.maps], dim=-1)

    def _scales(self) -> Tensor:  # shape: (L, M)
        sizes = torch.tensor(self.sizes, device=self.raw_scale.device)
        return self.scale.repeat_interleave(sizes, dim=0).mT
