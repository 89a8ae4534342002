"""Rows of an array that need not fit in memory, as the observations of a `LazyDataset`."""

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data.grouped_batch import GroupedBatch
from fgp_gpytorch.errors import ArgumentError, DataError, FGPError, MissingFileError, ShapeError

__all__ = ["ArrayRows"]

_SAMPLE = 64  # rows that tell two arrays apart
_VALUES = 2**22  # of them, at most


class ArrayRows:
    """Reads the observations of a batch from the rows of an array on disk. `LazyDataset.from_array` makes one.

    `LazyDataset(stored, ArrayRows(array))` does the same for other stored members: `stored.y` then contains the number
    of each member's row, shape (N,).

    Each batch is read in the order of its rows, and consecutive rows are read at once. So an array whose rows are
    sorted by group is read fastest. No file stays open and no page stays mapped between batches. So the object can be
    pickled for workers, and memory holds a batch.

    Args:
        array: Observations, shape (N, *shape), a row for each member:

            - The path of a NumPy file (`.npy`), of an HDF5 file (`.h5`, `.hdf5`; it needs h5py), or of a zarr folder
              (it needs zarr).
            - An `np.memmap`, `h5py.Dataset` or `zarr.Array`. The first two are opened anew where they are read.
            - Any other object with `shape` and `dtype` whose slices `array[3:7]` are NumPy arrays. Workers get a copy.
        name: Of the array in its file. None if it is the only one. HDF5 and zarr only.
        transform: A function of some rows, a tensor (n, *shape) in their own dtype, that returns observations,
            shape (n, *y_shape), floating. Integers need one. None takes rows as they are. Workers need a function that
            can be pickled.

    Raises:
        ArgumentError: If `array` is none of these, `name` not that of an array, or `transform` no function.
        ShapeError: If the array has no rows' dimension.
        DataError: If it is empty, not numeric, or its file cannot be read.
        MissingFileError: If there is no such file.
        ImportError: If the package that reads the file is not installed.

    Examples:
        >>> def grey_levels(rows):  # in a module, so that workers can pickle it
        ...     return rows.float() / 255
        >>> np.save("images.npy", np.full((7, 28, 28), 255, dtype=np.uint8))
        >>> images = ArrayRows("images.npy", transform=grey_levels)
        >>> len(images), images.read([5, 3]).shape, float(images.read([5]).max())
        (7, torch.Size([2, 28, 28]), 1.0)
    """

    def __init__(
        self, array: Any, name: str | None = None, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if transform is not None and not callable(transform):
            raise ArgumentError(
                f"transform: expected a function of rows, or None, got {type(transform).__name__}. Try "
                "lambda rows: rows.float() / 255."
            )
        self._open, self._source = _opener(array, name)
        self._transform = transform
        with self._opened() as opened:
            self.shape, self.dtype = tuple(opened.shape), np.dtype(opened.dtype)
        if not self.shape:
            raise ShapeError("array: expected (N, *shape), a row for each member, got (). Try array[None].")
        if 0 in self.shape:
            raise DataError(f"array: expected rows with elements, got shape {self.shape}. Try another array.")
        try:
            torch.from_numpy(np.empty(0, self._native))
        except TypeError as error:
            raise DataError(
                f"array: expected numbers, got {self.dtype}. Try array.astype('float32') before it is written."
            ) from error

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source}, shape {self.shape}, {self.dtype})"

    def __call__(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, *y_shape)
        """Return the observations of a padded batch whose `y` is the number of a row, shape (G, Q). Padding is 0.

        Raises:
            ShapeError, DataError, MissingFileError: As `read`.
        """
        check.shape(batch.y, "stored.y", ("G", "Q"), "Try torch.arange(len(rows)).double(): the number of each row.")
        if batch.y.dtype != torch.float64 and len(self) * torch.finfo(batch.y.dtype).eps > 2:
            raise DataError(
                f"stored.y: expected numbers of {len(self)} rows, got {batch.y.dtype}, which rounds them. Try "
                "torch.float64."
            )
        place = batch.mask.flatten().nonzero()[:, 0]
        y = self.read(batch.y.flatten()[place].tolist()).to(batch.y.device)
        if len(place) < batch.mask.numel():
            padded = y.new_zeros(batch.mask.numel(), *y.shape[1:])
            padded[place] = y
            y = padded
        return y.unflatten(0, batch.mask.shape)

    def read(self, rows: Any) -> Tensor:  # shape: (n,) -> (n, *y_shape)
        """Return the observations of some rows, in the order of `rows`, whose entries may occur several times.

        Raises:
            ArgumentError: If `rows` are no numbers in one dimension, or `transform` does not return a tensor.
            ShapeError: If it does not return one observation for each row.
            DataError: If a number is that of no row, the observations are not floating, or the file cannot be read or
                has another shape or dtype than before.
            MissingFileError: If the file is no longer there.
        """
        y = torch.from_numpy(self._read(self._numbers(rows)))
        if self._transform is not None:
            found = self._transform(y)
            check.instance(found, "transform", Tensor, "Try torch.as_tensor(y) at its end.")
            if found.shape[:1] != y.shape[:1]:
                raise ShapeError(
                    f"transform: expected one observation for each of {len(y)} rows, got {tuple(found.shape)}. Try "
                    "what keeps the first dimension."
                )
            y = found
        return check.floating(y, "array", "Try transform=lambda rows: rows.float() / 255, if that is its scale.")

    def sample(self) -> Tensor:
        """Return at most 64 rows at equal distances, as they are in the file: they tell one array from another."""
        number = max(1, min(len(self), _SAMPLE, _VALUES // prod(self.shape[1:])))
        return torch.from_numpy(self._read(np.linspace(0, len(self) - 1, number).astype(np.int64)))

    @property
    def _native(self) -> np.dtype:  # in the byte order of this machine
        return self.dtype.newbyteorder("=")

    def _numbers(self, rows: Any) -> np.ndarray:
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iuf"):
            raise ArgumentError(
                f"rows: expected numbers of rows in one dimension, got {given.dtype} of shape {given.shape}. Try "
                "[0, 3], or mask.nonzero()[0] for a mask."
            )
        wrong = ~((given >= 0) & (given < len(self)) & (given == np.floor(given)))
        if wrong.any():
            raise DataError(
                f"stored.y: expected numbers of rows, 0 to {len(self) - 1}, got {given[wrong][0]}. Try "
                "LazyDataset.from_array(array, x, group), which numbers them."
            )
        return given.astype(np.int64)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the file in their order."""
        if len(rows) == 0:
            return np.empty((0, *self.shape[1:]), self._native)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        found = np.empty((len(rows), *self.shape[1:]), self._native)
        with self._opened() as array:
            if (tuple(array.shape), np.dtype(array.dtype)) != (self.shape, self.dtype):
                raise DataError(
                    f"array: expected shape {self.shape} and {self.dtype} as before, got {tuple(array.shape)} and "
                    f"{array.dtype} in {self._source}. Try a new data set, as the file was written again."
                )
            if hasattr(array, "oindex"):  # zarr: a chunk is unpacked once a request
                distinct, place = np.unique(rows, return_inverse=True)
                found[:] = self._checked(array.oindex[distinct], len(distinct))[place]
                return found
            ends = [0, *(np.flatnonzero(np.diff(ordered) != 1) + 1).tolist(), len(rows)]
            for start, stop in itertools.pairwise(ends):
                block = array[int(ordered[start]) : int(ordered[stop - 1]) + 1]
                found[order[start:stop]] = self._checked(block, stop - start)
        return found

    def _checked(self, block: Any, number: int) -> np.ndarray:
        block = np.asarray(block)
        if block.shape != (number, *self.shape[1:]):
            raise DataError(
                f"array: expected slices of {number} rows {(number, *self.shape[1:])}, got {block.shape} of "
                f"{self._source}. Try a NumPy array, or a file."
            )
        return block

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the array, and turn what fails into errors that name it."""
        try:
            with self._open() as array:
                yield array
        except FGPError:
            raise
        except FileNotFoundError as error:
            raise MissingFileError(
                f"array: expected a file {self._source}, got no such file. Try Path(...).absolute() of one that exists."
            ) from error
        except (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"array: expected a file that can be read, got {self._source} ({type(error).__name__}: {error}). Try "
                "to close it where it is written, or to write it again."
            ) from error


class _NumpyFile:
    """Rows of numbers that follow each other in a file, read without a map: mapped pages count as memory in use."""

    def __init__(self, array: np.memmap) -> None:
        self.path, self.offset, self.shape, self.dtype = array.filename, array.offset, array.shape, array.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        width, number = prod(self.shape[1:]), rows.stop - rows.start
        start = self.offset + rows.start * width * self.dtype.itemsize
        found = np.fromfile(str(self.path), self.dtype, number * width, offset=start)
        if len(found) < number * width:
            raise OSError(f"it ends before row {rows.stop - 1}")
        return found.reshape(number, *self.shape[1:])


def _opener(array: Any, name: str | None) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    """A function that opens an array, and its source in words. Both can be pickled."""
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"name: expected a string or None, got {type(name).__name__}. Try name='y'.")
    if isinstance(array, str | os.PathLike):
        return _opener_of_file(Path(array).absolute(), name)
    if name is not None:
        raise ArgumentError(f"name: expected None for an array that is no path, got {name!r}. Try None.")
    if type(array).__module__.startswith("h5py."):
        if not array:
            raise DataError("array: expected an open file, or its path, got a closed one. Try the path.")
        if not hasattr(array, "shape"):
            raise ArgumentError(f"array: expected a Dataset, got a {type(array).__name__} of h5py. Try file['y'].")
        return _opener_of_file(Path(array.file.filename).absolute(), array.name, ".h5")
    if isinstance(array, np.memmap):
        return partial(nullcontext, _unmapped(array)), str(array.filename)
    if isinstance(array, Tensor) or not all(hasattr(array, part) for part in ("shape", "dtype", "__getitem__")):
        raise ArgumentError(
            f"array: expected a path, or an array of NumPy, h5py or zarr, got {type(array).__name__}. Try 'y.npy', or "
            "GroupedDataset(y, x, group) for data in memory."
        )
    return partial(nullcontext, array), type(array).__name__


def _opener_of_file(
    path: Path, name: str | None, kind: str | None = None
) -> tuple[Callable[[], AbstractContextManager[Any]], str]:
    if not path.exists():
        raise MissingFileError(f"array: expected a file {path}, got no such file. Try an absolute path.")
    kind = kind or path.suffix.lower()
    if path.is_dir():
        zarr = check.package("zarr")
        try:
            found = zarr.open(str(path), mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"array: expected a zarr folder, got {path} ({error}). Try zarr.save(path, y).") from error
        if hasattr(found, "shape"):
            if name is not None:
                raise ArgumentError(f"name: expected None for {path}, which is one array, got {name!r}. Try None.")
            return partial(_zarr, path, None), str(path)
        name = _chosen(name, list(found.array_keys()), lambda other: hasattr(found[other], "shape"), path)
        return partial(_zarr, path, name), f"{path}, {name}"
    if kind in (".h5", ".hdf5"):
        h5py = check.package("h5py")
        try:
            with h5py.File(path, "r") as file:
                keys = [key for key, value in file.items() if isinstance(value, h5py.Dataset)]
                name = _chosen(name, keys, lambda other: isinstance(file[other], h5py.Dataset), path)
        except OSError as error:
            raise DataError(
                f"array: expected an HDF5 file that can be read, got {path} ({error}). Try to close it where it is "
                "written, or to write it again."
            ) from error
        return partial(_hdf5, path, name), f"{path}, {name}"
    if kind != ".npy":
        raise ArgumentError(
            f"array: expected a file .npy, .h5 or .hdf5, or a zarr folder, got {path}. Try np.memmap(path, dtype, 'r', "
            "shape=shape) for raw numbers."
        )
    if name is not None:
        raise ArgumentError(f"name: expected None for a NumPy file, which is one array, got {name!r}. Try None.")
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"array: expected a NumPy file of numbers, got {path} ({error}). Try np.save.") from error
    return partial(_npy, path), str(path)


def _chosen(name: str | None, keys: list[str], is_array: Callable[[str], bool], path: Path) -> str:
    """The name of an array of a file: the one that was asked for, or the only one."""
    if name is None and len(keys) == 1:
        return keys[0]
    try:
        if name is not None and is_array(name):
            return name
    except KeyError:
        pass
    some = f"{', '.join(map(repr, keys[:5]))}" if keys else "none outside groups"
    hint = f"name={keys[0]!r}" if keys else "name='group/array'"
    raise ArgumentError(f"name: expected that of an array of {path} ({some}), got {name!r}. Try {hint}.")


def _unmapped(array: np.memmap) -> Any:
    """The file of a whole map in C order. A part of a map, and private changes, stay in the map."""
    whole = isinstance(array.base, mmap.mmap) and array.filename is not None and array.ndim > 0
    return _NumpyFile(array) if whole and array.flags.c_contiguous and array.mode != "c" else array


@contextmanager
def _npy(path: Path) -> Iterator[Any]:
    yield _unmapped(np.load(path, mmap_mode="r", allow_pickle=False))


@contextmanager
def _hdf5(path: Path, name: str) -> Iterator[Any]:
    with check.package("h5py").File(path, "r") as file:
        yield file[name]


@contextmanager
def _zarr(path: Path, name: str | None) -> Iterator[Any]:
    found = check.package("zarr").open(str(path), mode="r")
    yield found if name is None else found[name]
