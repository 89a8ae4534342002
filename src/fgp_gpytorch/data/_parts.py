"""Some groups at a time, so that memory is bounded whatever the size of a data set."""

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from fgp_gpytorch import _checks as check

__all__ = ["group_parts"]

_MEMBERS = 8192  # of a part, padding included


def group_parts(
    sizes: Tensor,  # shape: (G,)
    values: int,
    batch_size: int | None = None,
    progress: bool = False,
    added: int = 0,
    values_at_once: int | None = 2**20,
) -> Iterator[slice]:
    """Cut groups into parts of consecutive ones, which are padded to their largest.

    A part is as large as memory allows: 8192 members and about a million values, padding included, but at least one
    group. Without groups there is one empty part.

    Args:
        sizes: Members of each group.
        values: Values of a member, such as the elements of an observation.
        batch_size: The most groups of a part; None for as many as memory allows.
        progress: Whether to show a progress bar of the groups. It moves when the next part is asked for.
        added: Members that are added to each group, such as those that are predicted.
        values_at_once: The most values of a part; None for no limit of members and values.

    Yields:
        The positions of each part.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `progress` no boolean.

    Examples:
        >>> list(group_parts(torch.tensor([2, 3, 1]), values=5, batch_size=2))
        [slice(0, 2, None), slice(2, 3, None)]
        >>> list(group_parts(torch.tensor([2, 3, 1]), values=5, values_at_once=15))  # 3 members at once, or one group
        [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    if batch_size is not None:
        batch_size = check.count(batch_size, "batch_size", hint="Try 64, or None.")
    check.choice(progress, "progress", (False, True))
    total = len(sizes)
    most = batch_size or total
    limit = None if values_at_once is None else max(1, min(_MEMBERS, values_at_once // max(1, values)))
    return _shown(_cut(sizes.tolist(), most, limit, added), total, progress)


def _cut(sizes: list[int], most: int, limit: int | None, added: int) -> Iterator[slice]:
    start, largest = 0, 0
    for stop, size in enumerate(sizes):
        number = stop - start + 1
        padded = number * (max(largest, size) + added)
        if number > 1 and (number > most or (limit is not None and padded > limit)):
            yield slice(start, stop)
            start, largest = stop, 0
        largest = max(largest, size)
    yield slice(start, len(sizes))


def _shown(parts: Iterator[slice], total: int, progress: bool) -> Iterator[slice]:
    with tqdm(total=total, unit=" groups", disable=not progress) as bar:
        for part in parts:
            yield part
            bar.update(part.stop - part.start)
