"""The posterior of local channels beside GPyTorch's own path and a dense covariance over all rows.

    python benchmarks/posterior.py [--threads 2] [--largest 360]

Equal work in float64: the log evidence with its gradient with respect to the lengthscale, then the posterior mean and
variance of 5 new members of each group. Groups of 11, 8 channels. The ratio says how many times longer the other takes.
"""

import argparse
import math
import warnings

import gpytorch
import torch
from torch import Tensor

import harness
from fgp_gpytorch import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.prior import exact_gp

CHANNELS, MEMBERS, NEW = 8, 11, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", type=int, default=360, help="groups; the dense covariance stops at 160")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    harness.header(f"posterior, groups of {MEMBERS}, {CHANNELS} channels, {NEW} new members each, float64", seed=0)
    groups = 10
    while groups <= options.largest:
        compare(groups, options.repeats)
        groups = groups * 4 if groups * 4 <= options.largest or groups == options.largest else options.largest


def compare(groups: int, repeats: int) -> None:
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
    if groups <= 160:
        tasks["dense N x N"] = dense
    answers = {name: task() for name, task in tasks.items()}
    for name, answer in answers.items():
        for part, reference in zip(answer, answers["ours"], strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-6, atol=1e-8, msg=f"{name} differs from ours")
    print(f"\nN = {groups * MEMBERS} rows in {groups} groups")
    seconds = harness.interleaved(tasks, repeats if groups < 160 else 3, warm_up=1)
    for name, values in seconds.items():
        harness.show(name, values)
    for name in list(tasks)[1:]:
        times = median_ratio(seconds[name], seconds["ours"])
        print(f"{name + ' over ours':58} {times:9.1f}     (higher: we are faster)")
    print(f"{'peak memory of the process so far':58} {harness.peak_memory_gb():9.2f} GB")


def evidence(model: gpytorch.models.ExactGP, kernel: gpytorch.kernels.Kernel) -> None:
    model.train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    rows = model.train_inputs[0]
    gradient(marginal(model(rows), model.train_targets).sum() * len(rows), kernel)


def gradient(value: Tensor, kernel: gpytorch.kernels.Kernel) -> None:
    kernel.zero_grad()
    value.backward()


def median_ratio(above: list[float], below: list[float]) -> float:
    return float(torch.tensor([a / b for a, b in zip(above, below, strict=True)]).median())


if __name__ == "__main__":
    main()
