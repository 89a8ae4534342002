"""The folder of a run. It belongs to one run, and to one process at a time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.fabric.utilities.rank_zero import rank_zero_only

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, CheckpointError, MissingFileError
from fgp_gpytorch.saving import cannot_write, remove_leftovers

DEFAULT_FOLDER = "runs/%Y-%m-%d_%H-%M-%S"  # date and time of the start


def folder_of(folder: str | Path | None) -> Path | None:
    """Return the folder that `fit` was asked for. The default one is new in every run.

    Raises:
        ArgumentError: If it is neither a path nor None.
        CheckpointError: If the default folder cannot be made.
    """
    if folder is None:
        return None
    if folder != DEFAULT_FOLDER:
        return Path(check.instance(folder, "folder", (str, os.PathLike), 'Try "runs/mine", or None to write nothing.'))
    first = Path(time.strftime(DEFAULT_FOLDER))
    if getattr(rank_zero_only, "rank", 0):
        return first  # the process of rank 0 decides; Lightning's checkpoints broadcast its folder
    path, count = first, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:  # of a run that started in the same second
            if not first.is_dir():
                raise cannot_write(first, error) from error
            count += 1
            path = first.with_name(f"{first.name}_{count}")
        except OSError as error:
            raise cannot_write(path, error) from error


@contextmanager
def claimed(folder: Path | None, checkpoint: Path | None) -> Iterator[None]:
    """Hold a folder for one run: make it, lock it, and remove half-written files of killed processes.

    The lock ends with the process, however that ends.

    Args:
        folder: The folder. None claims nothing.
        checkpoint: The checkpoint to resume from.

    Raises:
        CheckpointError: If another process is at work there, the folder holds another run, or it cannot be written.
    """
    if folder is None:
        yield
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(NotImplementedError):  # some network file systems have no locks
            lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"folder: expected one run in {folder} at a time, got a second one while the first is at work. Try another "
            "folder for each run."
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        used = next((name for name in ("last.ckpt", "best.ckpt") if (folder / name).exists()), None)
        if used is not None and (checkpoint is None or checkpoint.resolve().parent != folder.resolve()):
            raise CheckpointError(
                f"folder: expected a new folder for a new run, got {folder} with the {used} of an earlier one. Try "
                "resume=True to continue that run, or another folder."
            )
        remove_leftovers(folder, "")
        yield
    finally:
        lock.release()


def checkpoint_to_resume(resume: bool | str | Path, folder: str | Path | None) -> Path | None:
    """Return the checkpoint that `resume` asks for. None means a run from the start.

    Raises:
        ArgumentError: If `resume` is True without the name of a folder, or is neither a boolean nor a path.
        MissingFileError: If `resume` is a path without a file.
    """
    check.instance(resume, "resume", (bool, str, os.PathLike), "Try True, or the path of a checkpoint.")
    if resume is False:
        return None
    if resume is True:
        if folder is None or folder == DEFAULT_FOLDER:
            got = "folder=None" if folder is None else "the default one, which is new in every run"
            raise ArgumentError(f"resume: expected a folder to resume from, got {got}. Try folder='runs/...'.")
        # a run may have been cut after its first best checkpoint, and before its first last one
        return existing(Path(folder), "last.ckpt") or existing(Path(folder), "best.ckpt")
    if not Path(resume).is_file():
        raise MissingFileError(f"resume: no file {resume}. Try resume=True for the last checkpoint of the folder.")
    return Path(resume)


def existing(folder: Path | None, name: str) -> Path | None:
    """Return a file of a folder, or None if there is none."""
    return folder / name if folder is not None and (folder / name).exists() else None
