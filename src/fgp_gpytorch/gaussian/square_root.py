"""The symmetric square root of a covariance that may be singular."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.gaussian.precision import check_covariance, check_finite


class _SymmetricSquareRoot(torch.autograd.Function):
    """S = V sqrt(Lambda) V'. Its derivative solves dS S + S dS = dK, so the gradient X solves S X + X S = G."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor) -> Tensor:
        try:
            eigenvalues, vectors = torch.linalg.eigh(covariance)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            check_finite(covariance)
            raise
        check_covariance(eigenvalues, covariance)
        # rounding makes a zero eigenvalue small and positive
        noise = covariance.shape[-1] * torch.finfo(covariance.dtype).eps * eigenvalues[..., -1:].clamp_min(0)
        roots = torch.where(eigenvalues > noise, eigenvalues.clamp_min(0), 0.0).sqrt()
        root = (vectors * roots.unsqueeze(-2)) @ vectors.mT
        ctx.save_for_backward(root, roots, vectors)
        return root

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        root, roots, vectors = ctx.saved_tensors
        return _Sylvester.apply(root, grad_outputs[0], roots, vectors)  # pyright: ignore[reportReturnType]


class _Sylvester(torch.autograd.Function):
    """X with S X + X S = G: X = V (V' G V / (s_i + s_j)) V'.

    X does not divide by differences of eigenvalues, so repeated eigenvalues do no harm. It is taken as zero where both
    s_i and s_j vanish, because K does not change there to first order.
    """

    @staticmethod
    def forward(ctx: Any, root: Tensor, right: Tensor, roots: Tensor, vectors: Tensor) -> Tensor:
        sums = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        inner = vectors.mT @ right @ vectors
        inner = torch.where(sums > 0, inner / torch.where(sums > 0, sums, 1.0), 0.0)
        solution = vectors @ inner @ vectors.mT
        ctx.save_for_backward(root, solution, roots, vectors)
        return solution

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, solution, roots, vectors = ctx.saved_tensors
        if not bool((roots > 0).all()):
            raise DataError(
                "covariance: expected full rank for a second derivative of its symmetric root, got a singular one, "
                "whose root is differentiable once. Try rsample(marginals=True), or create_graph=False."
            )
        # S dX + dX S = dG - dS X - X dS
        right = _Sylvester.apply(root, grad_outputs[0], roots, vectors)
        return -(right @ solution.mT + solution.mT @ right), right, None, None  # pyright: ignore


def symmetric_square_root(covariance: Tensor) -> Tensor:
    """The symmetric S with S S = K, without jitter.

    Equal rows of K (repeated x) give rows of S that are equal up to the square root of the rounding error.

    Args:
        covariance: K, (*b, Q, Q), positive semi-definite, possibly singular.

    Returns:
        S, (*b, Q, Q), with derivatives of all orders where K has full rank, and the first one elsewhere.

    Raises:
        DataError: If K is not symmetric, or has a negative eigenvalue beyond rounding. In the backward pass, if a
            second derivative is asked for at a singular K.
        NonFiniteError: If K is not finite.
        ArgumentError: Under a transform of torch.func, or forward-mode differentiation.

    Examples:
        >>> symmetric_square_root(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
        tensor([[2., 0.],
                [0., 3.]])
        >>> root = symmetric_square_root(torch.ones(2, 2))  # singular
        >>> torch.allclose(root @ root, torch.ones(2, 2))
        True
    """
    if transforms_active(covariance):
        raise ArgumentError(
            "symmetric root (joint draws): expected derivatives by torch.autograd, got a transform of torch.func or a "
            "forward-mode derivative. Try torch.autograd.grad, or rsample(marginals=True)."
        )
    return _SymmetricSquareRoot.apply(covariance)  # pyright: ignore[reportReturnType]
