"""What a study declares."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from benchmarks.records import Key, Plan, Record


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of runs.

    Attributes:
        name: Of its file of records and of its page.
        title: The heading of its page.
        about: What is measured, in one or two sentences.
        keys: Returns the keys of a plan's runs, in order. More keys may follow when these runs have records.
        run: Makes one run; returns its settings and its result.
        say: Describes a record in one line.
        alone: Whether times are measured, so that nothing else may run meanwhile.
    """

    name: str
    title: str
    about: str
    keys: Callable[[Plan], list[Key]]
    run: Callable[[Key, Plan], tuple[dict[str, Any], dict[str, Any]]]
    say: Callable[[Record], str]
    alone: bool = False

    def command(self) -> str:
        """The command that makes the missing runs."""
        return f"python -m benchmarks.runner --only {self.name}"


def plain(value: Any) -> Any:
    """Return a value as JSON would give it back: tuples become lists."""
    return json.loads(json.dumps(value))
