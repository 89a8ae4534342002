"""The cost of a training step of the FGP-VAE beside one of a plain VAE.

The part "step" has the same networks, batches, objective and optimizer: only the prior and its inference differ. The
part "fit" compares `fit` on the FGP-VAE, with its logging and checks, with the shortest loop for a plain VAE.
"""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.systems import decoder, encoder
from benchmarks.timing import THREADS, interleaved, ratio, times
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

MUST_STEP, MUST_FIT = 1.25, 0.85


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


def plain_epoch(images: Tensor):
    """Return an epoch of the shortest loop: images in one tensor, shuffled by index, nothing logged."""
    encode, decode = plain_networks()
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 1e-3)

    def epoch() -> None:
        for index in torch.randperm(len(images)).split(220):
            y = images[index]
            mean, log_variance = encode(y).chunk(2, dim=1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            squared_error = (decode(z) - y).square().sum()
            kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
            loss = squared_error / (2 * 0.025) + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def keys(plan: Plan) -> list[Key]:
    return [{"part": part, "seed": 0} for part in (["step"] if plan.quick else ["step", "fit"])]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(THREADS)
    torch.manual_seed(key["seed"])
    data = rotated_mnist().train
    repeats = 3 if plan.quick else 30
    return {}, steps(data, repeats) if key["part"] == "step" else fits(data, max(3, repeats // 6))


def steps(data: GroupedDataset, repeats: int) -> dict[str, Any]:
    """Times of training steps."""
    loader = DataLoader(data, batch_size=20, shuffle=True)
    paper, best = "FGP-VAE, J = 8, fixed kernel (paper)", "FGP-VAE, J = 12, learned kernels, member dropout (best)"
    models = {"VAE": VAE(), paper: fgp_vae(8, learn=False), best: fgp_vae(12, learn=True, dropout=2 / 11)}
    tasks = {name: stepper(model, loader) for name, model in models.items()}
    seconds = interleaved(tasks, repeats, warm_up=10, calls=9)
    return {
        "tasks": times(seconds, "ms"),
        "ratios": {
            "FGP-VAE (paper) over VAE": ratio(seconds[paper], seconds["VAE"], MUST_STEP),
            "FGP-VAE (best) over VAE": ratio(seconds[best], seconds["VAE"]),
        },
    }


def fits(data: GroupedDataset, repeats: int, epochs: int = 10) -> dict[str, Any]:
    """Times of whole runs."""
    plain = plain_epoch(data.flat().y)

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
    seconds = interleaved(tasks, repeats, warm_up=1)
    return {
        "tasks": times(seconds, "s"),
        "ratios": {
            "fit of FGP-VAE (paper) over plain VAE by hand": ratio(seconds[paper], seconds[by_hand], MUST_FIT),
            "fit of FGP-VAE (best) over plain VAE by hand": ratio(seconds[best], seconds[by_hand]),
        },
    }


def say(record: Record) -> str:
    lines = [f"{name}: {t['median']:.3f} {t['unit']}" for name, t in record["tasks"].items()]
    for name, r in record["ratios"].items():
        bound = f", must be <= {r['must']}: {'met' if r['median'] <= r['must'] else 'MISSED'}" if "must" in r else ""
        lines.append(f"{name}: {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f}{bound})")
    return "\n".join(lines)


STUDY = Study(
    "step_time",
    "Time of a training step",
    "A training step of the FGP-VAE is timed in turn with the same step of a VAE with the same networks, and `fit` "
    "with the shortest loop for a plain VAE. Both use 2 threads, and lower is better.",
    keys, run, say, alone=True,
)  # fmt: skip
