"""Shared parts of the metrics of a model: evaluation mode, batches of held-out members, global channels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import HeldOut, HeldOutBatch
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


@contextmanager
def evaluation(model: GroupedVAE | ConditionedVAE, seed: int | None = None) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients. The mode and the global random numbers are restored.

    Args:
        model: The model.
        seed: Of the random numbers inside. None uses the global generator.

    Yields:
        The device of the model's parameters.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    forked = [device] if device.type == "cuda" else []
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng(devices=forked, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield device


def checked(held_out: Any) -> HeldOut:
    """Require held-out members.

    Raises:
        ArgumentError: If it is no `HeldOut`.
    """
    return check.instance(held_out, "held_out", HeldOut, "Try HeldOut.of(context, targets), or HeldOut.last(data, 2).")


def batches(held_out: HeldOut, batch_size: int, device: torch.device) -> Iterator[HeldOutBatch]:
    """Yield the groups in their order, `batch_size` at a time.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `held_out` no `HeldOut`.
    """
    check.count(batch_size, "batch_size", hint="Try 64.")
    for start in range(0, len(checked(held_out)), batch_size):
        yield held_out[start : start + batch_size].to(device)
