"""Tables and paragraphs in Markdown."""

import statistics
import textwrap
from collections.abc import Iterable, Sequence

SD = "+-"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown. A head that ends in "+-" has a second column, of standard deviations."""
    heads = [part for head in heads for part in ([head[:-2].strip(), SD] if head.endswith(SD) else [head])]
    lines = [heads, ["---"] * len(heads), *rows]
    assert all(len(line) == len(heads) for line in lines), lines
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Iterable[float | None], digits: int) -> list[str]:
    """Return two cells: the mean and the standard deviation of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return ["n/a", ""]
    return [f"{statistics.mean(known):.{digits}f}", f"{statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""]


def wrapped(text: str) -> str:
    """A paragraph with lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
