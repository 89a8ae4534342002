"""The league of tables: splits without leaks, and systems on made-up tables with a known answer."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from benchmarks.league import gaussian_process as gp
from benchmarks.league import glyphs, joint_gaussian, mixed_model, networks, ours, page, peers, rules, speakers, tasks
from benchmarks.league.scores import Belief, mixture_scores, scored_elsewhere, scores
from benchmarks.league.sources import Table
from benchmarks.league.tasks import FOLDS, TASKS, Question, Task, question
from benchmarks.markdown import table as markdown_table
from benchmarks.records import Plan, Record


def lines(groups: int = 30, rows: int = 9, noise: float = 0.0, columns: int = 4) -> Table:
    """Each group has its own line in each column. The rows are in no order."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"who": np.repeat([f"g{n}" for n in range(groups)], rows)})
    frame["t"] = np.tile(np.arange(rows, dtype=float), groups)
    names = [f"c{n}" for n in range(columns)]
    for name in names:
        level, slope = rng.normal(size=groups).repeat(rows), rng.normal(size=groups).repeat(rows)
        frame[name] = 5 + level + 0.3 * slope * frame["t"] + noise * rng.normal(size=len(frame))
    return Table("lines", frame.sample(frac=1, random_state=0, ignore_index=True), names, ["t"], "who")


def asked(table: Table, cut=None, fold: int = 0) -> Question:
    return question(Task("made up", "lines", "", cut or tasks.last_part(0.3)), fold, table)


CUTS = {task.name: task.cut for task in TASKS if task.name not in ("17 styles from 3", "2000-2015")}
CUTS["from x"] = tasks.from_x(6.0)


# splits


@pytest.mark.parametrize("name", CUTS)
def test_no_group_is_in_training_and_in_the_test_of_a_fold(name) -> None:
    table, seen = lines(), []
    for fold in range(FOLDS):
        q = asked(table, CUTS[name], fold)
        test = set(q.context["who"]) | set(q.target["who"])
        assert not test & set(q.train["who"])
        assert test | set(q.train["who"]) == set(table.rows["who"])
        seen += sorted(test)
    assert sorted(seen) == sorted(set(table.rows["who"]))


@pytest.mark.parametrize("name", CUTS)
def test_a_value_is_known_or_asked_for_and_never_both(name) -> None:
    table = lines()
    q = asked(table, CUTS[name], 1)
    for context, target in ((q.context, q.target), q.practice):
        known, wanted = (set_of_values(table, part) for part in (context, target))
        assert not known & wanted
        groups = set(context["who"]) | set(target["who"])
        every = set_of_values(table, table.rows[table.rows["who"].isin(groups)])
        assert known | wanted == every


def set_of_values(table: Table, rows: pd.DataFrame) -> set:
    long = rows.melt(id_vars=[table.group, *table.x], value_vars=table.y).dropna()
    return set(long.itertuples(index=False, name=None))


def test_cuts_ask_for_the_rows_that_they_name() -> None:
    table = lines()
    times = {name: sorted(set(asked(table, cut).target["t"])) for name, cut in CUTS.items()}
    assert times["last 30 %"] == [6, 7, 8]
    assert times["last visit"] == [8]
    assert times["gap of 30 %"] == [3, 4, 5]
    assert times["from x"] == [6, 7, 8]
    assert times["which speaker"] == []
    target = asked(table, CUTS["lost columns"]).target
    assert (target.groupby("who").size() == 3).all()
    assert (target[table.y].notna().sum(axis=1) == 3).all()


def test_last_visit_leaves_out_short_groups() -> None:
    table = lines()
    short = table.rows.query("who != 'g0' or t < 2")
    for fold in range(FOLDS):
        q = asked(dataclasses.replace(table, rows=short.reset_index(drop=True)), tasks.last_row(3), fold)
        assert "g0" not in set(q.target["who"]) | set(q.context["who"])


def test_blocks_stay_in_one_fold() -> None:
    table = lines()
    table.rows["family"] = table.rows["who"].str[-1]
    folds = tasks.fold_of_rows(dataclasses.replace(table, block="family"))
    assert (folds.groupby(table.rows["family"]).nunique() == 1).all()
    assert folds.nunique() == FOLDS


def test_a_marked_test_set_is_the_same_for_every_fold() -> None:
    table = lines()
    table.rows["later"] = table.rows["who"].isin(["g3", "g4"])
    for fold in range(FOLDS):
        q = question(Task("marked", "lines", "", tasks.last_part(0.3), test="later"), fold, table)
        assert set(q.target["who"]) == {"g3", "g4"}


def test_test_groups_change_nothing_that_is_learned() -> None:
    table = lines(noise=0.1)
    q = asked(table)
    other = dataclasses.replace(table, rows=table.rows.copy())
    other.rows.loc[other.rows["who"].isin(q.target["who"]), table.y] += 100.0
    again = asked(other)
    pd.testing.assert_frame_equal(q.train, again.train)
    pd.testing.assert_series_equal(q.scale, again.scale)
    pd.testing.assert_frame_equal(q.practice[1], again.practice[1])


# rules


def test_linear_rule_is_exact_for_lines() -> None:
    q = asked(lines())
    belief = rules.rule_belief(q, "linear rule")
    np.testing.assert_allclose(belief.mean, q.target[q.table.y], atol=1e-9)


def test_linear_interpolation_is_exact_for_gaps_in_lines() -> None:
    q = asked(lines(), tasks.middle_gap(0.3))
    np.testing.assert_allclose(rules.rule_belief(q, "linear interpolation").mean, q.target[q.table.y], atol=1e-9)


def test_rules_by_hand() -> None:
    table = lines(noise=0.5)
    q = asked(table)
    beliefs = {name: rules.rule_belief(q, name).mean[:, 0] for name in ("last value", "own mean", "mean at x")}
    for n, (who, t) in enumerate(zip(q.target["who"], q.target["t"], strict=True)):
        own = q.context[q.context["who"] == who]
        assert beliefs["last value"][n] == own.loc[own["t"].idxmax(), "c0"]
        assert beliefs["own mean"][n] == pytest.approx(own["c0"].mean())
        assert beliefs["mean at x"][n] == pytest.approx(q.train.loc[q.train["t"] == t, "c0"].mean())


def test_spread_of_a_rule_is_its_error_on_the_training_groups() -> None:
    table = lines(noise=0.5)
    q = asked(table)
    errors = []
    for who in q.train["who"].unique():
        own = q.train[q.train["who"] == who].sort_values("t")
        errors += list(own["c1"].iloc[5] - own["c1"].iloc[6:])
    assert rules.rule_belief(q, "last value").sd[0, 1] == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_a_group_without_a_known_value_gets_the_mean_of_the_training_rows() -> None:
    q = asked(lines())
    context = q.context.assign(c0=q.context["c0"].where(q.context["who"] != q.target["who"][0]))
    q = dataclasses.replace(q, context=context)
    for name in ("last value", "own mean", "linear rule", "linear interpolation"):
        assert rules.rule_belief(q, name).mean[0, 0] == pytest.approx(q.mean["c0"])


# Gaussian process


def dense_covariance(parameters: torch.Tensor, x: np.ndarray, other: np.ndarray) -> np.ndarray:
    level, amplitude, lengthscale = (float(parameters[n].exp()) for n in (0, 1, 4))
    found = np.empty((len(x), len(other)))
    for i, a in enumerate(x):
        for j, b in enumerate(other):
            r = math.sqrt(3) * abs(a - b) / lengthscale
            found[i, j] = level + amplitude * (1 + r) * math.exp(-r)
    return found


PARAMETERS = torch.tensor([-0.4, 0.2, -1.5, 0.3, -0.2], dtype=torch.float64)


@pytest.fixture
def ragged() -> tuple[gp.Groups, list[tuple[np.ndarray, np.ndarray]]]:
    """Five groups, two of which share inputs and gaps."""
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=n) for n in (3, 5, 4)]
    parts = [(x, rng.normal(size=len(x))) for x in (inputs[0], inputs[1], inputs[1], inputs[2], inputs[1])]
    parts[4][1][2] = np.nan
    group = np.concatenate([[n] * len(x) for n, (x, _) in enumerate(parts)]).astype(int)
    x, y = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    return gp.padded(group, 5, x[:, None], y), parts


def test_evidence_is_that_of_dense_gaussians(ragged) -> None:
    groups, parts = ragged
    expected = 0.0
    for x, y in parts:
        seen = ~np.isnan(y)
        dense = dense_covariance(PARAMETERS, x[seen], x[seen]) + math.exp(-1.5) * np.eye(seen.sum())
        expected += stats.multivariate_normal(np.full(seen.sum(), 0.3), dense).logpdf(y[seen])
    patterns = gp.Patterns.of(groups)
    assert len(patterns.count) == 4
    assert float(gp.evidence(PARAMETERS, patterns)) == pytest.approx(expected, rel=1e-10)


def test_prediction_is_that_of_dense_gaussians(ragged) -> None:
    groups, parts = ragged
    x_new = torch.linspace(-1, 1, 3).double().expand(5, 3).unsqueeze(-1)
    mean, variance = gp.predicted(PARAMETERS, groups, x_new)
    for n, (x, y) in enumerate(parts):
        seen = ~np.isnan(y)
        dense = dense_covariance(PARAMETERS, x[seen], x[seen]) + math.exp(-1.5) * np.eye(seen.sum())
        cross = dense_covariance(PARAMETERS, x_new[n, :, 0].numpy(), x[seen])
        np.testing.assert_allclose(mean[n], 0.3 + cross @ np.linalg.solve(dense, y[seen] - 0.3), rtol=1e-9)
        own = dense_covariance(PARAMETERS, x_new[n, :, 0].numpy(), x_new[n, :, 0].numpy()).diagonal()
        own = own + math.exp(-1.5) - np.einsum("ni,in->n", cross, np.linalg.solve(dense, cross.T))
        np.testing.assert_allclose(variance[n], own, rtol=1e-9)


@pytest.mark.parametrize("with_mean", [False, True])
def test_gp_finds_noise_and_shared_trend(with_mean) -> None:
    """A shared curve plus a level per group plus noise of 0.2: the best possible error is a little above 0.04."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"who": np.repeat(np.arange(60), 9), "t": np.tile(np.arange(9.0), 60)})
    frame["c"] = np.sin(frame["t"]) + rng.normal(size=60).repeat(9) + 0.2 * rng.normal(size=540)
    q = asked(Table("curve", frame, ["c"], ["t"], "who"))
    belief = gp.fit_gp(q, 0, with_mean)()
    error = np.mean((belief.mean[:, 0] - q.target["c"]) ** 2)
    if with_mean:  # 36 values, of 12 groups whose levels are known up to 0.2 / sqrt(6)
        assert error < 0.04 * (1 + 1 / 6) * 1.9
        assert belief.sd == pytest.approx(np.full((36, 1), 0.2 * math.sqrt(7 / 6)), rel=0.2)
    else:
        assert error > 0.1  # nobody extrapolates a sine from its group's rows alone


# mixed model


def test_mixed_model_predicts_as_the_dense_gaussian() -> None:
    """All rows of a group are jointly Gaussian. Its conditional is computed from the joint covariance."""
    q = asked(lines(noise=0.3))
    known = (np.array([0.1, 0.4]), np.array([[0.5, 0.1], [0.1, 0.3]]), 0.2)
    mean, sd = mixed_model.predicted(q, "c0", known)
    who = q.target["who"][0]
    rows = pd.concat([q.context[q.context["who"] == who], q.target[q.target["who"] == who]])
    z = mixed_model.design_matrix(q, rows["t"].to_numpy())
    joint, center = z @ known[1] @ z.T + 0.2 * np.eye(9), z @ known[0]
    y = ((rows["c0"] - q.mean["c0"]) / q.scale["c0"]).to_numpy()[:6]
    gain = joint[6:, :6] @ np.linalg.inv(joint[:6, :6])
    expected = center[6:] + gain @ (y - center[:6])
    spread = np.sqrt((joint[6:, 6:] - gain @ joint[:6, 6:]).diagonal())
    np.testing.assert_allclose(mean[:3], q.mean["c0"] + q.scale["c0"] * expected, rtol=1e-9)
    np.testing.assert_allclose(sd[:3], q.scale["c0"] * spread, rtol=1e-9)


def test_mixed_model_is_near_exact_for_lines_with_little_noise() -> None:
    pytest.importorskip("statsmodels")
    q = asked(lines(noise=0.05, columns=2))
    found = scores(q, mixed_model.fit_mixed_model(q, 0)())
    noise = float(np.mean(0.05**2 / q.scale**2))
    assert found["mse"] < 6 * noise  # a line from six rows, extrapolated by three: 2.3 times the noise on average


# joint Gaussian


def test_joint_gaussian_of_complete_rows_has_their_moments() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)) @ np.array([[1.0, 0.5, 0.2], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    mean, covariance = joint_gaussian.maximum_likelihood(rows)
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=1e-5)


def test_joint_gaussian_of_gaps_has_no_slope_of_the_likelihood() -> None:
    """At the maximum, the likelihood of what was observed falls in every direction."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 1)) + 0.7 * rng.normal(size=(80, 3))
    rows[rng.random(rows.shape) < 0.25] = np.nan

    def likelihood(mean: np.ndarray, covariance: np.ndarray) -> float:
        total = 0.0
        for row in rows:
            seen = ~np.isnan(row)
            if seen.any():
                law = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
                total += law.logpdf(row[seen])
        return total

    mean, covariance = joint_gaussian.maximum_likelihood(rows)
    best = likelihood(mean, covariance)
    for n in range(3):
        for step in (-0.05, 0.05):
            there = np.zeros(3)
            there[n] = step
            assert likelihood(mean + there, covariance) < best
            assert likelihood(mean, covariance + step * np.outer(there, there) / step**2 * 1.0) < best


def test_lost_column_that_is_a_sum_of_others_is_found() -> None:
    table = lines(noise=0.5, columns=3)
    table.rows["c2"] = table.rows["c0"] + 2 * table.rows["c1"]
    q = asked(table, tasks.lost_columns(1, 0.5))
    found = scores(q, joint_gaussian.fit_joint_gaussian(q, 0)())
    assert found["mse"] < 1e-4


# conditional VAE


def test_cvae_learns_a_common_curve() -> None:
    frame = pd.DataFrame({"who": np.repeat(np.arange(40), 9), "t": np.tile(np.arange(9.0), 40)})
    frame["c"] = np.sin(frame["t"]) + 0.05 * np.random.default_rng(0).normal(size=360)
    q = asked(Table("curve", frame, ["c"], ["t"], "who"))
    found = scores(q, networks.fit_cvae(q, 0, local=False, steps=300)())
    assert found["mse"] < 0.1  # 1 for the mean of all rows
    assert 0.7 <= found["coverage_90"] <= 1.0


def test_codes_have_a_row_for_each_group() -> None:
    q = asked(lines(columns=2), tasks.whole_groups)
    model = networks.trained(q, 0, local=True, steps=2)
    found = networks.codes(q, model, q.context)
    assert set(found.index) == set(q.context["who"])
    assert found.shape[1] == 4


# glyphs


def letters() -> Question:
    """Images of four pixels: one number of each letter times a pattern of each style."""
    rng = np.random.default_rng(0)
    patterns, parts = rng.uniform(0.2, 1.0, (4, 4)), []
    for letter in range(25):
        for accent in range(2):
            values = (0.2 + 0.03 * letter) * patterns
            rows = pd.DataFrame(values, columns=[f"p{n}" for n in range(4)])
            rows["weight"], rows["width"] = [1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 1.0, 2.0]
            parts.append(rows.assign(glyph=f"{letter}-{accent}", letter=letter))
    frame = pd.concat(parts, ignore_index=True)
    table = Table("letters", frame, [f"p{n}" for n in range(4)], ["weight", "width"], "glyph", {}, "letter", False)
    return question(Task("styles", "letters", "", tasks.known_x([(1.0, 1.0), (2.0, 2.0)])), 0, table)


def test_ridge_regression_finds_a_linear_change_of_style() -> None:
    q = letters()
    belief = glyphs.fit_regression(q, 0)()
    spread = float(np.var(q.target[q.table.y].to_numpy() - q.mean.to_numpy()))
    assert scores(q, belief)["mse"] < 0.25 * spread


def test_blend_of_nearest_is_a_weighted_mean_of_training_letters() -> None:
    q = letters()
    _, (given, wanted) = glyphs.arrays(q, *q.practice)
    _, (new, _) = glyphs.arrays(q, q.context, q.target)
    mean = glyphs.blended(glyphs.distances(new, given), wanted, 0.3)
    weights = [math.exp(-float(((new[0] - each) ** 2).sum()) / 0.3) for each in given]
    expected = sum(w * image for w, image in zip(weights, wanted, strict=True)) / sum(weights)
    np.testing.assert_allclose(mean[0], expected)


def test_beliefs_about_letters_are_in_the_order_of_the_target() -> None:
    q = letters()
    q = dataclasses.replace(q, target=q.target.sample(frac=1, random_state=0, ignore_index=True))
    belief = glyphs.fit_nearest_style(q, 0)()
    for n, row in q.target.iterrows():
        given = q.context[q.context["glyph"] == row["glyph"]]
        near = given[(given["weight"] == row["weight"]) | (given["width"] == row["width"])]  # a tie of two
        assert any(np.allclose(belief.mean[n], image) for image in near[q.table.y].to_numpy())


# speakers


def test_classifier_separates_distant_speakers() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 30)
    x = rng.normal(size=(90, 4)) + 10 * (labels == "b")[:, None] - 10 * (labels == "c")[:, None]
    new = np.array([np.zeros(4), np.full(4, 10.0), np.full(4, -10.0)])
    assert speakers.classified(x, labels, new).tolist() == ["a", "b", "c"]


def test_codes_by_hand() -> None:
    q = asked(lines(), tasks.whole_groups)
    who = q.context["who"][0]
    own = q.context[q.context["who"] == who].sort_values("t")
    assert speakers.means_of_columns(q, q.context).loc[who, "c2"] == pytest.approx(own["c2"].mean())
    at = np.interp(np.linspace(0, 8, 7), own["t"], own["c0"])
    np.testing.assert_allclose(speakers.resampled(q, q.context).loc[who].to_numpy()[:7], at)


# scores


def test_a_gaussian_is_scored_as_scipy_says() -> None:
    rng = np.random.default_rng(0)
    y, mu, sd = rng.normal(size=50), rng.normal(size=(1, 50)), rng.uniform(0.5, 2, (1, 50))
    found = mixture_scores(y, mu, sd)
    assert found["nll"] == pytest.approx(-stats.norm(mu[0], sd[0]).logpdf(y).mean())
    grid = np.linspace(-30, 30, 60001)
    crps = [
        np.trapezoid((stats.norm.cdf(grid, m, s) - (grid >= v)) ** 2, grid)
        for v, m, s in zip(y, mu[0], sd[0], strict=True)
    ]
    assert found["crps"] == pytest.approx(np.mean(crps), rel=1e-3)
    assert found["coverage_90"] == np.mean(np.abs((y - mu[0]) / sd[0]) < stats.norm.ppf(0.95))


def test_equal_components_score_as_one_gaussian() -> None:
    rng = np.random.default_rng(0)
    y, mu, sd = rng.normal(size=20), rng.normal(size=(1, 20)), rng.uniform(0.5, 2, (1, 20))
    one, many = mixture_scores(y, mu, sd), mixture_scores(y, mu.repeat(8, 0), sd.repeat(8, 0))
    assert many == pytest.approx(one, rel=1e-9)


def test_draws_with_little_noise_score_almost_as_the_gaussian_that_they_are_of() -> None:
    """Without smoothing, values beyond the outermost draw would have a density of almost 0."""
    q = asked(lines(noise=0.5))
    rng = np.random.default_rng(0)
    belief = rules.rule_belief(q, "own mean")
    assert belief.sd is not None
    draws = belief.mean + belief.sd * rng.normal(size=(128, *belief.mean.shape))
    found = scores(q, Belief(draws.mean(0), None, draws, 0.01 * belief.sd))
    expected = scores(q, Belief(draws.mean(0), draws.std(0)))
    assert found["nll"] == pytest.approx(expected["nll"], abs=0.1)
    assert found["crps"] == pytest.approx(expected["crps"], rel=0.05)


def test_scores_are_free_of_units() -> None:
    table = lines(noise=0.5)
    scaled = dataclasses.replace(table, rows=table.rows.assign(c0=1000 * table.rows["c0"] - 7))
    beliefs = [rules.rule_belief(q, "own mean") for q in (asked(table), asked(scaled))]
    assert scores(asked(table), beliefs[0]) == pytest.approx(scores(asked(scaled), beliefs[1]), rel=1e-6)


def test_levels_have_the_probability_of_their_interval() -> None:
    table = lines(noise=0.5, columns=1)
    rows = table.rows.assign(c0=(table.rows["c0"] > 5).astype(float))
    q = asked(dataclasses.replace(table, rows=rows, levels={"c0": [0.0, 1.0]}))
    shape = (len(q.target), 1)
    found = scores(q, Belief(np.full(shape, 0.3), np.full(shape, 0.4)))
    one = stats.norm(0.3, 0.4).sf(0.5)
    p = np.where(q.target["c0"] == 1, one, 1 - one)
    assert found["nll"] == pytest.approx(-np.log(p).mean())
    assert found["crps"] == pytest.approx(np.mean((1 - p) ** 2) / q.scale["c0"])
    assert "coverage_90" not in found


def test_scores_of_a_table_model_are_put_in_training_deviations() -> None:
    q = asked(lines(noise=0.5))
    belief = rules.rule_belief(q, "own mean")
    expected = scores(q, belief)
    truth = q.target[q.table.y].to_numpy()
    raw = stats.norm(belief.mean, belief.sd)
    z = (truth - belief.mean) / belief.sd
    crps = belief.sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    reported = pd.DataFrame({"nll": -raw.logpdf(truth).mean(0), "crps": crps.mean(0)}, index=q.table.y)
    assert scored_elsewhere(q, belief.mean, raw.ppf(0.05), raw.ppf(0.95), reported) == pytest.approx(expected)


# peers and ours, without their packages


class FakeImputer:
    """Fills gaps with the place in the series."""

    def predict(self, data):
        there = np.arange(data["X"].shape[1], dtype=float)[None, :, None]
        return {"imputation": np.where(np.isnan(data["X"]), there, data["X"])}


@pytest.mark.parametrize("cut", [tasks.middle_gap(0.3), tasks.lost_elements(0.3)])
def test_series_for_peers_keep_the_places_of_lost_values(cut) -> None:
    q = asked(lines(), cut)
    found = peers.imputed(q, FakeImputer(), q.context, q.target, steps=11)
    expected = q.mean.to_numpy() + q.scale.to_numpy() * q.target["t"].to_numpy()[:, None]  # t is the place
    lost = q.target[q.table.y].notna().to_numpy()
    np.testing.assert_allclose(found[lost], expected[lost])


class FakeTableModel:
    """Answers with a tidy table in another order than asked."""

    def __init__(self, belief: Belief, q: Question) -> None:
        self.belief, self.q = belief, q

    def forecast(self, context, at):
        parts = []
        for n, name in enumerate(self.q.table.y):
            law = stats.norm(self.belief.mean[:, n], self.belief.sd[:, n])
            parts.append(at.assign(variable=name, mean=law.mean(), q05=law.ppf(0.05), q95=law.ppf(0.95)))
        return pd.concat(parts).sample(frac=1, random_state=0)

    def score(self, context, target):
        return pd.DataFrame({"nll": 0.0, "crps": 0.0}, index=self.q.table.y)


def test_forecasts_of_a_table_model_meet_their_targets() -> None:
    q = asked(lines(noise=0.5))
    belief = rules.rule_belief(q, "own mean")
    found, expected = ours.scores_of(q, FakeTableModel(belief, q)), scores(q, belief)
    assert found["mse"] == pytest.approx(expected["mse"])
    assert found["coverage_90"] == pytest.approx(expected["coverage_90"])


# page


def record(system: str, fold: int, mse: float) -> Record:
    key = {"table": "Oxboys", "task": "last 30 %", "system": system, "fold": fold}
    return Record(key, {}, {"mse": mse, "fit_seconds": 1.0, "predict_seconds": 0.1, "coverage_90": 0.9}, {})


def test_page_names_the_best_and_the_ratio(tmp_path) -> None:
    plan = Plan(tmp_path)
    for fold in range(2):
        for system, mse in {"last value": 0.4, "linear rule": 0.1 + 0.2 * fold, page.OURS: 0.3}.items():
            plan.add("tables", record(system, fold, mse))
    text = page.systems(TASKS[0], plan)
    assert "| linear rule | 2 | **0.2000** | 0.1414 |" in text
    assert "The default over the best other row (linear rule): 1.50. Ahead of the default: linear rule. Use" in text
    assert "No run yet: own mean," in text
    assert "| Oxboys | last 30 % | 2 | 0.3000 | linear rule | 0.2000 | 1.50 | 0.900 |" in page.overview(plan)
    plan.add("tables", record("last value", 2, 0.0))  # a fold without the default does not count
    assert "| Oxboys | last 30 % | 2 | 0.3000 | linear rule | 0.2000 | 1.50 | 0.900 |" in page.overview(plan)


def test_every_system_has_advice() -> None:
    from benchmarks.league.systems import systems_of

    assert {s for task in TASKS for s in systems_of(task)} == {*page.ADVICE, page.OURS}
    assert markdown_table(["a +-"], [["1", "2"]]).splitlines()[0] == "| a | +- |"


def test_a_plan_leaves_out_systems_that_are_not_installed(monkeypatch) -> None:
    from benchmarks.league import systems
    from benchmarks.studies import tables as study

    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: object())
    for present in (False, True):
        monkeypatch.setattr(systems.peers, "installed", lambda present=present: present)
        monkeypatch.setattr(systems.ours, "installed", lambda: False)
        planned = {key["system"] for key in study.keys(Plan())}
        assert set(peers.PEERS) <= planned if present else not set(peers.PEERS) & planned
        assert page.OURS not in planned


def test_quick_plan_is_small() -> None:
    from benchmarks.studies import tables as study

    quick = study.keys(Plan(quick=True))
    assert {key["fold"] for key in quick} <= {0}
    assert len({key["table"] for key in quick}) <= 2
