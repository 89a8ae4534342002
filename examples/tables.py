"""A table of countries: forecast the years 2000 to 2015 of countries that the model never saw, from the years before.

`python examples/tables.py --out docs/images` makes the picture of the README.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fgp_gpytorch import TableModel, datasets

FIGURES = ["life_expectancy", "fertility", "infant_mortality"]
SHOWN = ["Chile", "China", "Kenya", "Poland", "Rwanda", "Zimbabwe"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="folder of the figure")
    parser.add_argument("--short", action="store_true", help="years in steps of five, and few steps of training")
    options = parser.parse_args(arguments)
    table = datasets.gapminder().query("year <= 2015")
    new = table["country"].isin([*table["country"].unique()[::8], *SHOWN])
    train, past, future = table[~new], table[new & (table["year"] < 2000)], table[new & (table["year"] >= 2000)]
    if options.short:
        train = train[train["year"] % 5 == 0]

    model = TableModel(y=FIGURES, x=["year"], group="country").fit(train, max_steps=50 if options.short else 500)
    scores = model.score(past, future)
    last = past.groupby("country")[FIGURES].last().loc[future["country"]].set_axis(future.index)
    scores["mse_last_value"] = ((future[FIGURES] - last) ** 2).mean()
    print(scores.round(3).to_string())

    figure = model.plot_forecast(past, SHOWN, at={"year": range(1960, 2016)})
    for axis, country in zip(figure.axes, SHOWN, strict=True):  # what happened
        future[future["country"] == country].plot.scatter("year", FIGURES[0], s=6, color="C3", ax=axis)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "countries.png", dpi=110)
    return int((scores["mse"] > scores["mse_last_value"]).any())  # 0: better in every column


if __name__ == "__main__":
    raise SystemExit(main())
