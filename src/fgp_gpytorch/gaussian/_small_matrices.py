"""Matrices of a few rows for many members: the small dimensions come first, (S, S, *b, Q).

Each operation is then a pass over all members. Batched matrix products of PyTorch would be one call a member.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A B, (I, K, ...), from (I, J, ...) and (J, K, ...)."""
    out = a[:, :1] * b[:1]
    for j in range(1, a.shape[1]):
        out = torch.addcmul(out, a[:, j : j + 1], b[j : j + 1])
    return out


def matvec(a: Tensor, x: Tensor) -> Tensor:
    """A x, (I, ...), from (I, J, ...) and (J, ...)."""
    out = a[:, 0] * x[0]
    for j in range(1, a.shape[1]):
        out = torch.addcmul(out, a[:, j], x[j])
    return out


def outer(a: Tensor, b: Tensor) -> Tensor:
    """a b', (I, J, ...)."""
    return a.unsqueeze(1) * b.unsqueeze(0)


def transposed(a: Tensor) -> Tensor:
    """A'."""
    return a.transpose(0, 1)


def symmetric(a: Tensor) -> Tensor:
    """(A + A') / 2."""
    return 0.5 * (a + transposed(a))


def picked(a: Tensor, places: Sequence[int]) -> Tensor:
    """h' A for a vector h that is 1 at these places and 0 elsewhere."""
    total = a[places[0]]
    for place in places[1:]:
        total = total + a[place]
    return total


def embedded(a: Tensor, places: Sequence[int], size: int) -> Tensor:
    """The vector h a', (S, ...), for the h of `picked` and a (...)."""
    zero = torch.zeros_like(a)
    return torch.stack([a if place in places else zero for place in range(size)])


def quadratic(f: Tensor, a: Tensor) -> Tensor:
    """f' A f."""
    return (f * matvec(a, f)).sum(0)


def block_diagonal(blocks: Sequence[Sequence[Sequence[Tensor]]]) -> Tensor:
    """(S, S, ...) from the rows of the blocks, whose entries broadcast."""
    shape = torch.broadcast_shapes(*(entry.shape for block in blocks for row in block for entry in row))
    size, zero, start = sum(map(len, blocks)), blocks[0][0][0].new_zeros(()), 0
    rows = [[zero] * size for _ in range(size)]
    for block in blocks:
        for j, row in enumerate(block):
            rows[start + j][start : start + len(block)] = row
        start += len(block)
    return torch.stack([torch.stack([entry.expand(shape) for entry in row]) for row in rows])


def cholesky(a: Tensor) -> Tensor:
    """C with C C' = A, of positive semi-definite A. A pivot that is zero up to rounding leaves a column of zeros."""
    size, epsilon = len(a), torch.finfo(a.dtype).eps
    rows: list[list[Tensor]] = [[torch.zeros_like(a[0, 0])] * size for _ in range(size)]
    for k in range(size):
        pivot = a[k, k]
        for j in range(k):
            pivot = pivot - rows[k][j].square()
        kept = pivot > 4 * epsilon * a[k, k]
        root = torch.where(kept, pivot, 1.0).sqrt()
        rows[k][k] = torch.where(kept, root, 0.0)
        for i in range(k + 1, size):
            rest = a[i, k]
            for j in range(k):
                rest = rest - rows[i][j] * rows[k][j]
            rows[i][k] = torch.where(kept, rest / root, 0.0)
    return torch.stack([torch.stack(row) for row in rows])
