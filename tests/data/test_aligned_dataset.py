"""Rows of some groups of a data set, counted as there."""

from dataclasses import dataclass

import pytest
import torch

from fgp_gpytorch import GroupedDataset
from fgp_gpytorch.data import AlignedDataset, align_held_out
from fgp_gpytorch.errors import GroupError


def make(labels, seed=0):
    g = torch.Generator().manual_seed(seed)
    return GroupedDataset(torch.rand(len(labels), 2, generator=g), torch.rand(len(labels), generator=g), labels)


def test_groups_have_their_position_in_the_reference_and_its_counts():
    reference, data = make(list("aabbbcde")), make(list("ebbe"))
    aligned = AlignedDataset(data, reference)
    batch = aligned[:]
    assert batch.group_index.tolist() == [1, 4]
    assert (batch.num_dataset_groups, batch.num_dataset_members) == (5, 8)
    assert torch.equal(batch.y, data[:].y)
    assert aligned[[1]].group_index.tolist() == [4]
    assert len(aligned) == 2


def test_parts_of_it_are_aligned_too():
    aligned = AlignedDataset(make(list("ebbe")), make(list("aabbbcde")))
    assert aligned.subset([1])[:].group_index.tolist() == [4]
    kept = aligned.select(torch.tensor([False, False, True, True]))
    assert (kept[:].group_index.tolist(), kept[:].num_dataset_groups) == ([4], 5)


def test_label_that_the_reference_does_not_have_is_refused():
    with pytest.raises(GroupError, match=r"expected labels of the reference's 2 groups, got 1 others, the first 'z'"):
        AlignedDataset(make(list("az")), make(list("ab")))


def test_held_out_members_get_an_aligned_context():
    @dataclass
    class HeldOut:
        context: GroupedDataset
        x_new: torch.Tensor

    held_out = HeldOut(make(list("cc")), torch.zeros(1, 1, 1))
    aligned = align_held_out(held_out, make(list("abc")))
    assert aligned.context[:].group_index.tolist() == [2]
    assert aligned.x_new is held_out.x_new
    assert held_out.context[:].group_index.tolist() == [0]
