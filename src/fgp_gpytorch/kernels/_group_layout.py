"""Where each row of a grouped table sits in a stack of per-group blocks.

Groups of like size are stacked together, so that neither one large group nor many small ones cost more than
about their own blocks. A *slot* is a place in that stack; slots that no row fills are padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["GroupLayout", "group_layouts"]

# Sizes within one rung share a stack, padded to the largest of them: at most (4/3)^2 of the memory of exact
# blocks, and about ten stacks for sizes from 1 to 20. Sizes 1 to 5 get a rung each.
RUNG = 4 / 3


@dataclass(frozen=True, eq=False)
class GroupLayout:
    """One side (rows or columns) of a block structure: S slots in stacks of groups of like size.

    Attributes:
        slot: The slot of each row, (*batch, N) or (N,) where every batch element is grouped alike.
        source: A row for each slot, (*batch, S) or (S,); a padding slot names some row, so that gathers stay
            valid.
        occupied: Which slots a row fills, like `source`; None where there is no padding.
        counts: The number of groups in each stack.
        widths: The number of slots of a group in each stack.
    """

    slot: Tensor
    source: Tensor
    occupied: Tensor | None
    counts: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows N."""
        return self.slot.shape[-1]

    @property
    def batched(self) -> bool:
        """Whether batch elements are grouped differently."""
        return self.slot.dim() > 1

    @property
    def in_order(self) -> bool:
        """Whether row i sits in slot i, so that nothing needs moving."""
        if self.batched or self.occupied is not None:
            return False
        return torch.equal(self.slot, torch.arange(self.num_rows, device=self.slot.device))

    def agrees_with(self, other: "GroupLayout") -> bool:
        """Whether both put the same rows in the same slots."""
        if self is other:
            return True
        alike = (self.counts, self.widths, self.slot.shape) == (other.counts, other.widths, other.slot.shape)
        return alike and torch.equal(self.slot, other.slot)

    def split(self, value: Tensor, dim: int = -2) -> list[Tensor]:
        """Cut the slot dimension, S, into one (counts[k], widths[k]) pair of dimensions a stack."""
        sizes = [count * width for count, width in zip(self.counts, self.widths, strict=True)]
        pieces = torch.split(value, sizes, dim=dim)
        return [
            piece.unflatten(dim, (count, width))
            for piece, count, width in zip(pieces, self.counts, self.widths, strict=True)
        ]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Give each slot the row it names, stack by stack: (*b, N, C) -> [(*b, G, Q, C)]."""
        return self.split(value if self.in_order else _take(value, self.source))

    def pad(self, value: Tensor) -> list[Tensor]:
        """Like `gather`, with zeros in the padding."""
        if self.occupied is None:
            return self.gather(value)
        taken = _take(value, self.source)
        return self.split(torch.where(self.occupied.unsqueeze(-1), taken, taken.new_zeros(())))

    def unpad(self, pieces: list[Tensor]) -> Tensor:
        """Undo `pad`: [(*b, G, Q, C)] -> (*b, N, C)."""
        value = torch.cat([piece.flatten(-3, -2) for piece in pieces], dim=-2)
        return value if self.in_order else _take(value, self.slot)

    def occupied_pieces(self) -> list[Tensor] | None:
        """Which slots a row fills, stack by stack: [(*b, G, Q)], or None where there is no padding."""
        return None if self.occupied is None else self.split(self.occupied, dim=-1)

    def group_of_slot(self) -> Tensor:
        """The number of each slot's group, (S,); both sides of one structure count groups alike."""
        return self._arange(sum(self.counts)).repeat_interleave(self._width_of_group())

    def place_in_group(self) -> Tensor:
        """The place of each slot within its group, (S,)."""
        return torch.cat([self._arange(w).repeat(c) for c, w in zip(self.counts, self.widths, strict=True)])

    def repeat(self, outputs: int) -> "GroupLayout":
        """The layout of a table in which each row stands `outputs` times in a row (one for each output)."""
        if outputs == 1:
            return self
        each = self._arange(outputs)
        return replace(
            self,
            slot=(self.slot.unsqueeze(-1) * outputs + each).flatten(-2),
            source=(self.source.unsqueeze(-1) * outputs + each).flatten(-2),
            occupied=None if self.occupied is None else self.occupied.repeat_interleave(outputs, -1),
            widths=tuple(width * outputs for width in self.widths),
        )

    def unsqueeze_batch(self) -> "GroupLayout":
        """Add a last batch dimension, along which every element is grouped alike."""
        return self.map(lambda index: index.unsqueeze(-2)) if self.batched else self

    def map(self, change: Callable[[Tensor], Tensor]) -> "GroupLayout":
        """Apply `change` to every index tensor."""
        occupied = None if self.occupied is None else change(self.occupied)
        return replace(self, slot=change(self.slot), source=change(self.source), occupied=occupied)

    # The three moves that LinearOperator.to/.cpu/.cuda ask of an operator's keyword arguments.
    def to(self, dtype: Any = None, device: Any = None) -> "GroupLayout":
        """Move to a device; indices keep their dtype."""
        return self if device is None else self.map(lambda index: index.to(device))

    def cpu(self) -> "GroupLayout":
        """Move to the CPU."""
        return self.to(device="cpu")

    def cuda(self, device: Any = None) -> "GroupLayout":
        """Move to a CUDA device."""
        return self.map(lambda index: index.cuda(device))

    def _arange(self, length: int) -> Tensor:
        return torch.arange(length, device=self.slot.device)

    def _width_of_group(self) -> Tensor:
        widths = torch.tensor(self.widths, device=self.slot.device)
        return widths.repeat_interleave(torch.tensor(self.counts, device=self.slot.device))


def group_layouts(
    row_labels: Tensor,  # shape: (*batch, N)
    col_labels: Tensor | None = None,  # shape: (*batch, M)
) -> tuple[GroupLayout, GroupLayout]:
    """Lay out rows and columns so that group g of the rows faces group g of the columns.

    Groups are numbered by first appearance and rows keep their order within a group: rows in contiguous runs
    of equal size need no moving, and a blockwise Cholesky factor is lower triangular in the original order,
    too.

    Args:
        row_labels: Integer labels of the rows.
        col_labels: Integer labels of the columns. The rows' if None: then one layout is returned twice.
    """
    square = col_labels is None or (row_labels.shape == col_labels.shape and torch.equal(row_labels, col_labels))
    if col_labels is None or square:
        col_labels = row_labels
    else:
        batch = torch.broadcast_shapes(row_labels.shape[:-1], col_labels.shape[:-1])
        row_labels = row_labels.expand(*batch, -1)
        col_labels = col_labels.expand(*batch, -1)
    batch = row_labels.shape[:-1]
    row_table = row_labels.reshape(math.prod(batch), row_labels.shape[-1])
    col_table = col_labels.reshape(math.prod(batch), col_labels.shape[-1])
    if len(row_table) == 0 or ((row_table == row_table[:1]).all() and (col_table == col_table[:1]).all()):
        batch, row_table, col_table = torch.Size(), row_table[:1], col_table[:1]
    if len(row_table) == 0:  # an empty batch: no element says how rows are grouped, and none will ask
        row_table, col_table = (
            row_labels.new_zeros(1, row_table.shape[1]),
            col_labels.new_zeros(1, col_table.shape[1]),
        )

    groupings = [_Grouping.of(rows, cols) for rows, cols in zip(row_table, col_table, strict=True)]

    # A stack holds the groups of one rung of row sizes and one rung of column sizes, over all batch elements.
    rungs, stacks = torch.unique(torch.cat([each.rung() for each in groupings]), return_inverse=True)
    stack_of_group = torch.split(stacks, [len(each.row_sizes) for each in groupings])
    number = max(len(rungs), 1)  # a table without rows has one stack without groups
    counts = torch.stack([torch.bincount(stack, minlength=number) for stack in stack_of_group]).amax(0)
    row_widths = _largest(groupings, "row_sizes", stacks, number)
    col_widths = _largest(groupings, "col_sizes", stacks, number)

    first_group = _starts(counts)
    places = [first_group[stack] + _rank_within(stack, number) for stack in stack_of_group]
    rows = _layout(
        [(g.row_groups, g.row_sizes, place) for g, place in zip(groupings, places, strict=True)],
        counts,
        row_widths,
        batch,
    )
    if square:
        return rows, rows
    cols = _layout(
        [(g.col_groups, g.col_sizes, place) for g, place in zip(groupings, places, strict=True)],
        counts,
        col_widths,
        batch,
    )
    return rows, cols


@dataclass(frozen=True)
class _Grouping:
    row_groups: Tensor  # shape: (N,)
    col_groups: Tensor  # shape: (M,)
    row_sizes: Tensor  # shape: (G,)
    col_sizes: Tensor  # shape: (G,)

    @staticmethod
    def of(row_labels: Tensor, col_labels: Tensor) -> "_Grouping":
        labels = torch.cat([row_labels, col_labels])
        found, inverse = torch.unique(labels, return_inverse=True)
        last = torch.full_like(found, len(labels), dtype=torch.long)
        seen = torch.arange(len(labels), device=labels.device)
        first_seen = last.scatter_reduce(0, inverse, seen, "amin")
        groups = torch.argsort(torch.argsort(first_seen))[inverse]
        row_groups, col_groups = groups[: len(row_labels)], groups[len(row_labels) :]
        return _Grouping(
            row_groups,
            col_groups,
            torch.bincount(row_groups, minlength=len(found)),
            torch.bincount(col_groups, minlength=len(found)),
        )

    def rung(self) -> Tensor:
        def of(sizes: Tensor) -> Tensor:
            ladder = (torch.log(sizes.double().clamp_min(1)) / math.log(RUNG) - 1e-9).ceil().long() + 1
            return torch.where(sizes == 0, 0, ladder)

        return of(self.row_sizes) * 1000 + of(self.col_sizes)


def _layout(
    sides: list[tuple[Tensor, Tensor, Tensor]], counts: Tensor, widths: Tensor, batch: torch.Size
) -> GroupLayout:
    width_of_group = widths.repeat_interleave(counts)
    start_of_group = _starts(width_of_group)
    size = int(width_of_group.sum())
    slots, sources, filled = [], [], []
    for groups, sizes, place in sides:
        row = torch.arange(len(groups), device=groups.device)
        order = torch.argsort(groups, stable=True)
        within = torch.empty_like(row)
        within[order] = row - _starts(sizes)[groups[order]]
        slot = start_of_group[place[groups]] + within
        first_row = torch.zeros_like(width_of_group)
        leads = within == 0
        first_row[place[groups[leads]]] = row[leads]
        source = first_row.repeat_interleave(width_of_group)
        source[slot] = row
        slots.append(slot)
        sources.append(source)
        filled.append(torch.zeros(size, dtype=torch.bool, device=slot.device).index_fill(0, slot, True))

    def stacked(values: list[Tensor]) -> Tensor:
        return values[0] if not batch else torch.stack(values).unflatten(0, batch)

    return GroupLayout(
        slot=stacked(slots),
        source=stacked(sources),
        occupied=None if size == len(sides[0][0]) else stacked(filled),
        counts=tuple(counts.tolist()),
        widths=tuple(widths.tolist()),
    )


def _largest(groupings: list[_Grouping], sizes: str, stacks: Tensor, number: int) -> Tensor:
    values = torch.cat([getattr(each, sizes) for each in groupings])
    return values.new_zeros(number).scatter_reduce(0, stacks, values, "amax")


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes


def _rank_within(stack: Tensor, number: int) -> Tensor:
    order = torch.argsort(stack, stable=True)
    rank = torch.empty_like(stack)
    starts = _starts(torch.bincount(stack, minlength=number))
    rank[order] = torch.arange(len(stack), device=stack.device) - starts[stack[order]]
    return rank


def _take(value: Tensor, index: Tensor) -> Tensor:
    if index.dim() == 1:
        return value.index_select(-2, index)
    batch = torch.broadcast_shapes(value.shape[:-2], index.shape[:-1])
    index = index.expand(*batch, -1).unsqueeze(-1).expand(*batch, -1, value.shape[-1])
    return value.expand(*batch, *value.shape[-2:]).gather(-2, index)
