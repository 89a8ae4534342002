"""The covariance of grouped rows as a LinearOperator: a dense block for each group, zero between groups."""

from collections.abc import Callable
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
from linear_operator.utils.getitem import _is_noop_index
from linear_operator.utils.memoize import cached
from torch import Tensor

from fgp_gpytorch.kernels._group_layout import GroupLayout, group_layouts

__all__ = ["GroupBlockLinearOperator", "posterior_covariance"]


class GroupBlockLinearOperator(LinearOperator):
    r"""A matrix that is zero between groups, `K[i, j] = 1[group(i) = group(j)] * block[place(i), place(j)]`.

    With S and T the maps from rows and columns to slots, `K = S blockdiag(blocks) T'`. Rows may come in any
    order and groups in any sizes. Every operation works on the blocks: a product costs O(sum Q^2), a
    factorization O(sum Q^3). Answers are exact (a batched Cholesky factorization) at any N:
    gpytorch.settings.max_cholesky_size and the conjugate-gradient settings have no say here.

    Padded slots hold whatever the kernel said of the rows they copy. A factorization puts an identity there,
    so a factor has the layout of its matrix, and no result reads a padded slot.

    Args:
        blocks: One stack of blocks for each stack of the layouts, (*batch, counts[k], rows.widths[k],
            cols.widths[k]).
        rows: Where the rows sit.
        cols: Where the columns sit; the very object `rows` for a covariance.

    Raises:
        linear_operator.utils.errors.NotPSDError: On factorization, if a block is not positive definite even
            with jitter.

    Example:
        >>> rows, cols = group_layouts(torch.tensor([4, 4, 7, 7]))
        >>> K = GroupBlockLinearOperator(torch.ones(2, 2, 2), rows=rows, cols=cols)
        >>> K.add_diagonal(torch.ones(4)).logdet()
        tensor(2.1972)
    """

    def __init__(self, *blocks: Tensor, rows: GroupLayout, cols: GroupLayout, **kwargs: Any):
        assert blocks
        assert rows.counts == cols.counts
        super().__init__(*blocks, rows=rows, cols=cols, **kwargs)
        self.blocks = blocks
        self.rows = rows
        self.cols = cols

    # What a LinearOperator must say.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks."""
        return self.blocks[0].dtype

    def _size(self) -> torch.Size:
        return self.blocks[0].shape[:-3] + torch.Size((self.rows.num_rows, self.cols.num_rows))

    def _matmul(self, rhs: Tensor) -> Tensor:
        is_vector = rhs.dim() == 1
        rhs = rhs.unsqueeze(-1) if is_vector else rhs
        dtype = torch.promote_types(self.dtype, rhs.dtype)
        pieces = self.cols.pad(rhs.to(dtype))
        product = self.rows.unpad([b.to(dtype) @ p for b, p in zip(self.blocks, pieces, strict=True)])
        return product.squeeze(-1) if is_vector else product

    def _transpose_nonbatch(self) -> LinearOperator:
        return GroupBlockLinearOperator(*(b.mT for b in self.blocks), rows=self.cols, cols=self.rows)

    # Reading entries.

    def _diagonal(self) -> Tensor:
        if not self._faces_itself:
            return self._entries(*self._slots())
        diagonals = [b.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for b in self.blocks]
        return self.rows.unpad(diagonals).squeeze(-1)

    def to_dense(self) -> Tensor:
        """Write the matrix out, N x M."""
        row_slots, col_slots = self._slots()
        return self._entries(row_slots.unsqueeze(-1), col_slots.unsqueeze(-2))

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        def slot_of(layout: GroupLayout, index: Tensor) -> Tensor:
            if not layout.batched:
                return layout.slot[index]
            return layout.slot.expand(*self.batch_shape, -1)[(*batch_indices, index)]

        same, place = self._find(slot_of(self.rows, row_index), slot_of(self.cols, col_index))
        flat = self._flat()
        if flat.shape[-1] == 0:
            return flat.new_zeros(same.shape)
        return torch.where(same, flat[(*batch_indices, place)], 0)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        selected = self
        if not all(_is_noop_index(index) for index in batch_indices):
            blocks = [b[(*batch_indices, ...)] for b in self.blocks]

            def pick(index: Tensor) -> Tensor:
                return index.expand(*self.batch_shape, -1)[(*batch_indices, ...)]

            selected = self._with(blocks, *(s.map(pick) if s.batched else s for s in (self.rows, self.cols)))
        if _is_noop_index(row_index) and _is_noop_index(col_index):
            return selected
        if selected.rows.batched or selected.cols.batched:
            dense = selected.to_dense()[..., row_index, :][..., col_index]
            return to_linear_operator(dense)
        return selected._submatrix(
            torch.arange(self.rows.num_rows, device=self.device)[row_index],
            torch.arange(self.cols.num_rows, device=self.device)[col_index],
        )

    def _submatrix(self, row_index: Tensor, col_index: Tensor) -> "GroupBlockLinearOperator":
        row_slots, col_slots = self.rows.slot[row_index], self.cols.slot[col_index]
        row_groups, col_groups = self.rows.group_of_slot()[row_slots], self.cols.group_of_slot()[col_slots]
        rows, cols = group_layouts(row_groups, col_groups)
        if self._faces_itself and torch.equal(row_index, col_index):
            cols = rows
        blocks = self._blocks_between(row_slots[rows.source], col_slots[cols.source], rows, cols)
        return GroupBlockLinearOperator(*blocks, rows=rows, cols=cols)

    def laid_out(self, rows: GroupLayout, cols: GroupLayout) -> list[Tensor]:
        """The same matrix in blocks of other layouts (of the same rows and columns, unbatched)."""
        if self.rows.agrees_with(rows) and self.cols.agrees_with(cols):
            return list(self.blocks)
        return self._blocks_between(self.rows.slot[rows.source], self.cols.slot[cols.source], rows, cols)

    def _blocks_between(
        self, row_slots: Tensor, col_slots: Tensor, rows: GroupLayout, cols: GroupLayout
    ) -> list[Tensor]:
        return [
            self._entries(r.unsqueeze(-1), c.unsqueeze(-2))
            for r, c in zip(rows.split(row_slots, dim=-1), cols.split(col_slots, dim=-1), strict=True)
        ]

    def _slots(self) -> tuple[Tensor, Tensor]:
        """The slots of rows and columns: (N,) and (M,), or with the batch if a layout is batched."""
        if self.rows.batched or self.cols.batched:
            return self.rows.slot.expand(*self.batch_shape, -1), self.cols.slot.expand(*self.batch_shape, -1)
        return self.rows.slot, self.cols.slot

    def _entries(self, row_slots: Tensor, col_slots: Tensor) -> Tensor:
        """Entries between slots, each index tensor (*shape), or (*batch, *shape) in a batched layout."""
        same, place = self._find(row_slots, col_slots)
        flat = self._flat()
        batched = self.rows.batched or self.cols.batched
        if flat.shape[-1] == 0:
            return flat.new_zeros(same.shape if batched else (*self.batch_shape, *same.shape))
        if not batched:
            return torch.where(same, flat[..., place], 0)
        entries = flat.gather(-1, place.flatten(len(self.batch_shape))).view(same.shape)
        return torch.where(same, entries, 0)

    def _find(self, row_slots: Tensor, col_slots: Tensor) -> tuple[Tensor, Tensor]:
        """Whether two slots are of one group, and where in `_flat` their entry is (0 if they are not)."""
        same = self.rows.group_of_slot()[row_slots] == self.cols.group_of_slot()[col_slots]
        starts, start = [], 0
        for count, height, width in zip(self.rows.counts, self.rows.widths, self.cols.widths, strict=True):
            starts.append(start + width * torch.arange(count * height, device=self.device))
            start += count * height * width
        return same, torch.where(same, torch.cat(starts)[row_slots] + self.cols.place_in_group()[col_slots], 0)

    def _flat(self) -> Tensor:
        return torch.cat([b.flatten(-3) for b in self.blocks], dim=-1)

    # Sums and products that stay in blocks.

    def __add__(self, other: Any) -> Any:
        if isinstance(other, ZeroLinearOperator):
            return self
        if self._faces_itself and isinstance(other, DiagLinearOperator):
            return self._plus_diagonal(other._diagonal())
        if self._is_laid_out_like(other):
            blocks = [a + b for a, b in zip(self.blocks, other.blocks, strict=True)]
            return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=self.cols)
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        """Add a vector, (..., N), or a number, () or (..., 1), to the diagonal."""
        if not self._faces_itself:
            return super().add_diagonal(diag)
        batch = torch.broadcast_shapes(diag.shape[:-1], self.batch_shape)
        return self._plus_diagonal(diag.expand(*batch, self.rows.num_rows))

    def _plus_diagonal(self, diag: Tensor) -> LinearOperator:  # diag: (..., N)
        pieces = self.rows.pad(diag.unsqueeze(-1))
        blocks = [b + torch.diag_embed(p.squeeze(-1)) for b, p in zip(self.blocks, pieces, strict=True)]
        return self._with(blocks, self.rows, self.cols)

    def mul(self, other: Any) -> LinearOperator:
        """Multiply by a number, by a number for each batch element, (*batch, 1, 1), or elementwise."""
        if torch.is_tensor(other) and other.dim() >= 2 and other.shape[-2:] == (1, 1):
            return self._mul_constant(other.squeeze(-1).squeeze(-1))
        return super().mul(other)

    def _mul_constant(self, other: Any) -> LinearOperator:  # other: () or (*batch)
        factor = torch.as_tensor(other)[..., None, None, None]
        return self._with([b * factor for b in self.blocks], self.rows, self.cols)

    def _mul_matrix(self, other: Any) -> LinearOperator:
        other = to_linear_operator(other).evaluate_kernel()
        if self._is_laid_out_like(other):
            return self._with([a * b for a, b in zip(self.blocks, other.blocks, strict=True)], self.rows, self.cols)
        if self.rows.batched or self.cols.batched or other.matrix_shape != self.matrix_shape:
            return to_linear_operator(self.to_dense() * other.to_dense())
        blocks = []
        for block, r, c in zip(
            self.blocks,
            self.rows.split(self.rows.source, dim=-1),
            self.cols.split(self.cols.source, dim=-1),
            strict=True,
        ):
            r, c = torch.broadcast_tensors(r.unsqueeze(-1), c.unsqueeze(-2))
            factor = to_dense(other[..., r.flatten(), c.flatten()])
            blocks.append(block * factor.unflatten(-1, r.shape))
        return self._with(blocks, self.rows, self.cols)

    def matmul(self, other: Any) -> Any:
        """Multiply by a vector, a matrix, or an operator; two like block structures give a third."""
        if isinstance(other, GroupBlockLinearOperator) and self.cols.agrees_with(other.rows):
            inner = self.cols.occupied_pieces()
            left = self.blocks
            if inner is not None:
                left = [_keep(b, i.unsqueeze(-2)) for b, i in zip(self.blocks, inner, strict=True)]
            blocks = [a @ b for a, b in zip(left, other.blocks, strict=True)]
            return GroupBlockLinearOperator(*blocks, rows=self.rows, cols=other.cols)
        if isinstance(other, LinearOperator):
            return super().matmul(other)
        if self.shape[-1] != other.shape[-1 if other.dim() == 1 else -2]:
            return super().matmul(other)  # its words for the mismatch
        return self._matmul(other)

    # Factorizations: exact, block by block.

    def _factor(self) -> "_GroupTriangularLinearOperator":
        # A factor made under torch.no_grad() must not serve a caller who wants its gradient.
        return self._factor_in_mode(torch.is_grad_enabled())

    @cached(name="group_factor")
    def _factor_in_mode(self, grad_enabled: bool) -> "_GroupTriangularLinearOperator":
        return self._triangular([psd_safe_cholesky(b) for b in self._proper_blocks()])

    def _triangular(self, blocks: list[Tensor], upper: bool = False) -> "_GroupTriangularLinearOperator":
        return _GroupTriangularLinearOperator(*blocks, rows=self.rows, cols=self.cols, upper=upper)

    def _proper_blocks(self) -> list[Tensor]:
        """The blocks with an identity in the padding."""
        occupied = self.rows.occupied_pieces()
        if occupied is None:
            return list(self.blocks)
        eyes = [torch.eye(b.shape[-1], dtype=b.dtype, device=b.device) for b in self.blocks]
        return [
            torch.where(o.unsqueeze(-1) & o.unsqueeze(-2), b, eye)
            for b, o, eye in zip(self.blocks, occupied, eyes, strict=True)
        ]

    def _cholesky(self, upper: bool | None = False) -> LinearOperator:
        if not self._faces_itself:
            return super()._cholesky(upper=upper)
        factor = TriangularLinearOperator(self._factor())
        return factor._transpose_nonbatch() if upper else factor

    def _choose_root_method(self) -> str:
        return "cholesky"

    def root_decomposition(self, method: str | None = None) -> LinearOperator:
        """A root R, `R R' = K`: the Cholesky factor, or the symmetric root where K is singular.

        GroupDeltaKernel and GlobalKernel are singular by design: their blocks have rank one. The symmetric
        root has no gradient there; where one is asked for they take jitter, and GPyTorch's NumericalWarning,
        as a dense matrix.
        """
        if method not in (None, "cholesky") or not self._faces_itself:
            return super().root_decomposition(method=method)
        blocks = self._proper_blocks()
        needs_gradient = torch.is_grad_enabled() and any(b.requires_grad for b in blocks)
        if needs_gradient or not any(bool(torch.linalg.cholesky_ex(b.detach()).info.any()) for b in blocks):
            return CholLinearOperator(TriangularLinearOperator(self._factor()))
        # The symmetric root is zero between members and padding, so it has the layout of its matrix.
        return RootLinearOperator(self._with([_symmetric_root(b) for b in blocks], self.rows, self.cols))

    def root_inv_decomposition(
        self,
        initial_vectors: Tensor | None = None,
        test_vectors: Tensor | None = None,
        method: str | None = None,
    ) -> Any:
        """A root R of the inverse, `R R' = K^-1`: the inverse transpose of the Cholesky factor."""
        if method not in (None, "cholesky") or not self._faces_itself:
            return super().root_inv_decomposition(initial_vectors, test_vectors, method=method)
        inverses = []
        for block in self._factor().blocks:
            eye = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
            inverses.append(torch.linalg.solve_triangular(block, eye.expand_as(block), upper=False).mT)
        return RootLinearOperator(TriangularLinearOperator(self._triangular(inverses, upper=True), upper=True))

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """`K^-1 right_tensor`, or `left_tensor K^-1 right_tensor`, by the Cholesky factor of each block."""
        if not self._faces_itself or self.shape[-1] != right_tensor.shape[-1 if right_tensor.dim() == 1 else -2]:
            return super().solve(right_tensor, left_tensor)
        is_vector = right_tensor.dim() == 1
        rhs = right_tensor.unsqueeze(-1) if is_vector else right_tensor
        solved = self._solve_pieces(rhs)
        result = solved.squeeze(-1) if is_vector else solved
        return result if left_tensor is None else left_tensor @ result

    def _solve_pieces(self, rhs: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, rhs.dtype)
        pieces = self.rows.pad(rhs.to(dtype))
        factors = [b.to(dtype) for b in self._factor().blocks]
        return self.rows.unpad([torch.cholesky_solve(p, f) for p, f in zip(pieces, factors, strict=True)])

    def _solve(
        self,
        rhs: Tensor,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        num_tridiag: int | None = 0,
    ) -> Any:
        if num_tridiag or not self._faces_itself:
            return super()._solve(rhs, preconditioner, num_tridiag=num_tridiag)
        return self._solve_pieces(rhs)

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """`r' K^-1 r` for each column r, summed over columns unless `reduce_inv_quad` is False."""
        return self.inv_quad_logdet(inv_quad_rhs, reduce_inv_quad=reduce_inv_quad)[0]

    def inv_quad_logdet(
        self,
        inv_quad_rhs: Tensor | None = None,
        logdet: bool | None = False,
        reduce_inv_quad: bool | None = True,
    ) -> tuple[Tensor, Tensor]:
        """`r' K^-1 r`, as `inv_quad`, and `log |K|` in nats; a term that was not asked for is 0."""
        if not self._faces_itself:
            return super().inv_quad_logdet(inv_quad_rhs, logdet, reduce_inv_quad)  # pyright: ignore[reportReturnType]
        factors = self._factor().blocks
        quad = log_determinant = factors[0].new_zeros(())
        if inv_quad_rhs is not None:
            rhs = inv_quad_rhs.unsqueeze(-1) if inv_quad_rhs.dim() == 1 else inv_quad_rhs
            dtype = torch.promote_types(self.dtype, rhs.dtype)
            for piece, factor in zip(self.rows.pad(rhs.to(dtype)), factors, strict=True):
                whitened = torch.linalg.solve_triangular(factor.to(dtype), piece, upper=False)
                quad = quad + whitened.square().sum((-3, -2))
            quad = quad.sum(-1) if reduce_inv_quad else quad
        if logdet:
            for factor in factors:
                log_determinant = log_determinant + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        return quad, log_determinant

    # Batches.

    def _permute_batch(self, *dims: int) -> LinearOperator:
        return self._map_batch(lambda value: value.permute(*dims, *range(len(dims), value.dim())))

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        return self._map_batch(lambda value: value.unsqueeze(dim))

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> LinearOperator:
        return self._with([b.expand(*batch_shape, *b.shape[-3:]) for b in self.blocks], self.rows, self.cols)

    def repeat(self, *sizes: Any) -> LinearOperator:
        """Repeat along batch dimensions: `repeat(*batch_repeats, 1, 1)`."""
        repeats = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        if tuple(repeats[-2:]) != (1, 1) or len(repeats) < self.dim():
            return super().repeat(*sizes)
        old = (1,) * (len(repeats) - self.dim()) + tuple(self.batch_shape)
        if all(size == 1 or times == 1 for size, times in zip(old, repeats[:-2], strict=True)):
            return self._expand_batch([size * times for size, times in zip(old, repeats[:-2], strict=True)])
        return self._map_batch(lambda value: value.repeat(*repeats[:-2], *(1,) * (value.dim() - len(self.batch_shape))))

    def _sum_batch(self, dim: int) -> LinearOperator:
        if self.rows.batched or self.cols.batched:
            return super()._sum_batch(dim)
        return self._with([b.sum(dim) for b in self.blocks], self.rows, self.cols)

    def _prod_batch(self, dim: int) -> LinearOperator:
        if self.rows.batched or self.cols.batched:
            return to_linear_operator(self.to_dense().prod(dim))
        return self._with([b.prod(dim) for b in self.blocks], self.rows, self.cols)

    def _map_batch(self, change: Callable[[Tensor], Tensor]) -> LinearOperator:
        def change_index(index: Tensor) -> Tensor:
            return change(index.expand(*self.batch_shape, -1))

        rows = self.rows.map(change_index) if self.rows.batched else self.rows
        cols = rows if self.cols is self.rows else self.cols
        cols = cols.map(change_index) if cols is not rows and cols.batched else cols
        return self._with([change(b) for b in self.blocks], rows, cols)

    # Small helpers.

    def detached(self) -> "GroupBlockLinearOperator":
        """The same matrix outside the graph of gradients."""
        return self._with([b.detach() for b in self.blocks], self.rows, self.cols)

    def evaluate_kernel(self) -> LinearOperator:
        """Nothing here is lazy: the operator itself."""
        return self

    @property
    def _faces_itself(self) -> bool:
        return self.rows.agrees_with(self.cols)

    def _is_laid_out_like(self, other: Any) -> bool:
        return (
            isinstance(other, GroupBlockLinearOperator)
            and self.rows.agrees_with(other.rows)
            and self.cols.agrees_with(other.cols)
        )

    def _with(self, blocks: list[Tensor], rows: GroupLayout, cols: GroupLayout) -> "GroupBlockLinearOperator":
        return GroupBlockLinearOperator(*blocks, rows=rows, cols=cols)


class _GroupTriangularLinearOperator(GroupBlockLinearOperator):
    """A triangular factor of a GroupBlockLinearOperator: its `solve` substitutes and does not factorize."""

    def __init__(self, *blocks: Tensor, rows: GroupLayout, cols: GroupLayout, upper: bool = False):
        super().__init__(*blocks, rows=rows, cols=cols, upper=upper)
        self.upper = upper

    def _transpose_nonbatch(self) -> LinearOperator:
        blocks = [b.mT for b in self.blocks]
        return _GroupTriangularLinearOperator(*blocks, rows=self.cols, cols=self.rows, upper=not self.upper)

    def _with(self, blocks: list[Tensor], rows: GroupLayout, cols: GroupLayout) -> GroupBlockLinearOperator:
        # Batch moves, scaling and a new diagonal keep a triangle; sums and products with a matrix do not come
        # here.
        return _GroupTriangularLinearOperator(*blocks, rows=rows, cols=cols, upper=self.upper)

    def _solve_pieces(self, rhs: Tensor) -> Tensor:
        pieces = self.rows.pad(rhs)
        return self.rows.unpad(
            [
                torch.linalg.solve_triangular(b, p, upper=self.upper)
                for b, p in zip(self._proper_blocks(), pieces, strict=True)
            ]
        )


def posterior_covariance(
    prior: GroupBlockLinearOperator,  # shape: (*batch, M, M)
    cross: GroupBlockLinearOperator,  # shape: (*batch, M, N)
    noisy: GroupBlockLinearOperator,  # shape: (*batch, N, N)
) -> GroupBlockLinearOperator:  # shape: (*batch, M, M)
    """`K** - K*X (KXX + noise)^-1 KX*`, group by group: new rows learn only from rows of their own group."""
    rows, cols = cross.rows, cross.cols
    noisy = GroupBlockLinearOperator(*noisy.laid_out(cols, cols), rows=cols, cols=cols)
    observed = cols.occupied_pieces()
    blocks = []
    for k, (prior_block, factor) in enumerate(zip(prior.laid_out(rows, rows), noisy._factor().blocks, strict=True)):
        cross_block = cross.blocks[k]
        if observed is not None:
            cross_block = _keep(cross_block, observed[k].unsqueeze(-2))
        whitened = torch.linalg.solve_triangular(factor, cross_block.mT, upper=False)
        blocks.append(prior_block - whitened.mT @ whitened)
    return GroupBlockLinearOperator(*blocks, rows=rows, cols=rows)


def _keep(value: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, value, value.new_zeros(()))


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
