"""Element dropout: hide some elements of y from the encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch._shards import draw_uniform
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.models._member_dropout import kept_of


def drop_elements(observed: Tensor, fraction: float | Sequence[float], blocks: Any = None) -> Tensor:
    """Hide round(fraction * size) random blocks of elements of every group, always keeping one.

    Args:
        observed: True where an element is observed, (G, Q, *y_shape).
        fraction: In [0, 1), or two bounds, between which each group's fraction is drawn uniformly.
        blocks: Elements that are hidden together; see `block_numbers`. The size of a group counts its observed blocks.

    Returns:
        True where an element is shown, (G, Q, *y_shape); False wherever `observed` is.

    Raises:
        ShapeError: If `blocks` does not fit y.
    """
    groups, members = observed.shape[:2]
    flat = observed.reshape(groups, members, -1)
    numbers = block_numbers(blocks, flat.shape[-1], observed.device)
    there = flat
    if numbers is not None:
        count = int(numbers.max()) + 1 if len(numbers) else 0
        there = flat.new_zeros(groups, members, count, dtype=torch.long).index_add_(-1, numbers, flat.long()) > 0
    kept = kept_of(there.flatten(1).sum(-1), fraction)
    # the blocks with the smallest random keys are shown; what was not observed comes last
    keys = draw_uniform(there.shape, observed.device, member_dim=1).masked_fill_(~there, 2.0).flatten(1)
    order = keys.argsort(-1)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    shown = (rank < kept.unsqueeze(-1)).reshape(there.shape)
    shown = shown if numbers is None else shown[..., numbers]
    return (shown & flat).reshape(observed.shape)


def block_numbers(blocks: Any, num_elements: int, device: torch.device) -> Tensor | None:  # shape: (K,)
    """The number of each element's block, 0, 1, ...; None if every element is alone.

    Args:
        blocks: A likelihood's `element_blocks`: whole numbers (K,), one for each flattened element of y. Or slices of
            the flattened elements, outside which every element is alone. None for every element alone.
        num_elements: K.
        device: Of the result.

    Raises:
        ShapeError: If there is not one number for each element, or a slice is beyond the last element.
    """
    if blocks is None:
        return None
    numbers = torch.arange(num_elements, device=device)
    if isinstance(blocks, Tensor):
        fits = tuple(blocks.shape) == (num_elements,)
        numbers = blocks.to(device)
    else:
        fits = all(len(numbers[part]) > 0 and (part.stop or 0) <= num_elements for part in blocks)
        for part in blocks if fits else ():
            numbers[part] = numbers[part][0].clone()
    if not fits:
        got = tuple(blocks.shape) if isinstance(blocks, Tensor) else blocks
        raise ShapeError(
            f"likelihood.element_blocks: expected one number for each of {num_elements} elements of y, or slices of "
            f"them, got {got}. Try None for elements that are dropped one by one."
        )
    return torch.unique(numbers, return_inverse=True)[1]
