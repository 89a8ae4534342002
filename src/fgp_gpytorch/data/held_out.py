"""Held-out members of groups, to be predicted from the others: what metrics and `fit` are judged by."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from fgp_gpytorch._shapes import check_finite, check_floating, check_same_device
from fgp_gpytorch.data._inputs import as_features, as_mask, as_numbers, expand_mask
from fgp_gpytorch.data.aligned_dataset import AlignedDataset
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import GroupedDataset, check_dataset
from fgp_gpytorch.errors import DataError, GroupError, ShapeError

__all__ = ["HeldOut", "HeldOutBatch", "HeldOutMembers", "HeldOutTargets", "check_held_out", "held_out_batch"]


@runtime_checkable
class HeldOut(Protocol):
    """Groups with a context to condition on, and members to predict: `HeldOutMembers`, or anything like it.

    An attribute `y_new_mask`, if there is one, says what of `y_new` was observed, as in `HeldOutMembers`.
    """

    @property
    def context(self) -> GroupedDataset:
        """G groups to condition on."""
        ...

    @property
    def x_new(self) -> Tensor:
        """Auxiliary features to predict at, (G, Q*, D), in the order of the groups of `context`."""
        ...

    @property
    def y_new(self) -> Tensor:
        """What was observed there, (G, Q*, *y_shape)."""
        ...


@dataclass(frozen=True, eq=False)
class HeldOutMembers:
    """Members to predict from the others of their groups; groups may lack some of them, and members some elements.

    Attributes:
        context: G groups to condition on.
        x_new: Auxiliary features to predict at, (G, Q*, D), in the order of the groups of `context`. What stands at
            members of whom nothing was observed plays no part.
        y_new: What was observed there, (G, Q*, *y_shape).
        y_new_mask: True where it was observed, (G, Q*) for whole members or (G, Q*, *y_shape) for elements; None for
            everywhere. What is not observed counts in no metric.

    Raises:
        ShapeError: If the shapes do not fit together.
        DataError: If the context is no data set, a mask is not boolean, no element was observed, an observed one is
            not finite, y is not floating, or the devices differ.

    Example:
        >>> is_past = data.flat().x[:, 0] < 8
        >>> held_out = HeldOutMembers.of(data.select(is_past), data.select(~is_past))
        >>> held_out_mse(model, held_out)
    """

    context: GroupedDataset
    x_new: Tensor
    y_new: Tensor
    y_new_mask: Tensor | None = None

    def __post_init__(self) -> None:
        converted = {"x_new": as_features(self.x_new, feature_dim=2), "y_new": as_numbers(self.y_new, "y_new")}
        if self.y_new_mask is not None:
            converted["y_new_mask"] = as_mask(self.y_new_mask, "y_new_mask")
        for name, value in converted.items():
            object.__setattr__(self, name, value)
        check_held_out(self)

    @classmethod
    def of(cls, context: GroupedDataset, targets: GroupedDataset) -> "HeldOutMembers":
        """The members of one data set, to be predicted from those of another; groups are matched by their labels.

        Args:
            context: What to condition on. Its groups of whom `targets` has nobody are left out.
            targets: What to predict, in memory; it may be ragged, and have a `y_mask`.

        Raises:
            GroupError: If a group of `targets` is none of the context's.
            ShapeError: If the two have different observations or features.
            DataError: If nothing was observed, or the targets are not in memory.
        """
        for name, value in (("context", context), ("targets", targets)):
            check_dataset(value, name, "data.select(members)")
        unknown = sorted(set(targets.labels.tolist()) - set(context.labels.tolist()), key=str)
        if unknown:
            raise GroupError(
                f"targets: expected groups of whom the context has somebody, got {len(unknown)} others, the first "
                f"{unknown[0]!r}. Try targets.subset(np.isin(targets.labels, context.labels))."
            )
        batch = AlignedDataset(targets, context)[:]
        observed = None if bool(batch.observed.all()) else batch.observed
        return cls(context.subset(batch.group_index), batch.x, batch.y, observed)


@dataclass
class HeldOutTargets:
    """What is to be predicted of some groups of a `HeldOut`.

    Attributes:
        x_new: Auxiliary features, (G, Q*, D).
        y_new: Observations, (G, Q*, *y_shape), 0 where there is none.
        observed: True where there is one, the shape of `y_new`; None for everywhere.
    """

    x_new: Tensor
    y_new: Tensor
    observed: Tensor | None

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move all tensors, as `torch.Tensor.to`; a dtype is meant for the numbers."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: part.to(*args, **kwargs) for name, part in parts.items() if part is not None}
        if self.observed is not None:
            moved["observed"] = self.observed.to(moved["y_new"].device)
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Pin all tensors."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.pin_memory() for name, part in parts.items() if part is not None})

    def masked(self, values: Tensor) -> Tensor:  # shape: (*s, G, Q*, *y_shape)
        """The values with 0 where nothing was observed."""
        return values if self.observed is None else torch.where(self.observed, values, 0.0)

    @property
    def num_elements(self) -> int:
        """How many elements of y_new were observed."""
        return self.y_new.numel() if self.observed is None else int(self.observed.sum())


@dataclass
class HeldOutBatch(HeldOutTargets):
    """Some groups of a `HeldOut`: their targets, and the context to predict them from.

    Attributes:
        context: The same groups.
    """

    context: GroupedBatch


def held_out_targets(held_out: HeldOut, groups: Sequence[int] | slice | Tensor) -> HeldOutTargets:
    """The targets of some of the groups of held-out members that were checked."""
    x_new, y_new, observed = held_out.x_new[groups], held_out.y_new[groups], _observed(held_out)
    if observed is None:
        return HeldOutTargets(x_new, y_new, None)
    # features far from all others would cost a kernel its precision, and may be NaN where nobody is
    anybody = held_out.x_new.flatten(0, 1)[observed.flatten(0, 1).flatten(1).any(-1).int().argmax()]
    observed = observed[groups]
    there = observed.flatten(2).any(-1, keepdim=True)  # shape: (g, Q*, 1)
    own = x_new.gather(1, there.int().argmax(1, keepdim=True).expand(-1, -1, x_new.shape[-1]))  # shape: (g, 1, D)
    own = torch.where(there.any(1, keepdim=True), own, anybody)
    # what was not observed may be NaN
    return HeldOutTargets(torch.where(there, x_new, own), torch.where(observed, y_new, 0.0), observed)


def held_out_batch(held_out: HeldOut, groups: Sequence[int] | slice | Tensor) -> HeldOutBatch:
    """Some of the groups of held-out members that were checked."""
    targets = held_out_targets(held_out, groups)
    return HeldOutBatch(targets.x_new, targets.y_new, targets.observed, held_out.context[groups])


def check_held_out(held_out: HeldOut, name: str = "held_out") -> None:
    """Require one row of new members for each group of the context, and finite observations: nothing is broadcast.

    Raises:
        ShapeError: If x_new, y_new or its mask have another number of groups, or not the same number of members, or
            x_new other features than the context.
        DataError: If the context is no data set, a mask is not boolean, no element of y_new was observed, an observed
            one is not finite, y_new is not floating, or the devices differ.
    """
    if not isinstance(held_out, HeldOut):
        raise DataError(
            f"{name}: expected an object with context, x_new and y_new, got {type(held_out).__name__}. "
            "Try HeldOutMembers.of(context, targets)."
        )
    check_dataset(held_out.context, f"{name}.context", "GroupedDataset(y, x, group), or data.subset(groups)")
    for part in ("x_new", "y_new"):
        check_floating(getattr(held_out, part), part)
    x_new, y_new = tuple(held_out.x_new.shape), tuple(held_out.y_new.shape)
    groups, y_shape = len(held_out.context), tuple(held_out.context.y_shape)
    if len(x_new) != 3 or x_new[0] != groups or y_new != (*x_new[:2], *y_shape):
        raise ShapeError(
            f"{name}: expected x_new (G, Q*, D) and y_new (G, Q*, *y_shape) with the context's G = {groups} and "
            f"y_shape = {y_shape}, got {x_new} and {y_new}. Try context.subset(groups) for the groups of x_new, "
            "and y_new.unsqueeze(1) if there is one new member for each group."
        )
    if x_new[-1] != held_out.context.num_features:
        raise ShapeError(
            f"{name}: expected x_new with the context's {held_out.context.num_features} features, got {x_new}. "
            "Try the same columns for both."
        )
    mask = getattr(held_out, "y_new_mask", None)
    if mask is not None:
        mask = as_mask(mask, "y_new_mask")
        if tuple(mask.shape) not in (y_new, y_new[:2]):
            raise ShapeError(
                f"y_new_mask: expected (G, Q*) = {y_new[:2]} or the shape of y_new {y_new}, got {tuple(mask.shape)}. "
                "Try None if everything was observed."
            )
        check_same_device(y_new=held_out.y_new, y_new_mask=mask)
    observed = _observed(held_out)
    if observed is not None and not bool(observed.any()):
        raise DataError("y_new_mask: expected an observed element, got none. Try ~y_new_mask if True was to hide it.")
    check_finite(held_out.y_new, "y_new", observed)
    anybody = None if observed is None else observed.flatten(2).any(-1, keepdim=True)
    if bool((~held_out.x_new.isfinite() & (True if anybody is None else anybody)).any()):
        raise DataError(
            "x_new: expected known features of all members to predict, got some that are not finite. Try to leave "
            "these members out: HeldOutMembers.of(context, data.select(known))."
        )


def _observed(held_out: HeldOut) -> Tensor | None:
    """What was observed, in the shape of y_new; None for everything."""
    mask = getattr(held_out, "y_new_mask", None)
    return None if mask is None else expand_mask(as_mask(mask, "y_new_mask"), held_out.y_new)
