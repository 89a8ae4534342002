"""From pseudo-variances and a mask to precisions."""

import math

import torch
from torch import Tensor


def masked_precision(variance: Tensor, mask: Tensor | None) -> Tensor:
    """R^2 = mask / sigma^2.

    Args:
        variance: Pseudo-variances sigma^2, (*b, Q). What stands at a masked member does not matter.
        mask: Boolean, broadcastable to `variance`, True where a member is observed; None observes all.

    Returns:
        Precisions, (*b, Q), 0 for a missing member.
    """
    if mask is None:
        return variance.reciprocal()
    # the mask enters before the reciprocal too: after it alone, a masked NaN or 0 would make the gradient NaN
    return torch.where(mask, torch.where(mask, variance, 1.0).reciprocal(), 0.0)


def root_precision(precision: Tensor) -> Tensor:
    """R, with a zero gradient where R = 0, where that of the square root is infinite and would turn into NaN."""
    observed = precision > 0
    return torch.where(observed, torch.where(observed, precision, 1.0).sqrt(), 0.0)


def log_normalizer(precision: Tensor) -> Tensor:
    """Sum over the observed members of log 2 pi sigma^2.

    Args:
        precision: R^2, (*b, Q).

    Returns:
        Nats, (*b,).
    """
    observed = precision > 0
    terms = math.log(2 * math.pi) - torch.where(observed, precision, 1.0).log()
    return torch.where(observed, terms, 0.0).sum(-1)


def log_plus_inverse(t: Tensor) -> Tensor:
    """log b + 1/b - 1 for b = exp(t) >= 1: without the cancellation of b near 1."""
    return t + torch.expm1(-t)
