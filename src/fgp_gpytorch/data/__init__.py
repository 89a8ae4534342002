"""Grouped data: the data set of flat rows, and the padded batch of groups that it answers with."""

from fgp_gpytorch.data.aligned_dataset import AlignedDataset, align_held_out
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.grouped_dataset import GroupedDataset
from fgp_gpytorch.data.held_out import HeldOutMembers
from fgp_gpytorch.data.lazy_dataset import LazyDataset

__all__ = ["AlignedDataset", "GroupedBatch", "GroupedDataset", "HeldOutMembers", "LazyDataset", "align_held_out"]
