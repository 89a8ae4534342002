"""Object vectors that come with the data instead of being parameters (paper, Appendix C)."""

from typing import Any

import gpytorch
import torch
from torch import Tensor

from fgp_gpytorch._shapes import check_shape
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.gaussian import RepeatedRows
from fgp_gpytorch.prior.mean_field_posterior import MeanFieldPosterior
from fgp_gpytorch.prior.object_root import unit_length
from fgp_gpytorch.prior.object_view_prior import ObjectViewPrior
from fgp_gpytorch.saving import Configurable


class GivenObjects(Configurable, gpytorch.Module):
    r"""Stands where an `ObjectRoot` stands, but is given vectors instead of positions: nothing here is learned.

    Args:
        num_factors: m.
        normalize: As in `ObjectRoot`.

    Attributes:
        num_groups: None, vectors of any number of groups may come.

    Raises:
        DataError: If m is below 1.
    """

    def __init__(self, num_factors: int = 8, normalize: bool = True) -> None:
        super().__init__()
        if not isinstance(num_factors, int) or num_factors < 1:
            raise DataError(f"num_factors: expected an integer >= 1, got {num_factors!r}. Try 8.")
        self.num_groups, self.num_factors, self.normalize = None, num_factors, normalize

    @property
    def num_features(self) -> int:
        """m, the columns."""
        return self.num_factors

    def forward(self, vectors: Tensor) -> Tensor:
        """The vectors, normalised if asked.

        Args:
            vectors: (*b, m).

        Returns:
            (*b, m).
        """
        return unit_length(vectors) if self.normalize else vectors


class ObjectsAt:
    """`GivenObjects` at the vectors of some groups, which are counted from 0 here.

    Args:
        objects: What normalises them.
        vectors: (G, m), as they were given.

    Raises:
        ShapeError: If they have not the length m.
    """

    def __init__(self, objects: Any, vectors: Tensor) -> None:
        hint = "Try a representation network with m outputs, or num_factors=m."
        check_shape(vectors, "representation", ("G", objects.num_factors), hint)
        self.objects, self.vectors = objects, vectors

    def forward(self, group_index: Tensor) -> Tensor:
        """The vectors of some groups, normalised if asked.

        Args:
            group_index: Positions among the vectors given, (*b,), int64.

        Returns:
            (*b, m).
        """
        return self.objects.forward(self.vectors[group_index])


class ObjectViewPriorAt:
    """An `ObjectViewPrior` of `GivenObjects` at the vectors of some groups, which are counted from 0 here.

    Args:
        prior: The prior.
        vectors: (G, m), as they were given.
        group_index: Positions of these groups in a data set, (G,); None for 0 to G - 1.
        num_dataset_groups: Groups of that data set; None for G.

    Raises:
        ShapeError: If the vectors have not the prior's length.
    """

    def __init__(
        self,
        prior: ObjectViewPrior,
        vectors: Tensor,
        group_index: Tensor | None = None,
        num_dataset_groups: int | None = None,
    ) -> None:
        self.prior, self.vectors = prior, ObjectsAt(prior.objects, vectors.to(prior.dtype)).vectors
        self.group_index = torch.arange(len(vectors), device=vectors.device) if group_index is None else group_index
        self.num_dataset_groups = len(vectors) if num_dataset_groups is None else num_dataset_groups

    @property
    def noise(self) -> Tensor:
        """alpha, a scalar."""
        return self.prior.noise

    def features(self, group_index: Tensor, x: Tensor) -> Tensor:
        """Phi at rows.

        Args:
            group_index: Position of each row's vector among those given, (*b, N), int64.
            x: Auxiliary features, (*b, N, D).

        Returns:
            (*b, N, M).
        """
        return self.prior.features(self.vectors[group_index], x)

    def rows(self, group_index: Tensor, x: Tensor, observed: Tensor) -> RepeatedRows:
        """As `ObjectViewPrior.rows`, positions being those of the vectors."""
        return self.prior.rows(self.vectors[group_index], x, observed)

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        predict_unobserved: bool = True,
    ) -> MeanFieldPosterior:
        """As `ObjectViewPrior.condition`, positions being those of the vectors."""
        observed = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        x, mean, variance = (value.to(self.prior.dtype) for value in (x, mean, variance))
        return MeanFieldPosterior(self, group_index, x, mean, variance, observed, predict_unobserved)


def join_groups(first: MeanFieldPosterior, second: MeanFieldPosterior) -> MeanFieldPosterior:
    """The posterior of the groups of two posteriors together, made by `ObjectViewPriorAt.condition` of one prior.

    Args:
        first: Posterior of G groups.
        second: Posterior of G' other groups.

    Returns:
        Posterior of G + G' groups: those of `second` are counted from G.
    """
    one, other = first._prior, second._prior
    assert isinstance(one, ObjectViewPriorAt)
    assert isinstance(other, ObjectViewPriorAt)
    assert one.prior is other.prior, "posteriors of one model"
    both = ObjectViewPriorAt(one.prior, torch.cat([one.vectors, other.vectors]))
    parts = []
    for part, offset in ((first, 0), (second, len(one.vectors))):
        values = part.x, part.raw_mean, part.raw_variance, part.observed
        parts.append(both.condition(part.group_index + offset, *values))
    return MeanFieldPosterior.cat(parts)
