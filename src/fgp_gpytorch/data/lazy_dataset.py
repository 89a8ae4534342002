"""Groups whose observations are made when they are asked for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch._shapes import check_finite
from fgp_gpytorch.data._inputs import expand_mask
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import FlatRows, GroupedDataset, check_dataset
from fgp_gpytorch.errors import DataError, ShapeError

__all__ = ["LazyDataset"]


class LazyDataset(GroupedDataset):
    """A data set too large for memory: it holds small rows, and a function that makes observations of them.

    It is indexed, loaded and trained on as any `GroupedDataset`. The rows say which observation each member is (a
    number of an image and of an angle, a line of a file), and a function makes the observations of a whole batch, at
    every request anew. What needs all observations at once it does not do: `flat()` raises, and `in_memory()` makes a
    `GroupedDataset` of it.

    Args:
        rows: The groups, their members' auxiliary features, and as `y` whatever `make` needs.
        make: From a padded batch of rows to the observations, shape (G, Q, *y_shape), floating; what it gives for
            padding is replaced by 0. To be loaded by workers (`num_workers`) it must be picklable.

    Attributes:
        rows: The rows, for masks: `data.select(data.rows.flat().x[:, 0] < 1)`.
        labels: The label of each group, NumPy, shape (G,).
        group_sizes: The members of each group, shape (G,), int64.

    Raises:
        ShapeError: If the function does not give one observation a member, or one of another shape than before.
        DataError: If it is none, its observations are no floating tensor, or the rows no data set, or one with a
            `y_mask`.

    Example:
        >>> rows = GroupedDataset(y=torch.tensor([0.0, 1.0, 2.0]), x=torch.arange(3.0), group=[0, 0, 1])
        >>> data = LazyDataset(rows, lambda batch: batch.y.unsqueeze(-1) * torch.ones(5))
        >>> data[:].y.shape, data.num_members
        (torch.Size([2, 2, 5]), 3)
    """

    def __init__(self, rows: GroupedDataset, make: Callable[[GroupedBatch], Tensor]) -> None:
        check_dataset(rows, "rows")
        if not callable(make):
            raise DataError(
                f"make: expected a function of a batch of rows, got {type(make).__name__}. Try lambda batch: batch.y."
            )
        first = rows[[0]]
        if first.y_mask is not None:
            raise DataError("rows: expected no y_mask, got one. Try rows.select(members) without what is missing.")
        self.rows, self._make = rows, make
        self.labels, self.group_sizes = rows.labels, rows.group_sizes
        made = self._made(first)
        self._y_shape, self._y_dtype = made.shape[2:], made.dtype

    @property
    def _y(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        # asked for by code that wants all observations, such as AlignedDataset
        raise _not_in_memory("y")

    @property
    def num_members(self) -> int:
        """N, the members of all groups together."""
        return self.rows.num_members

    @property
    def num_features(self) -> int:
        """D, the number of auxiliary features."""
        return self.rows.num_features

    @property
    def y_shape(self) -> torch.Size:
        """The shape of one observation."""
        return self._y_shape

    @property
    def num_elements(self) -> int:
        """Number of elements of `y`, over all members (what a mean squared error divides by)."""
        return self.num_members * self._y_shape.numel()

    def subset(self, groups: Any) -> "LazyDataset":
        """Return a data set of some of the groups, as `GroupedDataset.subset`; nothing is made.

        Args:
            groups: As in `data[groups]`, each group at most once.

        Raises:
            GroupError: If a position is wrong or repeated, or none is asked for.
        """
        return LazyDataset(self.rows.subset(groups), self._make)

    def select(self, members: Any) -> "LazyDataset":
        """Return a data set of some of the members, as `GroupedDataset.select`; nothing is made.

        Args:
            members: Boolean mask over the rows of `data.rows.flat()`, shape (N,).

        Raises:
            ShapeError: If the mask has not N entries.
            DataError: If it is not boolean, a pandas Series, or no member is left.
        """
        return LazyDataset(self.rows.select(members), self._make)

    def flat(self) -> FlatRows:
        """All rows with their observations: not of this data set.

        Raises:
            DataError: Always, because the observations need not fit in memory.
        """
        raise _not_in_memory("flat()")

    def in_memory(self, batch_size: int = 256) -> GroupedDataset:
        """Make all observations, and keep them.

        Args:
            batch_size: Groups that are made at a time.

        Returns:
            A data set of the same groups, which takes N times the size of an observation.

        Raises:
            DataError: If the batch size is below 1, or an observation is not finite.
        """
        if batch_size < 1:
            raise DataError(f"batch_size: expected at least 1, got {batch_size}. Try 256.")
        _, x, _ = self.rows.flat()
        y = torch.empty(self.num_members, *self._y_shape, dtype=self._y_dtype, device=x.device)
        row = 0
        for start in range(0, len(self), batch_size):
            batch = self[start : start + batch_size]
            made = batch.y[batch.mask]  # in the order of rows: groups, then members
            check_finite(made, "make")
            y[row : row + len(made)] = made
            row += len(made)
        data = GroupedDataset.__new__(GroupedDataset)
        data._store(y, x, None, self.group_sizes, self.labels)
        return data

    def __repr__(self) -> str:
        smallest, largest = int(self.group_sizes.min()), int(self.group_sizes.max())
        return (
            f"LazyDataset({self.num_groups} groups of {smallest} to {largest} members, {self.num_members} in all, "
            f"y {tuple(self._y_shape)} {self._y_dtype} made when asked for, x ({self.num_features},))"
        )

    def _positions(self, index: Any) -> Tensor:  # shape: (G,)
        return self.rows._positions(index)

    def _gather(self, positions: Tensor) -> GroupedBatch:  # shape: (G,)
        batch = self.rows._gather(positions)
        return replace(batch, y=self._observations(batch))

    def _observations(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, *y_shape)
        """What the function makes of rows, as it did of the first group, with 0 in the padding.

        Raises:
            ShapeError: If it is not one observation a member, or one of another shape.
            DataError: If it is no tensor, or not floating.
        """
        y = self._made(batch)
        if (y.shape[2:], y.dtype) != (self._y_shape, self._y_dtype):
            raise ShapeError(
                f"make: expected observations of shape {tuple(self._y_shape)} and {self._y_dtype} as those of the "
                f"first group, got {tuple(y.shape[2:])} and {y.dtype}. Try padding, or groups of one shape each."
            )
        return y if bool(batch.mask.all()) else y.masked_fill(~expand_mask(batch.mask, y), 0)

    def _made(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, *y_shape)
        y: Any = self._make(batch)
        if not isinstance(y, Tensor):
            raise DataError(f"make: expected a tensor, got {type(y).__name__}. Try torch.as_tensor(y) at its end.")
        if y.shape[:2] != batch.mask.shape:
            raise ShapeError(
                f"make: expected observations (G, Q, *shape) = {(*batch.mask.shape, '*shape')}, got {tuple(y.shape)}. "
                "Try one for each entry of batch.mask, padding too."
            )
        if not y.is_floating_point():
            raise DataError(f"make: expected floating observations, got {y.dtype}. Try y.float() at its end.")
        return y


def _not_in_memory(what: str) -> DataError:
    return DataError(
        f"{what}: expected a data set in memory, got one whose observations are made when asked for. Try "
        "data.in_memory() if they fit, data.rows.flat() for x and group, or data[groups]."
    )
