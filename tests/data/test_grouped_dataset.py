import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError

settings.register_profile("data", deadline=None, max_examples=40)
settings.load_profile("data")

labels = st.lists(st.integers(-3, 5), min_size=1, max_size=25)


def numbered_rows(group, shape=(2,)):
    """Rows whose values tell which row they are, none of them 0."""
    number = torch.arange(1.0, len(group) + 1, dtype=torch.float64)
    y = number.reshape(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    return y, -number


def padded_by_loop(y, x, group):
    """What a data set should answer with for all groups, by loops over groups and members."""
    ordered = sorted(set(group))
    largest = max(group.count(label) for label in ordered)
    batch_y = torch.zeros(len(ordered), largest, *y.shape[1:], dtype=y.dtype)
    batch_x = torch.zeros(len(ordered), largest, 1, dtype=x.dtype)
    mask = torch.zeros(len(ordered), largest, dtype=torch.bool)
    for g, label in enumerate(ordered):
        rows = [row for row, other in enumerate(group) if other == label]
        for q, row in enumerate(rows):
            batch_y[g, q], batch_x[g, q, 0], mask[g, q] = y[row], x[row], True
    return batch_y, batch_x, mask


def assert_same(one: GroupedBatch, other: GroupedBatch):
    for name in ("y", "x", "mask", "group_index"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    assert (one.y_mask is None) == (other.y_mask is None)
    if one.y_mask is not None:
        assert torch.equal(one.y_mask, other.y_mask)
    assert one.num_dataset_groups == other.num_dataset_groups
    assert one.num_dataset_members == other.num_dataset_members


@pytest.fixture
def data():
    y, x = numbered_rows("bacbab", shape=(1, 2))
    return GroupedDataset(y, x, list("bacbab"))


@given(labels)
def test_ragged_groups_equal_a_loop_over_members(group):
    y, x = numbered_rows(group)
    batch = GroupedDataset(y, x, group)[:]
    expected_y, expected_x, mask = padded_by_loop(y, x, group)
    assert torch.equal(batch.y, expected_y)
    assert torch.equal(batch.x, expected_x)
    assert torch.equal(batch.mask, mask)


@given(labels, st.randoms(use_true_random=False))
def test_interleaving_groups_differently_changes_nothing(group, generator):
    y, x = numbered_rows(group)
    shuffled = list(range(len(group)))
    generator.shuffle(shuffled)
    # The groups are interleaved anew; within each, the rows stay in order.
    queues = {label: iter([r for r, other in enumerate(group) if other == label]) for label in set(group)}
    order = [next(queues[group[r]]) for r in shuffled]
    one = GroupedDataset(y, x, group)[:]
    other = GroupedDataset(y[order], x[order], [group[r] for r in order])[:]
    assert_same(one, other)


@given(labels, st.data())
def test_several_groups_at_once_equal_the_merged_single_groups(group, draw):
    y, x = numbered_rows(group)
    data = GroupedDataset(y, x, group, y_mask=(y % 3 > 0) if len(group) % 2 else None)
    positions = draw.draw(st.lists(st.integers(-len(data), len(data) - 1), min_size=1, max_size=8))
    at_once = data[positions]
    assert_same(at_once, GroupedBatch.cat([data[p] for p in positions]))
    assert at_once.num_members == max(int(data.group_sizes[p]) for p in positions)


@given(labels, st.data())
def test_subset_of_groups_equals_a_data_set_of_their_rows(group, draw):
    y, x = numbered_rows(group)
    data = GroupedDataset(y, x, group)
    kept = draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, unique=True).map(sorted))
    rows = [r for r, label in enumerate(group) if label in set(data.labels[kept].tolist())]
    anew = GroupedDataset(y[rows], x[rows], [group[r] for r in rows])
    assert_same(data.subset(kept)[:], anew[:])
    assert data.subset(kept).labels.tolist() == anew.labels.tolist()


@given(labels, st.data())
def test_selected_members_equal_a_data_set_of_their_rows(group, draw):
    y, x = numbered_rows(group)
    data = GroupedDataset(y, x, group)
    keep = draw.draw(st.lists(st.booleans(), min_size=len(group), max_size=len(group)).filter(any))
    flat = data.flat()
    chosen = data.select(torch.tensor(keep))
    anew = GroupedDataset(flat.y[keep], flat.x[keep], data.labels[flat.group.numpy()][keep])
    assert_same(chosen[:], anew[:])
    assert chosen.labels.tolist() == anew.labels.tolist()


def test_subset_keeps_the_order_asked_for(data):
    assert data.subset([2, 0]).labels.tolist() == ["c", "a"]
    assert torch.equal(data.subset([2, 0])[1].y, data[0].y)


def test_counts_and_shapes_are_those_of_the_rows(data):
    assert (len(data), data.num_groups, data.num_members, data.num_features) == (3, 3, 6, 1)
    assert data.labels.tolist() == ["a", "b", "c"]
    assert data.group_sizes.tolist() == [2, 3, 1]
    assert data.y_shape == (1, 2)
    assert data.num_elements == 12
    assert data.flat().group.tolist() == [0, 0, 1, 1, 1, 2]
    assert "3 groups of 1 to 3 members, 6 in all" in repr(data)


@pytest.mark.parametrize(
    "index",
    [[0, 2], slice(0, 3, 2), range(0, 3, 2), torch.tensor([0, 2]), np.array([0, 2]), torch.tensor([0, -1]),
     torch.tensor([True, False, True]), [True, False, True], (0, 2)],
    ids=str,
)  # fmt: skip
def test_every_kind_of_index_finds_the_same_groups(data, index):
    assert data[index].group_index.tolist() == [0, 2]


def test_one_position_gives_a_batch_of_one_group(data):
    assert data[-1].group_index.tolist() == [2]
    assert data[np.int64(1)].y.shape == (1, 3, 1, 2)
    assert data[torch.tensor(1)].mask.all()


def test_iterating_ends_after_the_last_group(data):
    assert [batch.group_index.item() for batch in data] == [0, 1, 2]


def test_rows_that_are_already_sorted_are_not_copied():
    y, x = numbered_rows("aabb")
    assert GroupedDataset(y, x, list("aabb")).flat().y.data_ptr() == y.data_ptr()


def test_a_batch_never_shares_memory_with_the_data_set(data):
    before = data.flat().y.clone()
    batch = data[:]
    batch.y.fill_(7)
    batch.x.fill_(7)
    assert torch.equal(data.flat().y, before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_gives_padded_batches_of_groups(data, num_workers):
    loader = DataLoader(data, batch_size=2, shuffle=False, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == 2
    assert_same(batches[0], data[[0, 1]])
    assert_same(batches[1], data[[2]])


def test_a_shuffling_loader_meets_every_group_once(data):
    met = torch.cat([batch.group_index for batch in DataLoader(data, batch_size=2, shuffle=True)])
    assert sorted(met.tolist()) == [0, 1, 2]


def test_a_loader_without_batching_gives_single_groups(data):
    assert [batch.num_members for batch in DataLoader(data, batch_size=None)] == [2, 3, 1]


def test_torch_subset_keeps_positions_of_the_whole(data):
    (batch,) = DataLoader(Subset(data, [2, 1]), batch_size=2)
    assert batch.group_index.tolist() == [2, 1]
    assert batch.num_dataset_groups == 3


def test_dtypes_of_floating_data_are_kept():
    data = GroupedDataset(torch.ones(2, 1), torch.ones(2, dtype=torch.float64), [0, 1])
    assert data[0].y.dtype == torch.float32
    assert data[0].x.dtype == torch.float64
    assert GroupedDataset(torch.ones(2).half(), [1, 2], [0, 1])[0].x.dtype == torch.float64


@pytest.mark.parametrize("make", [list, torch.tensor, np.array, pd.Series])
def test_dates_in_seconds_stay_apart(make):
    seconds = [1_700_000_000 + step for step in range(6)]
    assert GroupedDataset(torch.ones(6), make(seconds), [0] * 6).flat().x[:, 0].tolist() == seconds
    if make is not torch.tensor:  # a tensor of Python floats has lost them before we see it
        floats = make([float(value) for value in seconds])
        assert GroupedDataset(torch.ones(6), floats, [0] * 6).flat().x[:, 0].tolist() == seconds
    table = pd.DataFrame({"y": 0.5, "t": seconds, "g": 0})
    assert GroupedDataset.from_dataframe(table, y="y", x="t", group="g").flat().x[:, 0].tolist() == seconds


def test_columns_that_are_dates_or_there_twice_or_no_names_are_refused():
    table = pd.DataFrame({"y": [0.5], "t": pd.to_datetime(["2026-11-23"]), "g": 0})
    with pytest.raises(DataError, match=r"got datetime64\[.*\.dt\.total_seconds\(\) / 86400"):
        GroupedDataset.from_dataframe(table, y="y", x="t", group="g")
    days = table.assign(t=(table["t"] - table["t"].min()).dt.total_seconds() / 86400)
    assert GroupedDataset.from_dataframe(days, y="y", x="t", group="g").flat().x.tolist() == [[0.0]]
    twice = pd.concat([days, days[["y"]]], axis=1)
    with pytest.raises(DataError, match="expected one column 'y', got several"):
        GroupedDataset.from_dataframe(twice, y="y", x="t", group="g")
    numbered = days.set_axis([0, 1, 2], axis=1)
    assert GroupedDataset.from_dataframe(numbered, y=0, x=1, group=2).num_members == 1


def test_values_that_were_not_observed_may_be_nan_and_become_zero():
    y = torch.tensor([[1.0, torch.nan], [torch.inf, 4.0], [5.0, 6.0]])
    observed = torch.isfinite(y)
    data = GroupedDataset(y, [0.0, 1.0, 2.0], [1, 0, 1], y_mask=observed)
    batch = data[:]
    assert data.num_elements == 4
    assert torch.equal(batch.y, torch.tensor([[[0.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [5.0, 6.0]]]))
    assert torch.equal(batch.y_mask, batch.y != 0)
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert torch.isnan(y[0, 1])  # the caller's tensor is not written to


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 10], [9, 10]),
        ([2.0, 1.0, 2.0], [1, 2]),
        (torch.tensor([3, 1, 3]), [1, 3]),
        (torch.tensor([3.0, 1.0, 3.0], dtype=torch.bfloat16), [1, 3]),
        (np.array([True, False, True]), [False, True]),
        (pd.Categorical(["a", "b", "a"], categories=["b", "a", "unused"]), ["b", "a"]),
        (pd.Series([2.0, 1.0, 2.0], index=[7, 7, 8], dtype="Float64"), [1, 2]),
        (pd.Series(["y", "x", "y"], index=[2, 1, 0]), ["x", "y"]),
        (pd.to_datetime(["2021-01-02", "2021-01-01", "2021-01-02"]), None),
    ],
    ids=str,
)
def test_labels_of_any_kind_are_sorted(group, expected):
    y, x = numbered_rows(range(3))
    data = GroupedDataset(y, x, group)
    assert data.flat().y[:, 0].tolist() == [2.0, 1.0, 3.0]
    if expected is not None:
        assert data.labels.tolist() == expected


def test_pandas_columns_are_taken_by_row_not_by_index():
    index = [2, 0, 1]
    x = pd.Series([1.0, 2.0, 3.0], index=index)
    data = GroupedDataset(pd.Series([4.0, 5.0, 6.0], index=index), x, ["a", "a", "a"])
    assert data.flat().y.tolist() == [4.0, 5.0, 6.0]
    assert data.flat().x[:, 0].tolist() == [1.0, 2.0, 3.0]


class TestFromDataFrame:
    def table(self):
        return pd.DataFrame(
            {
                "weight": [60.0, np.nan, 71.0],
                "height": pd.array([170, 180, None], dtype="Int64"),
                "age": [30, 40, 50],
                "site": ["n", "s", "n"],
                "person": pd.Categorical(["z", "y", "z"]),
            },
            index=[5, 5, 5],
        )

    def test_missing_values_are_not_observed(self):
        data = GroupedDataset.from_dataframe(self.table(), y=["weight", "height"], x="age", group="person")
        assert data.labels.tolist() == ["y", "z"]
        assert data.num_elements == 4
        expected = [[[0.0, 180.0], [0.0, 0.0]], [[60.0, 170.0], [71.0, 0.0]]]
        assert data[:].y.tolist() == expected
        assert torch.equal(data[:].y_mask, data[:].y > 0)
        assert data[:].x[1, :, 0].tolist() == [30.0, 50.0]

    def test_complete_columns_need_no_mask(self):
        data = GroupedDataset.from_dataframe(self.table(), "age", ["age"], "person", dtype=torch.float64)
        assert data[:].y_mask is None
        assert data[:].y.dtype == data[:].x.dtype == torch.float64

    def test_a_row_without_x_is_refused(self):
        with pytest.raises(DataError, match=r"a value in every row of \['weight'\], got 1 .* row 1. Try df.dropna"):
            GroupedDataset.from_dataframe(self.table(), "age", "weight", "person")

    def test_a_row_without_group_is_refused(self):
        table = self.table()
        table.loc[:, "person"] = ["z", None, "z"]
        with pytest.raises(GroupError, match="a label in every row, got 1 missing, the first in row 1"):
            GroupedDataset.from_dataframe(table, "age", "age", "person")

    def test_an_absent_column_is_named(self):
        with pytest.raises(DataError, match=r"got no column 'Age'. Try some of \['weight'"):
            GroupedDataset.from_dataframe(self.table(), "weight", "Age", "person")

    def test_a_column_of_words_is_refused(self):
        with pytest.raises(DataError, match=r"numbers in column 'site', got .* Try pd.to_numeric"):
            GroupedDataset.from_dataframe(self.table(), "site", "age", "person")


ROW = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("y", "x", "group", "y_mask", "error", "words"),
    [
        (torch.ones(0, 3), torch.ones(0), [], None, DataError, r"at least one row, got y \(0, 3\)"),
        (ROW, torch.ones(3), [0, 1], None, ShapeError, "as many rows in y, x and group"),
        (ROW, torch.ones(2), [0, 1, 2], None, ShapeError, "and 3 labels. Try"),
        (ROW, torch.ones(2, 1, 1), [0, 1], None, ShapeError, r"x: expected shape \(N, D\), got \(2, 1, 1\)"),
        (ROW * torch.nan, torch.ones(2), [0, 1], None, DataError, "y: expected finite values, got 6 NaN"),
        (ROW, torch.tensor([0, torch.inf]), [0, 1], None, DataError, "x: expected finite values, got 1 NaN"),
        (ROW.long(), torch.ones(2), [0, 1], None, DataError, r"y: expected .* Try y.double\(\)"),
        (ROW.to(torch.complex64), torch.ones(2), [0, 1], None, DataError, "y: expected a floating-point"),
        (ROW, torch.ones(2).to(torch.complex64), [0, 1], None, DataError, "x: expected a floating-point .* Try x.real"),
        (ROW, np.array([None, object()]), [0, 1], None, ArgumentError, "x: expected a tensor or an array"),
        (ROW, torch.ones(2), [0, 1], ROW, DataError, r"y_mask: .* Try y_mask.bool\(\)"),
        (ROW, torch.ones(2), [0, 1], ROW[0] > 0, ShapeError, r"y_mask: expected shape \(2, 3\), got \(3,\)"),
        (ROW, torch.ones(2), [0.0, float("nan")], None, GroupError, "a label in every row, got 1 missing"),
        (ROW, torch.ones(2), ["a", float("nan")], None, GroupError, "a label in every row, got 1 missing"),
        (ROW, torch.ones(2), ["a", None], None, GroupError, "a label in every row, got 1 missing"),
        (ROW, torch.ones(2), [0.0, 0.5], None, GroupError, "exact integers .* got .*0.5.* in row 1. Try"),
        (ROW, torch.ones(2), torch.tensor([1.0, torch.inf]), None, GroupError, "exact integers"),
        (ROW, torch.ones(2), torch.tensor([1.0, 2.0**24]), None, GroupError, "below 16777216 for float32"),
        (ROW, torch.ones(2), [1j, 2j], None, GroupError, "that can be sorted, got complex"),
        (ROW, torch.ones(2), [0.5, "a"], None, GroupError, r"one kind, .* Try group.astype\(str\)"),
        (ROW, torch.ones(2), [[0], [1, 2]], None, GroupError, "can be hashed and sorted"),
        (ROW, torch.ones(2), "ab", None, ShapeError, r"got 'ab'. Try"),
        (ROW, torch.ones(2), torch.ones(2, 1), None, ShapeError, r"\(N,\), got shape \(2, 1\)"),
        (ROW, torch.ones(2), 3, None, ShapeError, r"one label a row, \(N,\), got 3. Try \[3\]"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_rows_is_named(y, x, group, y_mask, error, words):
    with pytest.raises(error, match=words):
        GroupedDataset(y, x, group, y_mask)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (3, "positions from -3 to 2, got 3. Positions are not labels"),
        ([0, -4], "positions from -3 to 2, got -4"),
        ([], "at least one of the 3 groups, got none"),
        (slice(2, 2), "at least one of the 3 groups, got none"),
        (torch.tensor([False, False, False]), "at least one of the 3 groups, got none"),
        (0.5, "expected integers"),
        (torch.tensor([True, False]), r"boolean mask \(3,\), got torch.bool of shape \(2,\)"),
        ([[0, 1]], r"of shape \(1, 2\)"),
        ("z", "index: expected labels .* got 'z'"),
        (["a", "z"], "index: expected labels .* got 'z'"),
    ],
)
def test_a_mistake_in_the_index_is_named(data, index, words):
    with pytest.raises(GroupError, match=words):
        data[index]


def test_a_repeated_group_is_no_subset(data):
    with pytest.raises(GroupError, match="each group once"):
        data.subset([0, 0])


def test_selecting_by_a_column_of_a_table_is_refused():
    """Its rows are in the order of the table and not sorted by group: they would select others."""
    table = pd.DataFrame({"y": [1.0, 2.0, 3.0], "month": [1.0, 9.0, 2.0], "patient": ["b", "a", "a"]})
    data = GroupedDataset.from_dataframe(table, y="y", x="month", group="patient")
    with pytest.raises(ArgumentError, match=r"members: expected a mask .*got a pandas Series.*df\[members\]"):
        data.select(table.month < 6)


def test_selecting_wants_a_mask_over_members(data):
    with pytest.raises(ShapeError, match=r"members: expected shape \(6,?\), got \(3,\)"):
        data.select(torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match=r"members: expected torch\.bool"):
        data.select(torch.ones(6))
    with pytest.raises(DataError, match="at least one member, got none"):
        data.select(torch.zeros(6, dtype=torch.bool))


def test_unknown_features_are_nan_in_every_batch_and_the_mask_says_where():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    known = torch.tensor([[True, False], [True, True], [False, True]])
    data = GroupedDataset(torch.rand(3, 2), x, [1, 0, 1], x_mask=known)
    batch = data[:]
    assert batch.x_mask.tolist() == [[[True, True], [True, True]], [[True, False], [False, True]]]
    assert batch.x[1, 0].isnan().tolist() == [False, True]
    assert batch.x[0].tolist() == [[3.0, 4.0], [0.0, 0.0]]
    for part in (data.subset([1])[:], data.select(torch.tensor([False, True, True]))[:]):
        assert int((~part.x_mask).sum()) == 2
    assert not x.isnan().any()  # the caller's are left alone


def test_unknown_features_of_one_column_and_of_tables():
    data = GroupedDataset(
        torch.rand(3, 2), torch.tensor([0.0, float("nan"), 2.0]), [0, 0, 1], x_mask=[True, False, True]
    )
    assert data[:].x_mask[..., 0].tolist() == [[True, False], [True, True]]
    table = pd.DataFrame({"y": [1.0, 2.0], "angle": [0.5, None], "who": ["a", "a"]})
    data = GroupedDataset.from_dataframe(table, "y", "angle", "who", missing_x=True)
    assert data[:].x_mask[..., 0].tolist() == [[True, False]]
    with pytest.raises(DataError, match=r"got 1 rows without, the first is row 1.*missing_x=True"):
        GroupedDataset.from_dataframe(table, "y", "angle", "who")
    with pytest.raises(ShapeError, match=r"x_mask: expected shape \(3, 1\), got \(2,\)"):
        GroupedDataset(torch.rand(3, 2), torch.rand(3), [0, 0, 1], x_mask=[True, False])
    with pytest.raises(DataError, match="x: expected finite values, got 1 NaN"):
        GroupedDataset(torch.rand(2, 2), torch.tensor([0.0, float("nan")]), [0, 0], x_mask=[False, True])


def test_unknown_features_of_padded_tensors():
    x = torch.tensor([[[1.0], [float("nan")]], [[3.0], [float("nan")]]])
    mask = torch.tensor([[True, True], [True, False]])
    batch = GroupedBatch.from_tensors(torch.rand(2, 2, 3), x, mask, x_mask=torch.tensor([[True, False], [True, True]]))
    assert batch.x_mask[..., 0].tolist() == [[True, False], [True, True]]
    assert batch.x[1, 1].item() == 0


def test_places_are_a_permutation_of_each_group_and_independent_between_groups():
    sizes = [2, 5, 1, 5]
    data = GroupedDataset(torch.ones(13, 1), torch.ones(13), torch.arange(4).repeat_interleave(torch.tensor(sizes)))
    places = data.random_places(torch.Generator().manual_seed(0)).split(sizes)
    assert [sorted(part.tolist()) for part in places] == [list(range(size)) for size in sizes]
    assert places[1].tolist() != places[3].tolist()


def test_features_are_those_of_the_flat_members(data):
    rows, (x, group) = data.flat(), data.features()
    assert torch.equal(x, rows.x)
    assert torch.equal(group, rows.group)
    assert not data.is_lazy


def test_data_of_which_nothing_was_observed_are_refused():
    y, x, group = torch.randn(4, 2), torch.arange(4.0), [0, 0, 1, 1]
    nothing, column = torch.zeros(4, 2, dtype=torch.bool), torch.tensor([[True, False]]).expand(4, 2)
    with pytest.raises(
        DataError, match=r"y: expected an observed element, got none of 8\. Try ~y_mask .*allow_unobserved"
    ):
        GroupedDataset(y, x, group, nothing)
    with pytest.raises(DataError, match=r"y: expected an observation in every column, got none in column 1 \(1 of 2"):
        GroupedDataset(y, x, group, column)
    with pytest.raises(DataError, match="y: expected an observed element, got none of 4"):
        GroupedDataset(y[:, 0], x, group, nothing[:, 0])
    # a place of an image may never be observed
    GroupedDataset(y.reshape(4, 1, 2), x, group, column.reshape(4, 1, 2))
    for mask in (nothing, column):
        context = GroupedDataset(y, x, group, mask, allow_unobserved=True)
        assert torch.equal(context.members.y_mask, mask)
        with pytest.raises(DataError, match="y: expected an observ"):
            context.check_observed()
    part = GroupedDataset(y, x, group, torch.tensor([[True, False]] * 2 + [[True, True]] * 2)).subset([0])
    with pytest.raises(DataError, match="got none in column 1"):
        part.check_observed()


def test_a_column_of_a_table_that_was_never_observed_is_named():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [np.nan, np.nan], "t": [0.0, 1.0], "g": [0, 0]})
    with pytest.raises(DataError, match="y: expected an observation in every column, got none in column 'b'"):
        GroupedDataset.from_dataframe(table, y=["a", "b"], x="t", group="g")
    with pytest.raises(DataError, match="y: expected an observed element, got none"):
        GroupedDataset.from_dataframe(table, y="b", x="t", group="g")
    context = GroupedDataset.from_dataframe(table, y=["a", "b"], x="t", group="g", allow_unobserved=True)
    assert context.members.y_mask.tolist() == [[True, False], [True, False]]


def test_only_observed_leaves_out_members_and_groups_without_observations():
    y_mask = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    data = GroupedDataset(torch.randn(4, 2), torch.arange(4.0), [0, 0, 1, 2], y_mask)
    observed = data.only_observed()
    assert (observed.labels.tolist(), observed.features().x.flatten().tolist()) == ([0, 1], [0.0, 2.0])
    assert observed.only_observed() is observed


def test_labels_that_are_strings_select_groups():
    data = GroupedDataset(torch.rand(4, 1), torch.rand(4), ["Peru", "Albania", "Peru", "Chad"])
    assert torch.equal(data["Albania"].y, data[[0]].y)
    assert torch.equal(data[["Peru", "Albania"]].y, data[[2, 0]].y)
    assert torch.equal(data[np.array(["Chad"])].y, data[[1]].y)
    assert data.subset(["Peru"]).labels.tolist() == ["Peru"]
    with pytest.raises(GroupError, match=r"index: expected labels of the 3 groups, got 'Albanai'. Try 'Albania'"):
        data["Albanai"]
    numbers = GroupedDataset(torch.rand(2, 1), torch.rand(2), [5, 6])
    with pytest.raises(GroupError, match="index: expected positions of groups, got 'Peru'"):
        numbers["Peru"]
