"""Held-out members of known groups, as validation data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Dataset

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ShapeError


@runtime_checkable
class HeldOut(Protocol):
    """Groups with a context to condition on, and members to predict."""

    context: GroupedDataset
    x_new: Tensor
    y_new: Tensor


@dataclass
class HeldOutBatch:
    """Some groups of a `HeldOut`: context, x_new (G, Q*, D) and y_new (G, Q*, *y_shape)."""

    context: GroupedBatch
    x_new: Tensor
    y_new: Tensor

    def to(self, *args: Any, **kwargs: Any) -> "HeldOutBatch":
        """Move all tensors, as `torch.Tensor.to`."""
        moved = {name: getattr(self, name).to(*args, **kwargs) for name in ("context", "x_new", "y_new")}
        return replace(self, **moved)

    def pin_memory(self) -> "HeldOutBatch":
        """Pin all tensors."""
        return HeldOutBatch(self.context.pin_memory(), self.x_new.pin_memory(), self.y_new.pin_memory())


class HeldOutDataset(Dataset):
    """A `HeldOut` for a data loader, one item per group."""

    def __init__(self, held_out: HeldOut) -> None:
        groups = len(held_out.context)
        if len(held_out.x_new) != groups or len(held_out.y_new) != groups:
            raise ShapeError(
                f"validation: expected x_new and y_new for the {groups} groups of the context, got "
                f"{tuple(held_out.x_new.shape)} and {tuple(held_out.y_new.shape)}. Try (G, Q*, ...) tensors."
            )
        check_targets(held_out.context, held_out.x_new, held_out.y_new)
        self._held_out = held_out

    def __len__(self) -> int:
        return len(self._held_out.context)

    def __getitems__(self, indices: Sequence[int]) -> HeldOutBatch:
        """The groups at these positions as one batch."""
        index = list(indices)
        return HeldOutBatch(self._held_out.context[index], self._held_out.x_new[index], self._held_out.y_new[index])


def check_targets(context: GroupedDataset | GroupedBatch, x_new: Tensor, y_new: Tensor) -> None:
    """Require one observation of the context's shape for each new member: nothing is broadcast.

    Raises:
        ShapeError: If y_new is not (G, Q*, *y_shape).
    """
    y_shape = context.y_shape if isinstance(context, GroupedDataset) else context.y.shape[2:]
    expected = (*x_new.shape[:2], *y_shape)
    if x_new.dim() != 3 or y_new.shape != expected:
        raise ShapeError(
            f"expected x_new (G, Q*, D) and y_new (G, Q*, *y_shape) = {expected}, got {tuple(x_new.shape)} and "
            f"{tuple(y_new.shape)}. Try y_new.unsqueeze(1) if there is one new member for each group."
        )


def keep(batch: Any) -> Any:
    """Collate nothing: a batch arrives whole."""
    return batch
