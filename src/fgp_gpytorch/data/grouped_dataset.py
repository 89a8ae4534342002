"""Flat rows in any order as a data set of groups."""

import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgp_gpytorch._shapes import check_finite, check_floating, check_same_device, check_shape
from fgp_gpytorch.data._inputs import (
    as_features,
    as_mask,
    as_numbers,
    digest_of,
    encode_groups,
    expand_mask,
    hide_unknown,
)
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.errors import DataError, GroupError, ShapeError

__all__ = ["FlatRows", "GroupedDataset"]


class FlatRows(NamedTuple):
    """The rows of a data set, sorted by group.

    Attributes:
        y: Observations, shape (N, *shape).
        x: Auxiliary features, shape (N, D).
        group: Position of each row's group in the data set, 0 to G - 1, shape (N,), int64.
    """

    y: Tensor
    x: Tensor
    group: Tensor


class _GroupIndexError(GroupError, IndexError):
    """A position beyond the last group. Also an IndexError, by which Python ends `for batch in data`."""


class GroupedDataset(Dataset):
    """Groups of any sizes, from flat rows in any order.

    One item is one whole group, and several items are one padded `GroupedBatch`, so a plain
    `torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)` gives minibatches of 20 groups: no
    `collate_fn` is needed, and workers and pinned memory work. Groups are ordered by sorted label; the
    members of a group keep the order of their rows. A batch is padded to its own largest group, not to that
    of the data set.

    To hold out whole groups take `.subset`, to hold out members `.select`; `torch.utils.data.Subset` and
    `random_split` work too, but their batches still count the groups of the whole data set, by which the ELBO
    is scaled.

    Args:
        y: Observations, shape (N, *shape), of a floating dtype, which is kept.
        x: Auxiliary features in any unit, shape (N, D) or (N,); integers and lists become float64.
        group: A label for each row, shape (N,): integers, floats that hold exact integers, strings, a pandas
            categorical (ordered as its categories are), or any other labels that can be sorted.
        y_mask: True where that element of `y` was observed, the shape of `y`; None = all. What is False may
            be NaN.
        x_mask: True where that feature is known, the shape of `x`; None = all. The others are NaN in every batch:
            for models that infer them, such as `LatentAngleFGPVAE`; the rest say that they cannot.

    Attributes:
        labels: The label of each group, NumPy, shape (G,).
        group_sizes: The members of each group, shape (G,), int64.

    Raises:
        ShapeError: If the lengths or shapes do not fit together.
        DataError: If the data are empty, not finite where observed, or of a dtype that is not floating (`y`),
            not real (`x`) or not boolean (`y_mask`, `x_mask`).
        GroupError: If a label is missing or a float that is no exact integer.

    Example:
        >>> data = GroupedDataset(y=torch.rand(5, 2), x=torch.arange(5.0), group=["b", "a", "b", "b", "a"])
        >>> len(data), data.labels.tolist(), data.group_sizes.tolist()
        (2, ['a', 'b'], [2, 3])
        >>> data[[0, 1]].mask.tolist()
        [[True, True, False], [True, True, True]]
    """

    def __init__(
        self,
        y: Any,  # shape: (N, *shape)
        x: Any,  # shape: (N, D) or (N,)
        group: Any,  # shape: (N,)
        y_mask: Any = None,  # shape: (N, *shape)
        x_mask: Any = None,  # shape: (N, D) or (N,)
    ) -> None:
        y = as_numbers(y, "y")
        check_floating(y, "y")
        x = as_features(x, feature_dim=1)
        codes, labels = encode_groups(group)
        _check_rows(y, x, codes)
        if y_mask is not None:
            y_mask = as_mask(y_mask, "y_mask")
            check_shape(y_mask, "y_mask", tuple(y.shape), "It has one entry for each element of y.")
            check_same_device(y=y, y_mask=y_mask)
        check_same_device(y=y, x=x)
        check_finite(y, "y", y_mask)
        x = hide_unknown(x, x_mask)
        if y_mask is not None:
            y = y.masked_fill(~y_mask, 0)
        order = torch.argsort(codes, stable=True).to(y.device)
        if bool((order == torch.arange(len(y), device=y.device)).all()):
            self._store(y, x, y_mask, torch.bincount(codes), labels)  # sorted already: the images are not copied
        else:
            y_mask = None if y_mask is None else y_mask[order]
            self._store(y[order], x[order], y_mask, torch.bincount(codes), labels)

    def _store(self, y: Tensor, x: Tensor, y_mask: Tensor | None, sizes: Tensor, labels: np.ndarray) -> None:
        """Keep checked rows that are sorted by group."""
        self._y, self._x, self._y_mask = y, x, y_mask
        self.group_sizes = sizes.to(y.device)
        self.labels = labels
        self._offsets = self.group_sizes.cumsum(0) - self.group_sizes

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        y: Hashable | Sequence[Hashable],
        x: Hashable | Sequence[Hashable],
        group: Hashable,
        dtype: torch.dtype | None = None,
        missing_x: bool = False,
    ) -> "GroupedDataset":
        """Make a data set from the columns of a table, one row a member.

        Args:
            df: The table; its index plays no part.
            y: The column or columns to model. Missing values (NaN, NA) are taken as not observed.
            x: The column or columns of auxiliary features.
            group: The column of labels.
            dtype: Floating dtype of `y`; None = the default dtype. `x` is float64, in which dates in seconds stay
                apart.
            missing_x: True takes missing values of `x` as unknown (`x_mask`), False refuses them.

        Returns:
            The data set, with observations of shape (number of columns,) and `y_mask` only if a value of `y`
            is missing.

        Raises:
            DataError: If a column is absent, not numeric or there twice, a row lacks an entry of `x`, or the table is
                empty.
            GroupError: If a row lacks its group.
        """
        y_columns = _column_names(y, "y")
        x_columns = _column_names(x, "x")
        if not isinstance(group, Hashable):
            raise DataError(
                f"group: expected the name of one column, got {group!r}. Labels of several columns become one with "
                "df.groupby(columns).ngroup()."
            )
        repeated = df.columns[df.columns.duplicated()]
        wanted = [name for name in repeated if name in (*y_columns, *x_columns, group)]
        if wanted:
            raise DataError(
                f"df: expected one column {wanted[0]!r}, got several. Try df.loc[:, ~df.columns.duplicated()]."
            )
        absent = [name for name in [*y_columns, *x_columns, group] if name not in df.columns]
        if absent or not y_columns or not x_columns:
            got = f"no column {absent[0]!r}" if absent else "an empty list of columns"
            raise DataError(f"df: expected columns for y, x and group, got {got}. Try some of {list(df.columns)}.")
        values, features = _numbers(df, y_columns), _numbers(df, x_columns)
        missing = np.isnan(features).any(axis=1)
        if missing.any() and not missing_x:
            raise DataError(
                f"x: expected a value in every row of {x_columns}, got {int(missing.sum())} rows without, "
                f"the first is row {int(missing.argmax())}. Try df.dropna(subset={x_columns}), or missing_x=True and "
                "a model that infers them."
            )
        x_mask = torch.from_numpy(~np.isnan(features)) if missing.any() else None
        dtype = torch.get_default_dtype() if dtype is None else dtype
        observed = torch.from_numpy(~np.isnan(values))
        y_mask = None if bool(observed.all()) else observed
        return cls(torch.from_numpy(values).to(dtype), torch.from_numpy(features), df[group], y_mask, x_mask)

    @property
    def num_groups(self) -> int:
        """G, the number of groups; also `len(data)`."""
        return len(self.labels)

    @property
    def num_members(self) -> int:
        """N, the members of all groups together."""
        return self._y.shape[0]

    @property
    def num_features(self) -> int:
        """D, the number of auxiliary features."""
        return self._x.shape[-1]

    @property
    def y_shape(self) -> torch.Size:
        """The shape of one observation."""
        return self._y.shape[1:]

    @property
    def num_elements(self) -> int:
        """Number of observed elements of `y`, over all members (what a mean squared error divides by)."""
        return self._y.numel() if self._y_mask is None else int(self._y_mask.sum())

    @functools.cached_property
    def labels_digest(self) -> int | None:
        """What batches say of the labels of the data set that their groups are counted in; None if it is unknown."""
        return digest_of(self.labels)

    def __len__(self) -> int:
        return self.num_groups

    def __getitem__(self, index: Any) -> GroupedBatch:
        """Return one or several whole groups as a padded batch.

        Args:
            index: A position (negative ones count from the end), a list, range, array or tensor of positions,
                a slice, or a boolean mask over groups. A position may occur several times.

        Returns:
            The groups in the order asked for.

        Raises:
            GroupError: If a position is no integer or beyond the last group, or none is asked for.
        """
        return self._gather(self._positions(index))

    def __getitems__(self, indices: Sequence[int]) -> list[GroupedBatch]:
        """Return what PyTorch's fetcher asks for as one padded batch, alone in a list for the collation.

        Args:
            indices: Positions of groups.

        Raises:
            GroupError: As for `data[indices]`.
        """
        return [self[indices]]

    def subset(self, groups: Any) -> "GroupedDataset":
        """Return a data set of some of the groups, whole; they keep their labels and are counted anew.

        Args:
            groups: As in `data[groups]`, each group at most once.

        Returns:
            A data set with its own copy of the rows, in the order asked for.

        Raises:
            GroupError: If a position is wrong or repeated, or none is asked for.
        """
        positions = self._positions(groups)
        if len(positions.unique()) < len(positions):
            raise GroupError("groups: expected each group once, got repetitions. Try sorted(set(groups)).")
        sizes = self.group_sizes[positions]
        # Row r of the new data set is the (r - first row of its group)-th member of its group.
        first = sizes.cumsum(0) - sizes
        shift = torch.repeat_interleave(self._offsets[positions] - first, sizes)
        rows = torch.arange(len(shift), device=shift.device) + shift
        return self._derive(rows, sizes, self.labels[positions.cpu().numpy()])

    def select(self, members: Any) -> "GroupedDataset":
        """Return a data set of some of the members; groups that lose all of theirs are left out.

        Args:
            members: Boolean mask over the rows of `data.flat()`, shape (N,); for instance `data.flat().x[:,
                0] < 1`.

        Returns:
            A data set with its own copy of the rows; groups keep their labels and are counted anew.

        Raises:
            ShapeError: If the mask has not N entries.
            DataError: If it is not boolean, a pandas Series, or no member is left.
        """
        if isinstance(members, pd.Series):
            raise DataError(
                "members: expected a mask over the rows of data.flat(), which are sorted by group, got a pandas "
                "Series, whose rows may be those of its table. Try from_dataframe(df[members], ...), or if it was "
                "made of data.flat() members.to_numpy()."
            )
        mask = as_mask(members, "members").to(self._y.device)
        check_shape(
            mask,
            "members",
            (self.num_members,),
            "It masks the rows of data.flat(), which are sorted by group.",
        )
        if not bool(mask.any()):
            raise DataError("members: expected at least one member, got none. Try ~members if True was to drop them.")
        sizes = torch.bincount(self._row_groups()[mask], minlength=self.num_groups)
        kept = sizes > 0
        return self._derive(mask.nonzero()[:, 0], sizes[kept], self.labels[kept.cpu().numpy()])

    def flat(self) -> FlatRows:
        """Return all rows sorted by group: not copies, so do not write to them."""
        return FlatRows(self._y, self._x, self._row_groups())

    def __repr__(self) -> str:
        smallest, largest = int(self.group_sizes.min()), int(self.group_sizes.max())
        return (
            f"GroupedDataset({self.num_groups} groups of {smallest} to {largest} members, "
            f"{self.num_members} in all, y {tuple(self.y_shape)} {self._y.dtype}, "
            f"x ({self.num_features},) {self._x.dtype})"
        )

    def _row_groups(self) -> Tensor:  # shape: (N,)
        return torch.repeat_interleave(self.group_sizes)

    def _derive(self, rows: Tensor, sizes: Tensor, labels: np.ndarray) -> "GroupedDataset":
        """Return a data set of rows that are already checked and sorted."""
        data = GroupedDataset.__new__(GroupedDataset)
        y_mask = None if self._y_mask is None else self._y_mask[rows]
        data._store(self._y[rows], self._x[rows], y_mask, sizes, labels)
        return data

    def _gather(self, positions: Tensor) -> GroupedBatch:  # shape: (G,)
        """Pad the groups at valid positions: row (g, q) is at offset[g] + q, or padding if q >= size[g]."""
        sizes = self.group_sizes[positions]
        member = torch.arange(int(sizes.max()), device=positions.device)
        mask = member < sizes.unsqueeze(-1)
        rows = torch.where(mask, self._offsets[positions].unsqueeze(-1) + member, 0)
        y, x = self._y[rows], self._x[rows]
        y_mask = None if self._y_mask is None else self._y_mask[rows]
        if not bool(mask.all()):
            y.masked_fill_(~expand_mask(mask, y), 0)
            x.masked_fill_(~expand_mask(mask, x), 0)
            if y_mask is not None:
                y_mask.masked_fill_(~expand_mask(mask, y_mask), False)
        counts = self.num_groups, self.num_members
        return GroupedBatch(y, x, mask, positions, y_mask, *counts, self.labels_digest)

    def _positions(self, index: Any) -> Tensor:  # shape: (G,)
        """Turn any index into positions from 0 to G - 1.

        Raises:
            GroupError: If a position is no integer or beyond the last group, or none is asked for.
        """
        if isinstance(index, slice):
            index = range(*index.indices(self.num_groups))
        positions = torch.as_tensor(_listed(index), device=self._y.device)
        if positions.numel() == 0:
            raise GroupError(
                f"index: expected at least one of the {self.num_groups} groups, got none. Try data[[0]] or data[:]."
            )
        if positions.dtype == torch.bool and positions.shape == (self.num_groups,):
            return self._positions(positions.nonzero()[:, 0])
        if (
            positions.ndim > 1
            or positions.dtype == torch.bool
            or positions.is_floating_point()
            or positions.is_complex()
        ):
            raise GroupError(
                f"index: expected integers (n,) or a boolean mask ({self.num_groups},), got "
                f"{positions.dtype} of shape {tuple(positions.shape)}. Try index.long(), or one list of "
                "positions."
            )
        positions = positions.reshape(-1).long()
        beyond = (positions < -self.num_groups) | (positions >= self.num_groups)
        if bool(beyond.any()):
            raise _GroupIndexError(
                f"index: expected positions from {-self.num_groups} to {self.num_groups - 1}, got "
                f"{int(positions[beyond][0])}. Positions are not labels: try (data.labels == "
                "label).nonzero()[0]."
            )
        return positions % self.num_groups


def check_dataset(value: Any, name: str, instead: str = "GroupedDataset(y, x, group)") -> None:
    """Raise a `DataError` unless it is a `GroupedDataset`.

    Args:
        value: What was given.
        name: Of the argument.
        instead: What to try.
    """
    if not isinstance(value, GroupedDataset):
        raise DataError(f"{name}: expected a GroupedDataset, got {type(value).__name__}. Try {instead}.")


def _listed(index: Any) -> Any:
    """Return the index as something that torch.as_tensor takes.

    Raises:
        GroupError: If it holds anything but numbers.
    """
    if isinstance(index, Iterable) and not isinstance(index, Tensor | np.ndarray | str):
        index = list(index)
    try:
        return torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GroupError(
            f"index: expected positions of groups, got {type(index).__name__} ({error}). "
            "Labels are not positions: try (data.labels == label).nonzero()[0]."
        ) from error


def _check_rows(y: Tensor, x: Tensor, codes: Tensor) -> None:
    """Require rows of equal number, and at least one.

    Raises:
        ShapeError: If the numbers differ, or `x` is neither (N, D) nor (N,).
        DataError: If there are none, or one of the sizes of `y` or `x` is 0.
    """
    lengths = [len(value) if value.ndim > 0 else None for value in (y, x, codes)]
    if len(set(lengths)) > 1 or None in lengths:
        raise ShapeError(
            f"expected as many rows in y, x and group, got y {tuple(y.shape)}, x {tuple(x.shape)} and "
            f"{len(codes)} labels. Try to give each row of y its own features and label; "
            "tensors already padded to (G, Q, ...) go to GroupedBatch.from_tensors."
        )
    check_shape(x, "x", ("N", "D"), "Try x.flatten(1): the features of one member are a vector.")
    if y.numel() == 0 or x.numel() == 0:
        raise DataError(
            f"expected at least one row, got y {tuple(y.shape)} and x {tuple(x.shape)}. Try to check the "
            "filter before it."
        )


def _column_names(names: Any, argument: str) -> list[Hashable]:
    """A name, or a sequence of names, as a list.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [names]
    listed = list(names)
    wrong = [name for name in listed if not isinstance(name, Hashable)]
    if wrong:
        raise DataError(f"{argument}: expected the names of columns, got {wrong[0]!r}. Try ['a', 'b'].")
    return listed


def _numbers(df: pd.DataFrame, columns: list[Hashable]) -> np.ndarray:  # shape: (N, number of columns)
    """Return columns as float64 with NaN where a value is missing.

    Raises:
        DataError: If a column is not numeric.
    """
    for name in columns:
        kind = df[name].dtype
        if kind.kind in "mM":
            raise DataError(
                f"df: expected numbers in column {name!r}, got {kind}. For days try "
                f"(df[{name!r}] - df[{name!r}].min()).dt.total_seconds() / 86400."
            )
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            raise DataError(
                f"df: expected numbers in column {name!r}, got {kind}. Try pd.to_numeric(df[{name!r}]), "
                "or pd.get_dummies for categories."
            )
    return np.stack([df[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns], axis=-1)
