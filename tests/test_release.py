"""What is published in several places is the same in all of them."""

import re
import tomllib
from pathlib import Path

import yaml

import fgp_gpytorch

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPE = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements(lines: list[str]) -> dict[str, str]:
    """The least version of each package."""
    pairs = [re.fullmatch(r"([\w-]+) ?>=([\d.]+)", line) for line in lines]
    return {pair[1]: pair[2] for pair in pairs if pair is not None}


def test_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert {PROJECT["version"], str(cited), RECIPE["context"]["version"]} == {fgp_gpytorch.__version__}
    assert f"[{fgp_gpytorch.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_conda_needs_what_pip_needs():
    ours = requirements([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["plots"]])
    assert len(ours) == len(PROJECT["dependencies"]) + 1
    assert requirements(RECIPE["requirements"]["run"]) == {CONDA_NAMES.get(k, k): v for k, v in ours.items()}
    assert PROJECT["requires-python"] == f">={RECIPE['context']['python_min']}"
    assert RECIPE["about"]["license_file"] == PROJECT["license-files"]


def test_development_installs_every_extra_that_the_library_uses():
    extras = PROJECT["optional-dependencies"]
    assert extras["dev"][0] == "fgp_gpytorch[plots,images]"
    assert set(extras) == {"plots", "images", "dev", "docs", "release", "peers"}
