"""Work on some groups at a time, and on some members at a time inside networks that need no gradient."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, group_parts
from fgp_gpytorch.errors import ArgumentError

_ELEMENTS = 2**18  # of observations that a network takes at a time, on a CPU
_ELEMENTS_ELSEWHERE = 2**23
_MEMBERS = 64, 16384  # at least, at most
_VALUES = 2**20  # elements of y of a part of a data set
UNKNOWN_ELEMENTS = 512  # of an observation, where no data say how many there are


def members_at_once(network: nn.Module, values: Tensor, elements: int) -> int | None:
    """Members that a network takes at a time, where that changes no result; None for all.

    Gradients need the activations of all. A network in training mode may use statistics of its batch.

    Args:
        network: The network.
        values: Its input.
        elements: Elements of an observation.
    """
    if torch.is_grad_enabled() or transforms_active(values) or any(part.training for part in network.modules()):
        return None
    at_once = _ELEMENTS if values.device.type == "cpu" else _ELEMENTS_ELSEWHERE
    return min(max(at_once // max(1, elements), _MEMBERS[0]), _MEMBERS[1])


def joined_chunks(network: Callable[[int, int], Tensor | None], members: int, size: int) -> Tensor | None:
    """The outputs (members, *shape) of a network of which each call takes members from a start to a stop.

    Returns:
        None if an output has another shape than the first one, or is no tensor.
    """
    joined = None
    for start in range(0, members, size):
        stop = min(start + size, members)
        output = network(start, stop)
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != stop - start:
            return None
        joined = output.new_empty(members, *output.shape[1:]) if joined is None else joined
        if output.shape[1:] != joined.shape[1:]:
            return None
        joined[start:stop] = output
    return joined


def parts_of(
    source: GroupedDataset | GroupedBatch, couples: bool, batch_size: int | None, progress: bool, added: int = 0
) -> Iterator[slice]:
    """The groups of a data set, some at a time. A batch is one part, unless there is a `batch_size`.

    Args:
        source: Groups.
        couples: Whether they depend on each other. They are one part then.
        batch_size: The most groups at a time.
        progress: Whether to show a progress bar.
        added: Members that are added to each group.

    Raises:
        ArgumentError: If a batch size is below 1, or groups that depend on each other are to be split.
    """
    if isinstance(source, GroupedDataset):
        sizes, values, limit = source.group_sizes, source.y_shape.numel(), _VALUES
    else:
        sizes, values, limit = source.mask.sum(-1), source.y.shape[2:].numel(), None
    _check_whole(couples, batch_size, len(sizes))
    return group_parts(sizes, values, batch_size, progress, added, None if couples else limit)


def _check_whole(couples: bool, batch_size: int | None, groups: int) -> None:
    if couples and batch_size is not None and check.count(batch_size, "batch_size") < groups:
        raise ArgumentError(
            f"batch_size: expected None for groups that depend on each other, which are one batch, got {batch_size} "
            f"for {groups} groups. Try None, or an FGPVAE without shared effects, whose groups are independent."
        )


def new_group_parts(x: Tensor, draws: int, couples: bool, batch_size: int | None, progress: bool) -> Iterator[slice]:
    """New groups with features (G, Q, D), some at a time, by the rules of `parts_of`.

    Args:
        x: Features.
        draws: Of each group.
        couples: Whether the draws of different groups depend on each other. They are one part then.
        batch_size: The most groups at a time.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: As in `parts_of`.
    """
    sizes = torch.full((len(x),), draws * x.shape[1])
    _check_whole(couples, batch_size, len(sizes))
    return group_parts(sizes, UNKNOWN_ELEMENTS, batch_size, progress, 0, None if couples else _VALUES)


def part_of(source: GroupedDataset | GroupedBatch, part: slice, device: torch.device | None) -> GroupedBatch:
    """Some groups as a batch, those of a data set on a device."""
    if isinstance(source, GroupedDataset):
        batch = source[part]
        return batch if device is None else batch.to(device)
    if (part.start, part.stop) == (0, source.num_groups):
        return source
    y_mask = None if source.y_mask is None else source.y_mask[part]
    return dataclasses.replace(
        source, y=source.y[part], x=source.x[part], mask=source.mask[part],
        group_index=source.group_index[part], y_mask=y_mask,
    )  # fmt: skip


@torch.no_grad()
def generated_parts(
    model: Any,
    x_new: Tensor,
    source: GroupedDataset | GroupedBatch,
    sample_shape: torch.Size | None,
    parts: Iterator[slice],
    device: torch.device | None,
) -> Iterator[tuple[slice, Tensor]]:
    """The observations of `generate`, part by part.

    Args:
        model: A model with `predict`, `decode` and `likelihood`.
        x_new: Checked features of all groups, (G, Q*, D).
        source: The context.
        sample_shape: Of joint draws of z; None for its mean.
        parts: Positions of the groups at a time.
        device: Of the model.
    """
    for part in parts:
        batch = part_of(source, part, device)
        prediction = model.predict(x_new[part], batch)
        z = prediction.mean if sample_shape is None else prediction.rsample(sample_shape)
        yield part, model.likelihood.mean(model.decode(z, x_new[part], batch.y.shape[2:]))


def filled(
    parts: Iterator[tuple[slice, Tensor]], groups: int, members: int, sample_shape: Sequence[int] = ()
) -> Tensor:
    """One tensor (*s, G, Q, *y_shape) of the observations of some groups at a time, 0 where there is none."""
    whole, dim = None, len(sample_shape)
    for part, y in parts:
        if whole is None:
            shape = (*sample_shape, groups, members, *y.shape[dim + 2 :])
            if y.shape == shape:
                return y
            whole = y.new_zeros(shape)
        whole.narrow(dim, part.start, part.stop - part.start).narrow(dim + 1, 0, y.shape[dim + 1]).copy_(y)
    assert whole is not None  # there is always a part
    return whole
