"""Gradients that are to be differentiated again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_with_graph(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """What the backward pass of an `autograd.Function` returns under `create_graph=True`.

    Args:
        function: The same function by operations that have derivatives of all orders.
        inputs: Its arguments.
        needed: For which of them a gradient is needed.
        grad_outputs: Gradients of the loss with respect to its results.

    Returns:
        Gradients with respect to the inputs, None where none is needed.
    """
    # independent copies: an input may depend on another one, and that path must not count twice
    copies = [value.view_as(value) for value in inputs]
    wanted = [value for value, is_needed in zip(copies, needed, strict=True) if is_needed]
    # a result may depend on none of them
    pairs = [(v, g) for v, g in zip(function(*copies), grad_outputs, strict=True) if v.requires_grad]
    results, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(results, wanted, given, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)
