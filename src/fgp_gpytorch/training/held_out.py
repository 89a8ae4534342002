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
        self._held_out = held_out

    def __len__(self) -> int:
        return len(self._held_out.context)

    def __getitems__(self, indices: Sequence[int]) -> HeldOutBatch:
        """The groups at these positions as one batch."""
        index = list(indices)
        return HeldOutBatch(self._held_out.context[index], self._held_out.x_new[index], self._held_out.y_new[index])


def keep(batch: Any) -> Any:
    """Collate nothing: a batch arrives whole."""
    return batch
