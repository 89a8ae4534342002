r"""Affine recursions over members, in parallel over stretches of members, with gradients.

    x_{k+1} = u_k + D_k x_k,   X_{k+1} = U_k + D_k X_k D_k'          x = 0, X = 0 at the first member

The composition of steps is associative. The members are cut into about sqrt(Q) stretches of sqrt(Q) members. All
stretches are summarized at once, member by member. The summaries are joined one after the other. Then all stretches run
at once from their true starts. The work is O(Q), and the number of dependent steps O(sqrt(Q)).
"""

import math
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch.gaussian._small_matrices import matmul, matvec, outer, symmetric, transposed

Pair = tuple[Tensor | None, Tensor | None]


def forwards(step: Tensor, vectors: Tensor | None, matrices: Tensor | None) -> Pair:
    """x_k and X_k of all members, with gradients, which are recursions backwards.

    Args:
        step: D, (S, S, *b, Q).
        vectors: u, (S, *b, Q); None leaves x out.
        matrices: U, (S, S, *b, Q), symmetric; None leaves X out.

    Returns:
        x (S, *b, Q) and X (S, S, *b, Q). The last step, which leads beyond the members, has no effect.
    """
    return _Forwards.apply(step, vectors, matrices)  # pyright: ignore[reportReturnType]


def backwards(step: Tensor, vectors: Tensor | None, matrices: Tensor | None) -> Pair:
    """a_k and N_k of a_{k-1} = u_k + D_k' a_k and N_{k-1} = U_k + D_k' N_k D_k, from 0 behind the last member."""
    found = forwards(transposed(step).flip(-1), _flipped(vectors), _flipped(matrices))
    return _flipped(found[0]), _flipped(found[1])


def stretches(t: Tensor, members: int) -> Tensor:  # shape: (..., Q) or (..., 1) -> (T, ..., B)
    """Cut members into B stretches of T = sqrt(Q), and fill the last one up with zeros."""
    length = max(1, math.isqrt(members))
    count = -(-members // length)
    t = torch.nn.functional.pad(t.expand(*t.shape[:-1], members), (0, count * length - members))
    return t.unflatten(-1, (count, length)).movedim(-1, 0).contiguous()


def joined(t: Tensor, members: int) -> Tensor:  # shape: (T, ..., B) -> (..., Q)
    """The reverse of `stretches`."""
    return t.movedim(0, -1).flatten(-2)[..., :members]


class _Forwards(torch.autograd.Function):
    """With a and N of the recursions backwards of dx and dX: du = a, dU = N, dD = a x' + 2 N D X."""

    @staticmethod
    def forward(ctx: Any, D: Tensor, u: Tensor | None, U: Tensor | None) -> Pair:
        members = D.shape[-1]
        steps = stretches(D, members)
        whole = steps[0]
        for step in steps[1:]:
            whole = matmul(step, whole)  # D of a stretch
        x = None if u is None else _run(steps, stretches(u, members), whole, members)
        X = None if U is None else _run(steps, stretches(U, members), whole, members)
        ctx.save_for_backward(D, x, X)
        return x, X

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        D, x, X = ctx.saved_tensors
        dx, dX = grad_outputs
        a, N = backwards(D, dx, None if dX is None else symmetric(dX))
        dD = torch.zeros_like(D)
        if a is not None:
            dD = dD + outer(a, x)
        if N is not None:
            dD = dD + 2 * matmul(N, matmul(D, X))
        return dD, a, N


def _run(steps: Tensor, added: Tensor, whole: Tensor, members: int) -> Tensor:
    """The recursion of vectors or of matrices, over stretches (T, ..., B)."""
    last = torch.zeros_like(added[0])
    for step, more in zip(steps, added, strict=True):
        last = more + _moved(step, last)
    starts = [torch.zeros_like(last[..., 0])]
    for stretch in range(last.shape[-1] - 1):
        starts.append(last[..., stretch] + _moved(whole[..., stretch], starts[-1]))
    state, found = torch.stack(starts, -1), torch.empty_like(added)
    for t, (step, more) in enumerate(zip(steps, added, strict=True)):
        found[t] = state
        state = more + _moved(step, state)
    return joined(found, members)


def _moved(step: Tensor, state: Tensor) -> Tensor:
    """D x of a vector, D X D' of a matrix."""
    if state.dim() < step.dim():
        return matvec(step, state)
    return matmul(matmul(step, state), transposed(step))


def _flipped(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.flip(-1)
