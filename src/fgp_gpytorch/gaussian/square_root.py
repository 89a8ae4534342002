"""The symmetric square root of a covariance that may be singular."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch.gaussian.precision import check_covariance


class _SymmetricSquareRoot(torch.autograd.Function):
    """S = V sqrt(Lambda) V'. With dS solving dS S + S dS = dK, the gradient is V (V' G V / (s_i + s_j)) V'.

    The gradient does not divide by differences of eigenvalues, so repeated eigenvalues do no harm. It is taken as zero
    where both s_i and s_j vanish, because K does not change there to first order.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        check_covariance(eigenvalues)
        # rounding makes a zero eigenvalue small and positive
        noise = covariance.shape[-1] * torch.finfo(covariance.dtype).eps * eigenvalues[..., -1:].clamp_min(0)
        roots = torch.where(eigenvalues > noise, eigenvalues.clamp_min(0), 0.0).sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors * roots.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> Tensor:
        roots, vectors = ctx.saved_tensors
        sums = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        inner = vectors.mT @ grad_outputs[0] @ vectors
        inner = torch.where(sums > 0, inner / torch.where(sums > 0, sums, 1.0), 0.0)
        return vectors @ inner @ vectors.mT


def symmetric_square_root(covariance: Tensor) -> Tensor:
    """The symmetric S with S S = K, without jitter.

    Equal rows of K (repeated x) give rows of S that are equal up to the square root of the rounding error.

    Args:
        covariance: K, (*b, Q, Q), positive semi-definite, possibly singular.

    Returns:
        S, (*b, Q, Q). Differentiable once.

    Raises:
        DataError: If K has a negative eigenvalue beyond rounding.
    """
    return _SymmetricSquareRoot.apply(covariance)  # pyright: ignore[reportReturnType]
