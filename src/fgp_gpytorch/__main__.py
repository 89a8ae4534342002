"""`python -m fgp_gpytorch demo` and `python -m fgp_gpytorch info`."""

import argparse
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "fgp_gpytorch", "torch", "gpytorch", "pyro-ppl", "lightning", "numpy", "scipy", "pandas", "matplotlib",
    "torchvision",
)  # fmt: skip
NEW = ["Chile", "China", "Kenya", "Poland", "Rwanda", "Zimbabwe"]


def info() -> str:
    """Versions, devices and threads: what a report of a fault needs."""
    import torch

    lines = [f"python {platform.python_version()}, {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name}: not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"GPUs: {', '.join(devices) or 'none'}")
    lines.append(f"threads: {torch.get_num_threads()}")
    return "\n".join(lines)


def demo(out: Path, short: bool = False) -> str:
    """Forecast six countries that the model never saw, and write the plot.

    Args:
        out: The file of the plot.
        short: Whether to fit the linear start alone, to years in steps of five.

    Returns:
        The scores of the forecasts, as text.
    """
    from fgp_gpytorch import TableModel, datasets
    from fgp_gpytorch import _checks as check

    check.package("matplotlib").use("Agg")
    table = datasets.gapminder().query("year <= 2015 and year % 5 == 0" if short else "year <= 2015")
    new = table["country"].isin(NEW)
    past, future = table.loc[new & (table["year"] < 2000)], table.loc[new & (table["year"] >= 2000)]
    model = TableModel(y=["life_expectancy", "fertility", "infant_mortality"], x=["year"], group="country")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if short else "default")
        model.fit(table.loc[~new], max_steps=0 if short else 500)
    model.plot_forecast(past, at={"year": range(1960, 2016)}).savefig(out)
    return model.score(past, future).round(3).to_string()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fgp_gpytorch", description="Gaussian-process VAEs on grouped data."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices and threads, for a report of a fault")
    shown = commands.add_parser("demo", help="forecast six countries from a table, and write the plot (about a minute)")
    shown.add_argument("--out", type=Path, default=Path("countries.png"), help="file of the plot (countries.png)")
    shown.add_argument("--short", action="store_true", help="a linear model of fewer years, in some seconds")
    options = parser.parse_args(arguments)
    if options.command == "info":
        print(info())
        return 0
    print("life expectancy, fertility and infant mortality of six countries, 2000 to 2015, from the years before:")
    print(demo(options.out, options.short))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
