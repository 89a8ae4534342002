"""Health and income of countries, 1960 to 2016."""

from importlib import resources

import pandas as pd


def gapminder() -> pd.DataFrame:
    """Load health and income of 185 countries, a row for each country and year from 1960 to 2016.

    | column | unit | missing |
    | --- | --- | --- |
    | country, continent | names | |
    | year | 1960 to 2016 | |
    | life_expectancy | years at birth | |
    | fertility | children a woman | 2016 |
    | infant_mortality | deaths before the age of one, of 1,000 births | 2016, and early years of many countries |
    | gdp_per_head | US dollars of the year 2000 | from 2012 on, and early years of many countries |
    | population | people | 2016 |

    Source: Gapminder, https://www.gapminder.org/data, licence CC BY 4.0. The GDP is that of the World Bank. Rafael
    Irizarry and Amy Gill joined Gapminder's files for the R package dslabs. Here the GDP is divided by the population.

    Returns:
        A new table of 10,545 rows in the order of country and year.

    Examples:
        >>> df = gapminder()
        >>> df.loc[df.country == "Angola", ["year", "life_expectancy"]].dropna().head(2).values.tolist()
        [[1960.0, 35.98], [1970.0, 41.5]]
        >>> model = TableModel(y=["life_expectancy", "fertility"], x=["year"], group="country").fit(df)
    """
    with (resources.files("fgp_gpytorch.datasets._gapminder") / "gapminder.csv.gz").open("rb") as file:
        return pd.read_csv(file, compression="gzip", keep_default_na=False, na_values=[""])
