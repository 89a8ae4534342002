"""Precise pseudo-observations of one value: members of a group at the same x."""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.gaussian.precision import log_normalizer


class PooledMembers(NamedTuple):
    """Members of equal x as one observation, at the first of them.

    Attributes:
        first: The first member with the same x, (*b, Q), int64.
        precision: Sum of the precisions, (*b, Q), at a first member; 0 elsewhere.
        residual: Precision-weighted mean of the residuals, (*b, Q), at a first member; 0 elsewhere.
        scatter: sum_q R_q^2 (r_q - mean)^2 + sum_observed log 2 pi sigma_q^2, over all members: the terms of
            -2 log Z that do not depend on K, (*b,).

    Examples:
        >>> x, K = torch.tensor([[0.0], [0.0], [1.0]]), torch.eye(3)
        >>> K[0, 1] = K[1, 0] = 1.0
        >>> precision, residual = torch.tensor([[1.0, 3.0, 1.0], [4.0, 0.0, 5.0]])
        >>> pooled = pool_repeated(K, precision, residual, x)
        >>> pooled.first, pooled.precision, pooled.residual
        (tensor([0, 0, 2]), tensor([4., 0., 1.]), tensor([1., 0., 5.]))
    """

    first: Tensor
    precision: Tensor
    residual: Tensor
    scatter: Tensor


def precise_limit(dtype: torch.dtype) -> float:
    """R^2 k from which repeated members are pooled. Below it the relative error of a KL's gradient is under 1e-8.

    Examples:
        >>> precise_limit(torch.float32) < precise_limit(torch.float64)
        True
    """
    return torch.finfo(dtype).eps ** -0.25


def pool_repeated(covariance: Tensor, precision: Tensor, residual: Tensor, x: Tensor) -> PooledMembers | None:
    r"""Pool the observations of members with equal x, which observe the same value of z.

    The posterior depends on them through sum R^2 and the weighted mean of r only. Apart, they make B = I + R K R lose
    log10(R^2 k) digits, and the gradient of the KL twice as many: it multiplies differences of equal numbers by R^4.

    Members are pooled if the kernel correlates them fully, up to half of the digits. A kernel with a noise of its own
    keeps them apart.

    Args:
        covariance: K, (*b, Q, Q).
        precision: R^2, (*b, Q).
        residual: r, (*b, Q).
        x: Auxiliary features, (*b, Q, D), broadcastable to the others. If it requires a gradient, nothing is pooled:
            each x has a derivative of its own.

    Returns:
        The pooled members; None if no x repeats.

    Examples:
        >>> x, K = torch.tensor([[0.0], [0.0]]), torch.ones(2, 2)
        >>> pooled = pool_repeated(K, precision=torch.tensor([1.0, 3.0]), residual=torch.tensor([4.0, 0.0]), x=x)
        >>> pooled.precision, pooled.residual  # one observation of precision 4, at the first member
        (tensor([4., 0.]), tensor([1., 0.]))
        >>> pool_repeated(torch.eye(2), torch.ones(2), torch.ones(2), x=torch.tensor([[0.0], [1.0]])) is None
        True
    """
    if x.requires_grad:
        return None
    size = x.shape[-2]
    own = torch.arange(size, device=x.device)
    same = (x.unsqueeze(-2) == x.unsqueeze(-3)).all(-1) | torch.eye(size, dtype=torch.bool, device=x.device)
    first = same.int().argmax(-1)
    if bool((first == own).all()):
        return None
    shape = torch.broadcast_shapes(covariance.shape[:-1], precision.shape, residual.shape)
    first, precision, residual = first.expand(shape), precision.expand(shape), residual.expand(shape)
    k = covariance.detach().diagonal(dim1=-2, dim2=-1).expand(shape)
    shared = covariance.detach().expand(*shape, size).gather(-1, first.unsqueeze(-1)).squeeze(-1)
    total = k + k.gather(-1, first)
    first = torch.where(total - 2 * shared <= 8 * torch.finfo(k.dtype).eps ** 0.5 * total, first, own)
    zeros = torch.zeros_like(precision)
    pooled = zeros.scatter_add(-1, first, precision)
    weight = precision / torch.where(pooled > 0, pooled, 1.0).gather(-1, first)
    mean = zeros.scatter_add(-1, first, weight * residual)
    scatter = (precision * (residual - mean.gather(-1, first)).square()).sum(-1) + log_normalizer(precision)
    return PooledMembers(first, pooled, mean, scatter)
