"""Records of runs: one JSON line for each run, one file for each study.

A record has four parts: the key, which identifies the run in its study; the settings; the result; and how it was made
(date, commit, versions, threads, machine).
"""

import dataclasses
import fcntl
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PACKAGES = ("fgp_gpytorch", "torch", "gpytorch", "pyro-ppl", "lightning")
Key = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        key: Identifies the run among those of its study.
        settings: The values that the run used.
        result: The measured values, or why the run failed.
        made: Date, commit, versions, threads and machine.
    """

    key: Key
    settings: dict[str, Any]
    result: dict[str, Any]
    made: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return a measured value."""
        return self.result[name]

    @property
    def diverged(self) -> bool:
        """Whether training ended with values that are not finite."""
        return "diverged" in self.result


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run, and where its records and models are kept.

    Attributes:
        folder: The folder of `records/` and `weights/`.
        quick: Whether to run the quick form of each study.
        seeds: Number of seeds of each row; None = the number that a study plans.
    """

    folder: Path = HERE
    quick: bool = False
    seeds: int | None = None

    @property
    def weights(self) -> Path:
        """The folder of trained models."""
        return self.folder / "weights"

    def path(self, study: str) -> Path:
        """The file of a study's records."""
        return self.folder / "records" / f"{study}.jsonl"

    def read(self, study: str, **values: Any) -> list[Record]:
        """Return the records of a study whose keys contain these values, in the order in which they were made."""
        path = self.path(study)
        records = _parsed(path, path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else []
        return [r for r in records if all(name in r.key and r.key[name] == value for name, value in values.items())]

    def add(self, study: str, record: Record) -> bool:
        """Append a record in one write. Return False if there is a record with its key already."""
        path = self.path(study)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if identity(record.key) in {identity(known.key) for known in self.read(study)}:
                return False
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # the rest of a write that was cut
            os.write(file.fileno(), (json.dumps(dataclasses.asdict(record)) + "\n").encode())
        return True


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, changed: int, size: int) -> list[Record]:
    """Parse a file once. The time and size of its last change tell its states apart. A cut last line is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [Record(**json.loads(line)) for line in lines if line.endswith("\n")]


def identity(key: Mapping[str, Any]) -> str:
    """Return a key as a string, whatever the order of its fields."""
    return json.dumps(key, sort_keys=True)


def made_now() -> dict[str, Any]:
    """Describe the program and the machine of a run that ends now."""
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "versions": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(), "machine": platform.platform(),
    }  # fmt: skip


def commit() -> str:
    """Return the short hash of the commit, with a mark if files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
