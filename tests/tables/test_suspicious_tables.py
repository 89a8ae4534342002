"""Tables that a model can be fitted to, but that are probably not what they seem."""

import numpy as np
import pandas as pd
import pytest

from fgp_gpytorch import TableModel
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError
from fgp_gpytorch.tables import Binary


def make_table(num_groups=20, num_members=5, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"g": np.repeat(np.arange(num_groups), num_members)})
    df["t"] = np.tile(np.arange(float(num_members)), num_groups)
    df["y"] = rng.normal(20, 2, num_groups)[df["g"]] + rng.normal(0, 0.5, len(df))
    return df


def fitted(df, y="y", **options):
    return TableModel(y, "t", "g", **{"hidden": (), "calibrate": False, **options}).fit(df, max_steps=0)


@pytest.fixture(scope="module")
def df():
    return make_table()


@pytest.fixture(scope="module")
def model(df):
    return fitted(df)


@pytest.mark.filterwarnings("ignore:df. expected rows of a group that help:UserWarning")
@pytest.mark.parametrize("code", [-999.0, 9999.0])
def test_codes_of_missing_values_are_warned_of(code, df):
    spoilt = df.copy()
    spoilt.loc[7, "y"] = code
    with pytest.warns(UserWarning, match=f"expected 'y' near the middle half.*1 of 100 values such as {code:g}. They"):
        fitted(spoilt)


@pytest.mark.parametrize("power", [np.exp, np.square])
def test_skewed_columns_are_no_codes(power, df):
    fitted(df.assign(y=power((df["y"] - 20).round(6))))


def test_counts_with_many_zeros_are_warned_of(df):
    counts = np.random.default_rng(0).poisson(0.8, len(df)) + (df["g"] == 0)
    with pytest.warns(UserWarning, match=r"got counts of which \d+% are 0. Their intervals.*Try Count\('y'\)"):
        fitted(df.assign(y=counts))


def test_numbers_of_two_values_are_not_called_counts(df):
    fitted(df.assign(y=(df["y"] > 20).astype(int)))


@pytest.mark.parametrize(("y", "values", "words"), [
    ("y", lambda y: y > 20, r"expected numbers in column 'y', got booleans. Try Binary\('y'\)"),
    ([Binary("y")], lambda y: y, "expected two values in Binary column 'y', got 100. Try 'y' itself"),
    ("y", lambda y: y.astype(object), r"got object. Try pd.to_numeric\(df\['y'\]\), or Cat"),
    ("y", lambda y: y.astype(str) + "kg", r"Try Categorical\('y'\), or pd.to_numeric"),
])  # fmt: skip
def test_columns_of_another_kind_are_refused(y, values, words, df):
    with pytest.raises(DataError, match=words):
        fitted(df.assign(y=values(df["y"])), y)


def test_labels_with_fractions_are_refused_without_merging_groups(df):
    with pytest.raises(GroupError, match=r"Try strings, such as group.astype\(str\)"):
        fitted(df.assign(g=df["g"] + 0.5))


def test_x_beyond_the_training_table_is_warned_of(model, df):
    words = "expected 't' within the training table's 0 to 4, got 9. There the mean over x stays"
    with pytest.warns(UserWarning, match=words):
        model.forecast(df, at={"t": [2.0, 9.0, 5.0]})
    model.forecast(df, at={"t": [-0.3, 4.3]})


def test_dates_beyond_the_training_table_are_told_in_its_time_zone(df):
    days = pd.Timestamp("2020-03-28", tz="Europe/Berlin") + pd.to_timedelta(df["t"], unit="D")
    dated = fitted(df.assign(t=days))
    with pytest.warns(UserWarning, match=r"2020-03-28 00:00:00\+01:00 to 2020-04-01 .*got 2020-04-09 00:00:00\+02:00"):
        dated.forecast(df.assign(t=days), at={"t": [pd.Timestamp("2020-04-09", tz="Europe/Berlin")]})


def test_nested_lists_of_x_are_refused(model, df):
    with pytest.raises(DataError, match="expected a list of values for 't', got lists inside a list"):
        model.forecast(df, at={"t": np.array([[1.0, 2.0]])})


def test_target_without_values_is_refused_by_its_name(model, df):
    with pytest.raises(DataError, match="df_target: expected values of y, got missing ones only"):
        model.score(df, df.assign(y=np.nan))


def test_imputed_gaps_have_the_index_of_their_rows(model, df):
    gaps = df.set_index([pd.Index([f"r{place}" for place in range(len(df))])])
    gaps.loc[["r7", "r3"], "y"] = np.nan
    found = model.impute(gaps, spread=True)
    assert list(found.index) == ["r3", "r7"]
    assert list(found["t"]) == list(gaps.loc[["r3", "r7"], "t"])


def test_scored_values_that_the_context_shows_are_warned_of(model, df):
    late = df["t"] > 2
    model.score(df[~late], df[late])
    gap = df.assign(y=df["y"].mask(late))
    model.score(gap, df[late])
    with pytest.warns(UserWarning, match="values that the context lacks, got 40 of 60 values that are in both"):
        model.score(df[df["t"] > 2].iloc[::-1], df[df["t"] > 1].astype({"g": object}))


def test_few_groups_are_warned_of_and_hardly_different_ones_are_not_said_to_be_so():
    with pytest.warns(UserWarning, match=r"expected at least 6 groups, got 5. .* may be too narrow. Try more") as found:
        fitted(make_table(5).assign(y=np.random.default_rng(0).normal(size=25)))
    assert len(found) == 1
    assert found[0].filename == __file__  # the line of the caller's program


def test_fit_that_fails_leaves_the_model_as_it_was(df):
    model = fitted(df)
    before = model.forecast(df, {"t": [2.5]})
    with pytest.raises(DataError, match="expected numbers in column 'y'"):
        model.fit(df.assign(y="a"))
    pd.testing.assert_frame_equal(model.forecast(df, {"t": [2.5]}), before)


def test_dates_that_were_read_as_text_are_told_apart_from_names(df, model):
    day = df["t"].map(lambda t: f"2020-01-{int(t) + 1:02d}")
    with pytest.raises(DataError, match=r"expected numbers in column 't', got .*Try pd.to_datetime\(df\['t'\]\)"):
        fitted(df.assign(t=day))
    with pytest.raises(DataError, match=r"Try pd.to_numeric\(df\['t'\]\), or Categorical"):
        fitted(df.assign(t=df["t"].map({0: "may", 1: "june", 2: "x", 3: "y", 4: "z"})))
    with pytest.raises(DataError, match="Try numbers in the unit of the training table"):
        model.forecast(df, {"t": pd.date_range("2020-01-01", periods=2)})


def test_interval_of_two_values_is_not_scored(df):
    model = fitted(df.assign(b=df["y"] > 20), [Binary("b"), "y"])
    score = model.score(df[df["t"] < 3].assign(b=df["y"] > 20), df[df["t"] >= 3].assign(b=df["y"] > 20))
    assert np.isnan(score.loc["b", "coverage_90"])
    assert score.loc["b", "mse"] < 0.25
    assert score.loc["b", "crps"] == pytest.approx(score.loc["b", "mse"], abs=0.01)  # both are the Brier score
    assert score.loc["y"].notna().all()


def test_questions_that_the_answer_cannot_fit_are_refused(model, df):
    with pytest.raises(ArgumentError, match=r"num_draws: expected an integer >= 16, got 1. .*Try 256"):
        model.forecast(df, {"t": [1]}, num_draws=1)
    with pytest.raises(ArgumentError, match="at: expected a Mapping, got DataFrame"):
        model.sample_groups(1, at=pd.DataFrame({"t": [0.0, 1.0]}))
    with pytest.raises(GroupError, match=r"groups: expected labels of 'g' in df, got .*Try"):
        model.plot_forecast(df, groups=[(1, 0)])
    with pytest.raises(GroupError, match=r"got '3'\. Try 3, of type int, as in df"):
        model.forecast(df, pd.DataFrame({"g": ["3"], "t": [1.0]}))


def test_figure_shows_the_groups_and_rows_that_were_asked_for(model, df):
    figure = model.plot_forecast(df[df["t"] < 3], at=df[df["t"] >= 2])  # the first six of 20 groups
    assert [len(axis.lines[0].get_xdata()) for axis in figure.axes] == [3] * 6
    four = model.plot_forecast(df, groups=[0, 1, 2, 3])
    assert [axis.get_visible() for axis in four.axes] == [True] * 4 + [False] * 2
    assert [axis.get_ylabel() for axis in four.axes] == ["y", "", "", "y", "", ""]


def test_range_of_training_is_told_without_rounding_errors():
    df = make_table(7, 3)
    with pytest.warns(UserWarning, match="within the training table's 0 to 2, got 5"):
        fitted(df).forecast(df, {"t": [5]})


def test_errors_of_a_score_name_its_table(model, df):
    late = df.assign(t=df["t"] + 1e4)
    with pytest.raises(DataError, match="df_target: expected 't' near the training table's 0 to 4"):
        model.score(df, late)
    with pytest.raises(GroupError, match="df_target: expected groups with a row in the context, got 0"):
        model.score(df[df["g"] > 0], df[df["g"] == 0])
