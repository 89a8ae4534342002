"""The two commands of the package."""

import pytest
import torch

import fgp_gpytorch
from fgp_gpytorch.__main__ import NEW, main


def test_info_names_versions_devices_and_threads(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for expected in (f"fgp_gpytorch {fgp_gpytorch.__version__}", f"torch {torch.__version__.split('+')[0]}", "GPUs: "):
        assert expected in printed
    assert f"threads: {torch.get_num_threads()}" in printed


def test_demo_writes_a_plot_and_prints_scores_of_every_column(tmp_path, capsys):
    out = tmp_path / "plot.png"
    assert main(["demo", "--short", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert all(name in printed for name in ("life_expectancy", "fertility", "infant_mortality", "coverage_90"))


def test_demo_forecasts_countries_of_the_table():
    assert set(NEW) <= set(fgp_gpytorch.datasets.gapminder()["country"])


def test_a_missing_command_is_an_error():
    with pytest.raises(SystemExit, match="2"):
        main([])
