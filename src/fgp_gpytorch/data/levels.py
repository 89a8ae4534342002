"""Groups inside groups: the inner levels of a table as columns of codes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fgp_gpytorch.data._inputs import encode_groups
from fgp_gpytorch.errors import ArgumentError, DataError

__all__ = ["Level", "encode_levels"]


class Level(NamedTuple):
    """The inner groups of one level, such as the utterances of all speakers. Their codes are a column of x.

    Attributes:
        names: The columns of the table that identify an inner group, outermost first: ("speaker", "utterance").
        feature: The column of x with the codes.
        labels: The labels of each inner group, one for each of `names`. The position is the code.

    Examples:
        >>> df = pd.DataFrame({"who": [1, 1, 2], "word": ["a", "b", "a"], "time": [0, 1, 0], "pitch": [90, 95, 180]})
        >>> data = GroupedDataset.from_dataframe(df, y="pitch", x="time", group=["who", "word"])
        >>> data.levels["word"]
        Level(names=('who', 'word'), feature=1, labels=((1, 'a'), (1, 'b'), (2, 'a')))
    """

    names: tuple[Hashable, ...]
    feature: int
    labels: tuple[tuple[Any, ...], ...]


def encode_levels(
    df: pd.DataFrame, names: Sequence[Hashable], feature: int, known: Mapping[Hashable, Level] | None
) -> tuple[np.ndarray, tuple[Level, ...]]:
    """Number the inner groups of every level but the outermost, through all groups.

    Args:
        df: The table.
        names: The columns of all levels, outermost first.
        feature: The column of x for the codes of the first inner level.
        known: Levels of another data set. Inner groups that it contains keep their code there. Others get new codes.

    Returns:
        The codes (N, inner levels), float64, and the levels.

    Raises:
        GroupError: If a label is missing, or is a float that is no exact integer.
        ArgumentError: If `known` does not contain levels.
        DataError: If `known` has other levels.
    """
    if known is not None and not (isinstance(known, Mapping) and all(isinstance(v, Level) for v in known.values())):
        raise ArgumentError(f"levels: expected levels of a data set, got {type(known).__name__}. Try train.levels.")
    columns, labels = zip(*(encode_groups(df[name]) for name in names), strict=True)
    codes, levels = [], []
    for depth in range(2, len(names) + 1):
        own = tuple(names[:depth])
        rows, place = np.unique(np.stack(columns[:depth], axis=1), axis=0, return_inverse=True)
        found = [tuple(_plain(labels[k][number]) for k, number in enumerate(row)) for row in rows.tolist()]
        old = () if known is None else _known_labels(known, own)
        code = {label: number for number, label in enumerate(old)}
        for label in found:
            code.setdefault(label, len(code))
        codes.append(np.array([code[label] for label in found], dtype=np.float64)[place.reshape(-1)])
        levels.append(Level(own, feature + depth - 2, tuple(code)))
    empty = np.empty((len(df), 0))
    return np.stack(codes, axis=1) if codes else empty, tuple(levels)


def _known_labels(known: Mapping[Hashable, Level], names: tuple[Hashable, ...]) -> tuple[tuple[Any, ...], ...]:
    level = known.get(names[-1])
    if level is None or level.names != names:
        got = [list(level.names) for level in known.values()]
        raise DataError(
            f"levels: expected a level of {list(names)}, got {got}. Try group={(got or [list(names)])[-1]}."
        )
    return level.labels


def _plain(label: Any) -> Any:
    """A label of a NumPy array as Python's own value, a date as a time stamp."""
    if isinstance(label, np.datetime64):
        return pd.Timestamp(label)
    return label.item() if isinstance(label, np.generic) else label
