"""The machinery of the paper's evaluation: ablations by hand, fair trials, alignment, records made once."""

import argparse
import dataclasses
import json
import math
import time

import pytest
import torch

from fgp_gpytorch.datasets import HeldOutViews, rotated_mnist
from fgp_gpytorch.errors import NonFiniteError


@pytest.fixture(scope="module")
def data():
    return rotated_mnist(views=3)


def test_shared_quadratic_term_is_the_authors_programs(benchmark, data):
    ablations, systems = benchmark("ablations"), benchmark("systems")
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


def test_joint_samples_are_equal_in_global_channels(benchmark, data):
    ablations, systems = benchmark("ablations"), benchmark("systems")
    torch.manual_seed(0)
    base = systems.fgp_vae(ablations.PAPER, 360)
    model = ablations.JointSamples(base.encoder, base.decoder, base.prior, base.likelihood)
    batch = data.train[[4, 7]]
    joint = model._infer(batch).rsample((), marginals=True)[..., 8:]
    marginal = base._infer(batch).rsample((), marginals=True)[..., 8:]
    assert (joint - joint[:, :1]).abs().max() < 1e-9
    assert (marginal - marginal[:, :1]).abs().max() > 1e-3


def test_every_system_has_as_many_trials_as_the_fgp_vae_had(benchmark):
    rivals, table1, systems = benchmark("choose_rivals"), benchmark("table1"), benchmark("systems")
    settings = benchmark("choose_settings")
    own = [name for name in settings.CANDIDATES if not name.startswith("paper")]
    assert set(rivals.CHANGES) | set(rivals.SETTINGS_OF) | set(table1.OWN) == set(systems.BUILD)
    assert set(rivals.SETTINGS_OF.values()) <= set(rivals.CHANGES)
    for name, changes in rivals.CHANGES.items():
        assert len(rivals.GRID) + len(changes) == len(own) == 13, name
    assert all(len(changes) == 13 for changes in rivals.SECOND_ROUND.values())
    assert rivals.num_trials("SVGP-VAE") == 2 * rivals.num_trials("GP-VAE") == 26
    assert table1.FGP_VAE_BEST.epochs == table1.PUBLISHED["VAE"].epochs == 1000


def test_settings_in_a_table_wait_for_all_trials(benchmark, tmp_path, monkeypatch):
    rivals, table1 = benchmark("choose_rivals"), benchmark("table1")
    path = tmp_path / "trials.jsonl"
    monkeypatch.setattr(rivals, "RECORDS", path)
    recipe = dataclasses.asdict(rivals.recipe_of("GP-VAE", rivals.GRID[4], 200))
    lines = [
        {"system": "GP-VAE", "recipe": recipe | {"num_factors": n}, "unseen_angle_mse": e, "unseen_angle_mse_mean": 1.0}
        for n, e in enumerate([0.05, 0.02, 0.03, *[0.04] * 10])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:12]))
    assert table1.recipe_for("GP-VAE", "best") is None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = table1.recipe_for("GP-VAE", "best")
    assert (chosen.num_factors, chosen.epochs) == (1, 1000)
    assert table1.recipe_for("VAE", "best") is None
    path.write_text("".join(json.dumps(line | {"system": "FGP-VAE, correlated, learned"}) + "\n" for line in lines))
    assert table1.recipe_for("FGP-VAE, correlated by PCA", "best") == chosen
    assert table1.recipe_for("GP-VAE", "best") is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_alignment_finds_turn_and_reflection(benchmark, sign):
    unknown = benchmark("unknown_angles")
    truth = 2 * math.pi * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guess = sign * (truth - 1.3)
    guess[::5] += 0.3 * torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, turn = unknown.alignment(guess, truth)
    assert found == sign
    assert turn == pytest.approx(1.3, abs=0.03)


def test_hidden_angles_are_the_part_that_is_not_known_and_the_groups_stay(benchmark, data):
    unknown = benchmark("unknown_angles")
    hidden = unknown.hidden(data.train, 0.25, seed=3)
    x, truth = hidden.flat().x[:, 0], data.train.flat().x[:, 0]
    assert int((~x.isnan()).sum()) == 270
    assert torch.equal(x[~x.isnan()], truth[~x.isnan()])
    assert hidden.labels.tolist() == data.train.labels.tolist()
    assert torch.equal(hidden.flat().y, data.train.flat().y)


def test_a_system_that_couples_groups_is_conditioned_on_all_training_rows(benchmark, data):
    systems = benchmark("systems")
    torch.manual_seed(0)
    model = systems.svgp_vae(systems.Recipe(num_inducing=16), 360)
    model.initialize_objects(data.train)
    asked = systems.ask(model, data.train, data.test, data.extrapolation)
    assert asked.extrapolation is None
    generator, views = asked.test
    alone = model.predict(views.x_new[:3], views.context[:3]).mean
    assert (generator.predict(views.x_new[:3], views.context[:3]).mean - alone).abs().max() > 1e-4
    model = systems.gp_vae_of_images(systems.Recipe(), 360)
    assert systems.ask(model, data.train, data.test, data.extrapolation).extrapolation is not None


def test_a_record_is_whole_and_is_not_made_twice(benchmark, tmp_path):
    harness = benchmark("harness")
    script = tmp_path / "script.py"
    script.write_text("import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text('{\"run\": 1}')")
    path = tmp_path / "record.json"
    assert harness.recorded(str(script), path, ["--one"], jobs=2) == {"run": 1}
    script.write_text("raise SystemExit(1)")
    assert harness.recorded(str(script), path, ["--one"], jobs=2) == {"run": 1}
    harness.write(path, {"run": 2})
    assert harness.recorded(str(script), path, ["--one"], jobs=2) == {"run": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["record.json", "script.py"]


def test_no_run_is_begun_after_one_that_failed(benchmark):
    begun = []

    def task(number):
        begun.append(number)
        if number == 1:
            raise KeyboardInterrupt
        time.sleep(0.05)  # as a run takes its time: the one that failed is looked at meanwhile

    with pytest.raises(KeyboardInterrupt):
        benchmark("harness").in_turn(task, range(1, 200), jobs=1)
    assert begun[0] == 1
    assert len(begun) < 199


def test_a_run_that_diverges_leaves_a_record_that_says_so(benchmark, tmp_path, monkeypatch):
    """A night of runs goes on after it, and the table counts it."""
    table1, tables = benchmark("table1"), benchmark("paper_tables")

    def lost(*args):
        raise NonFiniteError("training stopped: loss is not finite")

    monkeypatch.setattr(table1, "train_system", lost)
    folder = tmp_path / "table1"
    folder.mkdir()
    for seed in (0, 1):
        record = table1.run("CVAE of the context", "best", "ragged", seed, 2, folder / "model.pt")
        assert record["diverged"].startswith("training stopped")
        (folder / f"ragged_best_cvae_{seed}.json").write_text(json.dumps(record))
    assert not (folder / "model.pt").exists()
    assert table1.read(folder) == {}
    monkeypatch.setattr(tables, "RECORDS", tmp_path)
    row = next(line for line in tables.systems("ragged").splitlines() if line.startswith("| CVAE of the context"))
    assert row == "| CVAE of the context | 0, 2 diverged | - | - | - | - | - | - |"
    assert "CVAE of the context, at its best" not in tables.systems("ragged").split("No run yet")[1]


def test_figures_that_would_not_mean_what_their_column_says_are_not_shown(benchmark):
    tables = benchmark("paper_tables")
    assert tables.hidden("VAE", "test negative log likelihood")
    assert tables.hidden("SVGP-VAE", "disentanglement local group accuracy")
    assert tables.hidden("SVGP-VAE", "disentanglement alone local group accuracy")
    assert not tables.hidden("GP-VAE", "disentanglement alone local group accuracy")  # its q is the encoder's alone
    assert not tables.hidden("CVAE of the context", "test negative log likelihood")
    rows = {row.split("|")[1].strip(): row for row in tables.compared(tables.COMPARED["calibration"]).splitlines()}
    assert rows["CVAE"].split("|")[3].strip() == "-"
    assert float(rows["FGP-VAE"].split("|")[3].split()[0]) < 0
    told = {row.split("|")[1].strip() for row in tables.compared(tables.COMPARED["told the angle"]).splitlines()}
    assert "FGP-VAE" in told
    assert not told & {"VAE", "CVAE", "GP-VAE", "SVGP-VAE"}


def test_mean_code_is_the_average_over_the_images_that_are_there_decoded_at_the_new_angle(benchmark):
    evaluate, systems = benchmark("evaluate"), benchmark("systems")
    torch.manual_seed(0)
    model = systems.cvae(systems.Recipe(), 360).eval()
    ragged = rotated_mnist(views="shuffled")
    chosen = torch.tensor([0, 5, 9])
    views = HeldOutViews(
        ragged.test.context.subset(chosen),
        *(getattr(ragged.test, name)[chosen] for name in ("x_new", "y_new", "instance", "digit")),
    )
    assert len(set(views.context.group_sizes.tolist())) > 1
    errors = []
    with torch.no_grad():
        for g, size in enumerate(views.context.group_sizes.tolist()):
            code = model.infer(views.context[[g]]).mean[0, :size].mean(0)
            decoded = model.decoder(code.float(), model.features(views.x_new[g, 0].float()))
            errors.append(float((decoded - views.y_new[g, 0]).square().mean()))
    assert evaluate.mse_of_mean_code(model, views) == pytest.approx(sum(errors) / 3, rel=1e-5)


def plan_of(table1, seeds=None, **changes):
    """Options of all that `table1.py` runs when it is not told what."""
    everything = {"protocols": table1.PROTOCOLS, "blocks": ("published", "best"), "only": table1.BUILD}
    return argparse.Namespace(seeds=seeds, **everything | changes)


def test_plan_has_five_seeds_of_the_papers_rows_and_all_on_demand(benchmark):
    table1 = benchmark("table1")
    rows = len(table1.BUILD) + len(table1.PUBLISHED)
    planned = table1.all_runs(plan_of(table1))
    assert len(planned) == len(set(planned)) == 5 * (rows - 6) + 3 * 6 + (rows - 3 + 3 * 5) + 3 * (2 + 2 + 1)
    assert [seed for *_, seed in planned] == sorted(seed for *_, seed in planned)
    assert {each[0] for each in planned if each[2] == "ragged" and each[3] == 4} == set(table1.HEAD)
    assert ("FGP-VAE", "published", "ragged", 1) not in planned
    demanded = table1.all_runs(plan_of(table1, seeds=5, protocols=["ragged"]))
    assert len(demanded) == 5 * rows
    assert table1.all_runs(plan_of(table1, only=[])) == []


def test_on_ragged_views_the_cvae_of_the_context_takes_a_rate_that_trains_and_others_what_they_have(benchmark):
    table1 = benchmark("table1")
    for system in ("CVAE of the context", "CVAE of the context, any context"):
        equal, ragged = (table1.recipe_for(system, "best", protocol) for protocol in ("equal", "ragged"))
        assert (equal.learning_rate, ragged.learning_rate) == (0.02, 0.01)
    for system in ("FGP-VAE", "SVGP-VAE", "FGP-VAE, coregionalized, any context"):
        assert table1.recipe_for(system, "best", "ragged") == table1.recipe_for(system, "best", "equal")
    # that rate is the lowest error of the trials below the one that fails
    trials = [
        r for r in table1.choose_rivals.read(table1.choose_rivals.RECORDS) if r["system"] == "CVAE of the context"
    ]
    best = min((r for r in trials if r["recipe"]["learning_rate"] < 0.02), key=table1.choose_rivals.score)
    assert table1.recipe_for("CVAE of the context", "best", "ragged").member_dropout == best["recipe"]["member_dropout"]


def test_other_digits_has_a_figure_for_every_seed(benchmark):
    paper_tables = benchmark("paper_tables")
    known = {"test_mse": 0.0123, "extrapolation_mse": 0.0456}
    assert paper_tables.both_errors(known) == "0.0123 / 0.0456"
    assert paper_tables.both_errors({"test_mse": 0.0123}) == "0.0123"


def test_digits_that_confirm_are_other_digits_with_views_as_equal(benchmark):
    table1 = benchmark("table1")
    data, all_views = table1.data_of("fives")
    assert data.digits == all_views.digits == (5,)
    assert data.train.group_sizes.unique().tolist() == [11]
    assert all_views.train.group_sizes.unique().tolist() == [15]
    assert table1.data_of("ragged")[0].train.group_sizes.unique().tolist() != [11]


def test_cost_counts_every_record_once(benchmark):
    tables, table1 = benchmark("paper_tables"), benchmark("table1")
    recorded = sum(map(len, table1.read(tables.RECORDS / "table1").values()))
    row = next(line for line in tables.cost().splitlines() if line.startswith("| Table 1"))
    runs, missing, *_, so_far, in_all = (cell.strip() for cell in row.split("|")[2:-1])
    diverged = sum(map(len, table1.read(tables.RECORDS / "table1", diverged=True).values()))
    assert int(runs) == recorded
    planned = set(table1.all_runs(plan_of(table1)))
    beyond = {path.stem for path in (tables.RECORDS / "table1").glob("*.json")}
    beyond -= {table1.path_of(tables.RECORDS, *each).stem for each in planned}
    assert int(runs) + int(missing) + diverged == len(planned) + len(beyond)
    assert (float(so_far) < float(in_all)) == (int(missing) > 0)
