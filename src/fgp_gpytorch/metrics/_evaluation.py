"""What every metric of a model needs: held-out members in batches, evaluation mode, random numbers of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data.held_out import HeldOut, HeldOutBatch, check_held_out, held_out_batch
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


@contextmanager
def evaluation(model: GroupedVAE | ConditionedVAE, seed: int | None = None) -> Iterator[torch.device]:
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
        ShapeError: If x_new, y_new or its mask are not of the context's groups.
        DataError: If `batch_size` is below 1, or an observed value of y_new is not finite.
    """
    check_batch_size(batch_size)
    check_held_out(held_out)
    for start in range(0, len(held_out.context), batch_size):
        yield held_out_batch(held_out, slice(start, start + batch_size)).to(device)


def check_batch_size(batch_size: int) -> None:
    """Raise a `DataError` unless it is an integer of at least 1."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size: expected an integer >= 1, got {batch_size!r}. Try 64.")
