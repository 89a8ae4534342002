"""A data set of groups whose observations are made on request."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data._inputs import expand_mask
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import Features, FlatRows, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError

__all__ = ["LazyDataset"]


class LazyDataset(GroupedDataset):
    """A data set too large for memory: a small stored one, and a function that makes observations from it.

    It is indexed, loaded, split and trained on as any `GroupedDataset`. The stored `y` says which observation each
    member is (a number of an image and of an angle, a line of a file). The function makes the observations of a whole
    batch, anew on every request. `flat()` needs all observations at once, so it raises; `in_memory()` makes them all.

    Args:
        stored: The groups, the auxiliary features of their members, and as `y` whatever `make` needs.
        make: Takes a padded batch of `stored`, and returns observations, shape (G, Q, *y_shape), floating. Those of
            padding are replaced by 0. Workers (`num_workers`) need a function that can be pickled.

    Attributes:
        labels: The label of each group, NumPy, shape (G,).
        group_sizes: The members of each group, shape (G,), int64.

    Raises:
        ArgumentError: If `stored` is no data set, `make` no function, or its result no tensor.
        ShapeError: If `make` does not return one observation for each member.
        DataError: If its observations are not floating, or `stored` has a `y_mask`.

    Example:
        >>> numbers = GroupedDataset(y=torch.tensor([0.0, 1.0, 2.0]), x=torch.arange(3.0), group=[0, 0, 1])
        >>> data = LazyDataset(numbers, lambda batch: batch.y.unsqueeze(-1) * torch.ones(5))
        >>> data[:].y.shape, data.num_members
        (torch.Size([2, 2, 5]), 3)
    """

    is_lazy = True

    def __init__(self, stored: GroupedDataset, make: Callable[[GroupedBatch], Tensor]) -> None:
        check.instance(stored, "stored", GroupedDataset, "Try GroupedDataset(y, x, group).")
        if not callable(make):
            raise ArgumentError(
                f"make: expected a function of a batch, got {type(make).__name__}. Try lambda batch: batch.y."
            )
        first = stored[[0]]
        if first.y_mask is not None:
            raise DataError("stored: expected no y_mask, got one. Try stored.select(members) without what is missing.")
        self._stored, self._make = stored, make
        self.labels, self.group_sizes = stored.labels, stored.group_sizes
        made = self._made(first)
        self._y_shape, self._y_dtype = made.shape[2:], made.dtype

    @property
    def stored(self) -> GroupedDataset:
        """The data that observations are made from."""
        return self._stored

    @property
    def y_shape(self) -> torch.Size:
        """The shape of one observation."""
        return self._y_shape

    @property
    def num_elements(self) -> int:
        """Number of elements of `y`, over all members (what a mean squared error divides by)."""
        return self.num_members * self._y_shape.numel()

    @property
    def labels_digest(self) -> int | None:
        """A checksum of the labels of the data set that the groups are counted in; None if there is none."""
        return self._stored.labels_digest

    def __getitem__(self, index: Any) -> GroupedBatch:
        """Return one or several whole groups as a padded batch, and make their observations.

        Args:
            index: As in `GroupedDataset`.

        Raises:
            GroupError: If a position is no integer or beyond the last group, or there is none.
            ArgumentError: If `make` does not return a tensor.
            ShapeError: If it does not return one observation for each member, or one of another shape than before.
            DataError: If its observations are not floating.
        """
        batch = self._stored[index]
        y = self._made(batch)
        if (y.shape[2:], y.dtype) != (self._y_shape, self._y_dtype):
            raise ShapeError(
                f"make: expected observations of shape {tuple(self._y_shape)} and {self._y_dtype} as those of the "
                f"first group, got {tuple(y.shape[2:])} and {y.dtype}. Try padding, or groups of one shape each."
            )
        return replace(batch, y=y if bool(batch.mask.all()) else y.masked_fill(~expand_mask(batch.mask, y), 0))

    def subset(self, groups: Any) -> "LazyDataset":
        """Return a data set of some whole groups, as `GroupedDataset.subset` does. No observation is made.

        Raises:
            GroupError: If a position is wrong or repeated, or there is none.
        """
        return LazyDataset(self._stored.subset(groups), self._make)

    def select(self, members: Any) -> "LazyDataset":
        """Return a data set of some members, as `GroupedDataset.select` does. Only the first group's are made.

        Raises:
            ArgumentError: If the mask is a pandas Series.
            ShapeError: If the mask has not N entries.
            DataError: If it is not boolean, or no member is left.
        """
        return LazyDataset(self._stored.select(members), self._make)

    def align(self, reference: GroupedDataset) -> "LazyDataset":
        """Return this data set with its groups counted as in another one, as `GroupedDataset.align` does.

        Raises:
            ArgumentError: If the reference is no data set.
            GroupError: If a label does not occur in the reference.
        """
        return LazyDataset(self._stored.align(reference), self._make)

    def with_observations(self, y: Tensor) -> GroupedDataset:
        """Return a data set of the same members and features in memory, with other observations.

        Raises:
            ShapeError: If there is not one for each member.
            DataError: If they are not floating or not finite.
        """
        return self._stored.with_observations(y)

    def features(self) -> Features:
        """Return features and groups of all members, sorted by group. Observations are not made for it."""
        return self._stored.features()

    def flat(self) -> FlatRows:
        """Raise, because the observations need not fit in memory.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "flat(): expected a data set in memory, got one whose observations are made on request. Try "
            "data.in_memory() if they fit, data.features() for x and group, or data[groups]."
        )

    def in_memory(self, batch_size: int = 256) -> GroupedDataset:
        """Make all observations and return a data set of the same groups that contains them.

        Args:
            batch_size: Groups that are made at a time.

        Raises:
            ArgumentError: If the batch size is below 1.
            DataError: If an observation is not finite.
        """
        check.count(batch_size, "batch_size", hint="Try 256.")
        y = torch.empty(self.num_members, *self._y_shape, dtype=self._y_dtype, device=self.group_sizes.device)
        end = 0
        for start in range(0, len(self), batch_size):
            batch = self[start : start + batch_size]
            made = check.finite(batch.y[batch.mask], "make")  # sorted by group
            y[end : end + len(made)] = made
            end += len(made)
        return self.with_observations(y)

    def _describe_y(self) -> str:
        return f"{tuple(self._y_shape)} {self._y_dtype} made on request"

    def _made(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, *y_shape)
        hint = "Try torch.as_tensor(y) at its end."
        y: Tensor = check.instance(self._make(batch), "make", Tensor, hint)
        if y.shape[:2] != batch.mask.shape:
            raise ShapeError(
                f"make: expected observations (G, Q, *shape) = {(*batch.mask.shape, '*shape')}, got {tuple(y.shape)}. "
                "Try one for each entry of batch.mask, padding too."
            )
        return check.floating(y, "make", "Try y.float() at its end.")
