"""Effects of covariates, and counts, beside simple rules on simulated tables."""

import numpy as np
import pandas as pd
import pytest

from fgp_gpytorch import TableModel
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.tables import Count

SLOPE, SHIFT = 0.8, 3.0


def make_table(num_groups=60, num_members=6, seed=0):
    """y has a level of the group, a slope in a dose that changes within the group, and a shift by sex."""
    rng = np.random.default_rng(seed)
    size = num_groups * num_members
    group, sex = np.repeat(np.arange(num_groups), num_members), rng.integers(0, 2, num_groups)
    df = pd.DataFrame({"g": group, "t": np.tile(np.arange(float(num_members)), num_groups)})
    df["dose"], df["sex"] = rng.uniform(0, 10, size), np.where(sex[group] == 1, "f", "m")
    df["y"] = 20 + rng.normal(0, 0.6, num_groups)[group] + SLOPE * df["dose"] + SHIFT * sex[group]
    df["y"] += rng.normal(0, 0.3, size)
    return df


@pytest.fixture(scope="module")
def df():
    return make_table()


@pytest.fixture(scope="module")
def model(df):
    return TableModel("y", "t", "g", covariates=["dose", "sex"], hidden=()).fit(df[df["g"] < 45])


@pytest.fixture(scope="module")
def context(df):
    return df[(df["g"] >= 45) & (df["t"] < 3)]


def test_slopes_and_shifts_are_found(model, context):
    one = context[context["g"] == 50]
    at = pd.DataFrame({"g": 50, "t": 3.0, "dose": [0.0, 10.0, 5.0, 5.0], "sex": ["f", "f", "f", "m"]})
    low, high, f, m = model.forecast(one, at=at)["mean"]
    assert (high - low) / 10 == pytest.approx(SLOPE, abs=0.02)
    unknown = one.assign(y=np.nan)
    with pytest.warns(UserWarning, match="missing ones only"):
        f, m = model.forecast(unknown, at=at.iloc[2:])["mean"]
    assert f - m == pytest.approx(SHIFT, abs=0.5)


def test_forecasts_are_as_good_as_least_squares_within_groups(model, context, df):
    target = df[(df["g"] >= 45) & (df["t"] >= 3)]
    score = model.score(context, target).loc["y"]
    apart = context.groupby("g")[["dose", "y"]].transform(lambda own: own - own.mean())
    slope = (apart["dose"] * apart["y"]).sum() / (apart["dose"] ** 2).sum()
    level = (context["y"] - slope * context["dose"]).groupby(context["g"]).mean()
    rule = ((target["y"] - slope * target["dose"] - target["g"].map(level)) ** 2).mean()
    assert score["mse"] < 1.1 * rule
    assert 0.8 < score["coverage_90"] < 0.97


def test_answers_have_the_covariates(model, context):
    one = context[context["g"] == 50]
    grid = model.forecast(one, at={"t": [5.0], "dose": [0.0, 5.0]})
    assert list(grid["dose"]) == [0.0, 5.0]
    assert list(grid["sex"]) == [one["sex"].iloc[-1]] * 2
    assert list(model.forecast(one, at={"t": [5.0]})["dose"]) == [one["dose"].iloc[-1]]


def test_sampled_groups_have_the_effect_of_the_covariates(model):
    low, high = (model.sample_groups(200, at={"t": [1.0], "dose": [dose]}) for dose in (0.0, 10.0))
    assert list(low["dose"].unique()) == [0.0]
    assert (high["y"] - low["y"]).mean() == pytest.approx(10 * SLOPE, abs=0.5)
    assert "sex" not in low.columns


@pytest.mark.parametrize(("dose", "words"), [
    (np.inf, "covariates: expected finite numbers in column 'dose', got inf"),
    (5000.0, "covariates: expected 'dose' near the training table's 0.*got 5000. Try its units"),
])  # fmt: skip
def test_impossible_covariates_are_refused_in_fit_and_answers(dose, words, model, context, df):
    with pytest.raises(DataError, match=words):
        model.forecast(context.assign(dose=dose), at={"t": [5.0]})
    if np.isinf(dose):
        with pytest.raises(DataError, match=words):
            TableModel("y", "t", "g", covariates=["dose"]).fit(df.assign(dose=df["dose"].mask(df["t"] == 2, dose)))


def test_absent_covariate_is_refused_and_may_be_said_to_be_unknown(model, context):
    absent = context.drop(columns="dose")
    with pytest.raises(DataError, match=r"df: expected a covariate 'dose', got .*df\['dose'\] = np.nan if"):
        model.forecast(absent, at={"t": [5.0]})
    assert model.forecast(absent.assign(dose=np.nan), at={"t": [5.0]})["mean"].notna().all()


def test_saved_model_refuses_the_same_covariates(model, context, tmp_path):
    model.save(tmp_path / "m.pt")
    loaded = TableModel.load(tmp_path / "m.pt")
    pd.testing.assert_frame_equal(loaded.forecast(context, {"t": [4.0]}), model.forecast(context, {"t": [4.0]}))
    with pytest.raises(DataError, match="got 5000"):
        loaded.forecast(context.assign(dose=5000.0), at={"t": [5.0]})


@pytest.mark.parametrize("seed", [1, 4])
def test_counts_with_much_noise_depend_on_their_group(seed):
    """The negative binomial contains the Poisson distribution, so its ELBO is as large."""
    rng = np.random.default_rng(seed)
    group, t = np.repeat(np.arange(100), 8), np.tile(np.arange(8.0), 100)
    rate = np.exp(rng.normal(-1.5, 1.2, 100)[group] + 0.1 * t)
    df = pd.DataFrame({"g": group, "t": t, "y": rng.poisson(rate)})
    train, known, asked = df[group < 70], df[(group >= 70) & (t < 5)], df[(group >= 70) & (t >= 5)]
    models = [
        TableModel(Count("y", family=f), "t", "g", hidden=()).fit(train) for f in ("negative_binomial", "poisson")
    ]
    assert models[0].elbo_ > models[1].elbo_ - 0.01
    rule = ((asked["y"] - asked["g"].map(known.groupby("g")["y"].mean())) ** 2).mean()
    assert models[0].score(known, asked).loc["y", "mse"] < 1.1 * rule
