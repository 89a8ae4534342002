"""What every metric of a model needs: held-out members in batches, evaluation mode, random numbers of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch._shapes import check_finite
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.models import FGPVAE, GivenRows
from fgp_gpytorch.prior import FactorizedGPPrior, GlobalChannels


class HeldOut(Protocol):
    """Groups with a context to condition on, and members to predict: `datasets.HeldOutViews`, or anything like it.

    Attributes:
        context: G groups.
        x_new: Auxiliary features to predict at, (G, Q*, D), in the order of the groups of `context`.
        y_new: What was observed there, (G, Q*, *y_shape).
    """

    @property
    def context(self) -> GroupedDataset: ...

    @property
    def x_new(self) -> Tensor: ...

    @property
    def y_new(self) -> Tensor: ...


class HeldOutBatch(NamedTuple):
    """Some of the groups of a `HeldOut`, on one device."""

    context: GroupedBatch
    x_new: Tensor
    y_new: Tensor


@contextmanager
def evaluation(model: FGPVAE | GivenRows, seed: int | None = None) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients, and leave mode and random numbers as they were found.

    Args:
        model: The model.
        seed: Of the random numbers inside; None goes on with the global generator.

    Yields:
        The device of the model's parameters.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    forked = [device] if device.type == "cuda" else []
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng(devices=forked, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield device


def batches(held_out: HeldOut, batch_size: int, device: torch.device) -> Iterator[HeldOutBatch]:
    """Yield the groups in their order, `batch_size` at a time.

    Raises:
        ShapeError: If x_new or y_new are not of the context's groups.
    """
    check_held_out(held_out)
    for start in range(0, len(held_out.context), batch_size):
        groups = slice(start, start + batch_size)
        yield HeldOutBatch(
            held_out.context[groups].to(device), held_out.x_new[groups].to(device), held_out.y_new[groups].to(device)
        )


def check_held_out(held_out: HeldOut) -> None:
    """Require one row of new members for each group of the context.

    Raises:
        ShapeError: If x_new or y_new have another number of groups, or not the same number of members.
        DataError: If a value of y_new is not finite.
    """
    x_new, y_new = tuple(held_out.x_new.shape), tuple(held_out.y_new.shape)
    groups = len(held_out.context)
    if len(x_new) != 3 or x_new[0] != groups or y_new != (*x_new[:2], *held_out.context.y_shape):
        raise ShapeError(
            f"held_out: expected x_new (G, Q*, D) and y_new (G, Q*, *y_shape) with the context's G = {groups} and "
            f"y_shape = {tuple(held_out.context.y_shape)}, got {x_new} and {y_new}. Try context.subset(groups) for the "
            "groups of x_new."
        )
    check_finite(held_out.y_new, "y_new")


def global_channels(model: FGPVAE | GivenRows) -> Tensor:  # shape: (L,)
    """Mark the channels with one value per group.

    They are those of the blocks of `GlobalChannels`; of another prior, the last `num_global_channels`, or none.
    """
    prior = model.prior
    if isinstance(prior, FactorizedGPPrior):
        return torch.tensor([isinstance(block, GlobalChannels) for block in prior.channel_blocks()])
    return torch.arange(prior.num_channels) >= prior.num_channels - getattr(prior, "num_global_channels", 0)
