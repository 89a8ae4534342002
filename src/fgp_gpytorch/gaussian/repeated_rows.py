"""Feature matrices whose rows are Kronecker products of a few repeated vectors, never written out."""

from typing import NamedTuple

import torch
from torch import Tensor


class RepeatedRows(NamedTuple):
    r"""Phi (N, M) whose row i is a_{p(i)} (x) b_{v(i)}, with M = m n.

    If all groups have the same few x (Casale et al. 2018), Phi has N rows but only G group vectors a and V feature
    vectors b. Products of Phi with itself then cost O(G V m^2 + V m^2 n^2), not O(N M^2).

    Attributes:
        left: a, (G, m).
        right: b, (V, n).
        left_index: p, (N,), int64.
        right_index: v, (N,), int64.

    Examples:
        >>> groups, angles = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> rows = RepeatedRows(groups, angles, left_index=torch.tensor([0, 0, 1]), right_index=torch.tensor([0, 1, 1]))
        >>> rows.dense()
        tensor([[1., 0., 2., 0.],
                [0., 1., 0., 2.],
                [0., 3., 0., 4.]])
    """

    left: Tensor
    right: Tensor
    left_index: Tensor
    right_index: Tensor

    @property
    def pays(self) -> bool:
        """Whether the repeated form is cheaper than the dense one: m V < N."""
        return self.left.shape[-1] * len(self.right) < len(self.left_index)

    def dense(self) -> Tensor:
        """Phi, (N, M), column (i, j) being a_i b_j."""
        return row_products(self.left[self.left_index], self.right[self.right_index])

    def gram(self) -> Tensor:
        """Phi' Phi = sum_v (sum_{i: v(i) = v} a a') (x) b_v b_v', (M, M)."""
        counts = self.left.new_zeros(len(self.right), len(self.left))
        index = self.right_index, self.left_index
        counts = counts.index_put(index, counts.new_ones(()), accumulate=True)
        left = self.left.mT @ (counts.unsqueeze(-1) * self.left)  # shape: (V, m, m)
        right = self.right.unsqueeze(-1) * self.right.unsqueeze(-2)  # shape: (V, n, n)
        blocks = left.flatten(1).mT @ right.flatten(1)  # shape: (m m, n n)
        size = self.left.shape[-1] * self.right.shape[-1]
        return blocks.unflatten(0, left.shape[1:]).unflatten(-1, right.shape[1:]).transpose(1, 2).reshape(size, size)

    def whitened_norms(self, cholesky: Tensor) -> Tensor:
        """|| C^-1 phi_i ||^2 of every row, (N,), for a lower triangular C, (M, M), in O(M^2 m V + G V m^2)."""
        size = self.left.shape[-1]
        identity = torch.eye(size, dtype=self.left.dtype, device=self.left.device)
        # column (i, v): C^-1 (e_i (x) b_v), from which C^-1 (a (x) b_v) is a sum over i
        pairs = identity[:, None, :, None] * self.right.mT[None, :, None, :]  # shape: (m, n, m, V)
        columns = torch.linalg.solve_triangular(cholesky, pairs.flatten(2).flatten(0, 1), upper=False)
        columns = columns.unflatten(-1, (size, len(self.right))).movedim(-1, 0)  # shape: (V, M, m)
        norms = ((self.left @ (columns.mT @ columns)) * self.left).sum(-1)  # shape: (V, G)
        return norms[self.right_index, self.left_index]


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """a_i (x) b_i of the rows of a (*b, N, m) and b (*b, N, n): (*b, N, m n), column (j, k) being a_ij b_ik.

    Examples:
        >>> row_products(torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[10., 20., 30., 20., 40., 60.]])
    """
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)
