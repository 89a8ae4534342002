"""The covariance of grouped rows as a LinearOperator: a dense block for each group, zero between groups."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from linear_operator import to_dense, to_linear_operator
from linear_operator.operators import (
    CholLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    RootLinearOperator,
    TriangularLinearOperator,
    ZeroLinearOperator,
)
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NotPSDError
from linear_operator.utils.getitem import _is_noop_index
from linear_operator.utils.memoize import cached
from torch import Tensor

from fgp_gpytorch.gaussian import check_residual_variance, symmetric_square_root
from fgp_gpytorch.kernels._group_layout import GroupLayout, group_layouts

__all__ = ["GroupBlockLinearOperator", "posterior_covariance"]


class GroupBlockLinearOperator(LinearOperator):
    r"""A matrix that is zero between groups, `K = S blockdiag(blocks) T'`.

    S and T map rows and columns to slots (`GroupLayout`): permutations, up to padding. Rows may come in any order and
    groups in any sizes. A product costs O(sum Q^2) and a factorization O(sum Q^3). Factorizations are batched Cholesky
    decompositions: results are exact at any N, whatever gpytorch.settings say about conjugate gradients.

    Padded slots contain arbitrary finite numbers, and no result reads them. A factorization puts an identity there, so
    that a factor has the layout of its matrix.

    Args:
        blocks: The blocks of each stack, (*batch, counts[k], rows.widths[k], cols.widths[k]).
        rows: The layout S of the rows.
        cols: The layout T of the columns. It equals `rows` for a covariance.
        upper: For a triangular factor: whether it is an upper one. Its `solve` substitutes and does not factorize.
            None for any other matrix.

    Raises:
        linear_operator.utils.errors.NotPSDError: On factorization, if a block is not positive definite even with
            jitter, or if rows and columns have different layouts.
        DataError: On `root_decomposition`, if a block has a negative eigenvalue beyond rounding.

    Examples:
        >>> rows, cols = group_layouts(torch.tensor([4, 4, 7, 7]))
        >>> K = GroupBlockLinearOperator(torch.ones(2, 2, 2), rows=rows, cols=cols)
        >>> K.add_diagonal(torch.ones(4)).logdet()
        tensor(2.1972)
    """

    def __init__(self, *blocks: Tensor, rows: GroupLayout, cols: GroupLayout, upper: bool | None = None):
        assert blocks
        assert rows.counts == cols.counts
        super().__init__(*blocks, rows=rows, cols=cols, upper=upper)
        self.blocks, self.rows, self.cols, self.upper = blocks, rows, cols, upper

    # The methods that every LinearOperator defines.

    def _size(self) -> torch.Size:
        return self.blocks[0].shape[:-3] + torch.Size((self.rows.num_rows, self.cols.num_rows))

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self._by_block(torch.matmul, self.blocks, rhs)

    def _transpose_nonbatch(self) -> LinearOperator:
        upper = None if self.upper is None else not self.upper
        return GroupBlockLinearOperator(*(b.mT for b in self.blocks), rows=self.cols, cols=self.rows, upper=upper)

    def _by_block(self, f: Callable[[Tensor, Tensor], Tensor], blocks: Sequence[Tensor], rhs: Tensor) -> Tensor:
        """`S f(blocks, T' rhs)` for each stack, where rhs is (*batch, M, C) or (M,)."""
        is_vector = rhs.dim() == 1
        dtype = torch.promote_types(self.blocks[0].dtype, rhs.dtype)
        pieces = self.cols.pad((rhs.unsqueeze(-1) if is_vector else rhs).to(dtype))
        result = self.rows.unpad([f(b.to(dtype), p) for b, p in zip(blocks, pieces, strict=True)])
        return result.squeeze(-1) if is_vector else result

    # Reading entries.

    def _diagonal(self) -> Tensor:
        if not self._same_layouts:
            return self._entries(self.rows.slot, self.cols.slot)
        return self.rows.unpad([b.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for b in self.blocks]).squeeze(-1)

    def to_dense(self) -> Tensor:
        """Write the matrix out, N x M."""
        return self._entries(self.rows.slot.unsqueeze(-1), self.cols.slot)

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self._entries(self.rows.slot[row_index], self.cols.slot[col_index], *batch_indices)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        chosen = self
        if not all(map(_is_noop_index, batch_indices)):
            chosen = self._with([b[(*batch_indices, ...)] for b in self.blocks])
        if _is_noop_index(row_index) and _is_noop_index(col_index):
            return chosen
        row_slots, col_slots = self.rows.slot[row_index], self.cols.slot[col_index]
        row_groups, col_groups = self.rows.groups_and_places()[0], self.cols.groups_and_places()[0]
        layouts = group_layouts(row_groups[row_slots], col_groups[col_slots])
        return chosen.blocks_between(row_slots, col_slots, *layouts)

    def laid_out(self, rows: GroupLayout, cols: GroupLayout) -> "GroupBlockLinearOperator":
        """The same matrix in blocks of other layouts of the same rows and columns."""
        if self.rows.agrees_with(rows) and self.cols.agrees_with(cols):
            return self
        return self.blocks_between(self.rows.slot, self.cols.slot, rows, cols)

    def blocks_between(
        self, row_slots: Tensor, col_slots: Tensor, rows: GroupLayout, cols: GroupLayout
    ) -> "GroupBlockLinearOperator":
        """The entries between slots of this operator, (N',) and (M',), laid out by `rows` and `cols`."""
        pieces = zip(rows.split(row_slots[rows.source], -1), cols.split(col_slots[cols.source], -1), strict=True)
        blocks = [self._entries(r.unsqueeze(-1), c.unsqueeze(-2)) for r, c in pieces]
        return GroupBlockLinearOperator(*blocks, rows=rows, cols=cols)

    def _entries(self, row_slots: Tensor, col_slots: Tensor, *batch_indices: Tensor) -> Tensor:
        """The entries between slots: (*batch, *shape), or (*shape) where `batch_indices` choose the batch elements."""
        starts, start = [], 0
        for count, height, width in zip(self.rows.counts, self.rows.widths, self.cols.widths, strict=True):
            starts.append(start + width * torch.arange(count * height, device=self.device))
            start += count * height * width
        row_groups, _ = self.rows.groups_and_places()
        col_groups, col_places = self.cols.groups_and_places()
        same = row_groups[row_slots] == col_groups[col_slots]
        place = torch.cat(starts)[row_slots] + col_places[col_slots]
        zero = self.blocks[0].new_zeros(*self.batch_shape, 1)  # at place -1, the entry between two groups
        flat = torch.cat([*(b.flatten(-3) for b in self.blocks), zero], dim=-1)
        return flat[(*(batch_indices or [...]), torch.where(same, place, -1))]

    # Sums and products that stay in blocks.

    def __add__(self, other: Any) -> Any:
        if isinstance(other, ZeroLinearOperator):
            return self
        if self._same_layouts and isinstance(other, DiagLinearOperator):
            return self.add_diagonal(other.diagonal())
        if self._is_laid_out_like(other):
            blocks = [a + b for a, b in zip(self.blocks, other.blocks, strict=True)]
            return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=self.cols)
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        """Add a vector, (..., N), or a number, () or (..., 1), to the diagonal."""
        if not self._same_layouts:
            return super().add_diagonal(diag)
        batch = torch.broadcast_shapes(diag.shape[:-1], self.batch_shape)
        pieces = self.rows.pad(diag.expand(*batch, self.rows.num_rows).unsqueeze(-1))
        return self._with([b + torch.diag_embed(p.squeeze(-1)) for b, p in zip(self.blocks, pieces, strict=True)])

    def _mul_constant(self, other: Any) -> LinearOperator:  # other: () or (*batch)
        factor = torch.as_tensor(other)[..., None, None, None]
        return self._with([b * factor for b in self.blocks])

    def _mul_matrix(self, other: Any) -> LinearOperator:
        other = to_linear_operator(other).evaluate_kernel()
        if self._is_laid_out_like(other):
            return self._with([a * b for a, b in zip(self.blocks, other.blocks, strict=True)])
        if other.matrix_shape == (1, 1):  # a number for each element of a larger batch
            return self._mul_constant(other.to_dense().squeeze(-1).squeeze(-1))
        if other.matrix_shape != self.matrix_shape:
            return to_linear_operator(self.to_dense() * other.to_dense())
        blocks = []
        sources = self.rows.split(self.rows.source, -1), self.cols.split(self.cols.source, -1)
        for block, r, c in zip(self.blocks, *sources, strict=True):
            r, c = torch.broadcast_tensors(r.unsqueeze(-1), c.unsqueeze(-2))
            blocks.append(block * to_dense(other[..., r.flatten(), c.flatten()]).unflatten(-1, r.shape))
        return self._with(blocks)

    def matmul(self, other: Any) -> Any:
        """Multiply by a vector, a matrix or an operator. Two matching block structures give a third one."""
        if isinstance(other, GroupBlockLinearOperator) and self.cols.agrees_with(other.rows):
            blocks = [a @ b for a, b in zip(self.columns_or_zero(), other.blocks, strict=True)]
            return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=other.cols)
        if isinstance(other, LinearOperator) or self.shape[-1] != other.shape[-1 if other.dim() == 1 else -2]:
            return super().matmul(other)  # raises LinearOperator's error if the sizes differ
        return self._matmul(other)

    def columns_or_zero(self) -> Sequence[Tensor]:
        """The blocks with zeros in padded columns."""
        occupied = self.cols.occupied_pieces()
        if occupied is None:
            return self.blocks
        return [torch.where(o.unsqueeze(-2), b, 0) for b, o in zip(self.blocks, occupied, strict=True)]

    # Factorizations: exact, block by block.

    def group_factor(self) -> "GroupBlockLinearOperator":
        """The Cholesky factor of every block."""
        # A factor made under torch.no_grad() must not serve a caller who needs its gradient.
        return self._factor_in_mode(torch.is_grad_enabled())

    @cached(name="group_factor")
    def _factor_in_mode(self, grad_enabled: bool) -> "GroupBlockLinearOperator":
        blocks = [psd_safe_cholesky(b) for b in self._proper_blocks()]
        return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=self.cols, upper=False)

    def _proper_blocks(self) -> Sequence[Tensor]:
        """The blocks with an identity in the padding."""
        if not self._same_layouts:
            raise NotPSDError(f"Expected a covariance, got a cross-covariance of shape {tuple(self.shape)}.")
        occupied = self.rows.occupied_pieces()
        if occupied is None:
            return self.blocks
        pairs = zip(self.blocks, occupied, strict=True)
        return [torch.where(o.unsqueeze(-1) & o.unsqueeze(-2), b, _identity(b)) for b, o in pairs]

    def _cholesky(self, upper: bool | None = False) -> LinearOperator:
        factor = TriangularLinearOperator(self.group_factor())
        return factor.mT if upper else factor

    def root_decomposition(self, method: str | None = None) -> LinearOperator:
        """A root R, `R R' = K`: the Cholesky factor, or the symmetric root where K is singular.

        GroupDeltaKernel and GlobalKernel are singular: their blocks have rank one. The symmetric root has no gradient
        there. If a gradient is needed, they get jitter and GPyTorch's NumericalWarning, as a dense matrix does.
        """
        if method not in (None, "cholesky"):
            return super().root_decomposition(method=method)
        blocks = self._proper_blocks()
        needs_gradient = torch.is_grad_enabled() and any(b.requires_grad for b in blocks)
        if needs_gradient or not any(bool(torch.linalg.cholesky_ex(b.detach()).info.any()) for b in blocks):
            return CholLinearOperator(TriangularLinearOperator(self.group_factor()))
        # The symmetric root is zero between members and padding, so it has the layout of its matrix.
        return RootLinearOperator(self._with([symmetric_square_root(b) for b in blocks]))

    def root_inv_decomposition(
        self, initial_vectors: Tensor | None = None, test_vectors: Tensor | None = None, method: str | None = None
    ) -> Any:
        """A root R of the inverse, `R R' = K^-1`: the inverse transpose of the Cholesky factor."""
        if method not in (None, "cholesky"):
            return super().root_inv_decomposition(initial_vectors, test_vectors, method=method)
        factors = self.group_factor().blocks
        inverses = [torch.linalg.solve_triangular(f, _identity(f).expand_as(f), upper=False).mT for f in factors]
        root = GroupBlockLinearOperator(*inverses, rows=self.rows, cols=self.cols, upper=True)
        return RootLinearOperator(TriangularLinearOperator(root, upper=True))

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """`K^-1 right_tensor`, or `left_tensor K^-1 right_tensor`, by the Cholesky factor of each block."""
        if self.shape[-1] != right_tensor.shape[-1 if right_tensor.dim() == 1 else -2]:
            return super().solve(right_tensor, left_tensor)  # raises LinearOperator's error
        result = self._solve_by_block(right_tensor)
        return result if left_tensor is None else left_tensor @ result

    def _solve_by_block(self, rhs: Tensor) -> Tensor:
        if self.upper is None:
            return self._by_block(lambda factor, p: torch.cholesky_solve(p, factor), self.group_factor().blocks, rhs)
        substitute = partial(torch.linalg.solve_triangular, upper=self.upper)
        return self._by_block(substitute, self._proper_blocks(), rhs)

    def _solve(self, rhs: Tensor, preconditioner: Any = None, num_tridiag: int | None = 0) -> Any:
        return super()._solve(rhs, preconditioner, num_tridiag) if num_tridiag else self._solve_by_block(rhs)

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """`r' K^-1 r` for each column r, summed over columns unless `reduce_inv_quad` is False."""
        return self.inv_quad_logdet(inv_quad_rhs, reduce_inv_quad=reduce_inv_quad)[0]

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool | None = False, reduce_inv_quad: bool | None = True
    ) -> tuple[Tensor, Tensor]:
        """`r' K^-1 r`, as `inv_quad`, and `log |K|` in nats. A term that is not requested is 0."""
        factor = self.group_factor()
        quad = log_determinant = factor.blocks[0].new_zeros(())
        if inv_quad_rhs is not None:
            rhs = inv_quad_rhs.unsqueeze(-1) if inv_quad_rhs.dim() == 1 else inv_quad_rhs
            quad = factor.solve(rhs).square().sum(-2)
            quad = quad.sum(-1) if reduce_inv_quad else quad
        if logdet:
            diagonals = [block.diagonal(dim1=-2, dim2=-1) for block in factor.blocks]
            log_determinant = sum((2 * d.log().sum((-2, -1)) for d in diagonals), start=log_determinant)
        return quad, log_determinant

    # Batches. All elements share the layouts.

    def _permute_batch(self, *dims: int) -> LinearOperator:
        return self._with([b.permute(*dims, -3, -2, -1) for b in self.blocks])

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        return self._with([b.unsqueeze(dim) for b in self.blocks])

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> LinearOperator:
        return self._with([b.expand(*batch_shape, *b.shape[-3:]) for b in self.blocks])

    def _sum_batch(self, dim: int) -> LinearOperator:
        return self._with([b.sum(dim) for b in self.blocks])

    def _prod_batch(self, dim: int) -> LinearOperator:
        return self._with([b.prod(dim) for b in self.blocks])

    def repeat(self, *sizes: Any) -> LinearOperator:
        """Repeat along batch dimensions: `repeat(*batch_repeats, 1, 1)`."""
        repeats = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        if tuple(repeats[-2:]) != (1, 1) or len(repeats) < self.dim():
            return super().repeat(*sizes)
        old = (1,) * (len(repeats) - self.dim()) + tuple(self.batch_shape)
        if all(1 in pair for pair in zip(old, repeats[:-2], strict=True)):  # a view
            return self._expand_batch([size * times for size, times in zip(old, repeats[:-2], strict=True)])
        return self._with([b.repeat(*repeats, 1) for b in self.blocks])

    # Small helpers.

    def evaluate_kernel(self) -> LinearOperator:
        """The operator itself, which contains nothing lazy."""
        return self

    @property
    def _same_layouts(self) -> bool:
        return self.rows.agrees_with(self.cols)

    def _is_laid_out_like(self, other: Any) -> bool:
        blocks = isinstance(other, GroupBlockLinearOperator)
        return blocks and self.rows.agrees_with(other.rows) and self.cols.agrees_with(other.cols)

    def _with(self, blocks: Sequence[Tensor]) -> "GroupBlockLinearOperator":
        # Batch operations, elementwise products and a new diagonal keep a triangle.
        return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=self.cols, upper=self.upper)


def posterior_covariance(
    prior: GroupBlockLinearOperator,  # shape: (*batch, M, M)
    cross: GroupBlockLinearOperator,  # shape: (*batch, M, N)
    noisy: GroupBlockLinearOperator,  # shape: (*batch, N, N)
) -> GroupBlockLinearOperator:  # shape: (*batch, M, M)
    """`K** - K*X (KXX + noise)^-1 KX*`, group by group. Rows of other groups do not matter.

    Raises:
        DataError: If a variance is negative beyond rounding, because the kernel is no covariance.
    """
    rows, cols = cross.rows, cross.cols
    noisy, prior = noisy.laid_out(cols, cols), prior.laid_out(rows, rows)
    crosses = cross.columns_or_zero()
    pairs = zip(noisy.group_factor().blocks, crosses, strict=True)
    whitened = [torch.linalg.solve_triangular(factor, block.mT, upper=False) for factor, block in pairs]
    blocks = [k - w.mT @ w for k, w in zip(prior.blocks, whitened, strict=True)]
    posterior = GroupBlockLinearOperator(*blocks, rows=rows, cols=rows)
    proper = zip(posterior._proper_blocks(), noisy._proper_blocks(), crosses, prior.blocks, strict=True)
    for block, among, c, k in proper:
        variance, own = (b.diagonal(dim1=-2, dim2=-1) for b in (block, k))
        check_residual_variance(variance, among, c.mT, own)
    return posterior


def _identity(block: Tensor) -> Tensor:
    return torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
