"""The machinery of the paper's evaluation: ablations by hand, fair trials, alignment, records made once."""

import dataclasses
import math
import time

import pytest
import torch

from benchmarks import evaluation, runner, systems, tables
from benchmarks.records import Plan, Record, identity
from benchmarks.studies import STUDIES, ablations, rivals, settings, table1, unknown_angles
from benchmarks.study import Study
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.errors import NonFiniteError


@pytest.fixture(scope="module")
def data():
    return rotated_mnist(views=3)


def test_shared_quadratic_term_is_the_authors_programs(data):
    torch.manual_seed(0)
    base = systems.fgp_vae(ablations.PAPER, 360)
    model = ablations.SharedQuadraticTerm(base.encoder, base.decoder, base.prior, base.likelihood)
    batch = data.train[[4, 7, 300]]
    with torch.no_grad():
        mean, variance = (part.reshape(3, 3, 16).double() for part in base.encoder(batch.y.flatten(0, 1)))
        posterior = base.infer(batch)
        kl = model.terms(batch).kl_global
    # their log Z: the last term, of one channel, is summed over all groups; then KL = E_q[log q~] - log Z
    wanted = torch.zeros(3, dtype=torch.float64)
    for channel in range(8, 16):
        m, v = mean[..., channel], variance[..., channel]
        bar_v = 1 / (1 + (1 / v).sum(1))
        bar_m = bar_v * (m / v).sum(1)
        log_z = 0.5 * bar_v.log() + 0.5 * bar_m**2 / bar_v - 1.5 * math.log(2 * math.pi)
        log_z = log_z - 0.5 * v.log().sum(1) - 0.5 * (m**2 / v).sum()
        z_mean, z_variance = posterior.mean[..., channel], posterior.variance[..., channel]
        expected = -0.5 * (math.log(2 * math.pi) + v.log() + ((z_mean - m) ** 2 + z_variance) / v)
        wanted += expected.sum(1) - log_z
    torch.testing.assert_close(kl, wanted, rtol=1e-6, atol=1e-6)
    assert (kl > base.terms(batch).kl_global + 0.1).all()


def test_joint_samples_are_equal_in_global_channels(data):
    torch.manual_seed(0)
    base = systems.fgp_vae(ablations.PAPER, 360)
    model = ablations.JointSamples(base.encoder, base.decoder, base.prior, base.likelihood)
    batch = data.train[[4, 7]]
    joint = model.training_posterior(batch).rsample((), marginals=True)[..., 8:]
    marginal = base.training_posterior(batch).rsample((), marginals=True)[..., 8:]
    assert (joint - joint[:, :1]).abs().max() < 1e-9
    assert (marginal - marginal[:, :1]).abs().max() > 1e-3


def test_every_system_has_as_many_trials_as_the_fgp_vae_had():
    own = [name for name in settings.CANDIDATES if not name.startswith("paper")]
    assert set(rivals.CHANGES) | set(rivals.SETTINGS_OF) | set(table1.OWN) == set(systems.BUILD)
    assert set(rivals.SETTINGS_OF.values()) <= set(rivals.CHANGES)
    for name, changes in rivals.CHANGES.items():
        assert len(rivals.GRID) + len(changes) == len(own) == 13, name
    assert all(len(changes) == 13 for changes in rivals.SECOND_ROUND.values())
    assert rivals.num_trials("SVGP-VAE") == 2 * rivals.num_trials("GP-VAE") == 26
    assert table1.FGP_VAE_BEST.epochs == table1.PUBLISHED["VAE"].epochs == 1000


def test_settings_in_a_table_wait_for_all_trials(tmp_path):
    def trials(system, count):
        plan = Plan(tmp_path / f"{system} {count}")
        recipe = dataclasses.asdict(rivals.recipe_of("GP-VAE", rivals.GRID[4], 200))
        for n, error in enumerate([0.05, 0.02, 0.03, *[0.04] * 10][:count]):
            key = {"system": system, "recipe": recipe | {"num_factors": n}}
            plan.add("rivals", Record(key, {}, {"unseen_angle_mse": error, "unseen_angle_mse_mean": 1.0}, {}))
        return plan

    assert table1.recipe_for("GP-VAE", "best", trials=trials("GP-VAE", 12)) is None
    chosen = table1.recipe_for("GP-VAE", "best", trials=trials("GP-VAE", 13))
    assert (chosen.num_factors, chosen.epochs) == (1, 1000)
    assert table1.recipe_for("VAE", "best", trials=trials("GP-VAE", 13)) is None
    learned = trials("FGP-VAE, correlated, learned", 13)
    assert table1.recipe_for("FGP-VAE, correlated by PCA", "best", trials=learned) == chosen
    assert table1.recipe_for("GP-VAE", "best", trials=learned) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_alignment_finds_turn_and_reflection(sign):
    truth = 2 * math.pi * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guess = sign * (truth - 1.3)
    guess[::5] += 0.3 * torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, turn = unknown_angles.alignment(guess, truth)
    assert found == sign
    assert turn == pytest.approx(1.3, abs=0.03)


def test_hidden_angles_are_the_part_that_is_not_known_and_the_groups_stay(data):
    hidden = unknown_angles.hidden(data.train, 0.25, seed=3)
    x, truth = hidden.flat().x[:, 0], data.train.flat().x[:, 0]
    assert int((~x.isnan()).sum()) == 270
    assert torch.equal(x[~x.isnan()], truth[~x.isnan()])
    assert hidden.labels.tolist() == data.train.labels.tolist()
    assert torch.equal(hidden.flat().y, data.train.flat().y)


def test_a_system_that_couples_groups_is_conditioned_on_all_training_rows(data):
    torch.manual_seed(0)
    model = systems.svgp_vae(systems.Recipe(num_inducing=16), 360)
    model.initialize_vectors(data.train)
    asked = systems.ask(model, data.train, data.test, data.extrapolation)
    assert asked.extrapolation is None
    generator, views = asked.test
    alone = model.predict(views.x_new[:3], views.context[:3]).mean
    assert (generator.predict(views.x_new[:3], views.context[:3]).mean - alone).abs().max() > 1e-4
    model = systems.gp_vae_of_images(systems.Recipe(), 360)
    assert systems.ask(model, data.train, data.test, data.extrapolation).extrapolation is not None


def study_of(keys, made):
    """A study whose runs note their seeds."""

    def run(key, plan):
        made.append(key["seed"])
        return {}, {"value": 0.1 + key["seed"]}

    return Study("some", "Some", "", keys, run, lambda record: f"seed {record.key['seed']}")


def test_a_record_is_whole_and_is_not_made_twice(tmp_path):
    plan, made = Plan(tmp_path), []
    study = study_of(lambda plan: [{"seed": 0}, {"seed": 1}], made)
    for _ in range(2):
        runner.run_missing(study, plan, make=runner.make_record)
        assert made == [0, 1]
        assert [record["value"] for record in plan.read("some")] == [0.1, 1.1]
    path = plan.path("some")
    path.write_text(path.read_text()[:-9])  # a write that was cut
    assert [record.key for record in plan.read("some")] == [{"seed": 0}]
    runner.run_missing(study, plan, make=runner.make_record)
    assert made == [0, 1, 1]
    assert [record["value"] for record in plan.read("some")] == [0.1, 1.1]
    assert not plan.add("some", Record({"seed": 1}, {}, {"value": 2.0}, {}))
    assert [record["value"] for record in plan.read("some", seed=1)] == [1.1]


def test_records_that_are_added_at_once_are_all_kept(tmp_path):
    plan = Plan(tmp_path)
    records = [Record({"seed": n % 40}, {}, {"text": "x" * 5000}, {}) for n in range(80)]
    runner.in_turn(lambda record: plan.add("some", record), records, jobs=8)
    assert sorted(record.key["seed"] for record in plan.read("some")) == list(range(40))


def test_runs_that_follow_from_records_are_made_and_only_those_asked_for(tmp_path):
    plan, made = Plan(tmp_path), []
    study = study_of(lambda plan: [{"seed": n} for n in range(min(3, len(plan.read("some")) + 1))], made)
    runner.run_missing(study, plan, words=["1"], make=runner.make_record)
    assert made == []
    runner.run_missing(study, plan, jobs=2, make=runner.make_record)
    assert made == [0, 1, 2]


def test_every_planned_run_of_this_repository_has_a_record(capsys):
    assert runner.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in heads] == list(STUDIES)
    to_come = {"tables"}
    assert {line.split()[0] for line in heads if " 0 missing" not in line} <= to_come


def test_no_run_is_begun_after_one_that_failed():
    begun = []

    def task(number):
        begun.append(number)
        if number == 1:
            raise KeyboardInterrupt
        time.sleep(0.05)  # as a run takes its time: the one that failed is looked at meanwhile

    with pytest.raises(KeyboardInterrupt):
        runner.in_turn(task, range(1, 200), jobs=1)
    assert begun[0] == 1
    assert len(begun) < 199


def test_a_run_that_diverges_leaves_a_record_that_says_so(tmp_path, monkeypatch):
    """A night of runs goes on after it, and the table counts it."""

    def lost(*args):
        raise NonFiniteError("training stopped: loss is not finite")

    monkeypatch.setattr(table1, "train_system", lost)
    plan = Plan(tmp_path)
    for seed in (0, 1):
        key = {"protocol": "ragged", "block": "best", "system": "CVAE of the context", "seed": seed}
        record = runner.make_record(table1.STUDY, key, plan)
        assert record["diverged"].startswith("training stopped")
        plan.add("table1", record)
    assert not plan.weights.exists()
    assert tables.systems_of(plan, "ragged") == []
    rows = tables.systems(plan, "ragged").splitlines()
    row = next(line for line in rows if line.startswith("| best | CVAE of the context |"))
    assert row == "| best | CVAE of the context | 0 | 2 |" + " - |  |" * 6
    assert "CVAE of the context, at its best" not in tables.systems(plan, "ragged").split("No run yet")[1]


def test_figures_that_would_not_mean_what_their_column_says_are_not_shown():
    assert tables.hidden("VAE", "test negative log likelihood")
    assert tables.hidden("SVGP-VAE", "disentanglement local group accuracy")
    assert tables.hidden("SVGP-VAE", "disentanglement alone local group accuracy")
    assert not tables.hidden("GP-VAE", "disentanglement alone local group accuracy")  # its q is the encoder's alone
    assert not tables.hidden("CVAE of the context", "test negative log likelihood")
    rows = {row.split("|")[1].strip(): row for row in tables.compared(Plan(), tables.CALIBRATION).splitlines()}
    assert rows["CVAE"].split("|")[3].strip() == "-"
    assert float(rows["FGP-VAE"].split("|")[3].split()[0]) < 0
    told = {row.split("|")[1].strip() for row in tables.compared(Plan(), tables.PATHS).splitlines()}
    assert "FGP-VAE" in told
    assert not told & {"VAE", "CVAE", "GP-VAE", "SVGP-VAE"}


def test_mean_code_is_the_average_over_the_images_that_are_there_decoded_at_the_new_angle():
    torch.manual_seed(0)
    model = systems.cvae(systems.Recipe(), 360).eval()
    ragged = rotated_mnist(views="shuffled")
    chosen = torch.tensor([0, 5, 9])
    views = HeldOut(
        ragged.test.context.subset(chosen),
        *(getattr(ragged.test, name)[chosen] for name in ("x_new", "y_new")),
    )
    assert len(set(views.context.group_sizes.tolist())) > 1
    errors = []
    with torch.no_grad():
        for g, size in enumerate(views.context.group_sizes.tolist()):
            code = model.infer(views.context[[g]]).mean[0, :size].mean(0)
            decoded = model.decoder(code.float(), model.features(views.x_new[g, 0].float()))
            errors.append(float((decoded - views.y_new[g, 0]).square().mean()))
    assert evaluation.mse_of_mean_code(model, views) == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_plan_has_five_seeds_of_the_papers_rows_and_all_on_demand():
    rows = len(table1.BUILD) + len(table1.PUBLISHED)
    planned = [tuple(key.values()) for key in table1.planned(Plan())]
    assert len(planned) == len(set(planned)) == 5 * (rows - 6) + 3 * 6 + (rows - 3 + 3 * 5) + 3 * (2 + 2 + 1)
    assert [seed for *_, seed in planned] == sorted(seed for *_, seed in planned)
    assert {each[2] for each in planned if each[0] == "ragged" and each[3] == 4} == set(table1.HEAD)
    assert ("ragged", "published", "FGP-VAE", 1) not in planned
    demanded = [key for key in table1.planned(Plan(seeds=5)) if key["protocol"] == "ragged"]
    assert len(demanded) == 5 * rows
    assert runner.missing_keys(table1.STUDY, Plan(seeds=5), ["no such value"]) == []


def test_on_ragged_views_the_cvae_of_the_context_takes_a_rate_that_trains_and_others_what_they_have():
    for system in ("CVAE of the context", "CVAE of the context, any context"):
        equal, ragged = (table1.recipe_for(system, "best", protocol) for protocol in ("equal", "ragged"))
        assert (equal.learning_rate, ragged.learning_rate) == (0.02, 0.01)
    for system in ("FGP-VAE", "SVGP-VAE", "FGP-VAE, coregionalized, any context"):
        assert table1.recipe_for(system, "best", "ragged") == table1.recipe_for(system, "best", "equal")
    # that rate is the lowest error of the trials below the one that fails
    trials = [r for r in Plan().read("rivals", system="CVAE of the context") if r.key["recipe"]["learning_rate"] < 0.02]
    best = min(trials, key=rivals.score).key["recipe"]
    assert table1.recipe_for("CVAE of the context", "best", "ragged").member_dropout == best["member_dropout"]


def test_other_digits_has_a_figure_for_every_seed():
    known = {"test_mse": 0.0123, "extrapolation_mse": 0.0456}
    assert tables.both_errors(Record({}, {}, known, {})) == ["0.0123", "0.0456"]
    assert tables.both_errors(Record({}, {}, {"test_mse": 0.0123}, {})) == ["0.0123", "n/a"]
    seeds = [line.split("|")[1:4] for line in tables.other_digits(Plan()).splitlines()[2:]]
    assert len({tuple(row) for row in seeds}) == len(seeds) == 3 * (2 + 2 + 1)


def test_digits_that_confirm_are_other_digits_with_views_as_equal():
    data, all_views = table1.data_of("fives")
    assert data.digits == all_views.digits == (5,)
    assert data.train.group_sizes.unique().tolist() == [11]
    assert all_views.train.group_sizes.unique().tolist() == [15]
    assert table1.data_of("ragged")[0].train.group_sizes.unique().tolist() != [11]


def test_cost_counts_every_record_once():
    records = Plan().read("table1")
    diverged = sum(record.diverged for record in records)
    row = next(line for line in tables.cost(Plan()).splitlines() if line.startswith("| Table 1"))
    runs, missing, *_, so_far, in_all = (cell.strip() for cell in row.split("|")[2:-1])
    assert int(runs) == len(records) - diverged
    planned = {identity(key) for key in table1.planned(Plan())}
    beyond = {identity(record.key) for record in records} - planned
    assert int(runs) + int(missing) + diverged == len(planned) + len(beyond)
    assert (float(so_far) < float(in_all)) == (int(missing) > 0)
