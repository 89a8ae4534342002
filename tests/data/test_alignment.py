"""Members of some groups of a data set, counted as there."""

import pytest
import torch

from fgp_gpytorch import GroupedDataset, HeldOut
from fgp_gpytorch.errors import ArgumentError, GroupError


def make(labels, seed=0):
    g = torch.Generator().manual_seed(seed)
    return GroupedDataset(torch.rand(len(labels), 2, generator=g), torch.rand(len(labels), generator=g), labels)


def test_groups_have_their_position_in_the_reference_and_its_counts():
    reference, data = make(list("aabbbcde")), make(list("ebbe"))
    aligned = data.align(reference)
    batch = aligned[:]
    assert batch.group_index.tolist() == [1, 4]
    assert (batch.num_dataset_groups, batch.num_dataset_members) == (5, 8)
    assert batch.labels_digest == aligned.labels_digest == reference.labels_digest != data.labels_digest
    assert torch.equal(batch.y, data[:].y)
    assert aligned[[1]].group_index.tolist() == [4]
    assert len(aligned) == 2
    assert data[:].group_index.tolist() == [0, 1]


def test_parts_of_it_are_aligned_too():
    aligned = make(list("ebbe")).align(make(list("aabbbcde")))
    assert aligned.subset([1])[:].group_index.tolist() == [4]
    kept = aligned.select(torch.tensor([False, False, True, True]))
    assert (kept[:].group_index.tolist(), kept[:].num_dataset_groups) == ([4], 5)


def test_label_that_the_reference_does_not_have_is_refused():
    with pytest.raises(GroupError, match=r"expected labels of the reference's 2 groups, got 1 others, the first 'z'"):
        make(list("az")).align(make(list("ab")))


def test_a_batch_is_no_reference():
    data = make(list("aab"))
    with pytest.raises(ArgumentError, match="reference: expected a GroupedDataset, got GroupedBatch"):
        data.align(data[:])


def test_held_out_members_get_an_aligned_context():
    held_out = HeldOut(make(list("cc")), torch.zeros(1, 1, 1), torch.zeros(1, 1, 2))
    aligned = held_out.align(make(list("abc")))
    assert aligned.context[:].group_index.tolist() == [2]
    assert aligned[:].context.num_dataset_groups == 3
    assert torch.equal(aligned.x_new, held_out.x_new)
    assert held_out.context[:].group_index.tolist() == [0]
