"""Figures of merit, each with its unit and direction."""

from typing import Protocol

import torch
from torch import Tensor

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.models import FGPVAE


class _HeldOut(Protocol):
    @property
    def context(self) -> GroupedDataset: ...

    @property
    def x_new(self) -> Tensor: ...

    @property
    def y_new(self) -> Tensor: ...


@torch.no_grad()
def held_out_mse(model: FGPVAE, held_out: _HeldOut, sample: bool = False, batch_size: int = 64) -> float:
    """Mean squared error of generating held-out members from the others of their group. Lower is better.

    Args:
        model: A trained model; it is used in evaluation mode and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape).
        sample: False decodes the posterior mean of z, True one draw of z.
        batch_size: Groups at a time.

    Returns:
        Units of y squared, averaged over groups, members and elements (for images: per pixel, ink 1, paper 0).
    """
    training = model.training
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total, count = 0.0, 0
    for start in range(0, len(held_out.context), batch_size):
        groups = slice(start, start + batch_size)
        context, x_new = held_out.context[groups].to(device), held_out.x_new[groups].to(device)
        generated = model.generate(x_new, context, sample_shape=() if sample else None)
        error = (generated - held_out.y_new[groups].to(device)).square()
        total, count = total + error.double().sum().item(), count + error.numel()
    model.train(training)
    return total / count
