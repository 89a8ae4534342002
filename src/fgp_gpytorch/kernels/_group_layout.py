"""Where each row of a grouped table sits in stacks of per-group blocks.

A stack holds groups of similar size. Its memory stays close to that of exact blocks, for one large group and for
many small ones. A *slot* is a place in a stack. A slot without a row is padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["GroupLayout", "group_layouts"]

# Sizes within one rung share a stack, padded to the largest of them. This costs at most (4/3)^2 of the memory of
# exact blocks, and about ten stacks for sizes from 1 to 20. Each size from 1 to 5 has its own rung.
RUNG = 4 / 3


@dataclass(frozen=True, eq=False)
class GroupLayout:
    """The rows or the columns of a block structure, as a map to S slots.

    Attributes:
        slot: The slot of each row, (N,).
        source: The row of each slot, (S,). A padding slot repeats a row of its group.
        occupied: True where a slot has a row, (S,). None if there is no padding.
        counts: The number of groups in each stack.
        widths: The number of slots of a group, for each stack.
    """

    slot: Tensor
    source: Tensor
    occupied: Tensor | None
    counts: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows N."""
        return len(self.slot)

    @property
    def in_order(self) -> bool:
        """Whether every row i sits in slot i, so that nothing moves."""
        return self.occupied is None and torch.equal(self.slot, torch.arange(self.num_rows, device=self.slot.device))

    def agrees_with(self, other: "GroupLayout") -> bool:
        """Whether both layouts put the same rows in the same slots."""
        alike = (self.counts, self.widths) == (other.counts, other.widths)
        return self is other or (alike and torch.equal(self.slot, other.slot))

    def split(self, value: Tensor, dim: int = -2) -> list[Tensor]:
        """Split the slot dimension, S, into one (counts[k], widths[k]) pair of dimensions a stack."""
        shapes = list(zip(self.counts, self.widths, strict=True))
        pieces = torch.split(value, [math.prod(shape) for shape in shapes], dim=dim)
        return [piece.unflatten(dim, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Copy each slot's row into it, stack by stack: (*b, N, C) -> [(*b, G, Q, C)]."""
        return self.split(value if self.in_order else value.index_select(-2, self.source))

    def pad(self, value: Tensor) -> list[Tensor]:
        """Like `gather`, with zeros in the padding."""
        if self.occupied is None:
            return self.gather(value)
        return self.split(torch.where(self.occupied.unsqueeze(-1), value.index_select(-2, self.source), 0))

    def unpad(self, pieces: list[Tensor]) -> Tensor:
        """Undo `pad`: [(*b, G, Q, C)] -> (*b, N, C)."""
        value = torch.cat([piece.flatten(-3, -2) for piece in pieces], dim=-2)
        return value if self.in_order else value.index_select(-2, self.slot)

    def occupied_pieces(self) -> list[Tensor] | None:
        """`occupied`, stack by stack: [(G, Q)]. None if there is no padding."""
        return None if self.occupied is None else self.split(self.occupied, dim=-1)

    def groups_and_places(self) -> tuple[Tensor, Tensor]:
        """The number of each slot's group, (S,), and its place within the group, (S,).

        The rows and the columns of a structure number groups alike.
        """
        return _groups_and_places(self.counts, self.widths, self.slot.device)

    def repeat(self, outputs: int) -> "GroupLayout":
        """The layout of a table that repeats every row `outputs` times, once for each output."""
        if outputs == 1:
            return self
        each = torch.arange(outputs, device=self.slot.device)
        return replace(
            self,
            slot=(self.slot.unsqueeze(-1) * outputs + each).flatten(),
            source=(self.source.unsqueeze(-1) * outputs + each).flatten(),
            occupied=None if self.occupied is None else self.occupied.repeat_interleave(outputs),
            widths=tuple(width * outputs for width in self.widths),
        )

    # LinearOperator.to, .cpu and .cuda call these methods on an operator's keyword arguments.
    def to(self, dtype: Any = None, device: Any = None) -> "GroupLayout":
        """Move to a device. Indices keep their dtype."""
        if device is None:
            return self
        occupied = None if self.occupied is None else self.occupied.to(device)
        return replace(self, slot=self.slot.to(device), source=self.source.to(device), occupied=occupied)

    def cpu(self) -> "GroupLayout":
        """Move to the CPU."""
        return self.to(device="cpu")

    def cuda(self, device: Any = None) -> "GroupLayout":
        """Move to a CUDA device."""
        return self.to(device="cuda" if device is None else device)


def group_layouts(
    row_labels: Tensor,  # shape: (N,)
    col_labels: Tensor | None = None,  # shape: (M,)
) -> tuple[GroupLayout, GroupLayout]:
    """Lay out rows and columns so that group g of the rows faces group g of the columns.

    Groups of a stack are in the order of their first appearance, and rows keep their order within a group. Rows in
    contiguous runs of equal size therefore stay in place. A blockwise Cholesky factor is then lower triangular in the
    original order, too.

    Args:
        row_labels: Integer labels of the rows.
        col_labels: Integer labels of the columns. If they are None or equal the rows', one layout is returned twice.
    """
    square = col_labels is None or torch.equal(row_labels, col_labels)
    sides = [row_labels] if square else [row_labels, col_labels]
    labels = torch.cat(sides)
    found, inverse = torch.unique(labels, return_inverse=True)
    positions = torch.arange(len(labels), device=labels.device)
    first_seen = torch.full_like(found, len(labels)).scatter_reduce(0, inverse, positions, "amin")
    groups = torch.split(torch.argsort(torch.argsort(first_seen))[inverse], [len(side) for side in sides])
    sizes = [torch.bincount(side, minlength=len(found)) for side in groups]

    # A stack holds the groups of one rung of row sizes and one rung of column sizes.
    rung = _rung(sizes[0]) * 1000 + _rung(sizes[-1])
    rungs, stack = torch.unique(rung, return_inverse=True)
    counts = torch.bincount(stack, minlength=max(len(rungs), 1)).tolist()  # no rows: one stack without groups
    by_stack = torch.argsort(stack, stable=True)
    number = torch.argsort(by_stack)  # the inverse permutation
    layouts = [_lay_out(number[side], size[by_stack], counts) for side, size in zip(groups, sizes, strict=True)]
    return layouts[0], layouts[-1]


def _lay_out(group: Tensor, sizes: Tensor, counts: list[int]) -> GroupLayout:  # shapes: (N,), (G,)
    widths = [int(stack.max()) if len(stack) else 0 for stack in torch.split(sizes, counts)]
    group_of_slot, place = _groups_and_places(counts, widths, group.device)
    occupied = place < sizes[group_of_slot]
    order = torch.argsort(group, stable=True)
    slot = torch.empty_like(order)
    slot[order] = occupied.nonzero().squeeze(-1)
    return GroupLayout(
        slot=slot,
        source=order[_starts(sizes)[group_of_slot] + torch.where(occupied, place, 0)],
        occupied=None if len(occupied) == len(group) else occupied,
        counts=tuple(counts),
        widths=tuple(widths),
    )


def _groups_and_places(counts: Sequence[int], widths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    width = torch.tensor(widths, device=device).repeat_interleave(torch.tensor(counts, device=device))
    group = torch.arange(len(width), device=device).repeat_interleave(width)
    return group, torch.arange(len(group), device=device) - _starts(width)[group]


def _rung(sizes: Tensor) -> Tensor:
    ladder = (torch.log(sizes.double().clamp_min(1)) / math.log(RUNG) - 1e-9).ceil().long() + 1
    return torch.where(sizes == 0, 0, ladder)


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes
