"""Held-out members of groups, which a model predicts from the other members of the same groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data._inputs import as_features, as_numbers, expand_mask
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError

__all__ = ["HeldOut", "HeldOutBatch"]


class HeldOutBatch(NamedTuple):
    """Some groups of a `HeldOut`: a context, and the members to predict from it.

    Attributes:
        context: The members to condition on.
        x_new: Auxiliary features to predict at, (G, Q*, D).
        y_new: Observations there, (G, Q*, *y_shape), 0 where there is none.
        observed: True where there is one, the shape of `y_new`; None for everywhere.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(5, 2), x=torch.arange(5.0), group=[0, 0, 0, 1, 1])
        >>> batch = HeldOut.last(data)[[1]]
        >>> batch.context.x.tolist(), batch.x_new.tolist(), batch.y_new.shape
        ([[[3.0]]], [[[4.0]]], torch.Size([1, 1, 2]))
    """

    context: GroupedBatch
    x_new: Tensor
    y_new: Tensor
    observed: Tensor | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "HeldOutBatch":
        """Return the batch on a device."""
        parts: Any = (part if part is None else part.to(device, non_blocking=non_blocking) for part in self)
        return HeldOutBatch(*parts)

    def masked(self, values: Tensor) -> Tensor:  # shape: (*s, G, Q*, *y_shape)
        """Return values with 0 where `y_new` was not observed."""
        return values if self.observed is None else torch.where(self.observed, values, 0.0)

    @property
    def num_elements(self) -> int:
        """Number of elements of `y_new` that were observed."""
        return self.y_new.numel() if self.observed is None else int(self.observed.sum())


@dataclass(frozen=True, eq=False)
class HeldOut(Dataset):
    """Members to predict, and the members of the same groups to condition on. Metrics and `fit` take it.

    The class methods split a data set. `held_out.context` is then what is left to train on, except where stated.
    `held_out[positions]` is a `HeldOutBatch`, and a plain `torch.utils.data.DataLoader(held_out, batch_size=20)`
    returns such batches of 20 groups.

    Attributes:
        context: G groups to condition on.
        x_new: Auxiliary features to predict at, (G, Q*, D), in the order of the groups of `context`. At members
            without an observed element they are replaced by those of another member.
        y_new: Observations there, (G, Q*, *y_shape). They are replaced by 0 where nothing was observed.
        y_new_mask: True where it was observed, the shape of `y_new`; None for everywhere. (G, Q*) is accepted for
            whole members. Metrics leave out what was not observed.

    Raises:
        ArgumentError: If the context is no data set, or a value is not numeric.
        ShapeError: If the shapes do not fit together.
        DataError: If a mask is not boolean, no element was observed, an observed element or its features are not
            finite, a dtype is not floating, or the devices differ.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(5, 2), x=torch.arange(5.0), group=[0, 0, 0, 1, 1])
        >>> held_out = HeldOut.last(data)
        >>> held_out.context.group_sizes.tolist(), held_out.x_new[..., 0].tolist()
        ([2, 1], [[2.0], [4.0]])
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> result = fit(model, held_out.context, validation=held_out)  # val_mse is the error of the last members
        >>> error = held_out_mse(model, held_out)
    """

    context: GroupedDataset
    x_new: Tensor  # shape: (G, Q*, D)
    y_new: Tensor  # shape: (G, Q*, *y_shape)
    y_new_mask: Tensor | None = None  # shape: (G, Q*, *y_shape)

    def __post_init__(self) -> None:
        hint = "Try GroupedDataset(y, x, group), or data.subset(groups)."
        context: GroupedDataset = check.instance(self.context, "context", GroupedDataset, hint)
        x_new = as_features(self.x_new, feature_dim=2, name="x_new")
        y_new = check.floating(as_numbers(self.y_new, "y_new"), "y_new")
        hint = "Groups and features are those of the context. Try context.subset(groups) for the groups of x_new."
        check.shape(x_new, "x_new", (len(context), "Q*", context.num_features), hint)
        hint = "Try y_new.unsqueeze(1) if there is one new member for each group."
        check.shape(y_new, "y_new", (*x_new.shape[:2], *context.y_shape), hint)
        mask = self.y_new_mask
        if mask is not None:
            mask = as_numbers(mask, "y_new_mask")
            shape = y_new.shape[:2] if mask.ndim == 2 else y_new.shape
            mask = expand_mask(check.mask(mask, "y_new_mask", shape, "It has the shape of y_new, or (G, Q*)."), y_new)
        check.device(x_new=x_new, y_new=y_new, **({} if mask is None else {"y_new_mask": mask}))
        if mask is not None and not bool(mask.any()):
            raise DataError("y_new_mask: expected an observed element, got none. Try ~y_new_mask.")
        check.finite(y_new, "y_new", mask)
        there = None if mask is None else mask.reshape(*mask.shape[:2], -1).any(-1, keepdim=True)
        check.finite(
            x_new, "x_new", there, "The features of members to predict are known. Try data.select(known) first."
        )
        if mask is not None and there is not None:
            # Features far from all others would cost a kernel its precision, so padding repeats a member's.
            first = there.int().argmax(1, keepdim=True).expand(-1, -1, x_new.shape[-1])
            own = torch.where(there.any(1, keepdim=True), x_new.gather(1, first), x_new[there[..., 0]][0])
            x_new, y_new = torch.where(there, x_new, own), torch.where(mask, y_new, 0.0)
        for name, value in (("x_new", x_new), ("y_new", y_new), ("y_new_mask", mask)):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, context: GroupedDataset, targets: GroupedDataset) -> "HeldOut":
        """Predict the members of one data set from those of another. Groups are matched by their labels.

        Args:
            context: The members to condition on. Groups that do not occur in `targets` are left out.
            targets: The members to predict. Groups may be ragged, and a `y_mask` is kept.

        Raises:
            ArgumentError: If one of them is no data set.
            GroupError: If a group of `targets` does not occur in `context`.
            ShapeError: If the two have different observations or features.
            DataError: If nothing was observed, or a feature of `targets` is unknown.
        """
        for name, value in (("context", context), ("targets", targets)):
            check.instance(value, name, GroupedDataset, "Try data.select(members) in place of a batch.")
        known = set(context.labels.tolist())
        unknown = [label for label in targets.labels.tolist() if label not in known]
        if unknown:
            raise GroupError(
                f"targets: expected groups with a member in the context, got {len(unknown)} others, the first "
                f"{unknown[0]!r}. Try targets.subset(np.isin(targets.labels, context.labels))."
            )
        batch = targets.align(context)[:]
        observed = None if bool(batch.observed.all()) else batch.observed
        return cls(context.subset(batch.group_index), batch.x, batch.y, observed)

    @classmethod
    def last(cls, data: GroupedDataset, k: int = 1) -> "HeldOut":
        """Hold out the last k members of each group, in the order of the first feature. Ties keep their order.

        Raises:
            ArgumentError: If k is no integer of at least 1, or `data` no data set.
            GroupError: If a group has at most k members.
            DataError: If the first feature of a member is unknown.
        """
        targets = _amount(check.count(k, "k"), "k", _checked(data))
        target = data.ordered_places() >= (data.group_sizes - targets)[data.features().group]
        return cls.of(data.select(~target), data.select(target))

    @classmethod
    def after(cls, data: GroupedDataset, x: float) -> "HeldOut":
        """Hold out the members whose first feature is above x.

        Groups without a member on either side are left out, of the context too. To train on all earlier members, take
        `data.select(data.features().x[:, 0] <= x)`.

        Raises:
            ArgumentError: If `x` is no number, or `data` no data set.
            GroupError: If no group has members on both sides.
            DataError: If the first feature of a member is unknown.
        """
        x = check.number(x)
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise ArgumentError(f"x: expected a number, got {x!r}. Try a value of the first feature.")
        features, group = _checked(data).features()
        value = check.finite(features[:, 0], "data.x", hint="Try data.select(known).")
        later = value > x
        count = torch.bincount(group[later], minlength=len(data))
        both = (count > 0) & (count < data.group_sizes)
        if not bool(both.any()):
            raise GroupError(
                f"x: expected a group with members before and after it, got {x} for features from {float(value.min())} "
                f"to {float(value.max())}. Try a value between."
            )
        return cls.of(data.select(~later), data.select(later & both[group]))

    @classmethod
    def random(cls, data: GroupedDataset, amount: int | float = 0.2, seed: int = 0) -> "HeldOut":
        """Hold out random members of each group.

        Args:
            data: The groups, each of at least two members.
            amount: An integer is the number of members of each group. A float in (0, 1) is the fraction of them,
                rounded, but at least one, and never all.
            seed: Of the choice.

        Raises:
            ArgumentError: If the amount is neither, the seed no integer, or `data` no data set.
            GroupError: If a group has too few members to leave one.
        """
        targets = _amount(amount, "amount", _checked(data))
        target = _random_members(data, targets, seed)
        return cls.of(data.select(~target), data.select(target))

    @classmethod
    def groups(cls, data: GroupedDataset, groups: Any, context: int | float = 0.5, seed: int = 0) -> "HeldOut":
        """Hold out whole groups: some random members of each are the context, the others are predicted.

        This tests groups that were not trained on. Train on the others: `data.subset(others)`.

        Args:
            data: Groups.
            groups: Positions of the groups to hold out, as in `data[groups]`, each at most once.
            context: Members of each group to condition on: an integer is their number, a float in (0, 1) the fraction
                of the group, rounded, but at least one, and never all.
            seed: Of the choice.

        Raises:
            ArgumentError: If `context` is neither, the seed no integer, or `data` no data set.
            GroupError: If a position is wrong or repeated, or a group has no member beside the context.
        """
        chosen = _checked(data).subset(groups)
        known = _random_members(chosen, _amount(context, "context", chosen), seed)
        return cls.of(chosen.select(known), chosen.select(~known))

    @property
    def labels(self) -> np.ndarray:  # shape: (G,)
        """The label of each group."""
        return self.context.labels

    def align(self, reference: GroupedDataset) -> "HeldOut":
        """Return a copy whose context counts groups as in a reference, by `GroupedDataset.align`.

        Models with a parameter for each group need it: `held_out.align(train)`.

        Raises:
            ArgumentError: If the reference is no data set.
            GroupError: If a group does not occur in the reference.
        """
        return replace(self, context=self.context.align(reference))

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, positions: Any) -> HeldOutBatch:
        """Return some groups as one batch. Positions are those of `context[positions]`.

        Raises:
            GroupError: If a position is no integer or beyond the last group, or there is none.
        """
        index = self.context.positions(positions)
        context, index = self.context[index], index.to(self.x_new.device)
        mask = self.y_new_mask
        return HeldOutBatch(context, self.x_new[index], self.y_new[index], None if mask is None else mask[index])

    def __getitems__(self, positions: Sequence[int]) -> list[HeldOutBatch]:
        """Return `held_out[positions]` alone in a list, for PyTorch's collation."""
        return [self[positions]]


def _checked(data: Any) -> GroupedDataset:
    return check.instance(data, "data", GroupedDataset, "Try GroupedDataset(y, x, group).")


def _amount(value: int | float, name: str, data: GroupedDataset) -> Tensor:  # shape: (G,)
    """Return how many members of each group a number (int) or a fraction (float) is, less than all of them."""
    sizes, value = data.group_sizes, check.number(value)
    if isinstance(value, float):
        amount = (check.positive(value, name, below=1, hint="Try 0.2.") * sizes.double()).round().long()
        amount = torch.minimum(amount.clamp_min(1), (sizes - 1).clamp_min(1))
    else:
        amount = torch.full_like(sizes, check.count(value, name))
    small = sizes <= amount
    if bool(small.any()):
        least = int(amount[small][0])
        raise GroupError(
            f"data: expected groups of more than {least} members, to split each in two parts, got "
            f"{int(small.sum())} smaller ones of {len(data)}. Try data.subset(data.group_sizes > {least})."
        )
    return amount


def _random_members(data: GroupedDataset, amount: Tensor, seed: int) -> Tensor:  # shape: (G,) -> (N,)
    """Mark so many random members of each group."""
    places = data.random_places(torch.Generator().manual_seed(check.count(seed, "seed", least=0)))
    return places < amount[data.features().group]


def _collate(batch: Sequence[HeldOutBatch], *, collate_fn_map: Any = None) -> HeldOutBatch:
    """Merge batches of one `HeldOut`."""
    if len(batch) == 1:
        return batch[0]
    contexts, *parts = zip(*batch, strict=True)
    joined: Any = (None if part[0] is None else torch.cat(part) for part in parts)
    return HeldOutBatch(GroupedBatch.cat(contexts), *joined)


# As for `GroupedBatch`: a plain DataLoader then needs no collate_fn.
default_collate_fn_map[HeldOutBatch] = _collate
