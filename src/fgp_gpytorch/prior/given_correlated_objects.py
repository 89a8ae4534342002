"""The correlated prior at object vectors that come with the data (paper, Appendix C)."""

import torch
from torch import Tensor

from fgp_gpytorch.prior.correlated_gp_prior import CorrelatedGPPrior, CorrelatedPosterior
from fgp_gpytorch.prior.given_objects import ObjectsAt


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
    members = max(first.x.shape[1], second.x.shape[1])
    parts = zip(_padded(first, members), _padded(second, members), strict=True)
    x, mean, variance, mask = (torch.cat(pair) for pair in parts)
    return both.condition(
        torch.cat([first.group_index, second.group_index + len(one.vectors)]), x, mean, variance, mask
    )


def _padded(posterior: CorrelatedPosterior, members: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the posterior was conditioned on, (G, members, ...), and the mask (G, members)."""
    x, mean, variance, mask = posterior._given
    observed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    present = torch.arange(members, device=x.device) < x.shape[1]
    # repeated last members, which the mask leaves out: x stays in its range
    position = torch.arange(members, device=x.device).clamp_max(x.shape[1] - 1)
    return x[:, position], mean[:, position], variance[:, position], observed[:, position] & present
