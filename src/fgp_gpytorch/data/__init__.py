"""Grouped data: data sets of groups, padded batches of them, and held-out members."""

from fgp_gpytorch.data._parts import group_parts
from fgp_gpytorch.data.array_rows import ArrayRows
from fgp_gpytorch.data.grouped_batch import GroupedBatch, same_labels
from fgp_gpytorch.data.grouped_dataset import Features, FlatRows, GroupedDataset, Members, Reference
from fgp_gpytorch.data.held_out import HeldOut, HeldOutBatch
from fgp_gpytorch.data.lazy_dataset import LazyDataset
from fgp_gpytorch.data.levels import Level

__all__ = [
    "ArrayRows",
    "Features",
    "FlatRows",
    "GroupedBatch",
    "GroupedDataset",
    "HeldOut",
    "HeldOutBatch",
    "LazyDataset",
    "Level",
    "Members",
    "Reference",
    "group_parts",
    "same_labels",
]
