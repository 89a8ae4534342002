"""A prior of `GivenObjects` at the object vectors of some groups."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch.prior.given_objects import ObjectsAt


class PriorAt:
    """Base of the priors at given object vectors; groups are counted from 0 here.

    Args:
        prior: The prior.
        vectors: (G, m), as they were given.

    Raises:
        ShapeError: If the vectors have not the prior's length.
    """

    _posterior: Any

    def __init__(self, prior: Any, vectors: Tensor) -> None:
        self.prior, self.dtype, self.vectors = prior, prior.dtype, vectors.to(prior.dtype)
        self.objects = ObjectsAt(prior.objects, self.vectors)

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> Any:
        """As the prior's `condition`, positions being those of the vectors."""
        return self._posterior(self, group_index, x, mean, variance, mask, scale)


def join_conditioned(first: Any, second: Any) -> Any:
    """The posterior of the groups of two posteriors together, made by `PriorAt.condition` of one prior.

    Args:
        first: Posterior of G groups.
        second: Posterior of G' other groups.

    Returns:
        Posterior of G + G' groups, each row counted once: those of `second` are counted from G.
    """
    one, other = first._prior, second._prior
    assert isinstance(one, PriorAt)
    assert isinstance(other, PriorAt)
    assert one.prior is other.prior, "posteriors of one model"
    both = type(one)(one.prior, torch.cat([one.vectors, other.vectors]))
    positions = torch.cat([first.group_index, second.group_index + len(one.vectors)])
    return both.condition(positions, *_joined_rows(first._given, second._given))


Rows = tuple[Tensor, Tensor, Tensor, Tensor | None]  # x, mean, variance (G, Q, ...) and the mask (G, Q)


def _joined_rows(first: Rows, second: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of two sets of groups as those of one, padded to the larger number of members.

    Args:
        first: What a posterior was conditioned on.
        second: What another was, of other groups.

    Returns:
        x, mean, variance and the mask, (G + G', Q, ...).
    """
    members = max(first[0].shape[1], second[0].shape[1])
    x, mean, variance, mask = (
        torch.cat(pair) for pair in zip(_padded(first, members), _padded(second, members), strict=True)
    )
    return x, mean, variance, mask


def _padded(rows: Rows, members: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (G, Q, ...) as (G, members, ...)."""
    x, mean, variance, mask = rows
    observed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    present = torch.arange(members, device=x.device) < x.shape[1]
    # repeated last members, which the mask leaves out: x stays in its range
    position = torch.arange(members, device=x.device).clamp_max(x.shape[1] - 1)
    return x[:, position], mean[:, position], variance[:, position], observed[:, position] & present
