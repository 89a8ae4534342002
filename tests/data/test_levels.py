"""Groups inside groups: the codes of a table's inner levels."""

import numpy as np
import pandas as pd
import pytest
import torch

from fgp_gpytorch import GroupedDataset, HeldOut
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError


def _table():
    rows = [("bo", 1, 0.0), ("bo", 1, 1.0), ("al", 1, 0.0), ("bo", 2, 0.0), ("al", 3, 0.0), ("al", 3, 2.0)]
    table = pd.DataFrame(rows, columns=["speaker", "utterance", "t"])
    return table.assign(y=np.arange(6.0))


def _dataset(table, group=("speaker", "utterance"), **options):
    return GroupedDataset.from_dataframe(table, y="y", x="t", group=list(group), **options)


def test_codes_are_unique_in_the_data_set_although_labels_repeat():
    data = _dataset(_table())
    assert data.labels.tolist() == ["al", "bo"]
    level = data.levels["utterance"]
    assert level.feature == 1
    assert level.names == ("speaker", "utterance")
    assert level.labels == (("al", 1), ("al", 3), ("bo", 1), ("bo", 2))
    y, x, _ = data.flat()
    for value, code in zip(y[:, 0].tolist(), x[:, 1].tolist(), strict=True):
        row = _table().iloc[int(value)]
        assert level.labels[int(code)] == (row["speaker"], row["utterance"])


def test_three_levels_have_a_column_each():
    table = _table().assign(word=[1, 1, 1, 1, 2, 3])
    data = _dataset(table, ("speaker", "utterance", "word"))
    assert data.num_features == 3
    assert [level.feature for level in data.levels.values()] == [1, 2]
    assert data.levels["word"].labels == (("al", 1, 1), ("al", 3, 2), ("al", 3, 3), ("bo", 1, 1), ("bo", 2, 1))


def test_one_level_in_a_list_equals_its_name():
    table = _table().assign(t=range(6))
    data, same = _dataset(table, ["speaker"]), GroupedDataset.from_dataframe(table, "y", "t", "speaker")
    assert data.levels == same.levels == {}
    assert torch.equal(data.flat().x, same.flat().x)


def test_later_tables_keep_known_codes_and_get_new_ones():
    train = _dataset(_table())
    later = pd.DataFrame(
        {"speaker": ["bo", "cy", "al", "bo"], "utterance": [1, 1, 2, 7], "t": [5.0, 0, 0, 0], "y": 0.0}
    )
    context = _dataset(later, levels=train.levels)
    codes = {tuple(label): code for code, label in enumerate(context.levels["utterance"].labels)}
    assert context.levels["utterance"].labels[:4] == train.levels["utterance"].labels
    assert codes["bo", 1] == 2
    assert sorted(codes[key] for key in [("cy", 1), ("al", 2), ("bo", 7)]) == [4, 5, 6]
    targets = _dataset(later.iloc[::-1], levels=context.levels)
    assert targets.levels == context.levels
    assert sorted(targets.flat().x[:, 1].tolist()) == sorted(context.flat().x[:, 1].tolist())


def test_parts_of_a_data_set_keep_its_levels_and_the_first_feature_orders_held_out_members():
    data = _dataset(_table())
    for part in (data.subset([1]), data.select(data.flat().x[:, 0] < 1), data.align(data)):
        assert part.levels == data.levels
    held_out = HeldOut.last(data)
    assert held_out.context.levels == data.levels
    assert sorted(held_out.x_new[:, 0, 0].tolist()) == [1.0, 2.0]
    assert held_out.x_new.shape == (2, 1, 2)


def test_equal_times_of_different_utterances_are_not_warned_of():
    data = _dataset(_table())  # warnings are errors
    assert data.num_members == 6
    with pytest.warns(UserWarning, match="expected different features in each group, got 1 members"):
        _dataset(pd.concat([_table(), _table().iloc[:1]]))


def test_labels_of_any_kind_are_matched_again():
    days = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-01", "2020-01-01", "2020-01-02", "2020-01-02"])
    table = _table().assign(t=range(6))
    for labels in (days, np.array([1.0, 2, 1, 1, 2, 2]), pd.Categorical(list("abaabb"))):
        table = table.assign(utterance=labels)
        data = _dataset(table)
        again = _dataset(table.iloc[::-1], levels=data.levels)
        assert again.levels == data.levels
        assert len(data.levels["utterance"].labels) == 4
    assert _dataset(table.assign(utterance=days)).levels["utterance"].labels[0] == ("al", days[0])


def test_wrong_levels_are_refused():
    table = _table()
    with pytest.raises(GroupError, match="expected a label in every row, got 1 missing"):
        _dataset(table.assign(utterance=[1, 1, np.nan, 2, 3, 3]))
    with pytest.raises(DataError, match=r"expected columns for y, x and group, got no column 'word'"):
        _dataset(table, ["speaker", "word"])
    with pytest.raises(DataError, match="expected columns for y, x and group, got an empty list"):
        _dataset(table, [])
    with pytest.raises(DataError, match=r"group: expected each column once, got \['speaker', 'speaker'\]"):
        _dataset(table, ["speaker", "speaker"])
    with pytest.raises(ArgumentError, match=r"levels: expected levels of a data set, got int\. Try train.levels"):
        _dataset(table, levels=3)
    other = _dataset(table, ["utterance", "speaker"]).levels
    with pytest.raises(DataError, match=r"levels: expected a level of \['speaker', 'utterance'\], got"):
        _dataset(table, levels=other)
