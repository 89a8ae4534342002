"""A data set of groups, made of flat members in any order."""

import copy
import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data._inputs import (
    as_features,
    as_numbers,
    check_observed,
    digest_of,
    encode_groups,
    expand_mask,
    hide_unknown,
)
from fgp_gpytorch.data._parts import group_parts
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.data.levels import Level, encode_levels
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError

__all__ = ["Features", "FlatRows", "GroupedDataset", "Members", "Reference"]


class Features(NamedTuple):
    """Auxiliary features of all members, sorted by group, and the position of each member's group, 0 to G - 1.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(3, 2), x=[5.0, 6.0, 7.0], group=["b", "a", "b"])
        >>> x, group = data.features()
        >>> x[:, 0].tolist(), group.tolist()
        ([6.0, 5.0, 7.0], [0, 1, 1])
    """

    x: Tensor  # shape: (N, D)
    group: Tensor  # shape: (N,)


class FlatRows(NamedTuple):
    """Observations and `Features` of all members, sorted by group: one row each.

    Examples:
        >>> data = GroupedDataset(y=torch.tensor([1.0, 2.0, 3.0]), x=[5.0, 6.0, 7.0], group=["b", "a", "b"])
        >>> rows = data.flat()
        >>> rows.y.tolist(), rows.x[:, 0].tolist(), rows.group.tolist()
        ([2.0, 1.0, 3.0], [6.0, 5.0, 7.0], [0, 1, 1])
    """

    y: Tensor  # shape: (N, *shape)
    x: Tensor  # shape: (N, D)
    group: Tensor  # shape: (N,)


class Reference(NamedTuple):
    """Another data set that the groups are counted in, and the position of each group there."""

    group_index: Tensor  # shape: (G,)
    num_groups: int
    num_members: int
    labels_digest: int | None


class Members(NamedTuple):
    """Checked members as they are stored, sorted by group. `LazyDataset` makes observations from `y`."""

    y: Tensor  # shape: (N, *shape)
    x: Tensor  # shape: (N, D)
    y_mask: Tensor | None  # shape: (N, *shape)
    sizes: Tensor  # shape: (G,)
    labels: np.ndarray  # shape: (G,)
    reference: Reference | None = None  # None: groups are counted in this data set
    levels: tuple[Level, ...] = ()  # of groups inside groups, without the outermost


class _GroupIndexError(GroupError, IndexError):
    """A position beyond the last group. Also an IndexError, by which Python ends `for batch in data`."""


class GroupedDataset(Dataset):
    """Groups of any sizes, made of flat members in any order.

    One item is one whole group, and several items are one padded `GroupedBatch`. So
    `torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)` returns minibatches of 20 groups. It needs no
    `collate_fn`, and workers and pinned memory work. Groups are ordered by sorted label. The members of a group keep
    their order. A batch is padded to its own largest group.

    `.subset` holds out whole groups, `.select` and `HeldOut` hold out members. `torch.utils.data.Subset` and
    `random_split` work too, but their batches count the groups of the whole data set, which scales the ELBO.

    Args:
        y: Observations, shape (N, *shape), of a floating dtype, which is kept.
        x: Auxiliary features in any unit, shape (N, D) or (N,). Integers and lists become float64.
        group: A label for each member, shape (N,): integers, floats that hold exact integers, strings, a pandas
            categorical (ordered by its categories), or any other labels that can be sorted.
        y_mask: True where that element of `y` was observed, the shape of `y`. None = all. The others may be NaN.
        x_mask: True where that feature is known, the shape of `x`. None = all. The others are NaN in every batch, for
            models that infer them, such as `LatentAngleFGPVAE`. Other models refuse them.
        allow_unobserved: Whether a column may lack any observation, or the whole data set. Pass True for a context to
            predict from, never for training data.

    Attributes:
        labels: The label of each group, NumPy, shape (G,).
        group_sizes: The members of each group, shape (G,), int64.
        members: All members as they are stored.
        is_lazy: True if observations are made on request (`LazyDataset`), False if they are in memory.

    Raises:
        ArgumentError: If `y`, `x` or a mask is not numeric.
        ShapeError: If the lengths or shapes do not fit together.
        DataError: If the data are empty, not finite where observed, or of a dtype that is not floating (`y`),
            not real (`x`) or not boolean (`y_mask`, `x_mask`). Also if nothing was observed at all, or nothing in one
            column of observations that are vectors.
        GroupError: If a label is missing or a float that is no exact integer.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(5, 2), x=torch.arange(5.0), group=["b", "a", "b", "b", "a"])
        >>> len(data), data.labels.tolist(), data.group_sizes.tolist()
        (2, ['a', 'b'], [2, 3])
        >>> data[[0, 1]].mask.tolist()
        [[True, True, False], [True, True, True]]
    """

    is_lazy = False

    def __init__(
        self,
        y: Any,  # shape: (N, *shape)
        x: Any,  # shape: (N, D) or (N,)
        group: Any,  # shape: (N,)
        y_mask: Any = None,  # shape: (N, *shape)
        x_mask: Any = None,  # shape: (N, D) or (N,)
        allow_unobserved: bool = False,
    ) -> None:
        y = check.floating(as_numbers(y, "y"), "y")
        x = as_features(x, feature_dim=1)
        codes, labels = encode_groups(group)
        _check_lengths(y, x, codes)
        if y_mask is not None:
            y_mask = check.mask(as_numbers(y_mask, "y_mask"), "y_mask", y.shape, "It has the shape of y.")
        check.device(y=y, x=x, **({} if y_mask is None else {"y_mask": y_mask}))
        check.finite(y, "y", y_mask)
        if not allow_unobserved:
            check_observed(y_mask)
        x = hide_unknown(x, x_mask)
        if y_mask is not None:
            y = y.masked_fill(~y_mask, 0)
        sizes = torch.bincount(codes)
        if not bool((codes[1:] >= codes[:-1]).all()):  # sorted images are not copied
            order = torch.argsort(codes, stable=True).to(y.device)
            y, x, y_mask = y[order], x[order], None if y_mask is None else y_mask[order]
        self._store(Members(y, x, y_mask, sizes.to(y.device), labels))
        _warn_of_repeats(*self.features(), labels)

    def _store(self, members: Members) -> Self:
        self.members, self.group_sizes, self.labels = members, members.sizes, members.labels
        self._offsets = members.sizes.cumsum(0) - members.sizes
        self._digest: int | None = -1  # not computed yet
        return self

    @classmethod
    def from_members(cls, members: Members) -> "GroupedDataset":
        """Make a data set from members that are checked and sorted."""
        return cls.__new__(cls)._store(members)

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        y: Hashable | Sequence[Hashable],
        x: Hashable | Sequence[Hashable],
        group: Hashable | Sequence[Hashable],
        dtype: torch.dtype | None = None,
        missing_x: bool = False,
        allow_unobserved: bool = False,
        levels: Mapping[Hashable, Level] | None = None,
    ) -> "GroupedDataset":
        """Make a data set from the columns of a table, whose rows are members.

        Args:
            df: The table. Its index is ignored.
            y: The columns to model, or one. Missing values (NaN, NA) are marked as not observed.
            x: The columns of auxiliary features, or one.
            group: The column of labels. A list makes groups inside groups, outermost first: ["speaker", "utterance"].
                Batches follow the outermost. Each inner level appends a column of codes to x, for
                `kernels.WithinKernel`; see `levels`. Inner labels need to be unique in their outer group only.
            dtype: Floating dtype of `y`. None = the default dtype. `x` is float64, which keeps dates in seconds apart.
            missing_x: True marks missing values of `x` as unknown (`x_mask`), False refuses them.
            allow_unobserved: Whether a column of `y` may be missing in every row. Pass True for a context to predict
                from, never for training data.
            levels: The `levels` of another data set, such as the context of these targets. Inner groups that it
                contains keep their codes.

        Raises:
            ArgumentError: If `df` is no DataFrame, a name is no name of a column, or `dtype` is none of PyTorch's.
            DataError: If the table is empty, `levels` are others, or a column is absent, not numeric or there twice.
                If an entry of `x` is missing, or a column of `y` in every row.
            GroupError: If a label is missing.
        """
        check.instance(df, "df", pd.DataFrame, "Try pd.DataFrame(df), or df.to_pandas() of another library.")
        if len(df) == 0:
            raise DataError("df: expected at least one row, got none. Try to check the filter before it.")
        if dtype is not None:
            check.instance(dtype, "dtype", torch.dtype, "Try torch.float32.")
        y_columns, x_columns = _column_names(y, "y", df), _column_names(x, "x", df)
        group_columns = _column_names(group, "group", df)
        names = [*y_columns, *x_columns, *group_columns]
        for name in df.columns[df.columns.duplicated()].unique():
            if name not in names:
                continue
            raise DataError(f"df: expected one column {name!r}, got several. Try df.loc[:, ~df.columns.duplicated()].")
        absent = [name for name in names if name not in df.columns]
        if absent or not y_columns or not x_columns or not group_columns:
            got = f"no column {absent[0]!r}" if absent else "an empty list of columns"
            raise DataError(f"df: expected columns for y, x and group, got {got}. Try some of {list(df.columns)}.")
        if len(set(group_columns)) < len(group_columns):
            raise DataError(f"group: expected each column once, got {group_columns}. Try the outermost level first.")
        for argument, some in (("y", y_columns), ("x", x_columns), ("group", group_columns)):
            for name in some:
                if not isinstance(df[name], pd.Series):
                    several = df.columns[df.columns.get_loc(name)].tolist()
                    raise DataError(
                        f"{argument}: expected the name of one column, got {name!r}, the first level of "
                        f"{len(several)} columns. Try {several[0] if argument == 'group' else several[:1]}."
                    )
        values, features = _numbers(df, y_columns), _numbers(df, x_columns)
        missing = np.isnan(features).any(axis=1)
        if missing.any() and not missing_x:
            raise DataError(
                f"x: expected a value in every row of {x_columns}, got {int(missing.sum())} rows without, "
                f"the first is row {int(missing.argmax())}. Try df.dropna(subset={x_columns}), or missing_x=True and "
                "a model that infers them."
            )
        codes, found = encode_levels(df, group_columns, len(x_columns), levels)
        features = np.concatenate([features, codes], axis=1)
        x_mask = torch.from_numpy(~np.isnan(features)) if missing.any() else None
        observed = torch.from_numpy(~np.isnan(values))
        y_mask = None if bool(observed.all()) else observed
        if not allow_unobserved and len(df):
            check_observed(y_mask, y_columns)
        floating = torch.from_numpy(values).to(torch.get_default_dtype() if dtype is None else dtype)
        data = cls(floating, torch.from_numpy(features), df[group_columns[0]], y_mask, x_mask, allow_unobserved)
        return data._store(data.members._replace(levels=found))

    @property
    def num_groups(self) -> int:
        """G, the number of groups; also `len(data)`."""
        return len(self.labels)

    @property
    def num_members(self) -> int:
        """N, the members of all groups together."""
        return len(self.members.x)

    @property
    def num_features(self) -> int:
        """D, the number of auxiliary features."""
        return self.members.x.shape[-1]

    @property
    def levels(self) -> dict[Hashable, Level]:
        """The inner levels of groups inside groups, by the name of their column; empty without any."""
        return {level.names[-1]: level for level in self.members.levels}

    @property
    def y_shape(self) -> torch.Size:
        """The shape of one observation."""
        return self.members.y.shape[1:]

    @property
    def num_elements(self) -> int:
        """Number of observed elements of `y`, over all members (what a mean squared error divides by)."""
        y, mask = self.members.y, self.members.y_mask
        return y.numel() if mask is None else int(mask.sum())

    @property
    def labels_digest(self) -> int | None:
        """A checksum of the labels of the data set that the groups are counted in; None if there is none."""
        if self._digest == -1:
            reference = self.members.reference
            self._digest = digest_of(self.labels) if reference is None else reference.labels_digest
        return self._digest

    def __len__(self) -> int:
        return self.num_groups

    def __getitem__(self, index: Any) -> GroupedBatch:
        """Return one or several whole groups as a padded batch, in the order of `index` (see `positions`).

        Raises:
            GroupError: If a position is no integer or beyond the last group, or there is none.
        """
        # Member (g, q) is at offset[g] + q, or padding if q >= size[g].
        positions = self.positions(index)
        sizes = self.group_sizes[positions]
        member = torch.arange(int(sizes.max()), device=positions.device)
        mask = member < sizes.unsqueeze(-1)
        rows = torch.where(mask, self._offsets[positions].unsqueeze(-1) + member, 0)
        y, x, y_mask = self.members.y[rows], self.members.x[rows], self.members.y_mask
        y_mask = None if y_mask is None else y_mask[rows]
        if not bool(mask.all()):
            y.masked_fill_(~expand_mask(mask, y), 0)
            x.masked_fill_(~expand_mask(mask, x), 0)
            if y_mask is not None:
                y_mask.masked_fill_(~expand_mask(mask, y_mask), False)
        if self.members.reference is None:
            return GroupedBatch(y, x, mask, positions, y_mask, self.num_groups, self.num_members, self.labels_digest)
        group_index, groups, members, digest = self.members.reference
        return GroupedBatch(y, x, mask, group_index[positions], y_mask, groups, members, digest)

    def __getitems__(self, indices: Sequence[int]) -> list[GroupedBatch]:
        """Return `data[indices]` alone in a list, for PyTorch's collation."""
        return [self[indices]]

    def batches(
        self, batch_size: int | None = None, device: torch.device | str | None = None, progress: bool = False
    ) -> Iterator[GroupedBatch]:
        """Yield all groups in their order, some at a time: memory is bounded whatever the number of groups.

            for batch in data.batches():
                posterior = model.infer(batch)

        Args:
            batch_size: The most groups at a time. None takes as many as have about a million elements of y together,
                and at most 8192 members, padding included. A larger number never exceeds this, save for one group that
                does by itself.
            device: Of the batches; None leaves them where the data set is.
            progress: Whether to show a progress bar.

        Raises:
            ArgumentError: If `batch_size` is below 1, `progress` no boolean, or there is no such device.
        """
        parts = group_parts(self.group_sizes, self.y_shape.numel(), batch_size, progress)
        return (self[part] if device is None else self[part].to(device) for part in parts)

    def positions(self, index: Any) -> Tensor:  # shape: (G,)
        """Return the positions of an index, 0 to G - 1.

        Args:
            index: A position (negative ones count from the end), a list, range, array or tensor of positions,
                a slice, or a boolean mask over groups. A position may occur several times. If labels are strings, also
                a label or a list of labels.

        Raises:
            GroupError: If a position is no integer or beyond the last group, there is none, or a label is unknown.
        """
        if isinstance(index, slice):
            index = range(*index.indices(self.num_groups))
        if isinstance(index, Iterable) and not isinstance(index, Tensor | np.ndarray | str):
            index = list(index)
        if isinstance(index, np.ndarray) and index.dtype.kind in "OUT":
            index = index.tolist()
        named: list[Any] = index if isinstance(index, list) else [index]
        if named and all(isinstance(label, str) for label in named):
            index = self._positions_of(named)
        try:
            positions = torch.as_tensor(index, device=self.group_sizes.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise GroupError(
                f"index: expected positions of groups, got {type(index).__name__} ({error}). "
                "Labels are not positions: try (data.labels == label).nonzero()[0]."
            ) from error
        if positions.dtype == torch.bool and positions.shape == (self.num_groups,):
            positions = positions.nonzero()[:, 0]
        if positions.numel() == 0:
            raise GroupError(
                f"index: expected at least one of the {self.num_groups} groups, got none. Try data[[0]] or data[:]."
            )
        fractional = positions.is_floating_point() or positions.is_complex()
        if positions.ndim > 1 or positions.dtype == torch.bool or fractional:
            raise GroupError(
                f"index: expected integers (n,) or a boolean mask ({self.num_groups},), got {positions.dtype} of "
                f"shape {tuple(positions.shape)}. Try index.long(), or one list of positions."
            )
        positions = positions.reshape(-1).long()
        beyond = (positions < -self.num_groups) | (positions >= self.num_groups)
        if bool(beyond.any()):
            raise _GroupIndexError(
                f"index: expected positions from {-self.num_groups} to {self.num_groups - 1}, got "
                f"{int(positions[beyond][0])}. Positions are not labels: try (data.labels == label).nonzero()[0]."
            )
        return positions % self.num_groups

    def _positions_of(self, labels: Sequence[Any]) -> list[int]:
        places = {label: place for place, label in enumerate(self.labels.tolist())}
        unknown = [label for label in labels if label not in places]
        if unknown:
            known = [label for label in places if isinstance(label, str)]
            if not known:
                raise GroupError(
                    f"index: expected positions of groups, got {unknown[0]!r}. Labels are no strings here: try "
                    "(data.labels == label).nonzero()[0]."
                )
            close = difflib.get_close_matches(unknown[0], known) or known[:3]
            raise GroupError(
                f"index: expected labels of the {self.num_groups} groups, got {unknown[0]!r}. Try "
                f"{', '.join(map(repr, close))}."
            )
        return [places[label] for label in labels]

    def subset(self, groups: Any) -> Self:
        """Return a data set of some whole groups, in the order of `groups`, and copy their members.

        Groups keep their labels. They are counted anew, or as in the reference of `.align`.

        Args:
            groups: As in `data[groups]`, each group at most once.

        Raises:
            GroupError: If a position is wrong or repeated, or there is none.
        """
        positions = self.positions(groups)
        if len(positions.unique()) < len(positions):
            raise GroupError("groups: expected each group once, got repetitions. Try sorted(set(groups)).")
        sizes = self.group_sizes[positions]
        # Row r of the new data set is the (r - first row of its group)-th member of its group.
        first = sizes.cumsum(0) - sizes
        shift = torch.repeat_interleave(self._offsets[positions] - first, sizes)
        return self._part(torch.arange(len(shift), device=shift.device) + shift, positions, sizes)

    def select(self, members: Any) -> Self:
        """Return a data set of some members, which it copies. Groups without any of them are left out.

        Groups keep their labels. They are counted anew, or as in the reference of `.align`.

        Args:
            members: Boolean mask over the members, sorted by group, shape (N,). An example is
                `data.features().x[:, 0] < 1`.

        Raises:
            ArgumentError: If the mask is a pandas Series.
            ShapeError: If the mask has not N entries.
            DataError: If it is not boolean, or no member is left.
        """
        if isinstance(members, pd.Series):
            raise ArgumentError(
                "members: expected a mask over the rows of data.flat(), which are sorted by group, got a pandas "
                "Series, which may follow the rows of its table. Try from_dataframe(df[members], ...), or "
                "members.to_numpy() if it was made of data.flat()."
            )
        hint = "It masks the members as data.features() sorts them, by group."
        mask = check.mask(as_numbers(members, "members"), "members", (self.num_members,), hint)
        if mask.is_meta:
            raise DataError("members: expected a mask with values, got one on meta. Try members on the data's device.")
        mask = mask.to(self.group_sizes.device)
        if not bool(mask.any()):
            raise DataError("members: expected at least one member, got none. Try ~members if True was to drop them.")
        sizes = torch.bincount(self.features().group[mask], minlength=self.num_groups)
        groups = sizes.nonzero()[:, 0]
        return self._part(mask.nonzero()[:, 0], groups, sizes[groups])

    def align(self, reference: "GroupedDataset") -> Self:
        """Return this data set with its groups counted as in another one, which has the same labels and more.

        A model with a parameter for each group (the group vectors of `GPVAE`) reads `batch.group_index`. In a data
        set of 270 of 360 training groups this counts from 0 to 269. After `data.align(train)` it is the position in
        `train` of the group with the same label, and the counts of a batch are those of `train`.

        Args:
            reference: The data set that the groups belong to, such as the training data.

        Raises:
            ArgumentError: If the reference is no data set.
            GroupError: If a label does not occur in the reference.
        """
        check.instance(reference, "reference", GroupedDataset, "Try data.subset(groups) in place of a batch.")
        positions = {label: index for index, label in enumerate(reference.labels.tolist())}
        index = [positions.get(label, -1) for label in self.labels.tolist()]
        if -1 in index:
            raise GroupError(
                f"data: expected labels of the reference's {len(reference)} groups, got {index.count(-1)} others, the "
                f"first {self.labels.tolist()[index.index(-1)]!r}. Try data.subset(...) without them. A group that was "
                "never trained on has no group vector."
            )
        group_index = torch.tensor(index, device=self.group_sizes.device)
        other = Reference(group_index, reference.num_groups, reference.num_members, reference.labels_digest)
        return copy.copy(self)._store(self.members._replace(reference=other))

    def check_observed(self) -> None:
        """Require an observed element, and one in every column if an observation is a vector.

        The constructor checks it. `select` and `subset` may leave nothing of a column. Training data should have it.

        Raises:
            DataError: If nothing was observed.
        """
        check_observed(self.members.y_mask)

    def only_observed(self) -> Self:
        """Return a data set without the members in which nothing was observed, and without groups of such members.

        Raises:
            DataError: If no member is left.
        """
        mask = self.members.y_mask
        if mask is None:
            return self
        observed = mask.reshape(len(mask), -1).any(1)
        return self if bool(observed.all()) else self.select(observed)

    def features(self) -> Features:
        """Return features and groups of all members, sorted by group. Observations are not made for it."""
        return Features(self.members.x, torch.repeat_interleave(self.group_sizes))

    def flat(self) -> FlatRows:
        """Return all members, sorted by group. They are not copied, so do not write to them."""
        return FlatRows(self.members.y, *self.features())

    def ordered_places(self) -> Tensor:  # shape: (N,)
        """Return the place of each member in its group by the first feature, from 0. Ties keep their order."""
        x, group = self.features()
        order = x[:, 0].argsort(stable=True)
        order = order[group[order].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place - self._offsets[group]

    def random_places(self, generator: torch.Generator) -> Tensor:  # shape: (N,)
        """Return the place of each member in a random order of its group, 0 to its size - 1, sorted by group."""
        places = [torch.randperm(size, generator=generator) for size in self.group_sizes.tolist()]
        return torch.cat(places).to(self.group_sizes.device)

    def __repr__(self) -> str:
        smallest, largest = int(self.group_sizes.min()), int(self.group_sizes.max())
        x = self.members.x
        return (
            f"{type(self).__name__}({self.num_groups} groups of {smallest} to {largest} members, "
            f"{self.num_members} in all, y {self._describe_y()}, x ({x.shape[-1]},) {x.dtype})"
        )

    def _describe_y(self) -> str:
        return f"{tuple(self.y_shape)} {self.members.y.dtype}"

    def _part(self, rows: Tensor, groups: Tensor, sizes: Tensor) -> Self:
        """Return a data set of members at `rows`, which belong to `groups` and are sorted by them."""
        y, x, y_mask, _, labels, reference, levels = self.members
        if reference is not None:
            reference = reference._replace(group_index=reference.group_index[groups])
        y_mask = None if y_mask is None else y_mask[rows]
        labels = labels[groups.cpu().numpy()]
        return copy.copy(self)._store(Members(y[rows], x[rows], y_mask, sizes, labels, reference, levels))


def _check_lengths(y: Tensor, x: Tensor, codes: Tensor) -> None:
    """Require as many observations, features and labels, and at least one."""
    lengths = [len(value) if value.ndim > 0 else None for value in (y, x, codes)]
    if len(set(lengths)) > 1 or None in lengths:
        raise ShapeError(
            f"expected as many rows in y, x and group, got y {tuple(y.shape)}, x {tuple(x.shape)} and "
            f"{len(codes)} labels. Try features and a label for each row of y. "
            "Tensors that are padded to (G, Q, ...) go to GroupedBatch.from_tensors."
        )
    check.shape(x, "x", ("N", "D"), "Try x.flatten(1): the features of one member are a vector.")
    if len(y) == 0:
        raise DataError(
            f"expected at least one row, got y {tuple(y.shape)} and x {tuple(x.shape)}. Try to check the "
            "filter before it."
        )
    if x.numel() == 0:
        raise DataError(
            f"x: expected at least one auxiliary feature, got x {tuple(x.shape)}. Try torch.zeros(len(y), 1) for a "
            "model without features, such as a VAE."
        )
    if y.numel() == 0:
        raise DataError(
            f"y: expected at least one element in each observation, got y {tuple(y.shape)}. Try the columns to model."
        )


def _warn_of_repeats(x: Tensor, group: Tensor, labels: np.ndarray) -> None:
    """Warn of members of one group with equal features. Features that are equal everywhere have no effect."""
    if bool(((x[1:, 0] > x[:-1, 0]) | (group[1:] != group[:-1])).all()):  # sorted tables need no sort
        return
    order = torch.arange(len(x), device=x.device)
    for column in (*x.unbind(-1), group):  # a lexicographic sort by group and then x
        order = order[column[order].argsort(stable=True)]
    x, group = x[order], group[order]
    repeated = (x[1:] == x[:-1]).all(-1) & (group[1:] == group[:-1])
    if not bool(repeated.any()) or bool((x == x[0]).all()):
        return
    first = int(repeated.int().argmax())
    check.warn(
        f"x: expected different features in each group, got {int(repeated.sum())} members with those of another one, "
        f"the first in group {labels[int(group[first])]!s} at x = {x[first].tolist()}. Try df.drop_duplicates() of "
        "duplicated rows, or the average of repeated measurements, or one more feature.",
    )


def _column_names(names: Any, argument: str, df: pd.DataFrame) -> list[Hashable]:
    """Return a name, or a sequence of names, as a list. A tuple may be a name itself."""
    one = isinstance(names, str) or not isinstance(names, Iterable)
    one = one or (isinstance(names, tuple) and _is_column(names, df))
    listed: list[Hashable] = [names] if one else list(names)
    for name in listed:
        check.instance(name, argument, Hashable, "Try the names of columns, such as ['a', 'b'].")
    return listed


def _is_column(name: Hashable, df: pd.DataFrame) -> bool:
    try:
        return name in df.columns
    except TypeError:  # a tuple that contains a list
        return False


def _numbers(df: pd.DataFrame, columns: list[Hashable]) -> np.ndarray:  # shape: (N, number of columns)
    """Return numeric columns as float64 with NaN where a value is missing."""
    for name in columns:
        kind = df[name].dtype
        if kind.kind in "mM" or not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            hint = f"pd.to_numeric(df[{name!r}]), or pd.get_dummies for categories"
            if kind.kind in "mM":  # days
                hint = f"(df[{name!r}] - df[{name!r}].min()).dt.total_seconds() / 86400"
            raise DataError(f"df: expected numbers in column {name!r}, got {kind}. Try {hint}.")
    return np.stack([df[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns], axis=-1)
