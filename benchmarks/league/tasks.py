"""What the league asks: which groups are held out, what is known of them, and what is to be predicted.

All systems get the same five folds of groups. A question consists of four tables. `train` has all rows of the groups of
the other folds. `context` and `target` belong to the groups of one fold: a value is known in `context` or asked for in
`target`, never both. A row may be in both tables if some of its columns are known and others are asked for.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.league.sources import TABLES, Table

FOLDS = 5
SPLIT_SEED = 1  # of the folds
Cut = Callable[[Table, pd.DataFrame, np.random.Generator], tuple[pd.DataFrame, pd.DataFrame]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about a table.

    Attributes:
        name: Of the task, unique within its table.
        table: Name of the table.
        about: What is asked, in one phrase.
        cut: Divides groups into context and target.
        columns: The columns of y that take part; None = all.
        test: A column that marks the rows of test groups, for every fold the same; None = folds of groups.
    """

    name: str
    table: str
    about: str
    cut: Cut
    columns: tuple[str, ...] | None = None
    test: str | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """One fold of a task.

    Attributes:
        table: The table that it was made of, with the names of the columns. Its rows are not for systems.
        train: All rows of the training groups.
        context: What is known of the test groups.
        target: What is asked of the test groups. NaN in `y` = not asked.
        practice: Context and target of the training groups, divided in the same way.
    """

    table: Table
    train: pd.DataFrame
    context: pd.DataFrame
    target: pd.DataFrame
    practice: tuple[pd.DataFrame, pd.DataFrame]

    @functools.cached_property
    def mean(self) -> pd.Series:
        """The mean of each column of y over the training rows."""
        return self.train[self.table.y].mean()

    @functools.cached_property
    def scale(self) -> pd.Series:
        """The unit of errors: the standard deviation of each column of y over the training rows, or 1."""
        spread = self.train[self.table.y].std()
        return spread if self.table.standardized else spread * 0 + 1.0


def question(task: Task, fold: int, table: Table | None = None) -> Question:
    """Return one fold of a task.

    Args:
        task: The task.
        fold: The fold that is held out, 0 to 4.
        table: In place of the task's own table.
    """
    table = TABLES[task.table]() if table is None else table
    if task.columns is not None:
        levels = {name: values for name, values in table.levels.items() if name in task.columns}
        table = dataclasses.replace(table, y=list(task.columns), levels=levels)
    held_out = fold_of_rows(table) == fold if task.test is None else table.rows[task.test]
    columns = [table.group, *table.x, *table.y]
    rows = table.rows.sort_values([table.group, *table.x])[columns]
    train, test = rows[~held_out.loc[rows.index]], rows[held_out.loc[rows.index]]
    practice = task.cut(table, train, np.random.default_rng([SPLIT_SEED, FOLDS + fold]))
    context, target = task.cut(table, test, np.random.default_rng([SPLIT_SEED, fold]))
    return Question(table, train.reset_index(drop=True), context, target, practice)


def fold_of_rows(table: Table) -> pd.Series:
    """Return the fold of each row. Groups of one block are together."""
    block = table.rows[table.block or table.group]
    order = np.random.default_rng(SPLIT_SEED).permutation(block.unique())
    return block.map({label: n % FOLDS for n, label in enumerate(order)})


# cuts


def last_part(share: float) -> Cut:
    """Return a cut that asks for a share of each group's rows, the last ones. Their number is rounded."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        place, size = places(table, rows)
        return divided(rows, place < size - np.maximum(np.round(share * size), 1))

    return cut


def last_row(least: int) -> Cut:
    """Return a cut that asks for the last row of the groups with so many rows."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        place, size = places(table, rows)
        rows, place, size = (part[size >= least] for part in (rows, place, size))
        return divided(rows, place < size - 1)

    return cut


def from_x(first: float) -> Cut:
    """Return a cut that asks for all rows from a value of x on."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        return divided(rows, rows[table.x[0]] < first)

    return cut


def middle_gap(share: float) -> Cut:
    """Return a cut that asks for a stretch of rows in the middle of each group."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        place, size = places(table, rows)
        length = np.maximum(np.round(share * size), 1)
        start = np.floor((size - length) / 2)
        return divided(rows, (place < start) | (place >= start + length))

    return cut


def lost_columns(number: int, share: float) -> Cut:
    """Return a cut that asks for so many columns during a stretch of rows. Columns and start are drawn per group."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        lost = np.zeros((len(rows), len(table.y)), dtype=bool)
        for positions in rows.reset_index(drop=True).groupby(table.group).indices.values():
            length = max(round(share * len(positions)), 1)
            start = rng.integers(0, len(positions) - length + 1)
            columns = rng.choice(len(table.y), number, replace=False)
            lost[np.ix_(positions[start : start + length], columns)] = True
        return divided_by_element(table, rows, lost)

    return cut


def lost_elements(share: float) -> Cut:
    """Return a cut that asks for a share of the values, drawn independently."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = rows.sort_values([table.group, *table.x])
        return divided_by_element(table, rows, rng.random((len(rows), len(table.y))) < share)

    return cut


def known_x(pairs: list[tuple[float, ...]]) -> Cut:
    """Return a cut whose context is the rows at these values of x."""

    def cut(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        return divided(rows, pd.Series([tuple(x) in pairs for x in rows[table.x].to_numpy()], index=rows.index))

    return cut


def whole_groups(table: Table, rows: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ask for no value: all rows are known."""
    rows = rows.sort_values([table.group, *table.x])
    return rows.reset_index(drop=True), rows.iloc[:0].reset_index(drop=True)


def places(table: Table, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the place of each row in its group, from 0, and the size of the group."""
    grouped = rows.groupby(table.group)
    return grouped.cumcount(), grouped[table.group].transform("size")


def divided(rows: pd.DataFrame, known: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide rows into known ones and others."""
    return rows[known].reset_index(drop=True), rows[~known].reset_index(drop=True)


def divided_by_element(table: Table, rows: pd.DataFrame, lost: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide values into known and lost ones. Target rows without a lost value are left out."""
    rows, context, target = rows.reset_index(drop=True), rows.reset_index(drop=True), rows.reset_index(drop=True)
    context[table.y] = rows[table.y].mask(lost)
    target[table.y] = rows[table.y].where(lost)
    return context, target[target[table.y].notna().any(axis=1)].reset_index(drop=True)


LAST, GIVEN_STYLES = last_part(0.3), [(100.0, 25.0), (550.0, 109.0), (1000.0, 151.0)]
TASKS = [
    *(Task("last 30 %", name, "the last 30 % of the rows of new groups from the rows before", LAST)
      for name in ("Oxboys", "Theoph", "ChickWeight", "sleepstudy")),
    Task("last visit", "pbcseq", "the last visit of patients with three or more, from the visits before", last_row(3)),
    Task("imputation", "pbcseq", "three in ten values of eleven mixed columns, lost at random", lost_elements(0.3)),
    Task("2000-2015", "gapminder", "2000 to 2015 of new countries from 1960 to 1999", from_x(2000.0)),
    Task("last 30 %", "JapaneseVowels", "the last 30 % of the frames of new utterances", LAST),
    Task("gap of 30 %", "JapaneseVowels", "30 % of the frames, in the middle of the utterance", middle_gap(0.3)),
    Task("lost columns", "JapaneseVowels", "three columns that are lost for 30 % of the frames", lost_columns(3, 0.3)),
    Task("which speaker", "JapaneseVowels", "the speaker of the utterances of the archive's test file",
         whole_groups, test="archive_test"),
    Task("17 styles from 3", "glyphs", "17 styles of letters that were not in training, from three styles",
         known_x(GIVEN_STYLES)),
]  # fmt: skip
