"""The factorized prior with global channels that are correlated between similar groups."""

from collections.abc import Sequence

import gpytorch
import torch
from torch import Tensor

from fgp_gpytorch._shapes import as_sample_shape
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor, masked_precision
from fgp_gpytorch.prior.channels import ChannelBlock, check_num_channels
from fgp_gpytorch.prior.factorized_gp_prior import FactorizedGPPrior
from fgp_gpytorch.prior.latent_posterior import LatentPosterior, LatentPrediction
from fgp_gpytorch.prior.object_root import ObjectRoot
from fgp_gpytorch.saving import Configurable


class CorrelatedGPPrior(Configurable, gpytorch.Module):
    r"""Local channels as in `FactorizedGPPrior`, global channels with a linear kernel over object vectors.

        z_p^l = D_p u^l,   u^l ~ N(0, I_m)      so Cov(z_p^l, z_p'^l) = (D D')_pp'

    one value per group and channel as in the paper's Section 3, but similar groups have similar values (the paper's
    Sigma, Section 2). With normalised vectors the variance is 1, the paper's. With m = P orthogonal vectors it is the
    paper's prior itself. Groups are coupled.

    Args:
        local: Blocks of channels that vary within a group.
        num_global_channels: L - J; they come after the local ones.
        objects: D.

    Attributes:
        num_channels: L.

    Raises:
        ShapeError: If there is no local block or no global channel.
    """

    local: FactorizedGPPrior
    objects: ObjectRoot

    def __init__(self, local: Sequence[ChannelBlock], num_global_channels: int, objects: ObjectRoot) -> None:
        super().__init__()
        check_num_channels(num_global_channels)
        self.local = FactorizedGPPrior(local)
        self.dtype = self.local.dtype
        self.objects = objects.to(self.dtype)
        self.num_global_channels = num_global_channels
        self.num_channels = self.local.num_channels + num_global_channels

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> "CorrelatedPosterior":
        """Condition on pseudo-observations of some groups: exact, for these groups together.

        Args:
            group_index: Which object vector each group has, (G,), int64.
            x: Auxiliary features, (G, Q, D).
            mean: mu, (G, Q, L).
            variance: sigma^2, (G, Q, L), positive.
            mask: True where a member is observed, (G, Q); None observes all.
            scale: How often each row counts for u, the weights that all groups share: P / G makes q(u) of G groups an
                estimate of that of all P. Local channels are not concerned.

        Returns:
            The posterior.

        Raises:
            GroupError: If a group has no object vector.
        """
        return CorrelatedPosterior(self, group_index, x, mean, variance, mask, scale)

    def log_hyperprior(self) -> Tensor:
        """Log density of the local kernels' hyperparameters under their priors, nats, a scalar."""
        return self.local.log_hyperprior()


class CorrelatedPosterior:
    """q(Z): exact GP posteriors of the local channels group by group, and of the global ones over all groups at once.

    Made by `CorrelatedGPPrior.condition`. A snapshot: after a parameter changes, make a new one.

    Attributes:
        x: Auxiliary features, (G, Q, D).
        group_index: Which object vector each group has, (G,).
        local: The local channels' posterior.
    """

    def __init__(
        self,
        prior: CorrelatedGPPrior,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None,
        scale: float = 1.0,
    ) -> None:
        self.group_index, self._prior, self._scale = group_index, prior, scale
        self._given = (x, mean, variance, mask)
        split = [prior.local.num_channels, prior.num_global_channels]
        (local_mean, shared_mean), (local_variance, shared_variance) = (v.split(split, -1) for v in (mean, variance))
        self.local: LatentPosterior = prior.local.condition(x, local_mean, local_variance, mask)
        self.x = self.local.x
        # every row of a group has the group's features: shape (G Q, m), and (L - J, G Q) for the rest
        rows = prior.objects.forward(group_index).unsqueeze(1).expand(*x.shape[:-1], -1).flatten(0, 1)
        flat_mask = None if mask is None else mask.flatten()
        precision = masked_precision(shared_variance.to(prior.dtype).flatten(0, 1).mT, flat_mask) * scale
        residual = shared_mean.to(prior.dtype).flatten(0, 1).mT
        if flat_mask is not None:
            residual = torch.where(flat_mask, residual, 0.0)
        self.shared: LowRankFactor = low_rank_factor(rows, precision, residual)

    @property
    def mean(self) -> Tensor:
        """Marginal means at x, (G, Q, L)."""
        return torch.cat([self.local.mean, self._shared_at(self.group_index, self.x)[0]], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Marginal variances at x, (G, Q, L)."""
        return torch.cat([self.local.variance, self._shared_at(self.group_index, self.x)[1]], dim=-1)

    @property
    def kl_local(self) -> Tensor:
        """KL(q || p) of the local channels, nats, (G,)."""
        return self.local.kl

    @property
    def kl_global(self) -> Tensor:
        """KL(q || p) of the global channels, in equal shares for the groups (it does not factorize), nats, (G,).

        With a scale of P / G in shares for P groups.
        """
        groups = len(self.group_index)
        return (self.shared.kl().sum() / (groups * self._scale)).expand(groups)

    @property
    def kl(self) -> Tensor:
        """KL(q || p) of all channels, nats, (G,); only the sum over groups has a meaning of its own."""
        return self.kl_local + self.kl_global

    @property
    def log_evidence(self) -> Tensor:
        """log Z of all groups together, summed over channels, nats, a scalar; the rows counted once."""
        assert self._scale == 1, "made by the training of a minibatch"
        return self.local.log_evidence.sum() + self.shared.log_evidence().sum()

    def predict(self, x_new: Tensor) -> "CorrelatedPrediction":
        """The posterior at other members of the same groups.

        Args:
            x_new: Auxiliary features, (G, Q*, D).

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            DataError: If x_new is not floating, not finite, or on another device.
        """
        return CorrelatedPrediction(self, self.local.predict(x_new), self.group_index)

    def predict_groups(self, group_index: Tensor, x_new: Tensor) -> "CorrelatedPrediction":
        """As `predict`, at new members of some of the groups that were conditioned on.

        Args:
            group_index: (G*,), int64.
            x_new: (G*, Q*, D).

        Returns:
            An object with `mean` and `variance` (G*, Q*, L) and `rsample`.

        Raises:
            GroupError: If a group was not conditioned on.
            ShapeError: If x_new does not fit.
        """
        same = group_index.unsqueeze(-1) == self.group_index
        if not bool(same.any(-1).all()):
            raise GroupError(
                f"group_index: expected groups that were conditioned on, got {group_index[~same.any(-1)].tolist()} "
                "beside them: their local channels are not known. Try to condition on all groups."
            )
        position = same.int().argmax(-1)
        channels = self._prior.local.num_channels
        x, mean, variance, mask = self._given
        parts = x[position], mean[position][..., :channels], variance[position][..., :channels]
        local = self._prior.local.condition(*parts, None if mask is None else mask[position])
        return CorrelatedPrediction(self, local.predict(x_new), group_index)

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at x, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths (the global channels over groups as well). True draws every
                member by itself.

        Returns:
            (*s, G, Q, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        shape = as_sample_shape(sample_shape)
        local = self.local.rsample(shape, marginals)
        return torch.cat([local, self._draw_shared(self.group_index, self.x, shape, marginals)], dim=-1)

    def _shared_at(self, group_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the global channels, each (G, Q, L - J)."""
        root = self._prior.objects.forward(group_index)
        parts = self.shared.predict_mean(root), self.shared.predict_variance(root)  # shape: (L - J, G)
        mean, variance = (part.mT.unsqueeze(-2).expand(-1, x.shape[-2], -1) for part in parts)
        return mean, variance

    def _draw_shared(self, group_index: Tensor, x: Tensor, sample_shape: torch.Size, marginals: bool) -> Tensor:
        if marginals:
            mean, variance = self._shared_at(group_index, x)
            # with normalised vectors and an exact zero nowhere, but a fixed vector may be zero: no infinite gradient
            scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
            return mean + scale * torch.randn(*sample_shape, *mean.shape, dtype=mean.dtype, device=mean.device)
        weights = self.shared.rsample_weights(sample_shape)  # shape: (*s, L - J, m)
        values = (weights @ self._prior.objects.forward(group_index).mT).mT  # shape: (*s, G, L - J)
        return values.unsqueeze(-2).expand(*values.shape[:-1], x.shape[-2], -1)


class CorrelatedPrediction:
    """The posterior at new members of known groups, made by `CorrelatedPosterior.predict`.

    Attributes:
        x: The new members' features, (G, Q*, D).
        mean: Marginal means, (G, Q*, L).
        variance: Marginal variances, (G, Q*, L).
    """

    def __init__(self, posterior: CorrelatedPosterior, local: LatentPrediction, group_index: Tensor) -> None:
        self.x = local.x
        self._posterior, self._local, self._group_index = posterior, local, group_index
        mean, variance = posterior._shared_at(group_index, self.x)
        self.mean = torch.cat([local.mean, mean], dim=-1)
        self.variance = torch.cat([local.variance, variance], dim=-1)

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at the new members, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths; True draws every member by itself.

        Returns:
            (*s, G, Q*, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        shape = as_sample_shape(sample_shape)
        local = self._local.rsample(shape, marginals)
        shared = self._posterior._draw_shared(self._group_index, self.x, shape, marginals)
        return torch.cat([local, shared], dim=-1)
