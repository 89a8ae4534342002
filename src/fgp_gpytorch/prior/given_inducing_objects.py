"""The sparse prior at object vectors that come with the data (paper, Appendix C)."""

import torch
from torch import Tensor

from fgp_gpytorch.prior.given_objects import ObjectsAt, joined_rows
from fgp_gpytorch.prior.inducing_posterior import InducingPosterior
from fgp_gpytorch.prior.inducing_prior import InducingPrior


class InducingPriorAt:
    """An `InducingPrior` of `GivenObjects` at the vectors of some groups, which are counted from 0 here.

    Args:
        prior: The prior.
        vectors: (G, m), as they were given.

    Raises:
        ShapeError: If the vectors have not the prior's length.
    """

    def __init__(self, prior: InducingPrior, vectors: Tensor) -> None:
        self.prior, self.dtype, self.vectors = prior, prior.dtype, vectors.to(prior.dtype)
        self.objects = ObjectsAt(prior.objects, self.vectors)

    def features(self, group_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `InducingPrior.features`, positions being those of the vectors."""
        return self.prior.features_at(self.objects.forward(group_index), x)

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> InducingPosterior:
        """As `InducingPrior.condition`, positions being those of the vectors."""
        return InducingPosterior(self, group_index, x, mean, variance, mask, scale)


def join_inducing_groups(first: InducingPosterior, second: InducingPosterior) -> InducingPosterior:
    """The posterior of the groups of two posteriors together, made by `InducingPriorAt.condition` of one prior.

    Args:
        first: Posterior of G groups.
        second: Posterior of G' other groups.

    Returns:
        Posterior of G + G' groups, each row counted once: those of `second` are counted from G.
    """
    one, other = first._prior, second._prior
    assert isinstance(one, InducingPriorAt)
    assert isinstance(other, InducingPriorAt)
    assert one.prior is other.prior, "posteriors of one model"
    both = InducingPriorAt(one.prior, torch.cat([one.vectors, other.vectors]))
    positions = torch.cat([first.group_index, second.group_index + len(one.vectors)])
    return both.condition(positions, *joined_rows(first._given, second._given))
