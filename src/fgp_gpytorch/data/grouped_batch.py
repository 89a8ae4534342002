"""A padded batch of whole groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data._inputs import as_features, as_numbers, expand_mask, hide_unknown
from fgp_gpytorch.errors import ArgumentError, DataError, FGPError, ShapeError

__all__ = ["GroupedBatch", "same_labels"]


# Not frozen, although nothing here assigns to a batch: Lightning's precision plugins ("64-true", "bf16-true") cast a
# batch by setting the fields of a copy, and refuse a frozen dataclass.
@dataclass(eq=False, repr=False)
class GroupedBatch:
    """G whole groups, padded to the Q members of the largest, with a mask that marks the members.

    A *member* is one observation of a group with its auxiliary features. Padded entries of `y` and `x` are 0, and so
    are the elements of `y` that were not observed: test the mask, never the value. Treat a batch as a value: change
    it by `dataclasses.replace` or `.to`, do not assign to it.

    A minibatch of groups gives an unbiased ELBO only if it is scaled by `num_dataset_groups / num_groups` (the `size`
    of Pyro's plate). So the counts of the whole data set are part of the batch.

    Attributes:
        y: Observations, shape (G, Q, *shape), floating.
        x: Auxiliary features (angle, time, place, ...) in the caller's unit, shape (G, Q, D), floating. NaN where
            a feature is unknown (see `x_mask`).
        mask: True for members, False for padding, shape (G, Q), bool.
        group_index: Position of each group in the data set, 0 to `num_dataset_groups` - 1, shape (G,), int64.
        y_mask: True where that element of `y` was observed, False in the padding, the shape of `y`, bool.
            None if every element of every member was observed.
        num_dataset_groups: Number of groups of the whole data set.
        num_dataset_members: Number of members of the whole data set, without padding.
        labels_digest: A checksum of the labels of the data set's groups, None if the batch was made of tensors.
            Models with a parameter for each group compare it, so that they refuse other groups.

    Raises:
        ArgumentError: If a value is no tensor.
        ShapeError: If the shapes do not fit together.
        DataError: If a mask is not boolean.

    Examples:
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
        hint = "Try GroupedBatch.from_tensors(y, x), which takes arrays."
        for name in ("y", "x", "mask", "group_index"):
            check.instance(getattr(self, name), name, Tensor, hint)
        _check_padded(self.y)
        groups, members = self.y.shape[:2]
        hint = "The first two dimensions of y give G and Q. GroupedDataset(y, x, group) pads ungrouped rows."
        check.shape(self.x, "x", (groups, members, "D"), hint)
        check.mask(self.mask, "mask", (groups, members), hint)
        check.shape(self.group_index, "group_index", (groups,), hint)
        if self.y_mask is not None:
            check.mask(self.y_mask, "y_mask", self.y.shape, "It has one entry for each element of y.")

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
        """Make a batch from tensors that are already padded. The caller's tensors are not changed.

        Args:
            y: Observations, floating. Values in the padding are replaced by 0.
            x: Auxiliary features, any real dtype. Integers and lists become float64.
            mask: True for members (anywhere, not only in front). None = everywhere.
            y_mask: True where that element of `y` was observed. None = everywhere.
            x_mask: True where that feature is known. None = everywhere. The others become NaN.
            group_index: Position of each group in the data set. None = 0 to G - 1.
            num_dataset_groups: Groups of the whole data set. None = G.
            num_dataset_members: Members of the whole data set. None = those of this batch, scaled by the groups.

        Raises:
            ArgumentError: If a value is not numeric, or a count is no integer of at least 1.
            ShapeError: If the shapes do not fit together.
            DataError: If a dtype is wrong, an observed value is not finite, the devices differ, there is no member, or
                a group index is outside the data set.
        """
        y = check.floating(as_numbers(y, "y"), "y")
        _check_padded(y)
        x = as_features(x, feature_dim=2)
        everywhere = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        mask = everywhere if mask is None else as_numbers(mask, "mask")
        y_mask = None if y_mask is None else as_numbers(y_mask, "y_mask")
        index = torch.arange(len(y), device=y.device)
        index = index if group_index is None else as_numbers(group_index, "group_index")
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise DataError(
                f"group_index: expected integers, got {index.dtype}. Try group_index.round().long() if that is "
                "meant. Labels of groups go to GroupedDataset(y, x, group)."
            )
        index = index.long()
        check.device(y=y, x=x, mask=mask, group_index=index, **({} if y_mask is None else {"y_mask": y_mask}))
        groups, members = num_dataset_groups, num_dataset_members
        groups = len(y) if groups is None else check.count(groups, "num_dataset_groups", hint="Try len(data).")
        if members is not None:
            members = check.count(members, "num_dataset_members", hint="Try data.num_members.")
        else:
            members = round(int(mask.sum()) * groups / max(len(y), 1))
        batch = cls(y, x, mask, index, y_mask, groups, members)
        if ((index < 0) | (index >= groups)).any():
            raise DataError(
                f"group_index: expected positions from 0 to {groups - 1}, got {int(index.min())} to "
                f"{int(index.max())}. Try to pass num_dataset_groups= as well."
            )
        observed = expand_mask(mask, y) if y_mask is None else y_mask & expand_mask(mask, y)
        check.finite(y, "y", observed)
        if mask.numel() and not bool(mask.any()):
            raise DataError(
                f"mask: expected a member, got none of {mask.numel()}. Try ~mask if True was to mean padding, or "
                "y_mask for members in which nothing was observed."
            )
        x = hide_unknown(x, x_mask, mask.unsqueeze(-1)).masked_fill(~mask.unsqueeze(-1), 0)
        return replace(batch, y=y.masked_fill(~observed, 0), x=x, y_mask=None if y_mask is None else observed)

    @classmethod
    def cat(cls, batches: Sequence["GroupedBatch"]) -> "GroupedBatch":
        """Concatenate the groups of several batches of one data set, padded to their largest Q.

        Args:
            batches: At least one batch, with the same D, shape of `y` and dtypes.

        Raises:
            ArgumentError: If `batches` is no list of batches.
            DataError: If there is no batch, the batches come from data sets of different sizes or labels, or
                their dtypes differ.
            ShapeError: If D or the shape of an observation differs.
        """
        hint = "Try GroupedBatch.cat([first, second])."
        for batch in check.instance(batches, "batches", (list, tuple), hint):
            check.instance(batch, "batches", GroupedBatch, hint)
        if len(batches) == 0:
            raise DataError("batches: expected at least one GroupedBatch, got none. Try to skip empty minibatches.")
        first = batches[0]
        if len(batches) == 1:
            return first
        for other in batches[1:]:
            _check_mergeable(first, other)
        members = max(batch.num_members for batch in batches)
        masked = any(batch.y_mask is not None for batch in batches)
        return replace(
            first,
            y=torch.cat([_pad(batch.y, members) for batch in batches]),
            x=torch.cat([_pad(batch.x, members) for batch in batches]),
            mask=torch.cat([_pad(batch.mask, members) for batch in batches]),
            group_index=torch.cat([batch.group_index for batch in batches]),
            y_mask=torch.cat([_pad(batch.observed, members) for batch in batches]) if masked else None,
        )

    @property
    def num_groups(self) -> int:
        """G, the groups of this batch."""
        return self.y.shape[0]

    @property
    def num_members(self) -> int:
        """Q, the members of the largest group, padding included. `mask.sum(-1)` counts those of each group."""
        return self.y.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of all tensors of the batch."""
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
        """Return the batch on a device, with the arguments of `torch.Tensor.to`. A dtype casts `y` and `x` only.

        Raises:
            ArgumentError: If there is no such device, or an argument has another type.
            DataError: If the dtype is not a floating one.
        """
        try:
            where: Any = [torch.device(value) if isinstance(value, str) else value for value in args]
            y = self.y.to(*where, **kwargs)
        except TypeError as error:
            raise _no_device(args, kwargs, error) from error
        except RuntimeError as error:
            if not str(error).startswith(("Expected one of cpu", "Invalid device string")):
                raise
            raise _no_device(args, kwargs, error) from error
        check.floating(y, "y")

        def move(tensor: Tensor) -> Tensor:
            options: Any = {name: kwargs[name] for name in ("non_blocking", "copy") if name in kwargs}
            return tensor.to(y.device, **options)

        return replace(
            self,
            y=y,
            x=self.x.to(*args, **kwargs),
            mask=move(self.mask),
            group_index=move(self.group_index),
            y_mask=None if self.y_mask is None else move(self.y_mask),
        )

    def pin_memory(self) -> "GroupedBatch":
        """Return a copy in page-locked memory, for `DataLoader(pin_memory=True)`. A batch on a device stays as it is.

        Raises:
            RuntimeError: By PyTorch, if there is no accelerator to pin the memory for.
        """
        if self.device.type != "cpu":
            return self
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


def same_labels(first: int | None, other: int | None) -> bool:
    """Return whether two digests of labels may be of one data set. An unknown digest may be of any.

    Examples:
        >>> first, other = (GroupedDataset(torch.rand(2), torch.rand(2), group) for group in (["a", "b"], ["a", "c"]))
        >>> same_labels(first.labels_digest, other.labels_digest), same_labels(first.labels_digest, None)
        (False, True)
    """
    return None in (first, other) or first == other


def _pad(tensor: Tensor, members: int) -> Tensor:  # shape: (G, Q, ...) -> (G, members, ...)
    """Append zeros (False) along the members."""
    if tensor.shape[1] == members:
        return tensor
    padding = tensor.new_zeros(tensor.shape[0], members - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, padding], dim=1)


def _check_padded(y: Tensor) -> None:
    if y.ndim < 2:
        raise ShapeError(
            f"y: expected (G, Q, *shape), got {tuple(y.shape)}. "
            "The rows look ungrouped. Try GroupedDataset(y, x, group), which groups and pads them."
        )


def _no_device(args: Any, kwargs: Any, error: Exception) -> ArgumentError:
    got = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    return ArgumentError(f"to: expected a device, a dtype or a tensor, got {got} ({error}). Try batch.to('cpu').")


def _check_mergeable(*pair: GroupedBatch) -> None:
    """Require two batches of one data set."""
    if not same_labels(*(batch.labels_digest for batch in pair)):
        raise DataError(
            "batches: expected one data set, got two with other labels. Try one GroupedDataset of all rows."
        )

    def same(expected: str, name: str, values: list, hint: str, error: type[FGPError] = DataError) -> None:
        if values[0] != values[1]:
            raise error(f"batches: expected {expected}, got {name} = {values[0]} and {values[1]}. Try {hint}.")

    counts = [(batch.num_dataset_groups, batch.num_dataset_members) for batch in pair]
    same("batches of one data set", "(groups, members)", counts, "one GroupedDataset, or its counts in from_tensors")
    shapes = [(tuple(batch.y.shape[2:]), batch.x.shape[-1]) for batch in pair]
    same("equal observations and features", "(shape of y, D)", shapes, "one shape for all of them", ShapeError)
    same("equal dtypes", "(y, x)", [(batch.y.dtype, batch.x.dtype) for batch in pair], "batch.to(dtype) first")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _collate(batch: Sequence[GroupedBatch], *, collate_fn_map: Any = None) -> GroupedBatch:
    """Merge what the workers fetched. PyTorch documents the name of the first argument."""
    return GroupedBatch.cat(batch)


# The extension point documented at torch.utils.data.default_collate: a plain DataLoader then needs no collate_fn.
# It adds one type of ours and changes the treatment of no other.
default_collate_fn_map[GroupedBatch] = _collate
