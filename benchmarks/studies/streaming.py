"""Memory and time of generating many images, and of batches of groups of very different sizes."""

import math
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.kernels import PeriodicKernel, RBFKernel, ScaleKernel
from torch import Tensor

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import THREADS, added_memory_gb, interleaved, ratio, times
from fgp_gpytorch import ELBO, FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels
from fgp_gpytorch.likelihoods import GaussianLikelihood
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

GROUPS, TIMED_GROUPS, QUICK_GROUPS, MEMBERS = 8000, 1000, 60, 11
ONE_BATCH, RESULT, STREAM = "one batch", "generate", "generate_batches"
ONE_LARGE, ZIPF = "one group of 500 with 19 of one member", "Zipf sizes"
TOGETHER, ALONE = "together", "alone"
LARGEST, QUICK_LARGEST = 500, 60
MUST_MEMORY_GB = 0.15
MUST = {ONE_LARGE: {"time": 1.4, "memory": 1.5}, ZIPF: {"time": 1.3}}
Task = Callable[[], object]


def keys(plan: Plan) -> list[Key]:
    """The three tasks. The quick form has the first two: each starts several processes."""
    tasks = ("generate", ONE_LARGE) if plan.quick else ("generate", ONE_LARGE, ZIPF)
    return [{"task": task, "seed": 0} for task in tasks]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    task = key["task"]
    size = (QUICK_GROUPS if plan.quick else GROUPS) if task == "generate" else QUICK_LARGEST if plan.quick else LARGEST
    timed = min(size, TIMED_GROUPS)
    ways = [ONE_BATCH, RESULT, STREAM] if task == "generate" else [TOGETHER, ALONE]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process for each way
        memory = {way: pool.apply(added_memory, (task, way, size, key["seed"])) for way in ways}
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    seconds = interleaved(tasks(task, timed, key["seed"]), 3 if plan.quick else 7, warm_up=1)
    result: dict[str, Any] = {"tasks": times(seconds, "s"), "added_memory_gb": memory}
    if task == "generate":
        result["times_longer"] = {way: ratio(seconds[way], seconds[ONE_BATCH]) for way in (RESULT, STREAM)}
        return {"groups": size, "timed_groups": timed, "members": MEMBERS}, result
    result["time_ratio"] = ratio(seconds[TOGETHER], seconds[ALONE], MUST[task]["time"])
    return {"sizes": sizes_of(task, size)}, result


def sizes_of(task: str, largest: int) -> list[int]:
    """Members of each group."""
    return [largest] + 19 * [1] if task == ONE_LARGE else [max(1, largest // rank) for rank in range(1, 65)]


def tasks(task: str, size: int, seed: int) -> dict[str, Task]:
    """The ways of a task, of so many groups, or with a largest group of so many members."""
    return generating(size, seed) if task == "generate" else stepping(sizes_of(task, size), seed)


def generating(groups: int, seed: int) -> dict[str, Task]:
    """Functions that generate an image for each member of a data set, at another angle."""
    torch.manual_seed(seed)
    angle = torch.linspace(0, 2 * math.pi, MEMBERS + 1)[:-1]
    group = torch.arange(groups).repeat_interleave(MEMBERS)
    data = GroupedDataset(torch.rand(groups * MEMBERS, 1, 28, 28), angle.repeat(groups), group)
    prior = FactorizedGPPrior([LocalChannels(8, PeriodicKernel()), GlobalChannels(8)])
    model = FGPVAE(ConvEncoder(16), ConvDecoder(16), prior, GaussianLikelihood("fixed", 0.02)).eval()
    x_new = angle.unsqueeze(-1) + 0.1

    def one_batch() -> Tensor:
        model.train()  # so that a network takes all members at once; it has no batch normalization
        images = model.generate(x_new, data[:])
        model.eval()
        return images

    def stream() -> float:
        return sum(float(images.sum()) for _, images in model.generate_batches(x_new, data))

    return {ONE_BATCH: one_batch, RESULT: lambda: model.generate(x_new, data), STREAM: stream}


def stepping(sizes: list[int], seed: int) -> dict[str, Task]:
    """Functions that compute the loss and its gradient, of all groups in one batch and of each in its own."""
    g = torch.Generator().manual_seed(seed)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x, y = 10 * torch.rand(len(group), 1, generator=g), torch.randn(len(group), 16, generator=g)
    data = GroupedDataset(y, x, group)
    torch.manual_seed(seed)
    prior = FactorizedGPPrior([LocalChannels(8, ScaleKernel(RBFKernel()), inference="dense")])
    model, objective = FGPVAE(MLPEncoder([16], 8, (64,)), MLPDecoder(8, [16], (64,)), prior), ELBO()

    def step(positions: list[int]) -> None:
        model.zero_grad()
        objective.differentiable_loss(model, model, data[positions]).backward()

    everything = list(range(len(sizes)))
    alone = [everything[:1]] if sizes[1] == 1 else [[position] for position in everything]
    return {TOGETHER: lambda: step(everything), ALONE: lambda: [step(positions) for positions in alone]}


def added_memory(task: str, way: str, size: int, seed: int) -> float:
    """Largest resident memory of one way less that before it, GB."""
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    small = generating(2, seed) if task == "generate" else stepping([20, 1], seed)
    small[way]()  # imports, threads and pools of memory
    return added_memory_gb(tasks(task, size, seed)[way])


def say(record: Record) -> str:
    lines = [
        f"{way}: {t['median']:.3f} s, {1000 * record['added_memory_gb'][way]:.0f} MB"
        for way, t in record["tasks"].items()
    ]
    return "\n".join([record.key["task"], *lines])


STUDY = Study(
    "streaming",
    "Streaming and padding",
    "Posterior means, images and losses of many groups, and of groups of very different sizes. Memory is what the "
    "computation adds to a process that holds the data.",
    keys, run, say, alone=True,
)  # fmt: skip
