"""Time and memory of one large group, by each way of inference.

Posterior means, variances and KL of one group with 8 channels, and the gradient in the pseudo-observations and the
kernel, in float64. Dense inference and the state space have Matern 3/2 kernels and give the same numbers (checked).
Low rank has periodic kernels, inducing points have Gaussian kernels and 32 points.
"""

import math
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from torch import Tensor

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import THREADS, interleaved, peak_memory_gb, ratio, times
from fgp_gpytorch import FactorizedGPPrior, LocalChannels

CHANNELS, POINTS, SPAN = 8, 32, 10.0
MEMBERS = (1000, 2000, 10_000, 100_000)
MOST_DENSE = 2000
WAYS = ("state space", "low rank", "inducing points", "dense", "GPyTorch's ExactGP")


def keys(plan: Plan) -> list[Key]:
    return [{"members": members, "seed": 0} for members in ((300,) if plan.quick else MEMBERS)]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    members = key["members"]
    ways = [way for way in WAYS if members <= MOST_DENSE or way in WAYS[:3]]
    if plan.quick:  # each way needs a process
        ways = ["state space", "dense"]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process for each way
        memory = {way: pool.apply(added_memory, (way, members, key["seed"])) for way in ways}
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    tasks = {way: task(way, members, key["seed"]) for way in ways}
    if "dense" in tasks:
        for one, other in zip(tasks["state space"](), tasks["dense"](), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    seconds = interleaved(tasks, 3 if members > MOST_DENSE or plan.quick else 5, warm_up=1)
    return {"channels": CHANNELS, "points": POINTS}, {
        "tasks": times(seconds, "s"),
        "added_memory_gb": memory,
        "times_longer": {
            way: ratio(seconds[way], seconds["state space"])["median"] for way in ways if way not in WAYS[:3]
        },
    }


def task(way: str, members: int, seed: int, device: str | torch.device = "cpu") -> Callable[[], list[Tensor]]:
    """A function that computes posterior and gradient: the KL, and gradients of a loss. Inputs are made on the CPU."""
    g = torch.Generator().manual_seed(seed)
    x = SPAN * torch.rand(1, members, 1, generator=g, dtype=torch.float64).to(device)
    mean = torch.randn(1, members, CHANNELS, generator=g, dtype=torch.float64).to(device).requires_grad_()
    variance = 0.1 + torch.rand(1, members, CHANNELS, generator=g, dtype=torch.float64)
    variance = variance.to(device).requires_grad_()
    if way == "GPyTorch's ExactGP":
        return exact_gp(x[0], mean[0].detach().mT, variance[0].detach().mT)
    own = torch.Size([CHANNELS])
    base: Kernel
    if way == "low rank":
        base = PeriodicKernel(batch_shape=own)
        base.period_length = SPAN
    elif way == "inducing points":
        base = RBFKernel(batch_shape=own)
    else:
        base = MaternKernel(nu=1.5, batch_shape=own)
    kernel = ScaleKernel(base, batch_shape=own)
    points = torch.linspace(0, SPAN, POINTS) if way == "inducing points" else None
    inference = {"inducing points": "inducing", "state space": "state_space", "low rank": "low_rank"}.get(way, way)
    prior = FactorizedGPPrior([LocalChannels(CHANNELS, kernel, inference=inference, inducing_points=points)])  # pyright: ignore
    prior.to(device)

    def posterior_and_gradient() -> list[Tensor]:
        posterior = prior.posterior(x, mean, variance)
        loss = posterior.kl.sum() + posterior.mean.square().sum() + posterior.variance.sum()
        inputs = [mean, variance, *(p for p in prior.parameters() if p.requires_grad)]
        return [posterior.kl.detach(), *torch.autograd.grad(loss, inputs)]

    return posterior_and_gradient


def exact_gp(x: Tensor, targets: Tensor, noise: Tensor) -> Callable[[], list[Tensor]]:
    """GPyTorch's marginal likelihood and its gradient, a batch of the channels."""
    own = torch.Size([CHANNELS])
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise, batch_shape=own)

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x.expand(CHANNELS, -1, -1), targets, likelihood)
            self.mean = gpytorch.means.ZeroMean(batch_shape=own)
            self.kernel = ScaleKernel(MaternKernel(nu=1.5, batch_shape=own), batch_shape=own)

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    model = Model().double()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)

    def evidence_and_gradient() -> list[Tensor]:
        model.zero_grad()
        with gpytorch.settings.fast_computations(False, False, False):
            value = marginal(model(*model.train_inputs), targets)
        value.sum().backward()
        return [value.detach()]

    return evidence_and_gradient


def added_memory(way: str, members: int, seed: int) -> float:
    """Largest resident memory of the computation less that before it, GB."""
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    task(way, 200, seed)()
    compute, before = task(way, members, seed), peak_memory_gb()
    compute()
    return peak_memory_gb() - before


def slope(records: list[Record], way: str) -> float | None:
    """Of the logarithm of time over that of the members, from the smallest to the largest group."""
    found = [(r.key["members"], r["tasks"][way]["median"]) for r in records if way in r["tasks"]]
    (low, first), (high, last) = found[0], found[-1]
    return math.log(last / first) / math.log(high / low) if high > low else None


def say(record: Record) -> str:
    lines = [
        f"{way}: {t['median']:.3f} s, {record['added_memory_gb'][way]:.2f} GB" for way, t in record["tasks"].items()
    ]
    return "\n".join([f"{record.key['members']} members", *lines])


STUDY = Study(
    "large_groups",
    "Large groups",
    "Posterior means, variances and KL of one group with 8 channels, with the gradient in the pseudo-observations and "
    "the kernel. Dense inference and the state space give the same numbers (Matern 3/2). Low rank has periodic "
    "kernels, inducing points have Gaussian kernels and 32 points. GPyTorch computes the marginal likelihood and its "
    "gradient only.",
    keys, run, say, alone=True,
)  # fmt: skip
