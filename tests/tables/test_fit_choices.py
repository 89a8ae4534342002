"""What `TableModel.fit` chooses by itself, and what it does with awkward tables."""

import copy
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from fgp_gpytorch import GroupedDataset, TableModel
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.kernels import PrincipalFunctionKernel, markov_terms
from fgp_gpytorch.metrics import gaussian_crps
from fgp_gpytorch.models.linear_start import rounding, smallest_errors
from fgp_gpytorch.tables import Binary, table_model
from fgp_gpytorch.tables import _fitting as module
from fgp_gpytorch.tables._warp import Warp, likely_power

pytestmark = [
    pytest.mark.filterwarnings("ignore:at. expected '.*' within the training table's:UserWarning"),
    pytest.mark.filterwarnings("ignore:y. expected '.*' near the middle half:UserWarning"),
]


def table(groups, rows, seed=0, noise=0.1):
    """Random lines with noise."""
    rng = np.random.default_rng(seed)
    frames = []
    for label in range(groups):
        t = np.arange(float(rows))
        y = rng.normal() + rng.normal() * t / rows + noise * rng.normal(size=rows)
        frames.append(pd.DataFrame({"g": f"g{label:02}", "t": t, "y": y}))
    return pd.concat(frames, ignore_index=True)


def test_equal_rows_leave_a_noise_of_a_thousandth_of_the_standard_deviation():
    curve = pd.DataFrame({"t": np.arange(12.0), "y": np.sin(np.arange(12) / 3)})
    df = pd.concat([curve.assign(g=label) for label in range(8)])
    with pytest.warns(UserWarning, match="Forecasts hardly depend on the group"):
        model = TableModel(y=["y"], x=["t"], group="g").fit(df)
    assert model._likelihood.constant_variance().item() == pytest.approx(1e-6, rel=0.3)
    forecast = model.forecast(df[df.t < 6], at={"t": [8.0]})
    np.testing.assert_allclose(forecast["mean"], np.sin(8 / 3), atol=2e-3)


def test_columns_that_are_equal_keep_a_finite_noise():
    df = table(12, 10)
    df["twice"] = 2 * df["y"] + 1
    model = TableModel(y=["y", "twice"], x=["t"], group="g").fit(df)
    assert (model._likelihood.constant_variance() > 1e-7).all()
    assert np.isfinite(model.forecast(df, at={"t": [11.0]})["sd"]).all()


def test_rounding_is_that_of_every_value():
    model = TableModel(y=["y"], x=["t"], group="g").fit(table(6, 5))
    df = table(6, 5)
    batch = model._dataset(df)[:]
    squares = (batch.y - batch.y.mean()).square().sum()
    expected = 0.5 * 1e-6 * squares / model._likelihood.constant_variance() / len(df)
    errors = smallest_errors(model._dataset(df), batch)
    torch.testing.assert_close(rounding(model._likelihood, batch, errors), expected.sum())


def test_a_straight_mean_gets_fewer_knots_than_a_wave():
    rng = np.random.default_rng(1)
    df = table(30, 24, noise=0.3)
    knots = {}
    for name, shared in {"straight": df["t"] / 4, "wave": 6 * np.sin(df["t"] / 2)}.items():
        model = TableModel(y=["y"], x=["t"], group="g", hidden=())
        model.fit(df.assign(y=df["y"] + shared + 0.01 * rng.normal(size=len(df))))
        knots[name] = len(model.vae_.prior.blocks[0].mean_module.knots)
    assert knots["straight"] == 2
    assert knots["wave"] >= 8


def test_many_groups_get_the_most_knots():
    model = TableModel(y=["y"], x=["t"], group="g", hidden=(), calibrate=False).fit(table(101, 14, noise=0.3))
    assert len(model.vae_.prior.blocks[0].mean_module.knots) == 12


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_warp_of_a_column_with_zeros(power):
    values = np.array([0.0, 0.2, 1.0, 3.0, 8.0])
    warp = Warp.of(values, power)
    assert warp.shift == pytest.approx(0.1)
    np.testing.assert_allclose(warp.inverse(warp(values)), values, atol=1e-12)
    step = 1e-6
    slope = (warp(values + step) - warp(values)) / step
    np.testing.assert_allclose(np.exp(warp.log_slope(values)), slope, rtol=1e-4)


def test_zeros_may_have_a_power_scale_but_not_many_of_them():
    values = scipy.stats.lognorm(1.0).rvs(200, random_state=0)
    some, many = values.copy(), values.copy()
    some[:4], many[:60] = 0.0, 0.0
    assert likely_power(some) < 0.5
    assert likely_power(many) == 1.0
    assert likely_power(values - 0.5) == 1.0


def test_training_moves_between_the_linear_start_and_its_end(monkeypatch):
    df = table(60, 8)
    df["y"] = np.exp(df["y"]) * np.sin(df["t"])
    found = {}
    for moves in ((0.0,), (0.0, 1.0), (0.0, 0.5, 1.0)):
        monkeypatch.setattr(module, "_MOVES", moves)
        found[moves] = TableModel(y=["y"], x=["t"], group="g").fit(df, max_steps=60)
    assert found[(0.0,)].moved_ == 0.0
    assert all(model.moved_ in moves for moves, model in found.items())
    start = found[(0.0,)].vae_.decoder.residual[-1].weight
    assert not start.any()


def test_moving_leaves_the_bounds_of_parameters():
    model = TableModel(y=["y"], x=["t"], group="g").fit(table(12, 6))
    start, vae = copy.deepcopy(model.vae_.state_dict()), model.vae_
    end = {name: own + 1 if own.is_floating_point() else own for name, own in start.items()}
    found = module.between(vae, start, end, 0.25)
    for name, own in vae.named_parameters():
        torch.testing.assert_close(found[name], own + 0.25)
    for name in set(found) - {name for name, _ in vae.named_parameters()}:
        assert found[name] is end[name]
    vae.load_state_dict(module.between(vae, start, start, 0.25))
    assert not any(own.isnan().any() for own in vae.state_dict().values())


def test_groups_that_scale_a_curve_get_it_and_stationary_processes_do_not():
    rng = np.random.default_rng(3)
    t = np.arange(10.0)
    shape = np.exp(-0.5 * (t - 3) ** 2) + 0.4 * np.sin(t)
    scaled = pd.concat([
        pd.DataFrame({"g": n, "t": t, "y": 5 + rng.normal(2, 0.7) * shape + 0.05 * rng.normal(size=10)})
        for n in range(20)
    ])  # fmt: skip
    covariance = 0.5 + np.exp(-abs(t[:, None] - t) / 3)
    stationary = scaled.assign(y=rng.multivariate_normal(np.zeros(10), covariance, 20).ravel())
    for df, expected in ((scaled, True), (stationary, False)):
        model = TableModel(y=["y"], x=["t"], group="g").fit(df)
        kernels = list(model.vae_.prior.blocks[0].kernel.modules())
        assert any(isinstance(kernel, PrincipalFunctionKernel) for kernel in kernels) is expected


def test_x_is_logarithmic_if_groups_vary_on_that_scale(tmp_path):
    rng, t = np.random.default_rng(0), np.array([0, 0.25, 0.5, 1, 2, 3.5, 5, 7, 9, 12, 24])
    courses = [
        (a * np.exp(-k * np.log(t + 0.1) ** 2) + 0.02 * rng.normal(size=len(t)), rng.permutation(len(t))[:9])
        for a, k in zip(rng.uniform(4, 8, 12), rng.uniform(0.2, 0.6, 12), strict=True)
    ]
    df = pd.concat(pd.DataFrame({"g": f"g{n}", "t": t, "y": y}).iloc[rows] for n, (y, rows) in enumerate(courses))
    model = TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(df)
    feature = model.features_[0]
    assert feature.shift == 0.125
    assert feature.least == 0.0
    t = pd.Series([-0.1, 0.0, 0.3, 24.0, 60.0])
    np.testing.assert_allclose(feature.decode(feature.encode(t)), t, atol=1e-12)
    assert (np.diff(feature.encode(t)) > 0).all()
    with pytest.raises(DataError, match="Try its units"):
        model.forecast(df, at={"t": [24 * 60.0]})
    forecast = model.forecast(df[df.t < 3], at={"t": [5.0, 30.0]})
    assert np.isfinite(forecast["mean"]).all()
    model.save(tmp_path / "model.pt")
    loaded = TableModel.load(tmp_path / "model.pt").forecast(df[df.t < 3], at={"t": [5.0, 30.0]})
    pd.testing.assert_frame_equal(loaded, forecast)


def test_the_linear_start_stays_if_networks_are_worse(monkeypatch):
    def ruin(vae, *args, **options):
        with torch.no_grad():
            for p in vae.decoder.residual.parameters():
                p.add_(3.0)

    monkeypatch.setattr(module, "train_networks", ruin)
    model = TableModel(y=["y"], x=["t"], group="g").fit(table(60, 8))
    assert model.moved_ == 0.0
    assert not model.vae_.decoder.residual[-1].weight.any()


def test_networks_that_are_not_finite_leave_the_model_linear(monkeypatch):
    def fail(*args, **options):
        raise module.NonFiniteError("training stopped.")

    monkeypatch.setattr(module, "train_networks", fail)
    with pytest.warns(UserWarning, match="The model stays linear"):
        model = TableModel(y=["y"], x=["t"], group="g").fit(table(60, 8))
    assert model.moved_ == 0.0
    assert np.isfinite(model.forecast(table(3, 4), at={"t": [5.0]})["mean"]).all()


def test_gaussian_crps_is_the_integral():
    error, deviation = torch.tensor([0.7, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    grid = np.linspace(-30, 30, 600_001)
    for e, d, found in zip(error, deviation, gaussian_crps(error, deviation), strict=True):
        cdf = scipy.stats.norm(0, d.item()).cdf(grid)
        integral = ((cdf - (grid >= e.item())) ** 2).sum() * (grid[1] - grid[0])
        assert found.item() == pytest.approx(integral, abs=1e-3)


def test_gaussian_crps_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match="expected the shape of error"):
        gaussian_crps(torch.zeros(3), torch.ones(2))
    with pytest.raises(DataError, match="above 0"):
        gaussian_crps(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_a_few_far_values_are_a_warning_and_a_column_of_them_an_error():
    df = table(10, 8)
    model = TableModel(y=["y"], x=["t"], group="g").fit(df)
    sentinel = df.copy()
    sentinel.loc[3, "y"] = 9999.0
    with pytest.warns(UserWarning, match="1 of 80 values far outside"):
        model.forecast(sentinel, at={"t": [9.0]})
    outlier = df.copy()
    outlier.loc[3, "y"] += 15 * df["y"].std()  # a slip of the pen, and no other unit
    with pytest.warns(UserWarning, match="1 of 80 values far outside"):
        model.forecast(outlier, at={"t": [9.0]})
    with pytest.raises(DataError, match="standard deviations away"):
        model.forecast(df.assign(y=df["y"] * 1e4), at={"t": [9.0]})


def test_a_training_table_may_have_a_value_far_away():
    df = table(30, 40, noise=0.01)
    df.loc[7, "y"] = 400.0
    with pytest.warns(UserWarning, match="near the middle half of its values"):
        model = TableModel(y=["y"], x=["t"], group="g", hidden=(), calibrate=False).fit(df)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.isfinite(model.forecast(df, at={"t": [9.0]})["mean"]).all()


@pytest.mark.filterwarnings("ignore:df_target. expected values that the context lacks:UserWarning")
def test_answers_in_parts_are_those_at_once(monkeypatch):
    df = table(12, 6)
    df["kind"] = np.where(df["y"] > df["y"].median(), "high", "low")
    gaps = df.copy()
    gaps.loc[::5, "y"], gaps.loc[1::7, "kind"] = np.nan, None
    model = TableModel(y=["y", Binary("kind")], x=["t"], group="g", hidden=()).fit(df)
    at, shuffled = {"t": [7.0, 2.0]}, df.sample(frac=1.0, random_state=0)
    whole = model.impute(gaps), model.score(df, shuffled), model.forecast(df, at), model.draws(df, shuffled)[1]
    monkeypatch.setattr(table_model, "_VALUES_AT_ONCE", 1)
    parts = model.impute(gaps), model.score(df, shuffled), model.forecast(df, at), model.draws(df, shuffled)[1]
    assert (whole[0]["kind"] == parts[0]["kind"]).all()
    np.testing.assert_allclose(whole[0]["y"], parts[0]["y"], atol=0.1)
    np.testing.assert_allclose(whole[1], parts[1], rtol=0.1)
    np.testing.assert_allclose(whole[2]["mean"], parts[2]["mean"], atol=0.1)
    np.testing.assert_allclose(
        whole[3]["y"].mean(0), parts[3]["y"].mean(0), atol=8 * whole[3]["y"].std() / math.sqrt(256)
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_table_of_noise_is_a_warning(seed):
    df = table(80, 12)
    df["y"] = np.random.default_rng(seed).normal(size=len(df))
    with pytest.warns(UserWarning, match="Forecasts hardly depend on the group"):
        TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(df)


def test_equal_beliefs_get_equal_answers():
    df = table(12, 6)
    model = TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(df)
    both = model.forecast(df, at={"t": [7.0, 7.0]})
    alone = model.forecast(df[df["g"] == "g03"], at={"t": [7.0]})
    for name in ("mean", "sd", "q05", "q95"):
        np.testing.assert_allclose(both[name][::2], both[name][1::2])
        np.testing.assert_allclose(both[both["g"] == "g03"][name][:1], alone[name])
    with pytest.warns(UserWarning, match="got missing ones only"):
        unknown = model.forecast(df.assign(y=np.nan), at={"t": [7.0]})
    assert unknown["mean"].max() - unknown["mean"].min() < 1e-9


@pytest.mark.filterwarnings("ignore:df_target. expected values that the context lacks:UserWarning")
def test_impossible_values_of_a_column_on_a_power_scale_are_far_away():
    df = table(30, 8)
    df["y"] = 100 * np.exp(df["y"] / 5)
    model = TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(df)
    assert model.columns_[0].warp.power < 1
    wrong = df.copy()
    wrong.loc[2, "y"] = -999.0
    with pytest.warns(UserWarning, match="1 of 240 values far outside"):
        model.forecast(wrong, at={"t": [9.0]})
    with pytest.warns(UserWarning, match="far outside"):
        assert model.score(df, wrong).loc["y", "mse"] > 1000**2 / 240


def test_a_power_scale_continues_as_a_line():
    warp = Warp.of(np.array([1.0, 2.0, 4.0]), 0.0)
    found = np.diff(warp(np.array([0.5, 0.25, 0.0, -0.25])))
    np.testing.assert_allclose(found, found[0])
    step = 1e-6
    np.testing.assert_allclose(
        np.exp(warp.log_slope(np.array([-3.0]))),
        (warp(np.array([0.5 + step])) - warp(np.array([0.5]))) / step,
        rtol=1e-4,
    )


def test_numbers_whose_square_is_infinite_are_refused():
    df = table(5, 5)
    with pytest.raises(DataError, match="expected numbers up to 1e"):
        TableModel(y=["y"], x=["t"], group="g").fit(df.assign(y=df["y"] * 1e300))


@pytest.mark.filterwarnings("ignore:df. expected at least 6 groups:UserWarning")
def test_long_groups_have_a_state_space_and_no_curve():
    r = np.random.default_rng(0)
    t = np.sort(r.uniform(0, 40, (3, 1200)))
    y = np.sin(t) + np.array([[-2.0], [0.0], [3.0]]) + 0.1 * r.normal(size=t.shape)
    df = pd.DataFrame({"g": np.repeat(["a", "b", "c"], 1200), "t": t.ravel(), "y": y.ravel()})
    model = TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(df)
    assert markov_terms(model.vae_.prior.blocks[0].kernel, 1) is not None
    gap = (df.t > 20) & (df.t < 20.3)
    scores = model.score(df[~gap], df[gap])
    assert scores.mse["y"] < 0.1**2 * 1.5
    assert 0.8 < scores.coverage_90["y"] <= 1
    assert len(model.sample_groups(2, at={"t": [1.0, 2.0]})) == 4


def test_long_groups_are_shortened_at_random():
    groups = np.repeat([0, 1], [5, 2500])
    data = GroupedDataset(np.arange(2505.0)[:, None], np.arange(2505.0)[:, None], groups)
    short = module.shortened(data, seed=0)
    assert short.group_sizes.tolist() == [5, 1000]
    assert 1000 < float(short[[1]].y.mean()) < 1510
    assert module.shortened(data.subset([0]), seed=0).group_sizes.tolist() == [5]
