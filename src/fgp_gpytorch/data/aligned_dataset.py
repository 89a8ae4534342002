"""Some groups of a data set, counted as they are counted there."""

import functools
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import GroupedDataset, check_dataset
from fgp_gpytorch.errors import DataError, GroupError

__all__ = ["AlignedDataset"]


class AlignedDataset(GroupedDataset):
    """Other rows of groups of a reference data set: batches say which groups of the reference they are.

    A model that knows groups by a parameter (the object vectors of `GPVAE`) looks at `batch.group_index`. In a data
    set of its own, a context of 270 of 360 training groups would be counted from 0 to 269; here each group has its
    position in the reference, found by its label, and the batch the reference's counts. Of rows whose observations
    are made when they are asked for: `LazyDataset(AlignedDataset(rows, reference), make)`.

    Args:
        data: Rows of the groups.
        reference: The data set whose groups they are.

    Raises:
        GroupError: If a label of `data` is none of the reference's.
        DataError: If one of the two is no data set.

    Example:
        >>> context = AlignedDataset(held_out.context, train)
        >>> context[:].num_dataset_groups == len(train)
        True
    """

    def __init__(self, data: GroupedDataset, reference: GroupedDataset) -> None:
        for name, value in (("data", data), ("reference", reference)):
            check_dataset(value, name, "data.subset(groups) or data.select(members) in place of a batch")
        positions = {label: index for index, label in enumerate(reference.labels.tolist())}
        labels = data.labels.tolist()
        unknown = [label for label in labels if label not in positions]
        if unknown:
            raise GroupError(
                f"data: expected labels of the reference's {len(reference)} groups, got {len(unknown)} others, the "
                f"first {unknown[0]!r}. Try data.subset(...) without them; a group never trained on has no object "
                "vector."
            )
        self._store(data._y, data._x, data._y_mask, data.group_sizes, data.labels)
        self._index: Tensor = torch.tensor([positions[label] for label in labels], device=data._y.device)
        self._reference = reference

    @functools.cached_property
    def labels_digest(self) -> int | None:
        """The reference's: it is there that the groups are counted."""
        return self._reference.labels_digest

    def _gather(self, positions: Tensor) -> GroupedBatch:
        batch = super()._gather(positions)
        return replace(
            batch,
            group_index=self._index[positions],
            num_dataset_groups=self._reference.num_groups,
            num_dataset_members=self._reference.num_members,
        )

    def _derive(self, rows: Tensor, sizes: Tensor, labels: np.ndarray) -> "AlignedDataset":
        return AlignedDataset(super()._derive(rows, sizes, labels), self._reference)


def align_held_out(held_out: Any, reference: GroupedDataset) -> Any:
    """A copy of held-out members whose context is aligned with the training data, for `metrics.held_out_mse`.

    Args:
        held_out: A dataclass with `context`, such as `datasets.rotated_mnist().test`.
        reference: The training data.

    Raises:
        GroupError: If a group of the context is none of the reference's.
        DataError: If it is no dataclass.
    """
    if not is_dataclass(held_out) or isinstance(held_out, type) or not hasattr(held_out, "context"):
        raise DataError(
            f"held_out: expected a dataclass with context, x_new and y_new, got {type(held_out).__name__}. Try "
            "HeldOutMembers(context, x_new, y_new)."
        )
    return replace(held_out, context=AlignedDataset(held_out.context, reference))  # pyright: ignore[reportAttributeAccessIssue]
