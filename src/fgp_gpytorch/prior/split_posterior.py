"""Posterior of a batch of groups of very different sizes: a few paddings in place of one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.gaussian import LowRankFactor
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior

_PARTS = 3  # at most
_CANDIDATES = 16  # sizes at which a batch may be cut
_LEAST_MEMBERS = 32  # smaller paddings cost little
_LEAST_GAIN = 0.7  # of the cost with one padding
_PART_COST = 1e6  # of a part, in multiplications
_MEMBER_COST = 1e4  # of a member in a state space or by features


class Part(NamedTuple):
    """Groups that share a padding.

    Attributes:
        groups: Their positions in the batch, (g,).
        width: Members of the padding: those of the largest group, and one that is padding in all groups.
    """

    groups: Tensor
    width: int


def parts_of(x: Tensor, precision: Tensor, is_dense: Callable[[], bool]) -> list[Part]:
    """Cut a batch by the sizes of its groups, so that the algebra costs little.

    Args:
        x: Auxiliary features, (G, Q, D).
        precision: R^2, (G, J, Q), 0 for a missing member.
        is_dense: Says whether a group costs the cube of the width of its padding, or a multiple of it. It is asked only
            if the sizes differ.

    Returns:
        Two or three parts; none if one padding is as good, or padding does not have one x in each group.
    """
    members = x.shape[-2]
    if x.dim() != 3 or len(x) < 2 or members < _LEAST_MEMBERS:
        return []
    observed = (precision > 0).any(-2)  # shape: (G, Q)
    places = torch.arange(1, members + 1, device=x.device)
    sizes = torch.where(observed, places, 0).amax(-1)
    if int(sizes.amin()) == members:
        return []
    widths = _widths(sizes.tolist(), members, is_dense())
    if len(widths) < 2:
        return []
    parts, lower = [], -1
    for width in widths:
        largest = width - 1 if width < members else members
        groups = ((sizes > lower) & (sizes <= largest)).nonzero()[:, 0]
        padding = x[groups, width - 1 :]
        if width < members and not bool((padding == padding[:, :1]).all()):
            return []
        parts.append(Part(groups, width))
        lower = largest
    return parts


def _widths(sizes: Sequence[int], members: int, dense: bool) -> list[int]:
    """The widths of the cheapest cut, ascending; the last one is that of the batch."""
    ordered = sorted(sizes)
    quantiles = {ordered[len(ordered) * k // _CANDIDATES] + 1 for k in range(_CANDIDATES)}
    candidates = sorted(width for width in quantiles if width < members)

    def cost(widths: Sequence[int]) -> float:
        total, lower = 0.0, -1
        for width in widths:
            largest = width - 1 if width < members else members
            own = width**3 if dense else _MEMBER_COST * width
            total += _PART_COST + own * sum(lower < size <= largest for size in ordered)
            lower = largest
        return total

    choices = [[low, members] for low in candidates]
    choices += [[low, high, members] for low in candidates for high in candidates if low < high]
    best = min(choices, key=cost, default=[members])
    return best if cost(best) < _LEAST_GAIN * cost([members]) else [members]


class SplitBlockPosterior(BlockPosterior):
    """The posteriors of the parts of a batch, in the order of its groups.

    The answers are those of one padding. Whitened variables and joint covariances are those of one padding too, and
    cost as much.

    Args:
        block: The block.
        x: Auxiliary features, (G, Q, D).
        precision: R^2 = 1 / sigma^2, (G, J, Q), 0 for a missing member.
        residual: mu less the prior mean, (G, J, Q).
        parts: Groups and widths.
        condition: From x, precisions and residuals of some groups to their posterior.
    """

    def __init__(
        self,
        block: BlockPrior,
        x: Tensor,
        precision: Tensor,
        residual: Tensor,
        parts: Sequence[Part],
        condition: Callable[[Tensor, Tensor, Tensor], BlockPosterior],
    ) -> None:
        super().__init__(block, x, precision, residual)
        self.parts, self.condition = parts, condition
        self.posteriors = [
            condition(x[groups, :width], precision[groups, :, :width], residual[groups, :, :width])
            for groups, width in parts
        ]
        self.order = torch.cat([part.groups for part in parts]).argsort()

    def replace_block(self, block: BlockPrior) -> None:
        """Let the answers have the prior mean of another block, whose covariance is the same."""
        super().replace_block(block)
        for own in self.posteriors:
            own.replace_block(block)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (G, J, Q)."""
        means, variances = zip(*(own.marginals() for own in self.posteriors), strict=True)
        return self._joined(self._filled(means), -3), self._joined(self._filled(variances), -3)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (G, Q*, D), each (G, J, Q*)."""
        means, variances = zip(*(own.predict(x_new[p.groups]) for own, p in self._pairs()), strict=True)
        return self._joined(means, -3), self._joined(variances, -3)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (G, J)."""
        return self._joined([own.kl() for own in self.posteriors], -2)

    def log_evidence(self) -> Tensor:
        """log Z, nats, (G, J)."""
        return self._joined([own.log_evidence() for own in self.posteriors], -2)

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint draws at the members (and x_new), (*s, G, J, Q + Q*)."""
        if x_new is None:
            return self._joined(self._filled([own.rsample(sample_shape) for own in self.posteriors]), -3)
        draws = [own.rsample(sample_shape, x_new[p.groups]) for own, p in self._pairs()]
        widths = [[part.width, x_new.shape[-2]] for part in self.parts]
        old, new = zip(*(draw.split(width, -1) for draw, width in zip(draws, widths, strict=True)), strict=True)
        return torch.cat([self._joined(self._filled(old), -3), self._joined(new, -3)], -1)

    @property
    def observations(self) -> tuple[Tensor, Tensor]:
        """Precisions and residuals that joint draws condition on, each (G, J, Q)."""
        return self._whole().observations

    def whitened(self, x_new: Tensor | None = None) -> LowRankFactor:
        """q(u) with z = m + Phi u, and Phi at the members (and then x_new): batch (G, J), rows Q + Q*."""
        return self._whole().whitened(x_new)

    def joint_covariances(self) -> list[Tensor]:
        """Posterior covariances of independent sets of channels, each (G, N, N), rows by channel, then member."""
        return self._whole().joint_covariances()

    def whitened_distribution(self) -> dist.TorchDistribution:
        """q(u) as a Pyro distribution: batch (G,), event (J, M)."""
        return self._whole().whitened_distribution()

    def _whole(self) -> BlockPosterior:
        whole = self.condition(self.x, self.precision, self.residual)
        whole.replace_block(self.block)
        return whole

    def _pairs(self) -> list[tuple[BlockPosterior, Part]]:
        return list(zip(self.posteriors, self.parts, strict=True))

    def _filled(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Members up to Q: all padding of a group has the value of the first one, because it has its x."""
        members = self.x.shape[-2]
        return [torch.cat([v, v[..., -1:].expand(*v.shape[:-1], members - v.shape[-1])], -1) for v in values]

    def _joined(self, values: Sequence[Tensor], dimension: int) -> Tensor:
        return torch.cat(list(values), dimension).index_select(dimension, self.order)
