"""Arrays on disk as data sets: each answer is that of the same rows in memory."""

import importlib
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader

from factories import make_model, same_state, state_of
from fgp_gpytorch import GaussianLikelihood, GroupedDataset, HeldOut, fit
from fgp_gpytorch.data import ArrayRows, LazyDataset
from fgp_gpytorch.errors import ArgumentError, CheckpointError, DataError, GroupError, MissingFileError, ShapeError
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.metrics.disentanglement import latent_means

SIZES = (3, 5, 2, 4, 6, 1, 4)
GROUP = np.repeat(np.arange(7), SIZES)
KINDS = ("npy", "memmap", "part of a memmap", "array", "hdf5", "hdf5 dataset", "hdf5 chunks", "zarr", "zarr array")


def numbers(rows=25, shape=(3,), seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)


def stored(kind, y, folder, name="y"):
    """The same rows, kept in one of the ways that are read."""
    if kind in ("npy", "memmap"):
        np.save(folder / "y.npy", y)
        return folder / "y.npy" if kind == "npy" else np.load(folder / "y.npy", mmap_mode="r")
    if kind == "part of a memmap":
        np.save(folder / "more.npy", np.concatenate([y[:2], y]))
        return np.load(folder / "more.npy", mmap_mode="r")[2:]
    if kind.startswith("hdf5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "y.h5", "w") as file:
            file.create_dataset(name, data=y, chunks=(4, *y.shape[1:]) if "chunks" in kind else None)
        return h5py.File(folder / "y.h5", "r")[name] if "dataset" in kind else str(folder / "y.h5")
    if kind.startswith("zarr"):
        zarr = pytest.importorskip("zarr")
        zarr.save_array(str(folder / "y.zarr"), y)
        return zarr.open(str(folder / "y.zarr"), mode="r") if "array" in kind else folder / "y.zarr"
    return y


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def shuffled(seed=3):
    return np.random.default_rng(seed).permutation(len(GROUP))


# the rows are those of the file


def test_a_batch_is_that_of_the_rows_in_memory(kind, tmp_path):
    y, order = numbers(shape=(2, 3)), shuffled()
    x, group = np.arange(25.0)[order], GROUP[order]
    lazy = LazyDataset.from_array(stored(kind, y, tmp_path), x, group)
    kept = GroupedDataset(y, x, group)
    assert (lazy.y_shape, lazy.num_elements, len(lazy)) == ((2, 3), 150, 7)
    for index in (0, [5], [4, 1, 1, 6], slice(None)):
        for name in ("y", "x", "mask", "group_index"):
            assert torch.equal(getattr(lazy[index], name), getattr(kept[index], name))
    assert torch.equal(lazy.in_memory(2).flat().y, kept.flat().y)


def test_rows_are_read_in_any_order_and_several_times(kind, tmp_path):
    y = numbers(shape=())
    rows = ArrayRows(stored(kind, y, tmp_path))
    asked = [7, 6, 0, 24, 6, 8, 8]
    assert torch.equal(rows.read(asked), torch.from_numpy(y[asked]))
    assert rows.read([]).shape == (0,)
    assert len(rows) == 25


def test_a_copy_for_workers_reads_the_same_rows(kind, tmp_path):
    y = numbers()
    rows = ArrayRows(stored(kind, y, tmp_path))
    assert torch.equal(pickle.loads(pickle.dumps(rows)).read(range(25)), torch.from_numpy(y))


@pytest.mark.parametrize("kind", ["npy", "memmap", "hdf5", "hdf5 dataset", "zarr"])
def test_a_copy_for_workers_contains_no_rows(kind, tmp_path):
    rows = ArrayRows(stored(kind, np.zeros((2000, 50)), tmp_path))
    assert len(pickle.dumps(rows)) < 2000


def test_consecutive_rows_are_read_at_once_and_in_order():
    asked = []

    class Counted:
        shape, dtype = (25, 3), np.dtype("float32")

        def __getitem__(self, rows):
            asked.append((rows.start, rows.stop))
            return numbers()[rows]

    data = LazyDataset.from_array(Counted(), np.arange(25.0), GROUP)
    asked.clear()
    assert torch.equal(data[[3, 0, 4]].y, GroupedDataset(numbers(), np.arange(25.0), GROUP)[[3, 0, 4]].y)
    assert asked == [(0, 3), (10, 20)]  # group 0, and groups 3 and 4 that follow each other


def test_bytes_of_another_machine_are_read():
    swapped = numbers().astype(">f4")
    assert torch.equal(ArrayRows(swapped).read([3, 1]), torch.from_numpy(numbers()[[3, 1]]))


def test_changes_of_a_writable_map_are_read(tmp_path):
    np.save(tmp_path / "y.npy", numbers())
    for mode in ("r+", "c"):
        array = np.load(tmp_path / "y.npy", mmap_mode=mode)
        rows = ArrayRows(array)
        array[4] = 7.0 if mode == "r+" else 8.0
        assert (rows.read([4]) == array[4, 0].item()).all()


def test_raw_numbers_behind_a_header_are_read(tmp_path):
    (tmp_path / "y.raw").write_bytes(b"header" + numbers().tobytes())
    array = np.memmap(tmp_path / "y.raw", "float32", "r", offset=6, shape=(25, 3))
    assert torch.equal(ArrayRows(array).read([24, 2, 3]), torch.from_numpy(numbers()[[24, 2, 3]]))


def test_columns_first_are_read_too(tmp_path):
    np.save(tmp_path / "y.npy", np.asfortranarray(numbers()))
    assert torch.equal(ArrayRows(tmp_path / "y.npy").read([24, 2]), torch.from_numpy(numbers()[[24, 2]]))


def grey_levels(rows):
    return rows.float() / 255


def test_integers_are_transformed(kind, tmp_path):
    y = np.random.default_rng(0).integers(0, 256, (25, 4, 4)).astype(np.uint8)
    data = LazyDataset.from_array(stored(kind, y, tmp_path), np.arange(25.0), GROUP, transform=grey_levels)
    kept = GroupedDataset(torch.from_numpy(y) / 255, np.arange(25.0), GROUP)
    assert torch.equal(data[:].y, kept[:].y)
    assert data[:].y.dtype == torch.float32


def test_a_transform_may_change_the_shape():
    data = LazyDataset.from_array(numbers(), np.arange(25.0), GROUP, transform=lambda rows: rows.double().sum(1))
    assert data.y_shape == ()
    torch.testing.assert_close(data[[0]].y[0], torch.from_numpy(numbers()[:3]).double().sum(1))


def test_arrays_inside_a_file_have_names(tmp_path):
    first, second = numbers(seed=1), numbers(seed=2)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["deep/b"] = first, second
    assert torch.equal(ArrayRows(tmp_path / "two.h5").read(range(25)), torch.from_numpy(first))
    for name in ("deep/b", "/deep/b"):
        assert torch.equal(ArrayRows(tmp_path / "two.h5", name).read(range(25)), torch.from_numpy(second))
    with pytest.raises(ArgumentError, match=r"name: expected that of an array of .*two.h5 \('a'\), got 'c'"):
        ArrayRows(tmp_path / "two.h5", "c")
    with pytest.raises(ArgumentError, match="got 'deep'"):
        ArrayRows(tmp_path / "two.h5", "deep")
    with h5py.File(tmp_path / "two.h5", "r") as file, pytest.raises(ArgumentError, match="expected a Dataset, got a G"):
        ArrayRows(file["deep"])
    with h5py.File(tmp_path / "two.h5", "r") as file:
        closed = file["a"]
    with pytest.raises(DataError, match=r"expected an open file, .* got a closed one"):
        ArrayRows(closed)


def test_arrays_inside_a_zarr_group_have_names(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.save_group(str(tmp_path / "two.zarr"), a=numbers(seed=1), b=numbers(seed=2))
    assert torch.equal(ArrayRows(tmp_path / "two.zarr", "b").read(range(25)), torch.from_numpy(numbers(seed=2)))
    with pytest.raises(ArgumentError, match=r"name: expected that of an array .*, got None"):
        ArrayRows(tmp_path / "two.zarr")
    with pytest.raises(ArgumentError, match=r"name: expected that of an array .*, got 'c'"):
        ArrayRows(tmp_path / "two.zarr", "c")


# errors


def test_errors_of_arrays_say_what_to_try(tmp_path):
    y = numbers()
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    (tmp_path / "y.csv").write_text("1")
    cases = [
        (tmp_path / "absent.npy", MissingFileError, r"array: expected a file .*absent.npy, got no such file. Try"),
        (tmp_path / "objects.npy", DataError, "array: expected a NumPy file of numbers, got .*objects.npy"),
        (tmp_path / "broken.npy", DataError, "array: expected a NumPy file of numbers, got .*broken.npy"),
        (tmp_path / "y.csv", ArgumentError, r"array: expected a file .npy, .h5 or .hdf5, .*y.csv. Try np.memmap"),
        (np.array(["a", "b"]), DataError, "array: expected numbers, got <U1"),
        (np.zeros((2, 2), dtype="datetime64[s]"), DataError, "array: expected numbers, got datetime64"),
        (np.zeros((0, 3)), DataError, r"array: expected rows with elements, got shape \(0, 3\)"),
        (np.zeros((3, 0)), DataError, r"array: expected rows with elements, got shape \(3, 0\)"),
        (np.zeros(()), ShapeError, r"array: expected \(N, \*shape\)"),
        (torch.zeros(25, 3), ArgumentError, r"array: expected a path, .* got Tensor. Try .* GroupedDataset"),
        ([1.0, 2.0], ArgumentError, "array: expected a path, .* got list"),
        (None, ArgumentError, "array: expected a path, .* got NoneType"),
    ]
    if importlib.util.find_spec("h5py"):
        cases.append((tmp_path / "broken.h5", DataError, "array: expected an HDF5 file that can be read, got .*broken"))
    if importlib.util.find_spec("zarr"):
        cases.append((tmp_path, DataError, "array: expected a zarr folder, got"))
    for array, error, words in cases:
        with pytest.raises(error, match=words):
            ArrayRows(array)
    with pytest.raises(ArgumentError, match="name: expected None for an array that is no path, got 'y'"):
        ArrayRows(y, "y")
    with pytest.raises(ArgumentError, match=r"name: expected None for a NumPy file, .* got 'y'"):
        ArrayRows(tmp_path / "y.npy", "y")
    with pytest.raises(ArgumentError, match="name: expected a string or None, got int"):
        ArrayRows(tmp_path / "y.npy", 3)
    with pytest.raises(DataError, match=r"array: expected slices of 2 rows \(2, 3\), got \(\) of csr_array"):
        ArrayRows(scipy.sparse.csr_array(y)).read([0, 1])
    with pytest.raises(ArgumentError, match="transform: expected a function of rows, or None, got int"):
        ArrayRows(y, transform=255)


def test_errors_of_observations_say_what_to_try():
    y, x = numbers(), np.arange(25.0)
    wrong = [
        ((y.astype(np.uint8), None), DataError, r"array: expected a floating-point dtype, got torch.uint8. Try transf"),
        ((y > 0, None), DataError, "array: expected a floating-point dtype, got torch.bool"),
        ((y.astype(complex), None), DataError, "array: expected a floating-point dtype, got torch.complex128"),
        ((y, lambda rows: rows.long()), DataError, "array: expected a floating-point dtype, got torch.int64"),
        ((y, lambda rows: rows.tolist()), ArgumentError, "transform: expected a Tensor, got list"),
        ((y, lambda rows: rows.sum()), ShapeError, r"transform: expected one observation for each of 3 rows, got \(\)"),
        ((y, lambda rows: rows.T[:2]), ShapeError, r"transform: .* each of 3 rows, got \(2, 3\)"),
    ]
    for (array, transform), error, words in wrong:
        with pytest.raises(error, match=words):
            LazyDataset.from_array(array, x, GROUP, transform=transform)


def test_lengths_that_differ_are_refused():
    y, x = numbers(), np.arange(25.0)
    for array, features, labels in ((y[:24], x, GROUP), (y, x[:24], GROUP), (y, x, GROUP[:24])):
        with pytest.raises(ShapeError, match="expected as many rows in y, x and group"):
            LazyDataset.from_array(array, features, labels)
    with pytest.raises(GroupError, match="group: expected a label in every row"):
        LazyDataset.from_array(y, x, [None] * 25)


def test_numbers_that_are_those_of_no_row_are_refused():
    rows = ArrayRows(numbers())
    for number in (-1, 25, 0.5, np.nan):
        with pytest.raises(DataError, match=r"stored.y: expected numbers of rows, 0 to 24, got"):
            rows.read([0, number])
    x = torch.arange(3.0)
    with pytest.raises(ShapeError, match=r"stored.y: expected shape \(G, Q\)"):
        LazyDataset(GroupedDataset(torch.zeros(3, 2), x, [0, 0, 1]), rows)

    class Long:
        shape, dtype = (2**25, 1), np.dtype("float32")

        def __getitem__(self, rows):
            return np.zeros((rows.stop - rows.start, 1), np.float32)

    with pytest.raises(
        DataError, match=r"stored.y: expected numbers of 33554432 rows, got torch.float32, which rounds"
    ):
        LazyDataset(GroupedDataset(torch.zeros(3), x, [0, 0, 1]), ArrayRows(Long()))
    last = GroupedDataset(torch.full((3,), 2.0**25 - 1, dtype=torch.float64), x, [0, 0, 1])
    assert LazyDataset(last, ArrayRows(Long()))[:].y.shape == (2, 2, 1)


def test_files_that_vanish_or_shrink_are_named(tmp_path):
    data = LazyDataset.from_array(stored("npy", numbers(), tmp_path), np.arange(25.0), GROUP)
    whole = (tmp_path / "y.npy").read_bytes()
    (tmp_path / "y.npy").write_bytes(whole[:-4])
    with pytest.raises(
        DataError, match=r"array: expected a file that can be read, got .*y.npy \(ValueError: .*greater than file size"
    ):
        data[[0]]  # also of rows that are still there
    (tmp_path / "y.npy").unlink()
    with pytest.raises(MissingFileError, match=r"array: expected a file .*y.npy, got no such file"):
        data[[0]]


@pytest.mark.parametrize("kind", ["npy", "hdf5", "zarr"])
def test_a_file_that_was_written_again_is_refused_or_read_as_it_is(kind, tmp_path):
    """Its header was read once, so other numbers were read as if they were the old ones."""
    rows = ArrayRows(stored(kind, numbers(), tmp_path))
    if kind == "npy":
        stored(kind, np.asfortranarray(2 * numbers()), tmp_path)
        np.testing.assert_array_equal(rows.read([3, 1]), 2 * numbers()[[3, 1]])
    for other in (numbers().astype(np.float64), numbers(shape=(1, 3))):
        if kind == "zarr":
            shutil.rmtree(tmp_path / "y.zarr")
        else:
            (tmp_path / ("y.npy" if kind == "npy" else "y.h5")).unlink()
        stored(kind, other, tmp_path)
        with pytest.raises(
            DataError, match=r"array: expected shape \(25, 3\) and float32 as before, got .*Try a new data"
        ):
            rows.read([0])


def test_rows_that_are_no_numbers_are_refused():
    rows = ArrayRows(numbers())
    for wrong in ("abc", 3, [[1, 2], [3, 4]], None, slice(3), np.arange(25) == 2):
        with pytest.raises(ArgumentError, match=r"rows: expected numbers of rows in one dimension.*Try \[0, 3\]"):
            rows.read(wrong)
    assert rows.read([]).shape == (0, 3)


def test_packages_that_are_absent_are_named(tmp_path, monkeypatch):
    (tmp_path / "y.h5").write_bytes(b"")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"expected the package h5py, got no such package. Try pip install h5py"):
        ArrayRows(tmp_path / "y.h5")
    with pytest.raises(ImportError, match="expected the package zarr"):
        ArrayRows(tmp_path)


def test_repr_names_the_file(tmp_path):
    assert repr(ArrayRows(stored("npy", numbers(), tmp_path))).endswith("y.npy, shape (25, 3), float32)")


# loading, splitting, training


@pytest.mark.parametrize("kind", ["npy", "hdf5", "hdf5 dataset", "zarr", "zarr array"])
def test_workers_read_the_same_batches(kind, tmp_path):
    y, order = numbers(), shuffled()
    x, group = np.arange(25.0)[order], GROUP[order]
    lazy = LazyDataset.from_array(stored(kind, y, tmp_path), x, group)
    kept = GroupedDataset(y, x, group)
    lazy[:]  # the file was open in this process before it is forked
    loader = DataLoader(lazy, batch_size=2, num_workers=2)
    for made, expected in zip(loader, DataLoader(kept, batch_size=2), strict=True):
        assert torch.equal(made.y, expected.y)


def test_a_data_set_on_disk_is_sent_to_workers_that_are_spawned(tmp_path):
    lazy = LazyDataset.from_array(stored("npy", numbers(), tmp_path), np.arange(25.0), GROUP, transform=torch.sin)
    assert torch.equal(pickle.loads(pickle.dumps(lazy))[:].y, lazy[:].y)


def trained(data, **options):
    torch.manual_seed(0)
    model = make_model(GaussianLikelihood())
    options = {"epochs": 2, "batch_size": 2, "seed": 3, "progress": False, "folder": None, **options}
    result = fit(model, data, **options)
    return model, result


@pytest.mark.parametrize("workers", [0, 2])
def test_training_ends_bit_for_bit_as_in_memory(workers, tmp_path):
    y, order = numbers(), shuffled()
    x, group = np.arange(25.0)[order] / 10, GROUP[order]
    kept = GroupedDataset(y, x, group)
    lazy = LazyDataset.from_array(stored("npy", y, tmp_path), x, group)
    (first, memory), (second, disk) = trained(kept, validation=0.3), trained(lazy, validation=0.3, num_workers=workers)
    assert same_state(state_of(first), state_of(second))
    assert memory.history.equals(disk.history)
    assert torch.equal(memory.kl_channels, disk.kl_channels)
    assert memory.validation_labels.tolist() == disk.validation_labels.tolist()


def test_held_out_members_and_metrics_are_those_in_memory(tmp_path):
    y, order = numbers(), shuffled()
    x, group = np.arange(25.0)[order] / 10, GROUP[order]
    sizes = np.bincount(GROUP)
    kept = GroupedDataset(y, x, group).subset((sizes > 1).nonzero()[0])
    lazy = LazyDataset.from_array(stored("npy", y, tmp_path), x, group).subset((sizes > 1).nonzero()[0])
    errors, means = [], []
    for data in (kept, lazy):
        held_out = HeldOut.random(data, 0.4)
        assert held_out.context.is_lazy == data.is_lazy
        model, _ = trained(held_out.context, validation=held_out)
        errors.append(held_out_mse(model, held_out, batch_size=2))
        means.append(latent_means(model, data, batch_size=2).mean)
    assert errors[0] == errors[1]
    assert torch.equal(*means)


def test_a_run_goes_on_with_the_same_file_and_refuses_another(tmp_path):
    x = np.arange(25.0) / 10
    for name, seed in (("a", 0), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", numbers(seed=seed))
    np.save(tmp_path / "copy.npy", numbers())
    of = {name: LazyDataset.from_array(tmp_path / f"{name}.npy", x, GROUP) for name in ("a", "b", "copy")}
    trained(of["a"], epochs=1, folder=tmp_path / "run")
    with pytest.raises(CheckpointError, match="checksum of the data"):
        trained(of["b"], folder=tmp_path / "run", resume=True)
    resumed, _ = trained(of["copy"], folder=tmp_path / "run", resume=True)
    whole, _ = trained(of["a"])
    assert same_state(state_of(resumed), state_of(whole))


def test_the_sample_is_bounded_and_reaches_both_ends():
    y = np.arange(1000.0)[:, None]
    sample = ArrayRows(y).sample()
    assert len(sample) == 64
    assert (sample[0].item(), sample[-1].item()) == (0, 999)

    class Wide:
        shape, dtype = (100, 2**21), np.dtype("float32")

        def __getitem__(self, rows):
            return np.broadcast_to(np.float32(0), (rows.stop - rows.start, 2**21))

    assert len(ArrayRows(Wide()).sample()) == 2


def test_columns_in_raw_units_are_warned_of(tmp_path):
    y = 30 * numbers()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(LazyDataset.from_array(stored("npy", y, tmp_path), np.arange(25.0) / 10, GROUP))
    assert any("y: expected columns of a scale near 1" in str(warning.message) for warning in caught)


MEMORY = """
import sys
import numpy as np, torch
from pathlib import Path
from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GaussianLikelihood, GlobalChannels, fit
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

def resident():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

torch.set_num_threads(1)
torch.manual_seed(0)
folder = Path(sys.argv[1])
def model(size):
    prior = FactorizedGPPrior([GlobalChannels(2)])
    return FGPVAE(MLPEncoder((size,), 2, (4,)), MLPDecoder(2, (size,), (4,)), prior, GaussianLikelihood("fixed", 1.0))
def train(path, size, members, **options):
    data = LazyDataset.from_array(path, np.arange(float(members)) % 4, np.arange(members) // 4)
    fit(model(size), data, epochs=1, batch_size=2, progress=False, folder=None, validation=0.1, seed=0, **options)
np.save(folder / "small.npy", np.zeros((40, 8), np.float32))
train(folder / "small.npy", 8, 40)
before = resident()
large = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, (4000, 2**15))  # 524 MB of holes
del large
train(folder / "large.npy", 2**15, 4000, max_steps=3)
with_map = np.load(folder / "large.npy", mmap_mode="r")
data = LazyDataset.from_array(with_map, np.arange(4000.0) % 4, np.arange(4000) // 4)
for start in range(0, 1000, 20):
    data[start:start + 20]
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_holds_batches_and_not_the_file(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 260  # MB; the file has 524
