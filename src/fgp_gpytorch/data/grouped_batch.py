"""A padded batch of whole groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from fgp_gpytorch._shapes import check_finite, check_floating, check_same_device, check_shape
from fgp_gpytorch.data._inputs import as_features, as_mask, as_numbers, expand_mask, hide_unknown
from fgp_gpytorch.errors import DataError, ShapeError

__all__ = ["GroupedBatch"]


# Not frozen, although nothing here ever assigns to a batch: Lightning's precision plugins ("64-true",
# "bf16-true") cast a batch by setting the fields of a copy, and refuse a frozen dataclass.
@dataclass(eq=False, repr=False)
class GroupedBatch:
    """G whole groups, padded to the Q members of the largest, with a mask that says who is there.

    Padded entries of `y` and `x` are 0, and so are the elements of `y` that were not observed: multiply by
    the mask, never by the value. Treat a batch as a value: make a changed one with `dataclasses.replace` or
    `.to`, do not assign to it.

    The two counts of the whole data set travel with the batch because a minibatch of groups gives an unbiased
    ELBO only when it is scaled by `num_dataset_groups / num_groups` (the `size` of Pyro's plate).

    Attributes:
        y: Observations, shape (G, Q, *shape), floating.
        x: Auxiliary features (angle, time, place, ...) in the caller's unit, shape (G, Q, D), floating; NaN where
            one is not known (see `x_mask`).
        mask: True where a member is there, False where there is padding, shape (G, Q), bool.
        group_index: Position of each group in the data set, 0 to `num_dataset_groups` - 1, shape (G,), int64.
        y_mask: True where that element of `y` was observed, False in the padding, the shape of `y`, bool;
            None when every element of every member was observed.
        num_dataset_groups: Number of groups of the whole data set.
        num_dataset_members: Number of members, summed over all groups of the whole data set, without padding.
        labels_digest: A number that tells the labels of the data set's groups from others; None if the batch was made
            of tensors. Models that know groups by a parameter see by it that they are asked for the same ones.

    Raises:
        ShapeError: If the shapes do not fit together.

    Example:
        >>> batch = GroupedBatch.from_tensors(y=torch.rand(2, 3, 5), x=torch.rand(2, 3, 1))
        >>> batch.num_groups, batch.num_members
        (2, 3)
    """

    y: Tensor  # shape: (G, Q, *shape)
    x: Tensor  # shape: (G, Q, D)
    mask: Tensor  # shape: (G, Q)
    group_index: Tensor  # shape: (G,)
    y_mask: Tensor | None  # shape: (G, Q, *shape)
    num_dataset_groups: int
    num_dataset_members: int
    labels_digest: int | None = None

    def __post_init__(self) -> None:
        if self.y.ndim < 2:
            raise ShapeError(
                f"y: expected (G, Q, *shape), got {tuple(self.y.shape)}. "
                "The rows look ungrouped: GroupedDataset(y, x, group) groups and pads them."
            )
        groups, members = self.y.shape[:2]
        hint = "The first two dimensions of y give G and Q."
        check_shape(self.x, "x", (groups, members, "D"), hint)
        check_shape(self.mask, "mask", (groups, members), hint)
        check_shape(self.group_index, "group_index", (groups,), hint)
        for name, value in (("mask", self.mask), ("y_mask", self.y_mask)):
            if value is not None and value.dtype != torch.bool:
                raise DataError(f"{name}: expected torch.bool, got {value.dtype}. Try {name}.bool(), True = there.")
        if self.y_mask is not None:
            check_shape(self.y_mask, "y_mask", tuple(self.y.shape), "It has one entry for each element of y.")

    @classmethod
    def from_tensors(
        cls,
        y: Any,  # shape: (G, Q, *shape)
        x: Any,  # shape: (G, Q, D) or (G, Q)
        mask: Any = None,  # shape: (G, Q)
        y_mask: Any = None,  # shape: (G, Q, *shape)
        x_mask: Any = None,  # shape: (G, Q, D) or (G, Q)
        *,
        group_index: Any = None,  # shape: (G,)
        num_dataset_groups: int | None = None,
        num_dataset_members: int | None = None,
    ) -> "GroupedBatch":
        """Make a batch from tensors that are already padded.

        Args:
            y: Observations, floating; values in the padding are replaced by 0.
            x: Auxiliary features, any real dtype; integers and lists become float64.
            mask: Boolean, True = a member is there (anywhere, not only in front); None = everywhere.
            y_mask: Boolean, True = that element of `y` was observed; None = all of them.
            x_mask: Boolean, True = that feature is known; None = all of them. The others become NaN.
            group_index: Position of each group in the data set; None = 0 to G - 1.
            num_dataset_groups: Groups in the whole data set; None = these G are all there are.
            num_dataset_members: Members in the whole data set; None = those of this batch, times the groups of the
                data set over those of the batch, rounded.

        Returns:
            The batch; the caller's tensors are not changed.

        Raises:
            ShapeError: If the shapes do not fit together.
            DataError: If a dtype is wrong, an observed value is not finite, the devices differ, or a group is
                none of the data set's.
        """
        y = as_numbers(y, "y")
        check_floating(y, "y")
        x = as_features(x, feature_dim=2)
        if y.ndim < 2 or x.ndim != 3:
            raise ShapeError(
                f"expected y (G, Q, *shape) and x (G, Q, D) or (G, Q), got y {tuple(y.shape)} and x "
                f"{tuple(x.shape)}. If the rows are ungrouped, try GroupedDataset(y, x, group), which pads "
                "them."
            )
        if mask is None:
            mask = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        mask = as_mask(mask, "mask")
        y_mask = None if y_mask is None else as_mask(y_mask, "y_mask")
        if group_index is None:
            group_index = torch.arange(len(y), device=y.device)
        group_index = as_numbers(group_index, "group_index")
        if group_index.is_floating_point() or group_index.is_complex() or group_index.dtype == torch.bool:
            raise DataError(
                f"group_index: expected integers, got {group_index.dtype}. Try group_index.round().long() if that is "
                "meant; labels of groups go to GroupedDataset(y, x, group)."
            )
        group_index = group_index.long()
        sizes = {"num_dataset_groups": num_dataset_groups, "num_dataset_members": num_dataset_members}
        for name, value in sizes.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise DataError(f"{name}: expected an integer >= 1, got {value!r}. Try len(data), data.num_members.")
        check_same_device(
            y=y, x=x, mask=mask, group_index=group_index, **({} if y_mask is None else {"y_mask": y_mask})
        )
        if num_dataset_groups is None:
            num_dataset_groups = len(y)
        if num_dataset_members is None:
            num_dataset_members = round(int(mask.sum()) * num_dataset_groups / max(len(y), 1))
        if mask.shape == x.shape[:2]:  # else the batch says what is wrong
            x = hide_unknown(x, x_mask, mask.unsqueeze(-1))
        batch = cls(y, x, mask, group_index, y_mask, num_dataset_groups, num_dataset_members)
        if ((group_index < 0) | (group_index >= batch.num_dataset_groups)).any():
            raise DataError(
                f"group_index: expected positions from 0 to {batch.num_dataset_groups - 1}, got "
                f"{int(group_index.min())} to {int(group_index.max())}. Try to pass num_dataset_groups= as "
                "well."
            )
        return batch._zero_outside_masks()

    def _zero_outside_masks(self) -> "GroupedBatch":
        """Require finite values inside the masks and write 0 outside them."""
        observed = expand_mask(self.mask, self.y)
        y_mask = self.y_mask
        if y_mask is not None:
            y_mask = observed = y_mask & observed
        check_finite(self.y, "y", observed)
        y = self.y.masked_fill(~observed, 0)
        return replace(self, y=y, x=self.x.masked_fill(~self.mask.unsqueeze(-1), 0), y_mask=y_mask)

    @classmethod
    def cat(cls, batches: Sequence["GroupedBatch"]) -> "GroupedBatch":
        """Merge batches of one data set along the groups, padded to the largest Q among them.

        Args:
            batches: At least one batch, all of the same data set, with the same D, shape of `y` and dtypes.

        Returns:
            A batch with the groups of the first, then of the second, and so on.

        Raises:
            DataError: If there is no batch, the batches come from data sets of different sizes or labels, or
                their dtypes differ.
            ShapeError: If D or the shape of an observation differs.
        """
        if len(batches) == 0:
            raise DataError("batches: expected at least one GroupedBatch, got none. Try to skip empty minibatches.")
        first = batches[0]
        if len(batches) == 1:
            return first
        for other in batches[1:]:
            _check_mergeable(first, other)
        members = max(batch.num_members for batch in batches)
        y_mask = None
        if any(batch.y_mask is not None for batch in batches):
            y_mask = torch.cat([_pad(batch.observed, members) for batch in batches])
        return cls(
            torch.cat([_pad(batch.y, members) for batch in batches]),
            torch.cat([_pad(batch.x, members) for batch in batches]),
            torch.cat([_pad(batch.mask, members) for batch in batches]),
            torch.cat([batch.group_index for batch in batches]),
            y_mask,
            first.num_dataset_groups,
            first.num_dataset_members,
            first.labels_digest,
        )

    @property
    def num_groups(self) -> int:
        """G, the groups of this batch."""
        return self.y.shape[0]

    @property
    def num_members(self) -> int:
        """Q, the members of the largest group, padding included; `mask.sum(-1)` gives each group's own."""
        return self.y.shape[1]

    @property
    def device(self) -> torch.device:
        """The device that all tensors of the batch are on."""
        return self.y.device

    @property
    def observed(self) -> Tensor:  # shape: (G, Q, *shape)
        """True where an element of `y` was observed: `y_mask`, or `mask` expanded to the shape of `y`."""
        return expand_mask(self.mask, self.y) if self.y_mask is None else self.y_mask

    @property
    def x_mask(self) -> Tensor:  # shape: (G, Q, D)
        """True where an auxiliary feature is known, and in the padding."""
        return ~torch.isnan(self.x)

    def to(self, *args: Any, **kwargs: Any) -> "GroupedBatch":
        """Move the batch to a device, or cast its floating tensors, with the arguments of `torch.Tensor.to`.

        Args:
            *args: A device, a floating dtype, both, or another tensor. A dtype casts `y` and `x` alone, as in
                `torch.nn.Module.to`.
            **kwargs: The same by name, and `non_blocking`, `copy`.

        Returns:
            The moved batch; this one is not changed.

        Raises:
            DataError: If the dtype is not a floating one.
        """
        y = self.y.to(*args, **kwargs)
        check_floating(y, "y")
        non_blocking = bool(kwargs.get("non_blocking", False))

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(y.device, non_blocking=non_blocking, copy=bool(kwargs.get("copy", False)))

        return replace(
            self,
            y=y,
            x=self.x.to(*args, **kwargs),
            mask=move(self.mask),
            group_index=move(self.group_index),
            y_mask=None if self.y_mask is None else move(self.y_mask),
        )

    def pin_memory(self) -> "GroupedBatch":
        """Copy the batch to page-locked memory, for `DataLoader(pin_memory=True)`.

        Returns:
            The pinned batch.

        Raises:
            RuntimeError: By PyTorch, if there is no accelerator to pin the memory for.
        """
        return replace(
            self,
            y=self.y.pin_memory(),
            x=self.x.pin_memory(),
            mask=self.mask.pin_memory(),
            group_index=self.group_index.pin_memory(),
            y_mask=None if self.y_mask is None else self.y_mask.pin_memory(),
        )

    def __repr__(self) -> str:
        parts = [f"{name}={tuple(t.shape)} {_dtype_name(t)}" for name, t in (("y", self.y), ("x", self.x))]
        parts.append(f"mask={int(self.mask.sum())} of {self.mask.numel()}")
        if self.y_mask is not None:
            parts.append(f"y_mask={int(self.y_mask.sum())} of {self.y_mask.numel()}")
        dataset = f"from {self.num_dataset_groups} groups of {self.num_dataset_members} members"
        return f"GroupedBatch({', '.join(parts)}, {dataset}, device={self.device})"


def _pad(tensor: Tensor, members: int) -> Tensor:  # shape: (G, Q, ...) -> (G, members, ...)
    """Append zeros (False) along the members."""
    if tensor.shape[1] == members:
        return tensor
    padding = tensor.new_zeros(tensor.shape[0], members - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, padding], dim=1)


def same_labels(first: int | None, other: int | None) -> bool:
    """Whether two digests of labels may be of one data set: an unknown one may be of any."""
    return None in (first, other) or first == other


def _check_mergeable(first: GroupedBatch, other: GroupedBatch) -> None:
    """Require two batches to be of one data set."""
    sizes = [(b.num_dataset_groups, b.num_dataset_members) for b in (first, other)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"batches: expected batches of one data set, got (groups, members) = {sizes[0]} and {sizes[1]}. "
            "Try one GroupedDataset of all rows, or give from_tensors the same num_dataset_groups and "
            "num_dataset_members."
        )
    if not same_labels(first.labels_digest, other.labels_digest):
        raise DataError(
            "batches: expected batches of one data set, got groups of two with other labels. Try one GroupedDataset of "
            "all rows."
        )
    shapes = [(tuple(b.y.shape[2:]), b.x.shape[-1]) for b in (first, other)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"batches: expected equal observations and features, got (shape of y, D) = {shapes[0]} and "
            f"{shapes[1]}. Try to reshape them to a common shape first."
        )
    dtypes = [(b.y.dtype, b.x.dtype) for b in (first, other)]
    if dtypes[0] != dtypes[1]:
        raise DataError(
            f"batches: expected equal dtypes, got (y, x) = {dtypes[0]} and {dtypes[1]}. Try batch.to(dtype) first."
        )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _collate(batch: Sequence[GroupedBatch], *, collate_fn_map: Any = None) -> GroupedBatch:
    """Merge what the workers fetched; the name of the first argument is the one PyTorch documents."""
    return GroupedBatch.cat(batch)


# The extension point documented at torch.utils.data.default_collate: a plain DataLoader then needs no
# collate_fn. It adds one type of ours and changes the treatment of no other.
default_collate_fn_map[GroupedBatch] = _collate
