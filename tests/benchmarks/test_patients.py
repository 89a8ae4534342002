"""The question that patients.py asks, on made-up visits: what is held out, from whom, and what needs no model."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.records import Plan
from benchmarks.studies import patients


@pytest.fixture(scope="module")
def visits() -> pd.DataFrame:
    """Forty patients with one to six visits, in no order; some values missing."""
    generator = np.random.default_rng(0)
    count = generator.integers(1, 7, 40)
    table = pd.DataFrame({"id": np.repeat(np.arange(40), count)})
    table[patients.LABS] = generator.normal(5.0, 2.0, (len(table), len(patients.LABS)))
    table[patients.LABS] = table[patients.LABS].mask(generator.random((len(table), len(patients.LABS))) < 0.2)
    table["year"], table["fold"] = generator.uniform(0, 10, len(table)), table["id"] % patients.FOLDS
    return table.sample(frac=1, random_state=0)


def test_last_visits_of_untrained_patients_are_asked_for(visits) -> None:
    asked = patients.question(visits, [0, 1, 2, 3], 4)
    assert set(asked.train.labels) == set(visits["id"][visits["fold"] != 4])
    long = visits[visits["fold"] == 4].groupby("id").filter(lambda own: len(own) >= 3)
    assert set(asked.held_out.context.labels) == set(long["id"])
    for position, label in enumerate(asked.held_out.context.labels):
        own = visits[visits["id"] == label].sort_values("year")
        context = asked.held_out.context[position]
        assert context.x[0, :, 0].tolist() == own["year"].tolist()[:-1]
        assert asked.held_out.x_new[position, 0, 0] == own["year"].iloc[-1]


def test_values_are_in_deviations_of_the_training_patients(visits) -> None:
    asked = patients.question(visits, [0, 1, 2, 3], 4)
    batch = asked.train[:]
    for lab in range(len(patients.LABS)):
        values = batch.y[..., lab][batch.observed[..., lab]].double()
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(values.std()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("system", ["last value", "mean value"])
def test_predictions_without_a_model_by_hand(visits, system) -> None:
    known = visits[visits["fold"] != 4][patients.LABS]
    mean, scale = known.mean(), known.std()
    errors = []
    for _, own in visits[visits["fold"] == 4].groupby("id"):
        if len(own) < 3:
            continue
        own = (own.sort_values("year")[patients.LABS] - mean) / scale
        for lab in patients.LABS:
            past, truth = own[lab].iloc[:-1].dropna(), own[lab].iloc[-1]
            if not np.isnan(truth):
                guess = 0.0 if past.empty else past.iloc[-1] if system == "last value" else past.mean()
                errors.append((guess - truth) ** 2)
    assert patients.simple_record(system, visits, 4)["mse"] == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.filterwarnings("ignore:CoregionalizedChannels. expected at least")
def test_every_system_is_asked_the_same(visits, monkeypatch) -> None:
    monkeypatch.setattr(patients, "CANDIDATES", patients.CANDIDATES[:2])
    monkeypatch.setattr(patients, "table", lambda: visits)
    for system in patients.SYSTEMS:
        settings, record = patients.run({"system": system, "fold": 1}, Plan(quick=True))
        assert settings == {"epochs": 2}
        assert record["mse"] > 0
        assert np.isfinite(record["mse"])
        if system not in ("last value", "mean value"):
            assert np.isfinite(record["negative_log_likelihood"])
            assert 0 <= record["coverage_90"] <= 1


def test_a_perfect_belief_of_the_classical_gp_scores_as_scipy_says(visits) -> None:
    """Of values that are noise alone the GP learns mean 0 and variance 1, with the scores of a standard normal."""
    generator = np.random.default_rng(1)
    table = pd.DataFrame({"id": np.repeat(np.arange(200), 3), "year": np.tile([0.0, 1.0, 2.0], 200)})
    table[patients.LABS] = generator.normal(size=(600, len(patients.LABS)))
    table["fold"] = table["id"] % patients.FOLDS
    torch.manual_seed(0)
    record = patients.gp_record(table, 0, epochs=150)
    # 280 values: standard errors of about 0.085, 0.04, 0.025, 0.018; four of them
    assert record["mse"] == pytest.approx(1.0, abs=0.34)
    assert record["negative_log_likelihood"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e), abs=0.17)
    assert record["crps"] == pytest.approx(1 / np.sqrt(np.pi), abs=0.1)
    assert record["coverage_90"] == pytest.approx(0.9, abs=0.072)
