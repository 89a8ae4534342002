"""Member dropout: leave some pseudo-observations out of q."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._shards import draw_uniform
from fgp_gpytorch.errors import ArgumentError


def check_dropout(dropout: Any, name: str = "member_dropout") -> float | tuple[float, float]:
    """Require a fraction or a pair of bounds. A pair is returned as a tuple.

    Args:
        dropout: In [0, 1), or two numbers 0 <= low <= high <= 1.
        name: Of the argument.

    Raises:
        ArgumentError: If it is neither.

    Examples:
        >>> check_dropout(0.5), check_dropout([0, 1])
        (0.5, (0.0, 1.0))
        >>> check_dropout(1.5)
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.ArgumentError: member_dropout: expected a fraction in [0, 1), or a pair ...
    """
    pair = isinstance(dropout, list | tuple)
    bounds = [check.number(value) for value in (dropout if pair else [dropout] * 2)]
    if len(bounds) != 2 or not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in bounds):
        bounds = [math.nan, math.nan]
    low, high = (float(value) for value in bounds)
    if not 0 <= low <= high or not (high <= 1 if pair else high < 1):
        raise ArgumentError(
            f"{name}: expected a fraction in [0, 1), or a pair 0 <= low <= high <= 1, got {dropout!r}. "
            "Try 0.2, 0, or (0, 1) for contexts of any size."
        )
    return (low, high) if pair else low


def drop_members(mask: Tensor, fraction: float | Sequence[float]) -> Tensor:
    """Drop round(fraction * size) random members of every group, always keeping one.

    Args:
        mask: True where a member is observed, (G, Q).
        fraction: In [0, 1), or two bounds, between which each group's fraction is drawn uniformly.

    Returns:
        True where a member is kept, (G, Q); False wherever `mask` is.
    """
    kept = kept_of(mask.sum(-1), fraction)
    # the members with the smallest random keys are kept; padding comes last
    keys = draw_uniform(mask.shape, mask.device, member_dim=1).masked_fill_(~mask, 2.0)
    rank = keys.argsort(-1).argsort(-1)
    return (rank < kept.unsqueeze(-1)) & mask


def kept_of(size: Tensor, fraction: float | Sequence[float]) -> Tensor:
    """How many of `size` (G,) are kept in each group: all but round(fraction * size), and at least one.

    Args:
        size: Whole numbers.
        fraction: In [0, 1), or two bounds, between which each group's fraction is drawn uniformly.
    """
    if isinstance(fraction, Sequence):
        low, high = fraction
        dropped = (low + (high - low) * draw_uniform(size.shape, size.device)) * size
    else:
        dropped = fraction * size
    return size - torch.minimum(dropped.round().to(size.dtype), (size - 1).clamp_min(0))
