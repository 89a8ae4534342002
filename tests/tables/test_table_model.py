"""`TableModel` against a dense Gaussian process and hand computation, and tables that people pass by mistake."""

import importlib
import math

import gpytorch
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from fgp_gpytorch import TableModel
from fgp_gpytorch.errors import ArgumentError, CheckpointError, DataError, FGPError, GroupError
from fgp_gpytorch.tables import Binary, Categorical, Count, Gaussian, Log, Ordinal, Periodic
from oracles import matern32

# forecasts go back to the prior beyond the x of training, and tests look there
pytestmark = pytest.mark.filterwarnings("ignore:at. expected '.*' within the training table's:UserWarning")
ALL_KINDS = [Gaussian("h", "none"), Log("w"), Binary("b"), Categorical("k"), Count("c"), Ordinal("o")]
Y = [column.name for column in ALL_KINDS]
AT = pd.DataFrame({"g": ["g3", "g0", "g3", "g1"], "t": [4.5, 1.0, 0.5, 9.0], "hour": 1, "s": "a"})


def make_table(num_groups=7, num_members=5, seed=0):
    rng = np.random.default_rng(seed)
    size = num_groups * num_members
    level = np.repeat(rng.normal(size=num_groups), num_members)
    t = np.tile(np.arange(float(num_members)), num_groups)
    h = level + np.sin(t) + 0.3 * rng.normal(size=size)
    df = pd.DataFrame({"g": np.repeat([f"g{i}" for i in range(num_groups)], num_members), "t": t, "h": h})
    df["hour"], df["s"] = (7 * t) % 24, np.where(t % 2 > 0, "a", "b")
    df["w"] = np.exp(level / 2 + 0.1 * t + 0.2 * rng.normal(size=size))
    df["b"], df["k"] = h > 0, np.select([h > 0.5, h < -0.5], ["hi", "lo"], "mid")
    df["c"], df["o"] = rng.poisson(np.exp(level / 2 + 1)), np.clip(np.round(h), -1, 1)
    return df


def fitted(df, y="h", x="t", group="g", **options):
    options = {"hidden": (), "calibrate": False, **options}
    return TableModel(y, x, group, **options).fit(df, max_steps=0)


@pytest.fixture(scope="module")
def df():
    return make_table()


@pytest.fixture(scope="module")
def small(df):
    """One Gaussian column."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    return fitted(df, Gaussian("h", "none"), kernel=kernel)


@pytest.fixture(scope="module")
def whole(df):
    """All kinds of columns, of y and of x."""
    gaps = df.copy()
    gaps.loc[3, "w"] = gaps.loc[8, "h"] = np.nan
    return fitted(gaps, ALL_KINDS, ["t", Periodic("hour", 24), Categorical("s")], hidden=(4,))


def dense_gp(model, own, t_new):
    """Mean and standard deviation of new values of one group by dense algebra, with the fitted hyperparameters."""
    vae = model.vae_
    feature, warp, block = model.features_[0], model.columns_[0].warp, vae.prior.blocks[0]
    kernel = matern32(block.kernel.base_kernel.lengthscale.item(), block.kernel.outputscale.item())
    weight, offset = vae.decoder.loadings.item(), vae.decoder.offset.item()
    noise = vae.likelihood.constant_variance().item()

    def level(t):
        return offset + weight * np.interp(
            t, block.mean_module.knots.numpy(), block.mean_module.values.detach().numpy()[0]
        )

    old, new = ((np.asarray(t, float) - feature.center) / feature.scale for t in (own.t, t_new))
    y = (own.h.to_numpy() - warp.mean) / warp.scale
    covariance = {
        (i, j): np.array([[weight**2 * kernel([a], [b], math) for b in (old, new)[j]] for a in (old, new)[i]])
        for i in (0, 1)
        for j in (0, 1)
    }
    gain = covariance[1, 0] @ np.linalg.inv(covariance[0, 0] + noise * np.eye(len(old)))
    mean = level(new) + gain @ (y - level(old))
    variance = np.diag(covariance[1, 1] - gain @ covariance[0, 1]) + noise
    return mean * warp.scale + warp.mean, np.sqrt(variance) * warp.scale


def test_forecasts_of_a_gaussian_column_are_those_of_a_dense_gp(small, df):
    own = df[df.g == "g2"]
    t_new = [0.5, 2.2, 6.0]
    draws = 20_000
    found = small.forecast(own, {"t": t_new}, num_draws=draws)
    mean, sd = dense_gp(small, own, t_new)
    # the mean and the sd are averages over draws: six standard errors
    np.testing.assert_allclose(found["mean"], mean, atol=6 * sd.max() / math.sqrt(draws))
    np.testing.assert_allclose(found["sd"], sd, rtol=6 / math.sqrt(2 * draws))
    for name, p in {"q05": 0.05, "q50": 0.5, "q95": 0.95}.items():
        np.testing.assert_allclose(found[name], scipy.stats.norm(mean, sd).ppf(p), atol=0.06 * sd.max())


def test_embedded_curves_go_through_the_members(small, df):
    curves, z = small.embed(df, points=5), small.embed(df, members=True)
    channels = len(z.columns)
    assert list(curves.columns) == [f"z{n}_{place}" for n in range(channels) for place in range(5)]
    for label, rows in df.groupby("g"):
        t = rows["t"].to_numpy()
        for n in range(channels):
            expected = np.interp(np.linspace(t.min(), t.max(), 5), t, z.loc[rows.index, f"z{n}"])
            np.testing.assert_allclose(curves.loc[label, [f"z{n}_{place}" for place in range(5)]], expected, rtol=1e-6)
    shuffled = small.embed(df.sample(frac=1.0, random_state=0), points=5)
    np.testing.assert_allclose(shuffled.loc[curves.index], curves, rtol=1e-6)
    with pytest.raises(ArgumentError, match="one row a group"):
        small.embed(df, members=True, points=5)


def test_reconstruction_of_embedded_members_is_the_dense_gp(small, df):
    z = small.embed(df, members=True)
    decoder, warp = small.vae_.decoder, small.columns_[0].warp
    found = (z.z0 * decoder.loadings.item() + decoder.offset.item()) * warp.scale + warp.mean
    for _, own in df.groupby("g"):
        np.testing.assert_allclose(found[own.index], dense_gp(small, own, own.t)[0], rtol=1e-7, atol=1e-7)
    groups = small.embed(df)
    np.testing.assert_allclose(groups.z0, z.z0.groupby(df.g).mean())
    assert groups.index.equals(pd.Index(sorted(set(df.g)), name="g"))


def test_forecasts_follow_the_order_of_their_targets(whole, df):
    shuffled = df.sample(frac=1, random_state=1)
    found = whole.forecast(shuffled, AT)
    assert set(found.variable) == set(Y)
    for name in ("h", "w", "b", "c", "o"):
        own = found[found.variable == name]
        pd.testing.assert_frame_equal(own[["g", "t", "hour", "s"]].reset_index(drop=True), AT)
        assert own.category.isna().all()
    one_by_one = pd.concat([whole.forecast(df[df.g == g], AT[AT.g == g], num_draws=4000) for g in ("g3", "g0", "g1")])
    many = whole.forecast(shuffled, AT, num_draws=4000)
    keys = ["variable", "category", "g", "t"]
    both = many.fillna({"category": "-"}).merge(one_by_one.fillna({"category": "-"}), on=keys)
    assert len(both) == len(many)
    assert ((both.mean_x - both.mean_y).abs() < 0.15 * both.sd_x + 1e-6).all()


def test_forecasts_have_sensible_ranges(whole, df):
    found = whole.forecast(df, {"t": [2, 7], "hour": 3, "s": ["a", "b"]})
    assert len(found) == 7 * 4 * (5 + 3)
    own = {name: part for name, part in found.groupby("variable")}  # noqa: C416
    assert (own["w"].q05 > 0).all()
    assert own["b"]["mean"].between(0, 1).all()
    total = own["k"].groupby(["g", "t", "s"])["mean"].sum()
    np.testing.assert_allclose(total, 1)
    assert (own["c"].q95 == own["c"].q95.round()).all()
    assert own["o"]["mean"].between(-1, 1).all()
    assert (found.q05 <= found.q50).all()
    assert (found.q50 <= found.q95).all()


def test_forecast_is_repeatable_and_leaves_the_generator_alone(small, df):
    state = torch.get_rng_state()
    pd.testing.assert_frame_equal(small.forecast(df, {"t": 1}), small.forecast(df, {"t": [1]}))
    assert torch.equal(state, torch.get_rng_state())
    assert not small.forecast(df, {"t": 1}).equals(small.forecast(df, {"t": 1}, seed=1))


def test_group_without_an_observation_gets_the_prior(small, df):
    with pytest.warns(UserWarning, match=r"df: expected values of y, got missing ones only.*Try rows with values"):
        empty = small.forecast(df.assign(h=None), {"t": 1}, num_draws=4000)
    sd = math.sqrt(
        small.vae_.prior.blocks[0].kernel.outputscale.item() * small.vae_.decoder.loadings.item() ** 2
        + small.vae_.likelihood.constant_variance().item()
    )
    np.testing.assert_allclose(empty.sd, sd * small.columns_[0].warp.scale, rtol=0.08)


def test_score_is_what_one_computes_by_hand(whole, df):
    target = df[df.t > 2].drop(index=3)
    scores = whole.score(df[df.t <= 2], target)
    found = whole.forecast(df[df.t <= 2], target, num_draws=999)
    assert scores.n.tolist() == [len(target)] * 6
    for name in ("h", "w", "c", "o"):
        own = found[found.variable == name]
        assert scores.mse[name] == pytest.approx(((own["mean"].to_numpy() - target[name]) ** 2).mean())
    p = found[found.variable == "b"]["mean"].to_numpy()
    assert scores.nll["b"] == pytest.approx(-np.log(np.where(target.b, p, 1 - p)).mean())
    assert scores.mse["b"] == pytest.approx(((p - target.b) ** 2).mean())
    own = found[found.variable == "k"]
    p = np.stack([own[own.category == level]["mean"] for level in ("hi", "lo", "mid")], -1)
    one_hot = np.stack([target.k == level for level in ("hi", "lo", "mid")], -1)
    assert scores.nll["k"] == pytest.approx(-np.log(p[one_hot]).mean())
    assert scores.mse["k"] == pytest.approx(((p - one_hot) ** 2).sum(-1).mean())
    h = found[found.variable == "h"]  # near a normal distribution
    normal = scipy.stats.norm(h["mean"], h.sd)
    assert scores.nll["h"] == pytest.approx(-normal.logpdf(target.h).mean(), abs=0.1)
    z = (target.h.to_numpy() - h["mean"].to_numpy()) / h.sd.to_numpy()
    crps = h.sd * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert scores.crps["h"] == pytest.approx(crps.mean(), rel=0.1)
    w = found[found.variable == "w"]  # near a lognormal distribution, density in the table's units
    sd = (np.log(w.q95) - np.log(w.q05)) / (2 * scipy.stats.norm.ppf(0.95))
    lognormal = scipy.stats.lognorm(sd, scale=w.q50)
    assert scores.nll["w"] == pytest.approx(-lognormal.logpdf(target.w).mean(), abs=0.1)


@pytest.mark.filterwarnings("ignore:df_target. expected values that the context lacks:UserWarning")
def test_missing_targets_are_not_scored(small, df):
    target = df.assign(h=df.h.where(df.t != 4))
    assert small.score(df, target).n["h"] == (df.t != 4).sum()


def test_impute_fills_gaps_and_keeps_what_was_observed(whole, df):
    table = df.copy()
    table.index = pd.date_range("2020", periods=len(df), tz="UTC", name="when")
    table["h"], table["k"] = table.h.astype("float32"), pd.Categorical(table.k)
    table["c"], table["b"] = table.c.astype("Int64"), table.b.astype("boolean")
    hidden = table.copy()
    for place, name in enumerate(Y):
        hidden.iloc[3 + place, hidden.columns.get_loc(name)] = None
    before = hidden.copy()
    filled = whole.impute(hidden)
    pd.testing.assert_frame_equal(hidden, before)
    pd.testing.assert_series_equal(filled.dtypes, hidden.dtypes)
    assert filled.index.equals(table.index)
    assert filled.index.name == "when"
    assert not filled.isna().any().any()
    seen = hidden.notna()
    for name in table:
        assert (filled[name][seen[name]] == table[name][seen[name]]).all()
    gaps = whole.impute(hidden, spread=True)
    assert gaps.groupby("variable").size().to_dict() == {"b": 1, "c": 1, "h": 1, "k": 3, "o": 1, "w": 1}
    assert filled.h.iloc[3] == pytest.approx(gaps[gaps.variable == "h"]["mean"].iloc[0], rel=1e-6)


def test_columns_that_a_table_lacks_are_imputed_everywhere(whole, df):
    filled = whole.impute(df.drop(columns=["w", "k"]))
    assert (filled.w > 0).all()
    assert set(filled.k) <= {"hi", "lo", "mid"}


def test_sampled_groups_have_the_table_columns_and_possible_values(whole):
    found = whole.sample_groups(3, {"t": [0, 1], "hour": 5, "s": ["a", "b"]})
    assert found.columns.tolist() == ["g", "t", "hour", "s", *Y]
    assert found.g.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (found.w > 0).all()
    assert set(found.k) <= {"hi", "lo", "mid"}
    assert set(found.o) <= {-1.0, 0.0, 1.0}
    assert (found.c == found.c.round()).all()
    assert found.h.is_unique


def test_saved_model_forecasts_the_same(whole, df, tmp_path):
    whole.save(tmp_path / "model.pt")
    loaded = TableModel.load(tmp_path / "model.pt")
    pd.testing.assert_frame_equal(loaded.forecast(df, AT), whole.forecast(df, AT))
    pd.testing.assert_frame_equal(loaded.impute(df), df)
    at = {"t": 1, "hour": 2, "s": "b"}
    pd.testing.assert_frame_equal(loaded.sample_groups(2, at), whole.sample_groups(2, at))
    (tmp_path / "other.pt").write_text("no model")
    with pytest.raises(CheckpointError):
        TableModel.load(tmp_path / "other.pt")


def test_draws_are_those_of_the_forecast(small, df):
    keys, draws = small.draws(df, {"t": [0.5, 6.0]}, num_draws=3000)
    found = small.forecast(df, {"t": [0.5, 6.0]}, num_draws=3000)
    pd.testing.assert_frame_equal(keys, found[["g", "t"]])
    assert draws["h"].shape == (3000, len(found))
    np.testing.assert_allclose(draws["h"].mean(0), found["mean"], atol=0.15 * found.sd.max())
    np.testing.assert_allclose(draws["h"].std(0), found.sd, rtol=0.1)


def test_xarray_has_a_draw_of_each_row(whole, df):
    pytest.importorskip("xarray")
    data = whole.to_xarray(df, AT, num_draws=7)
    assert dict(data.sizes) == {"draw": 7, "row": 4}
    assert set(data.data_vars) == set(Y)
    assert data.coords["g"].to_numpy().tolist() == AT.g.tolist()


def test_figures_have_a_panel_for_each_group(whole, df):
    figure = whole.plot_forecast(df, groups=["g1", "g5"], column="k")
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == ["g1", "g5"]
    assert len(figure.axes[0].lines) == 3  # a line for each category
    assert len(whole.plot_forecast(df, groups="g1").axes[0].lines) == 2  # the median and the rows


# tables of all sorts


@pytest.mark.parametrize(
    "label",
    [
        lambda i: i,
        lambda i: float(i),
        lambda i: ("a", i),
        lambda i: pd.Timestamp("2020-01-01", tz="Asia/Tokyo") + pd.Timedelta(i, "D"),
    ],
    ids=["integers", "floats", "tuples", "dates"],
)
def test_labels_of_groups_keep_their_kind(label, df):
    labels = [label(int(g[1:])) for g in df.g]
    table = df.assign(g=pd.Series(labels))
    model = fitted(table)
    found = model.forecast(table, {"t": 1})
    assert found.g.dtype == table.g.dtype
    assert found.g.tolist() == [label(i) for i in range(7)]
    groups = model.embed(table)
    assert groups.index.dtype == table.g.dtype
    assert groups.index.name == "g"
    some = model.forecast(table, pd.DataFrame({"g": pd.Series([label(2)]), "t": [1.0]}))
    assert some["mean"].iloc[0] == pytest.approx(found["mean"].iloc[2], abs=found.sd.max() / 3)


def test_unused_categories_of_groups_are_no_groups(small, df):
    order = ["zz", "g3", "g0", "g1", "g2", "g6", "g4", "g5"]
    table = df.assign(g=pd.Categorical(df.g, order))
    assert small.embed(table).index.tolist() == order[1:]
    assert small.forecast(table, {"t": 1}).g.dtype == table.g.dtype
    np.testing.assert_allclose(small.embed(table).sort_index().loc[["g0", "g4"]], small.embed(df).loc[["g0", "g4"]])


@pytest.mark.filterwarnings("ignore:df. expected at least 6 groups:UserWarning")
def test_groups_inside_groups_and_dates_and_nullable_columns():
    df = make_table(12, 4)
    df["outer"] = "s" + (df.g.str[1:].astype(int) // 3).astype(str)
    df["day"] = pd.Timestamp("2020-03-28", tz="Europe/Paris") + pd.to_timedelta(df.t, "D")
    df = df[["outer", "g", "day", "h", "c"]].convert_dtypes()
    model = fitted(df, [Gaussian("h", "none"), Count("c")], "day", ["outer", "g"])
    at = pd.DataFrame({"outer": ["s1", "s0"], "g": ["new", "g0"], "day": pd.to_datetime(["2020-04-02"] * 2)})
    at["day"] = at.day.dt.tz_localize("Europe/Paris")
    found = model.forecast(df, at)
    pd.testing.assert_frame_equal(found[found.variable == "h"][["outer", "g", "day"]], at)
    assert found.sd[0] > found.sd[1]  # nothing was seen of the inner group
    assert model.forecast(df, {"day": "2020-04-02"}).day.dtype.tz is not None
    assert model.embed(df).index.tolist() == ["s0", "s1", "s2", "s3"]
    assert len(model.plot_forecast(df).axes[0].collections) == 3  # a band for each inner group
    with pytest.raises(GroupError, match=r"group: expected a label in every row of 'g', got 1 missing. Try"):
        model.forecast(df.assign(g=df.g.mask(df.index == 2)), at)
    with pytest.raises(DataError, match="expected the time zone of the training table"):
        model.forecast(df.assign(day=df.day.dt.tz_localize(None)), at)


def test_names_of_columns_may_be_numbers(df, tmp_path):
    table = df[["g", "t", "h", "w"]].set_axis(range(4), axis=1)
    model = fitted(table, [2, Log(3)], 1, 0)
    assert model.forecast(table.drop(columns=3), {1: 0}).variable.tolist() == [2] * 7 + [3] * 7
    model.save(tmp_path / "model.pt")
    assert TableModel.load(tmp_path / "model.pt").sample_groups(1, {1: 0}).columns.tolist() == [0, 1, 2, 3]


def test_column_of_x_that_never_changes_does_no_harm(df):
    found = fitted(df.assign(one=1.0), Gaussian("h", "none"), ["t", "one"]).forecast(
        df.assign(one=1.0), {"t": 1, "one": 1}
    )
    assert np.isfinite(found[["mean", "sd"]]).all().all()


@pytest.mark.filterwarnings("ignore:df. expected at least 6 groups:UserWarning")
def test_one_group_has_forecasts_but_no_distribution_of_groups():
    df = make_table(1, 12)
    model = fitted(df)
    assert np.isfinite(model.forecast(df, {"t": 3.5})["mean"]).all()
    with pytest.raises(DataError, match="sample_groups: expected a model of at least two training groups, got one"):
        model.sample_groups(1, {"t": 1})


WRONG_FITS = {
    "text": (lambda df: df.assign(h="a"), DataError, "expected numbers in column 'h'"),
    "one value": (lambda df: df.assign(h=1.0), DataError, "expected different values in column 'h'"),
    "infinity": (lambda df: df.assign(h=np.inf), DataError, "expected finite numbers in column 'h'"),
    "x missing": (lambda df: df.assign(t=df.t.mask(df.index == 1)), DataError, "df: expected a value in every row"),
    "group missing": (lambda df: df.assign(g=df.g.mask(df.index == 1)), GroupError, "expected a label in every row"),
    "no rows": (lambda df: df[:0], DataError, "df: expected at least one row"),
    "no column": (lambda df: df.drop(columns="t"), DataError, "df: expected a column 't'"),
    "groups in the index": (lambda df: df.set_index("g"), DataError, r"df: expected a column 'g'"),
    "a column twice": (lambda df: pd.concat([df, df[["t"]]], axis=1), DataError, "df: expected one column 't'"),
    "two levels of columns": (
        lambda df: df.set_axis(pd.MultiIndex.from_product([["a"], df.columns]), axis=1), DataError,
        "df: expected columns of one level",
    ),
    "groups of one row": (lambda df: df.assign(g=df.index), DataError, "df: expected groups with several rows"),
    "no table": (lambda df: df.to_dict(), ArgumentError, "df: expected a DataFrame, got dict"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FITS)
def test_table_that_cannot_be_fitted_is_refused(what, df):
    change, error, words = WRONG_FITS[what]
    with pytest.raises(error, match=words + "(.|\n)*[Tt]ry"):
        TableModel("h", "t", "g").fit(change(df))


def test_repeated_rows_and_single_rows_are_warned_of(df):
    with pytest.warns(UserWarning, match=r"df: expected one row for each group and x, got 1 repeated .* Try"):
        fitted(pd.concat([df, df.iloc[:1].assign(h=0.0)]))
    singles = df.iloc[:9].assign(g=[f"single {i}" for i in range(9)])
    with pytest.warns(UserWarning, match=r"df: expected groups with several rows, got 9 of 16 groups .* Try"):
        fitted(pd.concat([df, singles]))


WRONG_FORECASTS = {
    "no context": (lambda df: (df[:0], {"t": 1}), DataError, "df: expected at least one row"),
    "no y": (lambda df: (df.drop(columns="h"), {"t": 1}), DataError, r"expected some of the columns \['h'\]"),
    "no x": (lambda df: (df.drop(columns="t"), {"t": 1}), DataError, "df: expected a column 't'"),
    "other units of y": (lambda df: (df.assign(h=1000 * df.h), {"t": 1}), DataError, "near the training table's"),
    "other units of x": (lambda df: (df.assign(t=365 * df.t), {"t": 1}), DataError, "near the training table's 0 to 4"),
    "no at": (lambda df: (df, None), ArgumentError, "at: expected a Mapping or DataFrame, got None"),
    "another key": (lambda df: (df, {"t": 1, "u": 1}), ArgumentError, r"at: expected values for \['t'\]"),
    "no key": (lambda df: (df, {}), ArgumentError, r"at: expected values for \['t'\]"),
    "no values": (lambda df: (df, {"t": []}), DataError, "at: expected values for 't', got none"),
    "text": (lambda df: (df, {"t": "late"}), DataError, "at: expected numbers in column 't'"),
    "NaN": (lambda df: (df, {"t": [1.0, np.nan]}), DataError, "at: expected a value in every row"),
    "a table without groups": (lambda df: (df, df[["t"]]), DataError, "at: expected a column 'g'"),
    "a table without rows": (lambda df: (df, df[:0]), DataError, "at: expected at least one row"),
    "another group": (lambda df: (df, df.assign(g="zz")), GroupError, "at: expected groups .* got 'zz'"),
    "other labels": (lambda df: (df, df.assign(g=1)), GroupError, "at: expected groups .* got 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FORECASTS)
def test_forecast_that_cannot_be_made_is_refused(what, small, df):
    change, error, words = WRONG_FORECASTS[what]
    with pytest.raises(error, match=words + "(.|\n)*[Tt]ry"):
        small.forecast(*change(df))


@pytest.mark.parametrize("value", [2, 2.0, np.float64(2), np.array(2.0), torch.tensor(2.0), [2], range(2, 3), (2.0,)])
def test_at_takes_one_value_or_several(value, small, df):
    expected = small.forecast(df, {"t": [2.0]}).drop(columns="t")
    pd.testing.assert_frame_equal(small.forecast(df, {"t": value}).drop(columns="t"), expected)


def test_unseen_categories_are_refused(whole, df):
    with pytest.raises(DataError, match=r"k: expected one of the categories .* got 'new'. Try"):
        whole.forecast(df.assign(k="new"), AT)
    with pytest.raises(DataError, match=r"s: expected one of the categories .* got 'new'. Try"):
        whole.forecast(df, AT.assign(s="new"))


def test_other_units_of_a_log_column_are_warned_of(whole, df):
    with pytest.warns(UserWarning, match=r"y: expected 'w' near the training table's .* got 35 of 35 .* Try the units"):
        whole.forecast(df.assign(w=1000 * df.w), AT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"y": []}, "y: expected different columns"),
        ({"y": ["h", "h"]}, "y: expected different columns"),
        ({"y": "t"}, "expected each column in one of y, x, group and covariates, got 't' in two"),
        ({"y": Periodic("h", 2)}, "which is one of x"),
        ({"x": []}, "x: expected different columns"),
        ({"x": Log("t")}, "x: expected names, Periodic or Categorical columns"),
        ({"x": "mean"}, "expected columns of x and group that are not named as those of a forecast"),
        ({"group": []}, "group: expected the name of a column, got none"),
        ({"kernel": "rbf"}, "kernel: expected a Kernel"),
        ({"channels": 0}, "channels: expected an integer >= 1"),
        ({"hidden": 64}, "hidden: expected a list or tuple"),
        ({"hidden": (1.5,)}, "hidden: expected an integer >= 1"),
        ({"calibrate": "yes"}, "calibrate: expected a bool"),
    ],
)
def test_wrong_arguments_of_the_constructor_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words + ".*[Tt]ry"):
        TableModel(**{"y": "h", "x": "t", "group": "g", **options})


def test_index_of_columns_is_a_list_of_names(df):
    assert repr(TableModel(df.columns[2:3], df.columns[1:2], "g")) == "TableModel(y=['h'], x=['t'], group='g')"


def test_wrong_arguments_of_methods_are_refused(small, df, tmp_path):
    calls = {
        "model": lambda: TableModel("h", "t", "g").forecast(df, {"t": 1}),
        "df": lambda: small.embed(df.to_numpy()),
        "num_draws": lambda: small.forecast(df, {"t": 1}, num_draws=0),
        "seed": lambda: small.forecast(df, {"t": 1}, seed=-1),
        "spread": lambda: small.impute(df, spread="sd"),
        "n": lambda: small.sample_groups(0, {"t": 1}),
        "at": lambda: small.sample_groups(1, {}),
        "column": lambda: small.plot_forecast(df, column="zz"),
        "groups": lambda: small.plot_forecast(df, groups=["zz"]),
        "path": lambda: small.save(3),
    }
    with pytest.raises(FGPError, match="no file"):
        TableModel.load(tmp_path / "absent.pt")
    for word, call in calls.items():
        with pytest.raises(FGPError, match=r"expected(.|\n)*got(.|\n)*[Tt]ry") as caught:
            call()
        assert word in f"{caught.value} {type(caught.value).__name__}"


def test_packages_that_are_absent_are_named(small, df, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"expected the package xarray, got no such package. Try pip install xarray"):
        small.to_xarray(df, {"t": 1})
