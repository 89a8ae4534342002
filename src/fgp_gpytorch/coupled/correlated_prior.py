"""Local channels as in the factorized prior, and global channels that are correlated between similar groups."""

from collections.abc import Iterable, Sequence

import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior, LowRankPrediction
from fgp_gpytorch.coupled.coupled_prior import CoupledPrior
from fgp_gpytorch.coupled.group_inputs import GroupInputs, checked_inputs
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor
from fgp_gpytorch.prior import ChannelBlock, FactorizedGPPrior, KLTerms, LatentPosterior, Prediction


class CorrelatedPrior(CoupledPrior):
    r"""Local channels as in `FactorizedGPPrior`, global channels with a linear kernel over group vectors.

        z_p^l = D_p u^l,   u^l ~ N(0, I_m)      so Cov(z_p^l, z_p'^l) = (D D')_pp'

    A global channel has one value per group, as in the paper's Section 3. Similar groups have similar values (the
    paper's Sigma, Section 2). Vectors of unit length give the paper's variance of 1. Orthogonal vectors, m = P, give
    the paper's prior.

    Args:
        local: Blocks of channels that vary within a group.
        num_global_channels: L - J. They come after the local ones.

    Attributes:
        num_channels: L.
        local: The local channels' prior.

    Raises:
        ArgumentError: If there is no local block or no global channel.

    Examples:
        >>> prior = CorrelatedPrior([LocalChannels(8, gpytorch.kernels.RBFKernel())], num_global_channels=4)
        >>> prior.num_channels, int(prior.is_global.sum()), prior.couples_groups
        (12, 4, True)
    """

    local: FactorizedGPPrior

    def __init__(self, local: Sequence[ChannelBlock], num_global_channels: int) -> None:
        super().__init__()
        self.num_global_channels = check.count(num_global_channels, "num_global_channels")
        blocks = list(local) if isinstance(local, Iterable) else [local]
        wrong = [type(block).__name__ for block in blocks if not isinstance(block, ChannelBlock)]
        if wrong or all(block.is_global for block in blocks):
            got = wrong or [type(block).__name__ for block in blocks] or "none"
            raise ArgumentError(
                f"local: expected a sequence of blocks with channels that vary within a group, got {got}. "
                "Try [LocalChannels(8, kernel)], or FGPVAE for global channels alone."
            )
        self.local = FactorizedGPPrior(blocks)
        self.dtype = self.local.dtype
        self.num_channels = self.local.num_channels + self.num_global_channels

    @property
    def is_global(self) -> Tensor:
        """True for the channels that have one value per group, (L,), on the CPU."""
        return torch.cat([self.local.is_global, torch.ones(self.num_global_channels, dtype=torch.bool)])

    def condition(self, inputs: GroupInputs, scale: float = 1.0) -> "CorrelatedPosterior":
        """The exact posterior of some groups together. `scale` acts on the global channels only."""
        return CorrelatedPosterior(self, checked_inputs(inputs), scale)

    def condition_local(self, inputs: GroupInputs) -> LatentPosterior:
        """The posterior of the local channels of some groups."""
        channels = self.local.num_channels
        parts = inputs.x, inputs.mean[..., :channels], inputs.variance[..., :channels]
        return self.local.condition(*parts, None if bool(inputs.mask.all()) else inputs.mask)


class CorrelatedPosterior(CoupledPosterior):
    """q(Z), exact: the local channels group by group, and the global channels over all groups at once.

    Attributes:
        local: The local channels' posterior.
        shared: q(u) of the global channels.

    Examples:
        >>> prior = CorrelatedPrior([LocalChannels(1, gpytorch.kernels.RBFKernel())], num_global_channels=1)
        >>> vectors, x = torch.tensor([[1.0], [1.0]]), torch.rand(2, 1, 1)  # two groups with the same vector
        >>> mean = torch.tensor([[[0.0, 3.0]], [[0.0, 0.0]]])
        >>> inputs = GroupInputs.of(vectors, x, mean, torch.ones(2, 1, 2), None, prior.dtype)
        >>> prior.condition(inputs).mean[..., 1].detach()  # the global channel
        tensor([[1.0000],
                [1.0000]], dtype=torch.float64)
    """

    def __init__(self, prior: CorrelatedPrior, inputs: GroupInputs, scale: float = 1.0) -> None:
        super().__init__(inputs, scale)
        self.prior, self.local = prior, prior.condition_local(inputs)
        channels = prior.local.num_channels
        of_global = inputs._replace(mean=inputs.mean[..., channels:], variance=inputs.variance[..., channels:])
        rows = inputs.vectors.unsqueeze(1).expand(*inputs.x.shape[:2], -1).flatten(0, 1)  # a group's members share it
        self.shared: LowRankFactor = low_rank_factor(rows, *of_global.targets(scale))
        self.at_members = self._beside(self.local, inputs.vectors)

    @property
    def kl_terms(self) -> KLTerms:
        """The KL of local channels per group, and of global channels in equal shares for P groups, nats, (G,)."""
        share, local = self.shared.kl().sum() / (len(self.x) * self.scale), self.local.kl_terms
        return KLTerms(local.kl_local, local.kl_global + share)

    @property
    def log_evidence(self) -> Tensor:
        """log Z of all groups together, summed over channels, nats, a scalar.

        Raises:
            ArgumentError: If members count more than once (`scale` is not 1).
        """
        if self.scale != 1:
            raise ArgumentError(
                f"log_evidence: expected a posterior of all groups (scale=1), got scale={self.scale:g}: a minibatch "
                "has no evidence. Try prior.condition(inputs) without scale."
            )
        return self.local.log_evidence.sum() + self.shared.log_evidence().sum()

    def predict_groups(self, inputs: GroupInputs, x_new: Tensor) -> "JointPrediction":
        """The posterior at x_new (G*, Q*, D) of some of its groups."""
        local = self.local if inputs is self.inputs else self.prior.condition_local(inputs)
        return self._beside(local.predict_checked(x_new), inputs.vectors)

    def join(self, other: CoupledPosterior) -> "CorrelatedPosterior":
        """The posterior of the groups of both together, those of `other` after these. Every member counts once."""
        return CorrelatedPosterior(self.prior, self.inputs.cat(other.inputs))

    def distribution(self) -> MultitaskMultivariateNormal:
        """The joint distribution of z at `x`: event shape (G Q, L), group after group."""
        (groups, members), local = self.x.shape[:2], self.prior.local.num_channels
        size = groups, members, self.prior.num_channels
        whole = self.x.new_zeros(*size, *size)
        own: Tensor = self.local.distribution().covariance_matrix  # pyright: ignore[reportAssignmentType]
        own = own.unflatten(-1, (members, local)).unflatten(-3, (members, local))  # shape: (G, Q, J, Q, J)
        for group in range(groups):
            whole[group, :, :local, group, :, :local] = own[group]
        shared = self.shared.covariance(self.shared.root)  # shape: (L - J, N, N)
        for channel, covariance in enumerate(shared, start=local):
            whole[:, :, channel, :, :, channel] = covariance.reshape(*size[:2], *size[:2])
        joint = whole.flatten(0, 2).flatten(1)
        return MultitaskMultivariateNormal(self.mean.flatten(0, 1), to_linear_operator(joint))

    def _beside(self, local: Prediction, vectors: Tensor) -> "JointPrediction":
        return JointPrediction(local, LowRankPrediction(self.shared, vectors.unsqueeze(1), None, local.x))


class JointPrediction(Prediction):
    """Predictions of blocks of channels side by side.

    Args:
        parts: Predictions at the same members.

    Examples:
        >>> x = torch.rand(2, 3, 1)
        >>> parts = [IndependentPrediction(torch.zeros(2, 3, n), torch.ones(2, 3, n), x) for n in (4, 1)]
        >>> JointPrediction(*parts).mean.shape
        torch.Size([2, 3, 5])
    """

    def __init__(self, *parts: Prediction) -> None:
        self.x, self.parts = parts[0].x, parts

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and variances, each (G, Q, L)."""
        means, variances = zip(*(part.marginals for part in self.parts), strict=True)
        return torch.cat(means, dim=-1), torch.cat(variances, dim=-1)

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw coherent paths, (*s, G, Q, L)."""
        return torch.cat([part.rsample_jointly(sample_shape) for part in self.parts], dim=-1)

    def rsample_marginals(self, sample_shape: torch.Size) -> Tensor:
        """Draw every member by itself, (*s, G, Q, L)."""
        return torch.cat([part.rsample_marginals(sample_shape) for part in self.parts], dim=-1)
