"""Times and messages of processes that torchrun starts. `benchmarks.studies.several_devices` reads the file.

torchrun --standalone --nproc-per-node 2 -m benchmarks.shared_steps paper --groups 5 20 --steps 12 --out FILE
torchrun --standalone --nproc-per-node 2 -m benchmarks.shared_steps all-reduce --bytes 4 1000000 --steps 50 --out FILE
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import interleaved
from examples.rotated_mnist import PRESETS, build, objective_of
from fgp_gpytorch import fit
from fgp_gpytorch.datasets import rotated_mnist

WARM_UP = 3  # steps; the messages of the last of them are counted


class Watch(Callback):
    """Times every step of `fit` after the warm-up, and lists the messages of one step.

    Attributes:
        seconds: Of each step, from the end of the step before it.
        messages: Name, and number of values that this process sends, of each message.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.messages: list[tuple[str, int]] = []
        self._last, self._profile = 0.0, profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start to count."""
        if trainer.global_step == WARM_UP - 1:
            self._profile.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        if trainer.global_step == WARM_UP:
            self._profile.__exit__(None, None, None)
            events = [e for e in self._profile.events() or () if e.name.startswith("gloo:")]
            self.messages = [(e.name[5:], sum(_size(shape) for shape in e.input_shapes)) for e in events]
        elif trainer.global_step > WARM_UP:
            self.seconds.append(time.perf_counter() - self._last)
        self._last = time.perf_counter()


def _size(shape: list[int]) -> int:
    return int(torch.tensor(shape or [1]).prod())


def steps(name: str, groups: int, number: int, processes: int) -> dict[str, Any]:
    """Train a preset of the example with so many groups a process, and return times and messages."""
    preset, watch = PRESETS[name], Watch()
    torch.manual_seed(0)
    fit(
        build(preset), rotated_mnist().train, objective=objective_of(preset), epochs=None, max_steps=number + WARM_UP,
        batch_size=groups, drop_last=True, seed=0, folder=None, progress=False, callbacks=[watch], accelerator="cpu",
        devices=processes, strategy="ddp" if processes > 1 else "auto",
    )  # fmt: skip
    return {"seconds": watch.seconds, "messages": watch.messages}


def all_reduces(sizes: list[int], repeats: int) -> dict[int, list[float]]:
    """Times of all-reduces of so many bytes, in turn."""
    distributed.init_process_group("gloo")
    values = {str(size): torch.zeros(size // 4) for size in sizes}
    tasks = {name: lambda value=value: distributed.all_reduce(value) for name, value in values.items()}
    seconds = interleaved(tasks, repeats)
    distributed.destroy_process_group()
    return {int(name): found for name, found in seconds.items()}


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PRESETS, "all-reduce"])
    parser.add_argument("--groups", type=int, nargs="+", default=[20], help="of one process, in a step")
    parser.add_argument("--bytes", type=int, nargs="+", default=[4], help="of an all-reduce")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    processes = int(os.environ["WORLD_SIZE"])
    if options.what == "all-reduce":
        found: dict[Any, Any] = all_reduces(options.bytes, options.steps)
    else:
        found = {groups: steps(options.what, groups, options.steps, processes) for groups in options.groups}
    if os.environ["RANK"] == "0":
        options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
