import pytest
import torch
from torch.utils.data import DataLoader

from factories import make_data, make_model, same_state, state_of
from fgp_gpytorch import GaussianLikelihood, fit
from fgp_gpytorch.data import GroupedDataset, LazyDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError


def squares(batch):  # shape: (G, Q, 2)
    """The observation of a member is its number and the square of it; padding gives 1, which must not show."""
    number = torch.where(batch.mask, batch.y, 1)
    return torch.stack([number, number**2], dim=-1)


@pytest.fixture
def rows():
    number = torch.arange(9, dtype=torch.float64)
    return GroupedDataset(number, 10 + number, ["c", "a", "b", "b", "a", "c", "b", "b", "d"])


@pytest.fixture
def both(rows):
    """The same data, made when asked for and in memory."""
    y, x, group = rows.flat()
    return LazyDataset(rows, squares), GroupedDataset(torch.stack([y, y**2], -1), x, rows.labels[group.numpy()])


def assert_same(lazy, kept) -> None:
    assert len(lazy) == len(kept)
    assert lazy.labels.tolist() == kept.labels.tolist()
    assert lazy.group_sizes.tolist() == kept.group_sizes.tolist()
    for name in ("num_groups", "num_members", "num_features", "num_elements", "y_shape"):
        assert getattr(lazy, name) == getattr(kept, name)
    for index in (0, -1, [len(kept) - 1, 0], slice(None), torch.ones(len(kept), dtype=torch.bool)):
        assert_same_batch(lazy[index], kept[index])


def assert_same_batch(made, kept) -> None:
    for name in ("y", "x", "mask", "group_index"):
        assert torch.equal(getattr(made, name), getattr(kept, name))
    assert made.y_mask is None
    for name in ("num_dataset_groups", "num_dataset_members"):
        assert getattr(made, name) == getattr(kept, name)


def test_it_is_indexed_as_the_data_set_in_memory(both) -> None:
    assert_same(*both)


def test_parts_of_it_are_those_of_the_data_set_in_memory(both) -> None:
    lazy, kept = both
    assert_same(lazy.subset([2, 0]), kept.subset([2, 0]))
    members = lazy.features().x[:, 0] < 15
    assert_same(lazy.select(members), kept.select(members))


def test_in_memory_is_the_same_data_set_whatever_the_batch_size(both) -> None:
    lazy, kept = both
    for batch_size in (1, 3, 256):
        made = lazy.in_memory(batch_size)
        assert type(made) is GroupedDataset
        assert_same(made, kept)
        assert all(torch.equal(a, b) for a, b in zip(made.flat(), kept.flat(), strict=True))


def test_a_loader_asks_for_whole_batches(both) -> None:
    lazy, kept = both
    for made, expected in zip(DataLoader(lazy, batch_size=3), DataLoader(kept, batch_size=3), strict=True):
        assert_same_batch(made, expected)


def test_it_can_be_the_reference_of_an_aligned_data_set(both) -> None:
    lazy, kept = both
    assert kept.subset([2]).align(lazy)[:].group_index.tolist() == [2]


def test_it_can_be_aligned_and_so_can_what_it_stores(rows, both) -> None:
    lazy, kept = both
    for aligned in (LazyDataset(rows.subset([2, 1]).align(kept), squares), lazy.subset([2, 1]).align(kept)):
        assert aligned[:].group_index.tolist() == [2, 1]
        assert aligned[:].num_dataset_groups == len(kept)
        assert aligned.subset([1])[:].group_index.tolist() == [1]
        assert torch.equal(aligned[[0]].y, kept[[2]].y)
        assert aligned.in_memory()[:].group_index.tolist() == [2, 1]


def test_what_needs_all_observations_says_what_to_try(both) -> None:
    lazy, kept = both
    with pytest.raises(DataError, match=r"flat\(\): expected a data set in memory.*Try data.in_memory\(\)"):
        lazy.flat()
    assert all(torch.equal(a, b) for a, b in zip(lazy.features(), kept.features(), strict=True))


def test_errors_say_what_to_try(rows, both) -> None:
    lazy, _ = both
    with pytest.raises(ShapeError, match=r"make: expected observations .*got \(2, 1\)"):
        LazyDataset(rows, lambda batch: batch.y.T)
    with pytest.raises(DataError, match=r"make: expected a floating-point dtype, got torch.int64"):
        LazyDataset(rows, lambda batch: batch.y.long())
    with pytest.raises(ArgumentError, match="make: expected a Tensor, got list"):
        LazyDataset(rows, lambda batch: batch.y.tolist())
    with pytest.raises(ArgumentError, match="stored: expected a GroupedDataset, got int"):
        LazyDataset(3, squares)
    y, x, group = rows.flat()
    with pytest.raises(DataError, match="stored: expected no y_mask"):
        LazyDataset(GroupedDataset(y, x, group, torch.ones_like(y).bool()), squares)
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
        lazy.in_memory(0)
    with pytest.raises(GroupError, match="expected positions from -4 to 3, got 4"):
        lazy[4]
    with pytest.raises(GroupError, match="expected each group once"):
        lazy.subset([1, 1])


def test_iteration_ends_and_repr_tells_the_sizes(both) -> None:
    lazy, _ = both
    assert [batch.group_index.item() for batch in lazy] == [0, 1, 2, 3]
    assert "4 groups of 1 to 4 members, 9 in all, y (2,) torch.float64 made on request" in repr(lazy)


def test_training_on_it_ends_bit_for_bit_as_in_memory() -> None:
    kept = make_data()
    y, x, group = kept.flat()
    rows = GroupedDataset(torch.arange(len(y)).double(), x, kept.labels[group.numpy()])
    lazy = LazyDataset(rows, lambda batch: y[batch.y.long()])
    ends = []
    for data in (lazy, kept):
        torch.manual_seed(0)
        model = make_model(GaussianLikelihood())
        fit(model, data, validation=data, epochs=2, batch_size=2, seed=3, progress=False, folder=None)
        ends.append(state_of(model))
    assert same_state(*ends)


def test_observations_of_another_shape_than_the_first_groups_are_refused(rows) -> None:
    lazy = LazyDataset(rows, lambda batch: batch.y.unsqueeze(-1).expand(*batch.y.shape, batch.y.shape[1]))
    lazy[[2]]
    with pytest.raises(
        ShapeError, match=r"make: expected observations of shape \(2,\) and torch.float64 .* got \(4,\)"
    ):
        lazy[[1]]
    with pytest.raises(ShapeError, match="make: expected observations of shape"):
        lazy.in_memory()
    with pytest.raises(DataError, match="make: expected finite values"):
        LazyDataset(rows, lambda batch: (batch.y - 3).log()).in_memory()
    with pytest.raises(ArgumentError, match="make: expected a function of a batch, got int"):
        LazyDataset(rows, 3)


def test_padding_reaches_make_as_the_first_member_of_its_group():
    seen = []

    def make(batch):
        seen.append((batch.y.tolist(), batch.x[..., 0].tolist(), batch.mask.tolist()))
        return batch.y.unsqueeze(-1).log()

    stored = GroupedDataset(torch.tensor([3.0, 4.0, 5.0]), torch.tensor([7.0, 8.0, 9.0]), [0, 1, 1])
    batch = LazyDataset(stored, make)[:]
    padded = [[True, False], [True, True]]
    assert seen[-1] == ([[3.0, 3.0], [4.0, 5.0]], [[7.0, 7.0], [8.0, 9.0]], padded)
    assert batch.x[0, 1] == 0
    assert batch.y[0, 1] == 0
    assert batch.y.isfinite().all()
