"""The cost of a training step of the FGP-VAE beside one of a plain VAE, on one thread and on two.

The part "step" has the same networks, batches, objective and optimizer: only the prior and its inference differ. Beside
them stands a step of the shortest loop for a plain VAE with plain networks. The part "fit" compares `fit` on the
FGP-VAE, with its logging and checks, with that loop. The part "prior" compares the algebra of a step with GPyTorch's,
the part "pieces" takes the time of each piece of a step, and the part "import" that of importing the package.
"""

import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.systems import decoder, encoder
from benchmarks.timing import interleaved, ratio, times
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedBatch,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.models import Terms

# the largest ratios that are wanted, by threads
MUST_FIT, MUST_PRIOR_STEP, MUST_ALGEBRA = {1: 0.53, 2: 0.68}, {1: 0.07, 2: 0.10}, 0.75
MUST_IMPORT = 1.5
GROUPS, MEMBERS = 20, 11  # of a minibatch of the paper


class VAE(nn.Module):
    """The paper's K = I: the same networks, likelihood and terms, with independent standard normal latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder(), decoder(), GaussianLikelihood()

    def terms(self, batch: GroupedBatch, num_particles: int = 1) -> Terms:
        """The analytic parts of the ELBO."""
        mean, variance = self.encoder(batch.y.flatten(0, 1))
        z = mean + variance.sqrt() * torch.randn_like(mean)
        score = self.likelihood.score(self.decoder(z).reshape(batch.y.shape), batch.y)
        kl = 0.5 * (mean.square() + variance - variance.log() - 1).reshape(batch.num_groups, -1).sum(-1)
        return Terms(
            score.log_prob, kl, torch.zeros_like(kl), score.squared_error, score.num_elements, batch.mask.sum(-1),
            torch.zeros(()), batch.num_dataset_groups, batch.num_dataset_members,
        )  # fmt: skip


def fgp_vae(num_local: int, learn: bool, dropout: float = 0.0) -> FGPVAE:
    kernel = gpytorch.kernels.PeriodicKernel(batch_shape=torch.Size([num_local] if learn else []))
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 1.0
    kernel.raw_period_length.requires_grad_(False)
    kernel.raw_lengthscale.requires_grad_(learn)
    prior = FactorizedGPPrior([LocalChannels(num_local, kernel), GlobalChannels(16 - num_local)])
    return FGPVAE(encoder(), decoder(), prior, member_dropout=dropout)


def stepper(model: FGPVAE | VAE, loader: DataLoader):
    """Return a training step: read a batch, compute the objective and its gradient, move the parameters."""
    objective = ELBO()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-3, fused=True)
    batches = iter(loader)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        terms = model.terms(batch)
        loss = objective.loss_of(terms) / terms.num_dataset_members
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_networks() -> tuple[nn.Module, nn.Module]:
    """Return the paper's networks in their plain form."""
    encode = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ELU(), nn.Conv2d(8, 8, 3, stride=2), nn.ELU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(32, 32),
    )  # fmt: skip
    decode = nn.Sequential(
        nn.Linear(16, 128), nn.Unflatten(1, (8, 4, 4)),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 3, padding=1), nn.ELU(),
    )  # fmt: skip
    return encode, decode


def plain_step() -> Callable[[Tensor], None]:
    """Return a step of the shortest loop: nothing logged, nothing checked."""
    encode, decode = plain_networks()
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 1e-3)

    def step(y: Tensor) -> None:
        mean, log_variance = encode(y).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        squared_error = (decode(z) - y).square().sum()
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
        loss = squared_error / (2 * 0.025) + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def keys(plan: Plan) -> list[Key]:
    if plan.quick:
        return [{"part": "step", "threads": 2, "seed": 0}]
    several = [part for part in PARTS if part != "import"]
    keys = [{"part": part, "threads": threads, "seed": 0} for part in several for threads in (1, 2)]
    return [*keys, {"part": "import", "threads": 1, "seed": 0}]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(key["threads"])
    torch.manual_seed(key["seed"])
    return {}, PARTS[key["part"]](rotated_mnist().train, key["threads"], 3 if plan.quick else 30)


def steps(data: GroupedDataset, threads: int, repeats: int) -> dict[str, Any]:
    """Times of training steps."""
    loader, images = DataLoader(data, batch_size=GROUPS, shuffle=True), data.flat().y
    paper, best = "FGP-VAE, J = 8, fixed kernel (paper)", "FGP-VAE, J = 12, learned kernels, member dropout (best)"
    plain, by_hand = "plain VAE by hand", plain_step()
    models = {"VAE": VAE(), paper: fgp_vae(8, learn=False), best: fgp_vae(12, learn=True, dropout=2 / 11)}
    tasks: dict[str, Callable[[], object]] = {name: stepper(model, loader) for name, model in models.items()}
    tasks[plain] = lambda: by_hand(images[torch.randint(len(images), (GROUPS * MEMBERS,))])
    seconds = interleaved(tasks, repeats, warm_up=10, calls=9)
    added = [f - v for f, v in zip(seconds[paper], seconds["VAE"], strict=True)]
    return {
        "tasks": times(seconds, "ms"),
        "ratios": {
            "FGP-VAE (paper) less VAE, over the plain step": ratio(added, seconds[plain], MUST_PRIOR_STEP[threads]),
            "FGP-VAE (paper) over VAE": ratio(seconds[paper], seconds["VAE"]),
            "FGP-VAE (best) over VAE": ratio(seconds[best], seconds["VAE"]),
        },
    }


def fits(data: GroupedDataset, threads: int, repeats: int, epochs: int = 10) -> dict[str, Any]:
    """Times of whole runs."""
    images, step = data.flat().y, plain_step()

    def plain() -> None:
        for index in torch.randperm(len(images)).split(GROUPS * MEMBERS):
            step(images[index])

    def whole(model: FGPVAE):
        return lambda: fit(model, data, epochs=epochs, folder=None, progress=False, seed=0, accelerator="cpu")

    by_hand, paper, best = (
        f"{name}, {epochs} epochs" for name in ("plain VAE by hand", "fit, FGP-VAE (paper)", "fit, FGP-VAE (best)")
    )
    tasks = {
        by_hand: lambda: [plain() for _ in range(epochs)],
        paper: whole(fgp_vae(8, learn=False)),
        best: whole(fgp_vae(12, learn=True, dropout=2 / 11)),
    }
    seconds = interleaved(tasks, max(3, repeats // 6), warm_up=1)
    return {
        "tasks": times(seconds, "s"),
        "ratios": {
            "fit of FGP-VAE (paper) over plain VAE by hand": ratio(seconds[paper], seconds[by_hand], MUST_FIT[threads]),
            "fit of FGP-VAE (best) over plain VAE by hand": ratio(seconds[best], seconds[by_hand]),
        },
    }


class BatchedGP(gpytorch.models.ExactGP):
    """One Gaussian process for each group and channel, in one batch."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.Likelihood, kernel: Any) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """The prior of the values at x."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def algebra(data: GroupedDataset, threads: int, repeats: int) -> dict[str, Any]:
    """The algebra of a step, 16 channels, beside GPyTorch's marginal likelihood of its 8 local channels."""
    warnings.filterwarnings("ignore")
    prior, x = fgp_vae(8, learn=False).prior, data[range(GROUPS)].x.double()
    mean = torch.randn(GROUPS, MEMBERS, 16, requires_grad=True)
    variance = (0.1 + torch.rand(GROUPS, MEMBERS, 16)).requires_grad_()
    y, noise = (v.detach()[..., :8].mT.double().contiguous().requires_grad_() for v in (mean, variance))
    x_each = x.unsqueeze(1).expand(-1, 8, -1, -1).contiguous()

    def ours() -> None:
        mean.grad = variance.grad = None
        posterior = prior.condition(x, mean, variance)
        (sum(part.sum() for part in posterior.marginals) + posterior.kl.sum()).backward()

    def theirs() -> None:
        y.grad = noise.grad = None
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)
        model = BatchedGP(x_each, y, likelihood, prior.blocks[0].kernel).train()
        gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x_each), y).sum().backward()

    own, other = "posterior, KL and gradient, 16 channels", "GPyTorch's marginal likelihood and gradient, 8 channels"
    seconds = interleaved({own: ours, other: theirs}, repeats, calls=20)
    return {
        "tasks": times(seconds, "ms"),
        "ratios": {f"{own}, over {other}": ratio(seconds[own], seconds[other], MUST_ALGEBRA)},
    }


def pieces(data: GroupedDataset, threads: int, repeats: int) -> dict[str, Any]:
    """The time of each piece of a step of the paper's model. What is left is loading, checks and glue."""
    model, batch, objective = fgp_vae(8, learn=False), data[range(GROUPS)], ELBO()
    whole, x = stepper(model, DataLoader(data, batch_size=GROUPS, shuffle=True)), batch.x.double()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-3, fused=True)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, piece: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = piece()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for _ in range(10 * repeats):
        timed("whole step", whole)
        timed("kernel", lambda: model.prior.blocks[0].covariance(x, x))
        pseudo = timed("encoder", lambda: model.encode(batch))
        posterior = model.condition_step(batch, pseudo)
        timed("posterior and KL, with the kernel", lambda q=posterior: (q.marginals, q.kl_terms))
        z = timed("draw", lambda q=posterior: q.rsample_marginals(torch.Size()))
        output = timed("decoder", lambda z=z: model.decode(z, batch.x))
        timed("likelihood", lambda output=output: model.likelihood.score(output, batch.y))
        terms = model.terms(batch)
        loss = objective.loss_of(terms) / terms.num_dataset_members
        optimizer.zero_grad()
        timed("backward", loss.backward)
        timed("Adam", optimizer.step)
    return {"tasks": times(seconds, "ms"), "ratios": {}}


def imports(data: GroupedDataset, threads: int, repeats: int) -> dict[str, Any]:
    """Processor time from the start of Python to the end of an import, in a process of its own."""
    seconds: dict[str, list[float]] = {"import torch, gpytorch": [], "import fgp_gpytorch": []}
    for _ in range(max(3, repeats // 3)):
        for program, own in seconds.items():
            command = [sys.executable, "-W", "ignore", "-c", f"import time; {program}; print(time.process_time())"]
            own.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    theirs, ours = seconds
    return {
        "tasks": times(seconds, "s"),
        "ratios": {f"{ours} over {theirs}": ratio(seconds[ours], seconds[theirs], MUST_IMPORT)},
    }


PARTS = {"step": steps, "fit": fits, "prior": algebra, "pieces": pieces, "import": imports}


def say(record: Record) -> str:
    lines = [f"{name}: {t['median']:.3f} {t['unit']}" for name, t in record["tasks"].items()]
    for name, r in record["ratios"].items():
        bound = f", must be <= {r['must']}: {'met' if r['median'] <= r['must'] else 'MISSED'}" if "must" in r else ""
        lines.append(f"{name}: {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f}{bound})")
    return "\n".join([f"threads: {record.key['threads']}", *lines])


STUDY = Study(
    "step_time",
    "Time of a training step",
    "A training step of the FGP-VAE is timed in turn with two others: a step of a VAE with the same networks, and a "
    "step of the shortest loop for a plain VAE with plain networks. `fit` is timed in turn with that loop, and the "
    "algebra of a step with GPyTorch's marginal likelihood. Lower is better.",
    keys, run, say, alone=True,
)  # fmt: skip
