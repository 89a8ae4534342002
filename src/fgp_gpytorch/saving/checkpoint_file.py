"""Files of strings and tensors: written whole or not at all, and checked when they are read."""

import contextlib
import glob
import hashlib
import io
import os
import secrets
import struct
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import CheckpointError, MissingFileError

# A file is a zip archive of torch.save. Its comment is this word and the SHA-256 of all bytes before the digest.
_WORD = b"fgp_gpytorch sha256 "
_LENGTH = len(_WORD) + hashlib.sha256().digest_size
_HINT = 'Try "model.pt".'


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write strings and tensors to a file, with a digest. `torch.load(path, weights_only=True)` reads it too.

    The content goes into a temporary file beside the target, which replaces the target at the end. A process that is
    killed, and a disk that is full, therefore leave the previous file as it was.

    Raises:
        ArgumentError: If `path` is no path.
        MissingFileError: If the folder does not exist, or the path is a folder.
        CheckpointError: If the file cannot be written.

    Examples:
        >>> write_checkpoint({"epoch": 3, "weights": torch.ones(2)}, "state.pt")
        >>> read_checkpoint("state.pt")["epoch"], torch.load("state.pt", weights_only=True)["weights"]
        (3, tensor([1., 1.]))
    """
    target = Path(os.path.realpath(check.instance(path, "path", (str, os.PathLike), _HINT)))  # a link stays a link
    if os.path.isdir(target):
        raise MissingFileError(f"expected a file, got the folder {path}. Try {str(Path(path) / 'model.pt')!r}.")
    if not os.path.exists(target.parent):
        parent = Path(path).parent
        raise MissingFileError(f"expected the folder {parent} to exist. Try Path({str(parent)!r}).mkdir(parents=True).")
    if not os.path.isdir(target.parent) or (os.path.exists(target) and not os.path.isfile(target)):
        raise CheckpointError(f"{path}: expected a file in a folder, got something else there. {_HINT}")
    remove_leftovers(target.parent, target.name, older_than=3600)
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    data = _with_digest(content)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: OSError) -> CheckpointError:
    """Return the error for a file or folder that the operating system refuses to write.

    Examples:
        >>> try:
        ...     open("no such folder/model.pt", "w")
        ... except OSError as error:
        ...     print(cannot_write("no such folder/model.pt", error))
        no such folder/model.pt: expected a place with room that can be written, got No such file or directory. ...
    """
    return CheckpointError(
        f"{path}: expected a place with room that can be written, got {error.strerror or error}. Nothing was lost: "
        "a file that was there before is unchanged. Try to free some room, or another folder."
    )


def remove_leftovers(folder: Path, name: str, older_than: float = 0.0) -> None:
    """Remove temporary files of processes that were killed while they wrote a file.

    Args:
        folder: Their folder.
        name: The name of the file, or "" for all checkpoints of Lightning (*.ckpt).
        older_than: Age in seconds. A younger file may belong to a process that is at work.

    Examples:
        >>> from pathlib import Path
        >>> Path(".model.pt.0a1b2c3d.tmp").touch()
        >>> remove_leftovers(Path("."), "model.pt")
        >>> list(Path(".").iterdir())
        []
    """
    pattern = f".{glob.escape(name[:50])}.*.tmp" if name else ".*.ckpt.*.tmp"
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the strings and tensors of a file, without executing anything. The digest is checked first.

    An archive that `torch.save` itself wrote has no digest, and is read without one.

    Raises:
        ArgumentError: If `path` is no path.
        MissingFileError: If there is no such file.
        CheckpointError: If the file is damaged, or holds anything else.

    Examples:
        >>> save_model(MLP(3, 2), "mlp.pt")
        >>> read_checkpoint("mlp.pt")["class"]
        'MLP'
        >>> read_checkpoint("another.pt")
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.MissingFileError: no file another.pt. ...
    """
    path = Path(check.instance(path, "path", (str, os.PathLike), _HINT))
    if not os.path.exists(path):  # pathlib raises for a name that is too long
        raise MissingFileError(
            f"no file {path}. Expected one written by model.save(path), or a checkpoint of fit (*.ckpt)."
        )
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load, about files that are refused
            _check_digest(stream)
            _check_archive(stream)
            content = torch.load(stream, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
    except Exception as error:  # a damaged archive can raise nearly everything
        raise CheckpointError(
            f"{path}: expected a checkpoint of fgp_gpytorch, got something else ({error}). Try a file that save or fit "
            "wrote, or an older copy of it."
        ) from error
    return dict(content)


def _with_digest(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = bytearray(buffer.getbuffer())
    data[-2:] = struct.pack("<H", _LENGTH) + _WORD  # an archive ends with the length of its comment
    return bytes(data) + hashlib.sha256(data).digest()


def _check_digest(stream: BinaryIO) -> None:
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - _LENGTH))
    tail = stream.read()
    digest = tail[len(_WORD) :]
    if tail.startswith(_WORD) and len(tail) == _LENGTH:
        stream.seek(0)
        computed, left = hashlib.sha256(), end - len(digest)
        while left > 0:
            computed.update(stream.read(min(left, 2**20)))
            left -= 2**20
        if computed.digest() != digest:
            raise ValueError("its digest does not match: the file is damaged")
    elif not (tail[-22:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")):
        raise ValueError("its end is missing or damaged")
    stream.seek(0)


def _check_archive(stream: BinaryIO) -> None:
    """Refuse an archive that unpacks to more than its own size. `torch.save` does not compress."""
    size = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        raise ValueError("it is compressed, and torch.save never compresses")
    stream.seek(0)


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder outlast a power cut, where the operating system offers that."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
