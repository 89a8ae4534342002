"""Files are written whole or not at all, and a damaged file is refused."""

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from factories import make_model, same_state
from fgp_gpytorch import FGPVAE
from fgp_gpytorch.errors import CheckpointError, MissingFileError
from fgp_gpytorch.saving import read_checkpoint, rebuild, write_checkpoint


@pytest.fixture
def path(tmp_path):
    make_model().save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        FGPVAE.load(path)


def test_every_one_of_400_bit_flips_is_refused(path):
    data = path.read_bytes()
    bits = [*range(0, 8 * len(data), 8 * len(data) // 300)][:300]
    bits += random.Random(0).sample(range(8 * (len(data) - 60), 8 * len(data)), 100)  # the digest and its word
    assert len(bits) == 400
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(path, flipped)
    path.write_bytes(data)
    assert same_state(FGPVAE.load(path).state_dict(), make_model().state_dict())


def test_shortened_and_lengthened_files_are_refused(path):
    data = path.read_bytes()
    for length in [*range(0, len(data), 211), *range(len(data) - 60, len(data))]:
        refused(path, data[:length])
    for end in (b"\0", b"x" * 100, b"\0" * 22, b"PK\5\6" + b"\0" * 18, data):
        refused(path, data + end)


class Opens:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps({"a": 1}), pickle.dumps(Opens()), b"PK\3\4", b"\0" * 99]
)
def test_other_files_end_in_the_same_error(content, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    refused(path, content)
    assert not Path("executed").exists()


def test_other_archives_and_folders_end_in_the_same_error(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for content in (Opens(), torch.ones(3), [1, 2], {"format": "fgp_gpytorch model 1"}, {"fgp_gpytorch": 3}, {1: 2}):
        torch.save(content, path)
        with pytest.raises(CheckpointError):
            FGPVAE.load(path)
    assert not Path("executed").exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text", "hello")
    with pytest.raises(CheckpointError):
        FGPVAE.load(path)
    with pytest.raises(CheckpointError):
        FGPVAE.load(path.parent)
    with pytest.raises(MissingFileError):
        FGPVAE.load(path.parent / ("long" * 999))


def test_torch_load_and_zip_tools_read_the_file(path):
    content = torch.load(path, weights_only=True)
    assert content["class"] == "FGPVAE"
    assert torch.load(path, weights_only=True, mmap=True).keys() == content.keys()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    torch.save(content, path)  # an archive that torch wrote has no digest
    assert same_state(FGPVAE.load(path).state_dict(), make_model().state_dict())


@pytest.mark.parametrize("shape", [[10**12], [10**5, 10**5], [10**30], [20000], ["three"], None, 3])
def test_sizes_of_a_description_are_compared_with_the_tensors_before_memory_is_allocated(shape, path):
    content = torch.load(path, weights_only=True)
    parts = json.loads(content["parts"])
    parts["encoder"]["arguments"]["y_shape"] = shape
    torch.save({**content, "parts": json.dumps(parts)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        FGPVAE.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("size", [10**12, 10**10])
def test_sizes_of_a_kernel_are_compared_too(size, path):
    content = torch.load(path, weights_only=True)
    parts = json.loads(content["parts"])
    parts["prior"]["arguments"]["blocks"][0]["arguments"]["kernel"]["arguments"]["batch_shape"] = [size]
    torch.save({**content, "parts": json.dumps(parts)}, path)
    with pytest.raises(CheckpointError):
        FGPVAE.load(path)


@pytest.mark.parametrize("field", ["class", "parts", "frozen", "state_dict"])
@pytest.mark.parametrize("value", [None, 3, "[", "[" * 100_000, {"a": 1}, [[]]])
def test_a_field_of_another_kind_is_refused(field, value, path):
    torch.save({**torch.load(path, weights_only=True), field: value}, path)
    with pytest.raises(CheckpointError):
        FGPVAE.load(path)


def test_an_expanded_tensor_counts_as_the_memory_that_it_holds(path):
    content = torch.load(path, weights_only=True)
    parts = json.loads(content["parts"])
    parts["encoder"]["arguments"]["y_shape"] = [10**9]
    state = {**content["state_dict"], "encoder.layers.0.weight": torch.zeros(1).expand(4, 10**9)}
    torch.save({**content, "parts": json.dumps(parts), "state_dict": state}, path)
    with pytest.raises(CheckpointError, match="more memory than"):
        FGPVAE.load(path)


# writing


def fail_with(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file(number, function, path, monkeypatch):
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail_with(number))
        with pytest.raises(CheckpointError, match=r"model\.pt: expected a place with room .*, got .* Try to free some"):
            make_model(seed=1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.pt"]


def test_a_limit_on_the_size_of_files_leaves_the_previous_file(path):
    """The operating system itself refuses here, within a write."""
    before = path.read_bytes()
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from factories import make_model
from fgp_gpytorch.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    make_model(seed=1).save({str(path)!r})
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-B", "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert "expected a place with room" in run.stdout, run.stderr
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.pt"]


def test_ctrl_c_within_a_write_leaves_the_previous_file(path, monkeypatch):
    before = path.read_bytes()

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_model(seed=1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.pt"]


def test_a_path_whose_parent_is_a_file_is_refused(path):
    with pytest.raises(CheckpointError, match="expected a file in a folder, got something else"):
        make_model().save(path / "model.pt")


def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(CheckpointError, match="expected a file in a folder, got something else"):
        write_checkpoint({"a": 1}, os.devnull)
    assert not Path(os.devnull).is_file()


def test_a_folder_that_cannot_be_written_is_refused(path, monkeypatch):
    monkeypatch.setattr(Path, "open", fail_with(errno.EACCES))
    with pytest.raises(CheckpointError, match="Permission denied"):
        make_model().save(path)


def test_a_link_stays_a_link_and_a_temporary_file_is_beside_the_target(path, tmp_path, monkeypatch):
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    moves = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (moves.append(names), replace(*names)))
    make_model(seed=1).save(link)
    assert link.is_symlink()
    assert same_state(FGPVAE.load(path).state_dict(), make_model(seed=1).state_dict())
    assert [Path(source).parent == Path(target).parent for source, target in moves] == [True]


def test_old_leftovers_of_the_same_file_are_removed(path):
    leftovers = [path.with_name(f".model.pt.{name}.tmp") for name in ("old", "young")]
    for leftover, age in zip(leftovers, (7200, 0), strict=True):
        leftover.write_bytes(b"half")
        os.utime(leftover, (leftover.stat().st_mtime - age,) * 2)
    make_model().save(path)
    assert [leftover.exists() for leftover in leftovers] == [False, True]  # the young one may be at work


def test_what_is_written_is_read(tmp_path):
    content = {"a": torch.arange(3), "b": [1, "two", None]}
    write_checkpoint(content, tmp_path / "file")
    read = read_checkpoint(tmp_path / "file")
    assert torch.equal(read["a"], content["a"])
    assert read["b"] == content["b"]


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    stored, packed = tmp_path / "stored.pt", tmp_path / "packed.pt"
    torch.save({"z": torch.zeros(100_000)}, stored)
    assert read_checkpoint(stored)["z"].shape == (100_000,)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="it is compressed"):
        read_checkpoint(packed)


@pytest.mark.parametrize("of", ["<U300000000", "S99999999", "O", "100000000f8", "V9"])
def test_an_array_of_a_file_holds_numbers(of):
    with pytest.raises(CheckpointError, match="expected an array of numbers"):
        rebuild({"array": ["1"], "of": of})
