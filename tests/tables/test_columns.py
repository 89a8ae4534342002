"""Kinds of columns: transforms, and answers on fixed outputs against SciPy's mixtures."""

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch

from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.tables import Binary, Categorical, Count, Gaussian, Log, Ordinal, Periodic
from fgp_gpytorch.tables._features import Feature
from fgp_gpytorch.tables._warp import Warp
from fgp_gpytorch.tables.columns import QUANTILES

F64 = torch.float64
POSITIVE = np.array([0.2, 0.5, 1.0, 2.0, 7.0, 30.0])


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_warp_goes_there_and_back_with_the_slope_of_a_difference(power):
    warp = Warp.of(POSITIVE, power)
    np.testing.assert_allclose(warp.inverse(warp(POSITIVE)), POSITIVE, rtol=1e-10)
    assert warp(POSITIVE).mean() == pytest.approx(0, abs=1e-12)
    assert warp(POSITIVE).std(ddof=1) == pytest.approx(1)
    step = 1e-6 * POSITIVE
    slope = (warp(POSITIVE + step) - warp(POSITIVE - step)) / (2 * step)
    np.testing.assert_allclose(warp.log_slope(POSITIVE), np.log(slope), atol=1e-6)


def test_missing_values_stay_missing():
    column = Gaussian("h")
    column.learn(pd.Series([1.0, None, 3.0]))
    assert np.isnan(column.encode(pd.Series([1.0, None]))[:, 0]).tolist() == [False, True]
    assert np.isnan(column.encode(pd.Series([None, None], dtype=object))).all()


@pytest.mark.parametrize("column", [Gaussian("v", "none"), Log("v")])
def test_answers_of_numbers_are_those_of_scipys_mixture(column):
    column.learn(pd.Series(POSITIVE))
    part = column.elements().double()
    part.log_variance.data.fill_(np.log(0.3))
    output = torch.tensor([[[-0.5]], [[0.2]], [[0.6]]], dtype=F64)
    answer = column.answers(part, output)[None]
    warp = column.warp
    parts = []
    for m in output.flatten().tolist():
        center, width = warp.mean + warp.scale * m, warp.scale * np.sqrt(0.3)
        log = isinstance(column, Log)
        parts.append(
            scipy.stats.lognorm(width, scale=np.exp(center) * warp.unit) if log else scipy.stats.norm(center, width)
        )
    mean = np.mean([p.mean() for p in parts])
    second = np.mean([p.var() + p.mean() ** 2 for p in parts])
    assert answer["mean"][0] == pytest.approx(mean, rel=1e-6)
    assert answer["sd"][0] == pytest.approx(np.sqrt(second - mean**2), rel=1e-3)
    for name, p in QUANTILES.items():
        assert np.mean([d.cdf(answer[name][0]) for d in parts]) == pytest.approx(p, abs=1e-6)
    assert column.best(part, output)[0] == pytest.approx(mean, rel=1e-6)


def test_density_of_a_log_column_is_scipys_lognormal():
    column = Log("v")
    column.learn(pd.Series(POSITIVE))
    part, output = column.elements().double(), torch.tensor([[0.4]], dtype=F64)
    elements = column.encode(pd.Series(POSITIVE))
    found = part.log_prob(output, torch.from_numpy(elements))[:, 0].detach().numpy() + column.density_factor(elements)
    sd = column.warp.scale * part.log_variance.exp().sqrt().item()
    median = column.warp.unit * np.exp(column.warp.mean + 0.4 * column.warp.scale)
    np.testing.assert_allclose(found, scipy.stats.lognorm(sd, scale=median).logpdf(POSITIVE), rtol=1e-8)


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_answers_of_counts_are_those_of_scipys_mixture(family):
    column = Count("c", family)
    column.learn(pd.Series([0, 1, 5, 9]))
    part = column.elements().double()
    output = torch.tensor([[[0.3]], [[1.9]]], dtype=F64)
    answer = column.answers(part, output)[None]
    rates, variances = np.exp([0.3, 1.9]), part.variance(output).detach().numpy().flatten()
    if family == "poisson":
        parts = [scipy.stats.poisson(rate) for rate in rates]
    else:
        parts = [scipy.stats.nbinom(m**2 / (v - m), m / v) for m, v in zip(rates, variances, strict=True)]
    assert answer["mean"][0] == pytest.approx(rates.mean())
    assert answer["sd"][0] == pytest.approx(np.sqrt(np.mean([p.var() for p in parts]) + rates.var()), rel=1e-6)
    for name, p in QUANTILES.items():
        assert np.mean([d.cdf(answer[name][0]) for d in parts]) >= p
        assert np.mean([d.cdf(answer[name][0] - 1) for d in parts]) < p


def test_answers_of_a_binary_column_are_the_mean_probability_of_the_second_value():
    column = Binary("b")
    column.learn(pd.Series(["no", "yes"]))
    output = torch.tensor([[[0.3], [-3.0]], [[1.9], [-5.0]]], dtype=F64)
    answer = column.answers(column.elements().double(), output)[None]
    p = scipy.special.expit(output.numpy()[..., 0]).mean(0)
    np.testing.assert_allclose(answer["mean"], p)
    np.testing.assert_allclose(answer["sd"], np.sqrt(p * (1 - p)))
    assert answer["q50"].tolist() == [1.0, 0.0]
    assert column.best(column.elements().double(), output).tolist() == ["yes", "no"]


def test_answers_of_a_categorical_column_are_mean_softmax_probabilities():
    column = Categorical("k")
    column.learn(pd.Series(pd.Categorical(["b", "a", "c"], ["c", "b", "a", "unused"])))
    assert column.levels == ["c", "b", "a"]
    output = torch.randn(4, 2, 3, dtype=F64)
    answers = column.answers(column.elements().double(), output)
    p = scipy.special.softmax(output.numpy(), -1).mean(0)
    assert list(answers) == ["c", "b", "a"]
    for place, answer in enumerate(answers.values()):
        np.testing.assert_allclose(answer["mean"], p[:, place])
    assert column.best(column.elements().double(), output).tolist() == [column.levels[i] for i in p.argmax(-1)]


def test_answers_of_an_ordinal_column_are_those_of_its_log_probabilities():
    column = Ordinal("o")
    column.learn(pd.Series([1.0, 2.0, 5.0]))
    part, output = column.elements().double(), torch.randn(4, 2, 1, dtype=F64)
    codes = [torch.full((4, 2, 1), float(code), dtype=F64) for code in range(3)]
    p = np.stack([part.log_prob(output, code).exp().mean(0)[:, 0].detach().numpy() for code in codes], -1)
    np.testing.assert_allclose(p.sum(-1), 1)
    answer = column.answers(part, output)[None]
    levels = np.array([1.0, 2.0, 5.0])
    np.testing.assert_allclose(answer["mean"], p @ levels)
    np.testing.assert_allclose(answer["sd"], np.sqrt(p @ levels**2 - (p @ levels) ** 2))
    for name, probability in QUANTILES.items():
        expected = levels[(p.cumsum(-1) >= probability).argmax(-1)]
        assert answer[name].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        (Gaussian("v"), ["a", "b"], "y: expected numbers in column 'v', got"),
        (Gaussian("v"), [1.0, np.inf], "expected finite numbers in column 'v', got inf"),
        (Gaussian("v"), [1.0, 1.0], "expected different values in column 'v', got 1 only"),
        (Gaussian("v"), [np.nan, np.nan], "expected values in column 'v', got none"),
        (Log("v"), [1.0, 0.0], "expected positive values in Log column 'v', got 0"),
        (Binary("v"), [1, 2, 3], r"expected two values in Binary column 'v', got 3"),
        (Categorical("v"), ["a", "a"], "expected at least two categories"),
        (Categorical("v"), range(51), "expected at most 50 categories"),
        (Ordinal("v"), ["a", "b"], "expected numbers or an ordered categorical"),
        (Ordinal("v"), [1.0, np.inf], "expected finite categories, got inf"),
        (Count("v"), [0, 1.5], r"expected counts 0, 1, 2, \.\.\. in Count column 'v', got 1.5"),
        (Count("v"), [0, -1], r"expected counts 0, 1, 2, \.\.\. in Count column 'v', got -1"),
    ],
)
def test_values_of_another_kind_are_refused(column, values, words):
    with pytest.raises(DataError, match=words + ".*Try"):
        column.learn(pd.Series(values))


def test_new_categories_are_refused():
    column = Categorical("k")
    column.learn(pd.Series(["a", "b"]))
    with pytest.raises(DataError, match=r"k: expected one of the categories \['a', 'b'\] .* got 'z'. Try"):
        column.encode(pd.Series(["a", "z"]))


def test_options_are_checked():
    with pytest.raises(ArgumentError, match="transform: expected one of"):
        Gaussian("v", "sqrt")
    with pytest.raises(ArgumentError, match="family: expected one of"):
        Count("v", "binomial")
    with pytest.raises(ArgumentError, match="period: expected a positive"):
        Periodic("v", 0)
    with pytest.raises(ArgumentError, match="heteroscedastic: expected a bool"):
        Gaussian("v", heteroscedastic=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pd.to_timedelta([1, 2], "D"), "dt.total_seconds"),
        (pd.period_range("2020", periods=2, freq="D"), "dt.to_timestamp"),
        ([pd.Timestamp("2020").date()] * 2, "pd.to_datetime"),
        (["1", "2"], "pd.to_numeric"),
        ([1.0, np.nan], "dropna"),
        ([1.0, np.inf], "without these rows"),
    ],
)
def test_features_of_another_kind_are_refused(values, words):
    with pytest.raises(DataError, match=r"df: expected .* got .* Try .*" + words):
        Feature("t").learn(pd.Series(values))


def test_periodic_column_of_dates_is_refused():
    with pytest.raises(DataError, match=r"df: expected numbers (.|\n)*dt.hour"):
        Feature(Periodic("t", 24)).learn(pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"])))


def test_dates_are_seconds_with_their_time_zone():
    dates = pd.Series(pd.date_range("2020-03-28", periods=3, tz="Europe/Paris"))  # one day of 23 hours
    feature = Feature("t")
    feature.learn(dates)
    numbers = feature.encode(dates)
    assert (numbers[2] - numbers[1]) / (numbers[1] - numbers[0]) == pytest.approx(23 / 24)
    decoded = feature.decode(numbers)
    assert str(decoded.dt.tz) == "Europe/Paris"
    assert (decoded - dates).abs().max() < pd.Timedelta("1ms")
    same = feature.encode(feature.like_training(["2020-03-28", "2020-03-29"]))
    np.testing.assert_allclose(same, numbers[:2])
    with pytest.raises(DataError, match=r"time zone of the training table, Europe/Paris, .* got none. Try"):
        feature.encode(dates.dt.tz_localize(None))
    for wrong in (["soon"], [2020]):
        with pytest.raises(DataError, match=r"at: expected dates for 't', got .* Try"):
            feature.like_training(wrong)
