import copy
import pickle

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, ShapeError


@pytest.fixture
def batch():
    mask = torch.tensor([[True, True, False], [False, True, False]])
    return GroupedBatch.from_tensors(torch.full((2, 3, 4), 2.0), torch.full((2, 3), 5.0), mask)


def test_padding_of_given_tensors_becomes_zero(batch):
    assert torch.equal(batch.y, 2 * batch.mask[..., None].expand(2, 3, 4))
    assert torch.equal(batch.x, 5 * batch.mask[..., None])
    assert (batch.num_dataset_groups, batch.num_dataset_members) == (2, 3)
    assert batch.group_index.tolist() == [0, 1]


def test_padding_may_hold_nan_but_a_member_may_not():
    y = torch.tensor([[1.0, torch.nan]])
    mask = torch.tensor([[True, False]])
    assert GroupedBatch.from_tensors(y, y, mask).y.tolist() == [[1.0, 0.0]]
    with pytest.raises(DataError, match=r"y: expected finite .* at index \(0, 1\)"):
        GroupedBatch.from_tensors(y, torch.ones(1, 2))
    with pytest.raises(DataError, match="x: expected finite"):
        GroupedBatch.from_tensors(torch.ones(1, 2), y)


def test_observed_is_never_true_in_the_padding(batch):
    everywhere = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, torch.ones(2, 3, 4, dtype=torch.bool))
    assert torch.equal(everywhere.y_mask, batch.observed)
    assert torch.equal(batch.observed, batch.mask[..., None].expand(2, 3, 4))


def test_merging_pads_to_the_largest_and_keeps_masks():
    data = GroupedDataset(torch.arange(1.0, 5), torch.arange(1.0, 5), [0, 1, 1, 1])
    merged = GroupedBatch.cat([data[1], data[0], data[1]])
    assert merged.y.tolist() == [[2, 3, 4], [1, 0, 0], [2, 3, 4]]
    assert merged.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert merged.group_index.tolist() == [1, 0, 1]
    assert merged.y_mask is None
    assert (merged.num_dataset_groups, merged.num_dataset_members) == (2, 4)


def test_merging_a_batch_without_y_mask_takes_its_members_as_observed(batch):
    half = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, torch.zeros(2, 3, 4, dtype=torch.bool))
    merged = GroupedBatch.cat([batch, half])
    assert torch.equal(merged.y_mask, torch.cat([batch.observed, half.observed]))


def test_what_does_not_belong_together_is_not_merged(batch):
    other = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, num_dataset_groups=9)
    with pytest.raises(DataError, match=r"of one data set, got \(groups, members\) = \(2, 3\) and \(9, 14\)"):
        GroupedBatch.cat([batch, other])
    other = GroupedBatch.from_tensors(batch.y[..., :2], batch.x, batch.mask)
    with pytest.raises(ShapeError, match=r"\(\(4,\), 1\) and \(\(2,\), 1\)"):
        GroupedBatch.cat([batch, other])
    with pytest.raises(DataError, match=r"equal dtypes.*Try batch.to\(dtype\)"):
        GroupedBatch.cat([batch, batch.to(torch.float64)])
    with pytest.raises(DataError, match="at least one GroupedBatch, got none"):
        GroupedBatch.cat([])


def test_default_collation_merges_batches(batch):
    assert default_collate([batch, batch]).group_index.tolist() == [0, 1, 0, 1]
    assert default_collate([batch]) is batch


def test_a_cast_changes_only_floating_tensors(batch):
    cast = batch.to(torch.float64)
    assert cast.y.dtype == cast.x.dtype == torch.float64
    assert cast.mask.dtype == torch.bool
    assert cast.group_index.dtype == torch.int64
    assert batch.y.dtype == torch.float32
    with pytest.raises(DataError, match="y: expected a floating-point dtype"):
        batch.to(torch.int64)


@pytest.mark.parametrize("how", [("meta",), (torch.device("meta"), torch.float64)])
def test_every_tensor_moves_to_the_device(batch, how):
    masked = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, batch.observed)
    moved = masked.to(*how, non_blocking=True)
    fields = (moved.y, moved.x, moved.mask, moved.group_index, moved.y_mask)
    assert {tensor.device.type for tensor in fields} == {"meta"}
    assert moved.device.type == "meta"


def test_every_tensor_is_pinned(batch, monkeypatch):
    masked = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, batch.observed)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    copy = masked.pin_memory()
    assert len(pinned) == 5
    assert torch.equal(copy.y, masked.y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
def test_a_loader_pins_batches():
    data = GroupedDataset(torch.ones(4, 2), torch.ones(4), [0, 0, 1, 1])
    (batch,) = DataLoader(data, batch_size=2, pin_memory=True)
    assert batch.y.is_pinned()


def test_batches_survive_copying_and_pickling(batch):
    for other in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(other.y, batch.y)
        assert other.num_dataset_members == batch.num_dataset_members


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_lightning_moves_and_casts_batches(precision, dtype):
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    plugin = fabric._precision
    data = GroupedDataset(torch.ones(4, 2), torch.ones(4), [0, 0, 1, 1])
    (batch,) = DataLoader(data, batch_size=2)
    assert fabric.to_device(batch).y.device == fabric.device
    assert plugin.convert_input(batch).y.dtype == dtype
    assert batch.y.dtype == torch.float32


def test_repr_gives_shapes(batch):
    assert repr(batch) == (
        "GroupedBatch(y=(2, 3, 4) float32, x=(2, 3, 1) float32, mask=3 of 6, from 2 groups of 3 members, device=cpu)"
    )
    masked = GroupedBatch.from_tensors(batch.y, batch.x, batch.mask, batch.observed)
    assert "y_mask=12 of 24" in repr(masked)


Y, X = torch.ones(2, 3, 4), torch.ones(2, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"y": torch.ones(6), "x": X}, ShapeError, "The rows look ungrouped. Try GroupedDataset"),
        ({"y": Y, "x": torch.ones(2, 2)}, ShapeError, r"x: expected shape \(2, 3, D\), got \(2, 2, 1\)"),
        ({"y": Y.int(), "x": X}, DataError, "y: expected a floating-point dtype"),
        ({"y": Y, "x": X, "mask": torch.ones(2, 3)}, DataError, "mask: expected torch.bool"),
        ({"y": Y, "x": X, "mask": torch.ones(3, 2) > 0}, ShapeError, r"mask: expected shape \(2, 3\)"),
        ({"y": Y, "x": X, "y_mask": X > 0}, ShapeError, r"y_mask: expected shape \(2, 3, 4\)"),
        ({"y": Y, "x": X, "group_index": [0]}, ShapeError, r"group_index: expected shape \(2,?\)"),
        (
            {"y": Y, "x": X, "group_index": [0, 2]},
            DataError,
            "from 0 to 1, got 0 to 2. Try to pass num_dataset",
        ),
        ({"y": Y, "x": X.to("meta")}, DataError, "on one device"),
    ],
)
def test_a_mistake_in_given_tensors_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        GroupedBatch.from_tensors(**arguments)


def test_ungrouped_rows_are_no_batch():
    with pytest.raises(ShapeError, match=r"The rows look ungrouped\. Try GroupedDataset\(y, x, group\)"):
        GroupedBatch(torch.ones(3), X, X[..., 0] > 0, torch.arange(2), None, 2, 6)


def test_a_batch_without_members_is_refused():
    with pytest.raises(DataError, match=r"mask: expected a member, got none of 6\. Try ~mask"):
        GroupedBatch.from_tensors(torch.ones(2, 3, 4), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
