"""Held-out members for the metrics, checked and in batches."""

from collections.abc import Iterator
from typing import Any

import torch

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import HeldOut, HeldOutBatch
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


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


def batches(held_out: HeldOut, batch_size: int, device: torch.device) -> Iterator[HeldOutBatch]:
    """Yield the groups in their order, `batch_size` at a time.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `held_out` no `HeldOut`.
    """
    batch_size = check.count(batch_size, "batch_size", hint="Try 64.")
    for start in range(0, len(checked(held_out)), batch_size):
        yield held_out[start : start + batch_size].to(device)
