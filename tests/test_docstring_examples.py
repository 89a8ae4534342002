"""Every example of a docstring is run, and every public name has one."""

import doctest
import functools
import importlib
import inspect
import math
import pkgutil
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import fgp_gpytorch
from fgp_gpytorch import datasets
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.datasets import RotatedMNIST
from fgp_gpytorch.feature_maps import angle_kernel
from fgp_gpytorch.prior import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.tables import TableModel
from fgp_gpytorch.training import fit

PACKAGES = (
    "data", "datasets", "feature_maps", "kernels", "likelihoods", "means", "metrics", "models", "nets", "objectives",
    "prior", "coupled", "tables", "training", "saving", "gaussian", "plots",
)  # fmt: skip
NO_EXAMPLE = {
    "data.Members": "what a GroupedDataset stores; its example shows the parts",
    "data.Reference": "what GroupedDataset.align stores",
    "metrics.Disentanglement": "returned by disentanglement, whose example reads it",
    "saving.KEY": "a constant",
    "tables.Tuning": "returned by tune, whose example reads it",
}


class Checker(doctest.OutputChecker):
    """Compares outputs that an example shows, numbers up to their third decimal. The other lines only have to run."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(rounded(want), rounded(got), optionflags)


def rounded(output: str) -> str:
    numbers = re.sub(r"-?\d+\.?\d*(e[+-]\d+)?", lambda found: f"{round(float(found[0]), 3) + 0.0:.3f}", output)
    return re.sub(r"\[\s+", "[", numbers)


def examples() -> dict[str, doctest.DocTest]:
    """The examples of all docstrings, by the name of the object without that of the package."""
    names = [found.name for found in pkgutil.walk_packages(fgp_gpytorch.__path__, "fgp_gpytorch.")]
    modules = [importlib.import_module(name) for name in ("fgp_gpytorch", *names) if not name.endswith("__main__")]
    finder = doctest.DocTestFinder(parser=doctest.DocTestParser())
    found = [test for module in modules for test in finder.find(module, module.__name__, module)]
    return {test.name.removeprefix("fgp_gpytorch."): test for test in found if "Examples:" in (test.docstring or "")}


def public(package: str) -> dict[str, Any]:
    """The public classes, functions and constants of a package, without its subpackages."""
    module = importlib.import_module(f"fgp_gpytorch.{package}" if package else "fgp_gpytorch")
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    values = {name: getattr(module, name) for name in names}
    return {name: value for name, value in values.items() if not inspect.ismodule(value)}


@functools.cache
def digits() -> tuple[RotatedMNIST, RotatedMNIST]:
    """Rotated MNIST, whole and with few groups."""
    whole = datasets.rotated_mnist()
    test, extrapolation = (
        HeldOut(part.context.subset(range(4)), part.x_new[:4], part.y_new[:4])
        for part in (whole.test, whole.extrapolation)
    )
    return whole, replace(whole, train=whole.train.subset(range(8)), test=test, extrapolation=extrapolation)


def quick_fit(model: Any, train: GroupedDataset, **options: Any) -> Any:
    folder = options.pop("folder", None) or tempfile.mkdtemp(dir=".")
    return fit(model, train, **options | {"epochs": 1, "folder": folder, "progress": False})


def namespace(example: str) -> dict[str, Any]:
    """All public names, and small objects for the names that an example takes from its reader."""
    names: dict[str, Any] = {"torch": torch, "math": math, "np": np, "pd": pd, "gpytorch": gpytorch, "pyro": pyro}
    for package in ("", *PACKAGES):
        names |= public(package)
    whole, few = digits()
    countries = datasets.gapminder().query("country < 'B' and year % 10 == 0")
    names |= {"fit": quick_fit, "rotated_mnist": lambda: whole, "gapminder": lambda: countries}
    kernel = angle_kernel()
    prior = FactorizedGPPrior([LocalChannels(8, kernel), GlobalChannels(8)])
    names |= {"data": few, "x_new": whole.angles[:3, None], "kernel": kernel, "prior": prior}
    if "Correlated" in example:
        names["data"] = few.train
    rows = few.train.flat()
    return names | {"images": rows.y, "angles": rows.x[:, 0], "digit": rows.group}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fits of tables take no second stage and hardly a first one; files go to a temporary folder."""
    fit_table, optimizer = TableModel.fit, torch.optim.LBFGS
    monkeypatch.setattr(TableModel, "fit", lambda self, df, **options: fit_table(self, df, **options, max_steps=0))
    monkeypatch.setattr(torch.optim, "LBFGS", lambda *args, **options: optimizer(*args, **options | {"max_iter": 1}))
    monkeypatch.chdir(tmp_path)


EXAMPLES = examples()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_runs_and_gives_the_output_that_it_shows(name: str) -> None:
    test, report = EXAMPLES[name], []
    own = test.globs if name.startswith("kernels._group_operators.") else {}  # the example of a private class
    test.globs = {"__name__": "__main__"} | own | namespace(name)
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test, out=report.append).failed == 0, "".join(report)
    assert runner.tries, "Examples: without >>>"


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_public_name_has_an_example(package: str) -> None:
    names = {f"{package}.{name}".lstrip("."): value for name, value in public(package).items()}
    lacking = {name for name, value in names.items() if "Examples:" not in (value.__doc__ or "")}
    assert lacking == {name for name in NO_EXAMPLE if name.rpartition(".")[0] == package}
