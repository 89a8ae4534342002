"""Observed-member dropout: leave some pseudo-observations out of q."""

import torch
from torch import Tensor


def drop_members(mask: Tensor, fraction: float) -> Tensor:
    """Drop round(fraction * size) random members of every group, always keeping one.

    Args:
        mask: True where a member is there, (G, Q).
        fraction: In [0, 1).

    Returns:
        True where a member is kept, (G, Q); False wherever `mask` is.
    """
    size = mask.sum(-1)
    kept = size - torch.minimum((fraction * size).round().to(size.dtype), (size - 1).clamp_min(0))
    # the members with the smallest random keys are kept; padding comes last
    keys = torch.rand(mask.shape, device=mask.device).masked_fill_(~mask, 2.0)
    rank = keys.argsort(-1).argsort(-1)
    return (rank < kept.unsqueeze(-1)) & mask
