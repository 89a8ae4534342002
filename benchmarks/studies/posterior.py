"""The posterior of local channels beside GPyTorch's own path and a dense covariance over all rows.

Equal work in float64: the log evidence with its gradient in the lengthscale, then the posterior mean and variance of 5
new members of each group. Groups of 11, 8 channels.
"""

import math
import warnings
from typing import Any

import gpytorch
import torch
from torch import Tensor

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import THREADS, interleaved, peak_memory_gb, ratio, times
from fgp_gpytorch import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.prior import exact_gp

CHANNELS, MEMBERS, NEW = 8, 11, 5
GROUPS = (10, 40, 160, 360)


def keys(plan: Plan) -> list[Key]:
    return [{"groups": groups, "seed": 0} for groups in (GROUPS[:1] if plan.quick else GROUPS)]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    torch.manual_seed(key["seed"])
    return {}, compare(key["groups"], repeats=7)


def compare(groups: int, repeats: int) -> dict[str, Any]:
    """Check that all ways give the same answers, and time them in turn."""
    x = 2 * math.pi * torch.rand(groups, MEMBERS, 1, dtype=torch.float64)
    x_new = 2 * math.pi * torch.rand(groups, NEW, 1, dtype=torch.float64)
    mean = torch.randn(groups, MEMBERS, CHANNELS, dtype=torch.float64)
    variance = 0.1 + torch.rand(groups, MEMBERS, CHANNELS, dtype=torch.float64)
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length = 2 * math.pi
    prior = FactorizedGPPrior([LocalChannels(CHANNELS, kernel)])
    block = prior.blocks[0]

    def ours() -> tuple[Tensor, Tensor]:
        posterior = prior.posterior(x, mean, variance)
        gradient(posterior.log_evidence.sum(), kernel)
        with torch.no_grad():
            prediction = posterior.predict(x_new)
        return prediction.mean.flatten(0, 1).mT, prediction.variance.flatten(0, 1).mT

    def gpytorch_path() -> tuple[Tensor, Tensor]:
        model = exact_gp(block, x, mean, variance)
        evidence(model, kernel)
        model.eval()
        with torch.no_grad():
            prediction = model(model.rows(x_new))
            return prediction.mean, prediction.variance

    def dense() -> tuple[Tensor, Tensor]:
        rows, new = x.flatten(0, 1), x_new.flatten(0, 1)
        label = torch.arange(groups).repeat_interleave(MEMBERS)
        new_label = torch.arange(groups).repeat_interleave(NEW)
        targets, noise = mean.flatten(0, 1).mT, variance.flatten(0, 1).mT
        same = (label[:, None] == label).double()
        covariance = kernel(rows, rows).to_dense() * same + torch.diag_embed(noise)
        cholesky = torch.linalg.cholesky(covariance)  # (J, N, N)
        white = torch.linalg.solve_triangular(cholesky, targets.unsqueeze(-1), upper=False)
        log_determinant = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gradient((-0.5 * (white.square().sum((-2, -1)) + log_determinant)).sum(), kernel)
        with torch.no_grad():
            cross = kernel(rows, new).to_dense() * (label[:, None] == new_label).double()
            explained = torch.linalg.solve_triangular(cholesky, cross.expand(CHANNELS, -1, -1), upper=False)
            return (explained.mT @ white).squeeze(-1), 1 - explained.square().sum(-2)

    tasks = {"ours": ours, "GPyTorch's ExactGP": gpytorch_path}
    slow = {"dense N x N": dense} if groups <= 160 else {}
    answers = {name: task() for name, task in (tasks | slow).items()}
    for name, answer in answers.items():
        for part, reference in zip(answer, answers["ours"], strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-6, atol=1e-8, msg=f"{name} differs from ours")
    # the slow one by itself: after it, what is in the caches is gone, and the next task would pay for that
    seconds = interleaved(tasks, repeats, warm_up=1) | interleaved(slow, repeats, warm_up=1)
    others = list(seconds)[1:]
    return {
        "rows": groups * MEMBERS,
        "tasks": times(seconds, "ms"),
        "times_longer": {name: ratio(seconds[name], seconds["ours"])["median"] for name in others},
        "peak_memory_gb": peak_memory_gb(),
    }


def evidence(model: gpytorch.models.ExactGP, kernel: gpytorch.kernels.Kernel) -> None:
    model.train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    rows = model.train_inputs[0]
    gradient(marginal(model(rows), model.train_targets).sum() * len(rows), kernel)


def gradient(value: Tensor, kernel: gpytorch.kernels.Kernel) -> None:
    kernel.zero_grad()
    value.backward()


def say(record: Record) -> str:
    lines = [f"{name}: {t['median']:.3f} {t['unit']}" for name, t in record["tasks"].items()]
    lines += [f"{name} takes {times_longer:.1f} times as long" for name, times_longer in record["times_longer"].items()]
    return "\n".join([f"{record['rows']} rows in {record.key['groups']} groups", *lines])


STUDY = Study(
    "posterior",
    "Time of the posterior",
    "Three ways compute the posterior of 8 local channels: this package, GPyTorch's `ExactGP`, and one dense "
    "covariance of all rows (up to 1760). All give the same numbers.",
    keys, run, say, alone=True,
)  # fmt: skip
