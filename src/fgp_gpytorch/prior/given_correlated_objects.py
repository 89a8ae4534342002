"""The correlated prior at object vectors that come with the data (paper, Appendix C)."""

import torch
from torch import Tensor

from fgp_gpytorch.prior.correlated_gp_prior import CorrelatedGPPrior, CorrelatedPosterior
from fgp_gpytorch.prior.given_objects import ObjectsAt, joined_rows


class CorrelatedGPPriorAt:
    """A `CorrelatedGPPrior` of `GivenObjects` at the vectors of some groups, which are counted from 0 here.

    Args:
        prior: The prior.
        vectors: (G, m), as they were given.

    Raises:
        ShapeError: If the vectors have not the prior's length.
    """

    def __init__(self, prior: CorrelatedGPPrior, vectors: Tensor) -> None:
        self.prior, self.vectors = prior, vectors.to(prior.dtype)
        self.objects = ObjectsAt(prior.objects, self.vectors)
        self.local, self.dtype = prior.local, prior.dtype
        self.num_global_channels, self.num_channels = prior.num_global_channels, prior.num_channels

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> CorrelatedPosterior:
        """As `CorrelatedGPPrior.condition`, positions being those of the vectors."""
        return CorrelatedPosterior(self, group_index, x, mean, variance, mask, scale)  # pyright: ignore[reportArgumentType]


def join_correlated_groups(first: CorrelatedPosterior, second: CorrelatedPosterior) -> CorrelatedPosterior:
    """The posterior of the groups of two posteriors together, made by `CorrelatedGPPriorAt.condition` of one prior.

    Args:
        first: Posterior of G groups.
        second: Posterior of G' other groups.

    Returns:
        Posterior of G + G' groups: those of `second` are counted from G.
    """
    one, other = first._prior, second._prior
    assert isinstance(one, CorrelatedGPPriorAt)
    assert isinstance(other, CorrelatedGPPriorAt)
    assert one.prior is other.prior, "posteriors of one model"
    both = CorrelatedGPPriorAt(one.prior, torch.cat([one.vectors, other.vectors]))
    positions = torch.cat([first.group_index, second.group_index + len(one.vectors)])
    return both.condition(positions, *joined_rows(first._given, second._given))
