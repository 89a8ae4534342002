"""A data set of groups whose observations are made on request."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data._inputs import expand_mask
from fgp_gpytorch.data.array_rows import ArrayRows
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import FlatRows, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError

__all__ = ["LazyDataset"]


class LazyDataset(GroupedDataset):
    """A data set too large for memory: small stored members, and a function that makes observations from them.

    It is indexed, loaded, split and trained on as any `GroupedDataset`. The stored `y` says which observation each
    member is (a number of an image and of an angle, a line of a file). The function makes the observations of a whole
    batch, anew on every request. `flat()` needs all observations at once, so it raises; `in_memory()` makes them all.

    Args:
        stored: The groups, the auxiliary features of their members, and as `y` whatever `make` needs.
        make: Takes a padded batch of `stored`, and returns observations, shape (G, Q, *y_shape), floating. Padding of
            `y` and `x` repeats the first member of the group, and is False in `mask`. Its observations are replaced
            by 0. Workers (`num_workers`) need a function that can be pickled.

    Raises:
        ArgumentError: If `stored` is no data set, `make` no function, or its result no tensor.
        ShapeError: If `make` does not return one observation for each member.
        DataError: If its observations are not floating, or `stored` has a `y_mask`.

    Examples:
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
        if stored.members.y_mask is not None:
            raise DataError("stored: expected no y_mask, got one. Try stored.select(members) without what is missing.")
        self._store(stored.members)
        self._make = make
        first = self._made(stored[[0]])
        self._y_shape, self._y_dtype = first.shape[2:], first.dtype

    @classmethod
    def from_array(
        cls,
        array: Any,  # shape: (N, *shape)
        x: Any,  # shape: (N, D) or (N,)
        group: Any,  # shape: (N,)
        *,
        name: str | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> "LazyDataset":
        """Make a data set of the rows of an array on disk, which are read when a batch is asked for.

        Features and labels are in memory: 24 bytes a member and feature. Rows may be in any order. Those of a group are
        read at once if they follow each other in the array. Observations are complete: there is no `y_mask`.

            LazyDataset.from_array("images.npy", angles, digit)
            LazyDataset.from_array("scans.h5", age, patient, name="scans", transform=grey_levels)

        Args:
            array: A path of a NumPy file (`.npy`), an HDF5 file or a zarr folder, an `np.memmap`, `h5py.Dataset` or
                `zarr.Array`, or another array with slices of rows. See `ArrayRows`.
            x: Auxiliary features, as in `GroupedDataset`, a row for each row of the array.
            group: A label for each row of the array, as in `GroupedDataset`.
            name: Of the array in an HDF5 file or a zarr group; None if there is one.
            transform: A function of some rows (n, *shape), a tensor, to observations (n, *y_shape), floating. Integers
                need one: `rows.float() / 255`.

        Raises:
            ArgumentError: If `array` is no array, `name` that of none, or `transform` no function.
            ShapeError: If the lengths of array, x and group differ.
            DataError: If the array is empty, not numeric or cannot be read, its observations are not floating, or a
                feature is not finite.
            GroupError: If a label is missing or a float that is no exact integer.
            MissingFileError: If there is no such file.
            ImportError: If the package that reads the file is not installed.
        """
        rows = ArrayRows(array, name, transform)
        return cls(GroupedDataset(torch.arange(len(rows), dtype=torch.float64), x, group), rows)

    @property
    def y_shape(self) -> torch.Size:
        """The shape of one observation."""
        return self._y_shape

    @property
    def num_elements(self) -> int:
        """Number of elements of `y`, over all members (what a mean squared error divides by)."""
        return self.num_members * self._y_shape.numel()

    def __getitem__(self, index: Any) -> GroupedBatch:
        """Return one or several whole groups as a padded batch, as `GroupedDataset` does. Their observations are made.

        Raises:
            GroupError: If a position is no integer or beyond the last group, or there is none.
            ArgumentError: If `make` does not return a tensor.
            ShapeError: If it does not return one observation for each member, or one of another shape than before.
            DataError: If its observations are not floating.
        """
        batch = super().__getitem__(index)
        full = bool(batch.mask.all())
        y = self._made(batch if full else _repeat_first(batch))
        if (y.shape[2:], y.dtype) != (self._y_shape, self._y_dtype):
            raise ShapeError(
                f"make: expected observations of shape {tuple(self._y_shape)} and {self._y_dtype} as those of the "
                f"first group, got {tuple(y.shape[2:])} and {y.dtype}. Try padding, or groups of one shape each."
            )
        return replace(batch, y=y if full else y.masked_fill(~expand_mask(batch.mask, y), 0))

    def sample(self) -> Tensor | None:
        """Return some rows of the array on disk that tell it from others; None if observations come from elsewhere.

        Raises:
            DataError, MissingFileError: If the file cannot be read.
        """
        return self._make.sample() if isinstance(self._make, ArrayRows) else None

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
        """Make all observations, `batch_size` groups at a time, and return a data set that contains them.

        Raises:
            ArgumentError: If the batch size is below 1.
            DataError: If an observation is not finite.
        """
        batch_size = check.count(batch_size, "batch_size", hint="Try 256.")
        y = torch.empty(self.num_members, *self._y_shape, dtype=self._y_dtype, device=self.members.y.device)
        end = 0
        for start in range(0, len(self), batch_size):
            batch = self[start : start + batch_size]
            made = check.finite(batch.y[batch.mask], "make")  # sorted by group
            y[end : end + len(made)] = made
            end += len(made)
        return GroupedDataset.from_members(self.members._replace(y=y))

    def _describe_y(self) -> str:
        return f"{tuple(self._y_shape)} {self._y_dtype} made on request"

    def _made(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, *y_shape)
        y: Tensor = check.instance(self._make(batch), "make", Tensor, "Try torch.as_tensor(y) at its end.")
        if y.shape[:2] != batch.mask.shape:
            raise ShapeError(
                f"make: expected observations (G, Q, *shape) = {(*batch.mask.shape, '*shape')}, got {tuple(y.shape)}. "
                "Try one for each entry of batch.mask, padding too."
            )
        return check.floating(y, "make", "Try y.float() at its end.")


def _repeat_first(batch: GroupedBatch) -> GroupedBatch:
    """Put the first member of each group into the padding, so that `make` gets values it can take."""
    y, x = (torch.where(expand_mask(batch.mask, v), v, v[:, :1]) for v in (batch.y, batch.x))
    return replace(batch, y=y, x=x)
