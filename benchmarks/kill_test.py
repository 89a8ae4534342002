"""Kill a training process at 40 moments, resume it, and compare its end with that of an uninterrupted run.

    make kill-test

Half of the kills hit while a checkpoint is being written: the killer waits for the temporary file. In half of the
trials, TMPDIR is on another file system. The exit status is 1 unless all trials end bit for bit alike.
"""

import argparse
import hashlib
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch

from fgp_gpytorch import FGPVAE, GECO, FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels, fit
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

TRIALS = 40
OTHER = Path("/dev/shm")  # a file system in memory, on Linux


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another one in every call)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the temporary runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    chance = random.Random(seed)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        other = OTHER.is_dir() and OTHER.stat().st_dev != folder.stat().st_dev
        print(
            f"seed {seed}; {OTHER if other else 'no other file system found'} is TMPDIR in every second trial",
            flush=True,
        )
        start = time.monotonic()
        wait(fork(lambda: train(folder / "whole", folder / "whole.end")))
        duration, whole = time.monotonic() - start, (folder / "whole.end").read_bytes()
        same = within = 0
        for trial in range(TRIALS):
            run = folder / f"trial_{trial}"
            temporary = OTHER if other and trial % 2 else folder
            hit = kill_once(run, trial < TRIALS // 2, temporary, duration, chance)
            within += hit
            wait(fork(lambda run=run, temporary=temporary: train(run, run.with_suffix(".end"), temporary)))
            end = run.with_suffix(".end")
            alike = end.exists() and end.read_bytes() == whole and not list(run.glob(".*.tmp"))
            same += alike
            print(
                f"{trial:2d} killed {'within a write' if hit else 'elsewhere'}: {'alike' if alike else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{same} of {TRIALS} resume bit for bit, {within} were killed within a write")
    return 0 if same == TRIALS and within >= TRIALS // 2 else 1


def kill_once(run: Path, in_a_write: bool, temporary: Path, duration: float, chance: random.Random) -> bool:
    """Start a run and kill it. Return whether it left a half-written file."""
    while True:
        process = fork(lambda: train(run, run.with_suffix(".end"), temporary, slow=in_a_write))
        writes, seen, deadline = chance.randrange(1, 12), set(), time.monotonic() + chance.uniform(0.05, duration)
        while in_a_write and len(seen) < writes and os.waitpid(process, os.WNOHANG)[0] == 0:
            seen |= {path.name for path in run.glob(".*.tmp")}
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02) if in_a_write else max(0.0, deadline - time.monotonic()))
        try:
            os.kill(process, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            killed = False
        hit = any(run.glob(".*.tmp"))
        if killed and hit >= in_a_write:
            return hit
        for path in [run.with_suffix(".end"), *run.rglob("*")]:  # it was finished, or between two writes: try again
            if path.is_file():
                path.unlink()


def train(folder: Path, end: Path, temporary: Path | None = None, slow: bool = False) -> None:
    """Train a small model, from the last checkpoint if there is one, and write all that it ends with."""
    if temporary is not None:
        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    if slow:
        fsync = os.fsync
        os.fsync = lambda descriptor: (time.sleep(0.03), fsync(descriptor))[1]
    objective, model = GECO(0.5), make_model()
    result = fit(
        model, make_data(0), validation=make_data(1), objective=objective, epochs=6, batch_size=3, learning_rate=0.03,
        lr_schedule="cosine", seed=0, folder=folder, resume=True, progress=False, accelerator="cpu",
    )  # fmt: skip
    best = torch.load(folder / "best.ckpt", weights_only=True)
    state = [
        {name: digest(tensor) for name, tensor in model.state_dict().items()},
        {name: digest(tensor) for name, tensor in objective.state_dict().items()},
        result.history.to_dict("list"),
        best["epoch"],
        {name: digest(tensor) for name, tensor in best["state_dict"].items()},
    ]
    end.write_bytes(pickle.dumps(repr(state)))


def make_model() -> FGPVAE:
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    return FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior, member_dropout=0.3)


def make_data(seed: int) -> GroupedDataset:
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.randn(36, 3, generator=generator), torch.rand(36, generator=generator)
    return GroupedDataset(y, x, torch.arange(9).repeat_interleave(4))


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def fork(action: Callable[[], Any]) -> int:
    """Run an action in a process of its own, which has imported everything already."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def wait(process: int) -> None:
    """Wait for a process to end well."""
    if os.waitpid(process, 0)[1] != 0:
        print("a run that was not killed ended with an error")


if __name__ == "__main__":
    raise SystemExit(main())
