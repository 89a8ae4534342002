"""Held-out members of known groups, as validation data."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from fgp_gpytorch.data.held_out import HeldOut, HeldOutBatch, check_held_out, held_out_batch


class HeldOutDataset(Dataset):
    """A `HeldOut` for a data loader, one item per group."""

    def __init__(self, held_out: HeldOut) -> None:
        check_held_out(held_out, "validation")
        self._held_out = held_out

    def __len__(self) -> int:
        return len(self._held_out.context)

    def __getitems__(self, indices: Sequence[int]) -> HeldOutBatch:
        """The groups at these positions as one batch."""
        return held_out_batch(self._held_out, list(indices))


def keep(batch: Any) -> Any:
    """Collate nothing: a batch arrives whole."""
    return batch
