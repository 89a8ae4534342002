"""Held-out members for the metrics, checked and in batches."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOut, HeldOutBatch, group_parts
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE

_VALUES = 2**22  # elements of y at a time


def checked(held_out: Any) -> HeldOut:
    """Require held-out members.

    Raises:
        ArgumentError: If it is no `HeldOut`.
    """
    return check.instance(held_out, "held_out", HeldOut, "Try HeldOut.of(context, targets), or HeldOut.last(data, 2).")


def checked_model(model: Any) -> GroupedVAE | ConditionedVAE:
    """Require a model of this package.

    Raises:
        ArgumentError: If it is something else.
    """
    return check.instance(model, "model", (GroupedVAE, ConditionedVAE), "Try FGPVAE(encoder, decoder, prior).")


def own_posterior(model: Any) -> GroupedVAE:
    """Require a model of this package that is not conditioned on data.

    Raises:
        ArgumentError: If it is something else.
    """
    hint = "Try the model itself, model.model of one that is conditioned on data."
    return check.instance(model, "model", GroupedVAE, hint)


def parts_of(
    model: GroupedVAE | ConditionedVAE,
    data: GroupedDataset,
    batch_size: int | None,
    progress: bool,
    added: int = 0,
) -> Iterator[slice]:
    """The groups of a data set in their order, at most `batch_size` at a time, and fewer if they are large.

    Groups of a prior that couples them are conditioned on together. So there the size of groups does not matter.

    Args:
        model: The model.
        data: Groups.
        batch_size: The most groups at a time; None for as many as memory allows.
        progress: Whether to show a progress bar.
        added: Members that are added to each group.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `progress` no boolean.
    """
    limit = None if model.prior.couples_groups and batch_size is not None else _VALUES
    return group_parts(data.group_sizes, data.y_shape.numel(), batch_size, progress, added, limit)


def batches(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    batch_size: int | None,
    progress: bool,
    device: torch.device,
    draws: int = 1,
) -> Iterator[HeldOutBatch]:
    """Yield the groups in their order, some at a time, as in `parts_of`.

    Args:
        model: The model.
        held_out: Groups, and members to predict, each by a number of draws.
        batch_size: The most groups at a time; None for as many as memory allows.
        progress: Whether to show a progress bar.
        device: Of the batches.
        draws: Of each member to predict.

    Raises:
        ArgumentError: If `batch_size` is below 1, `progress` no boolean, or `held_out` no `HeldOut`.
    """
    added = draws * checked(held_out).x_new.shape[1]
    for part in parts_of(model, held_out.context, batch_size, progress, added):
        yield held_out[part].to(device)


def some_members(batch: GroupedBatch, kept: Tensor) -> GroupedBatch:
    """The batch with some of its members, padded to the group with the most of them.

    Args:
        batch: Groups.
        kept: True for the members to keep, in the order of `tensor[batch.mask]`, (N of the batch,).
    """
    mask = torch.zeros_like(batch.mask)
    mask[batch.mask] = kept.to(mask.device)
    order = (~mask).int().argsort(stable=True)[:, : max(1, int(mask.sum(-1).max()))]
    group = torch.arange(len(order), device=order.device).unsqueeze(-1)
    parts = {
        name: getattr(batch, name)[group, order] for name in ("y", "x", "y_mask") if getattr(batch, name) is not None
    }
    mask = mask[group, order]
    for name, value in parts.items():
        parts[name] = value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.dim() - 2)), 0)
    return dataclasses.replace(batch, mask=mask, **parts)
