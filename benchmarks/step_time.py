"""What a training step of the FGP-VAE costs beside one of a plain VAE.

    python benchmarks/step_time.py [--threads 2] [--repeats 30]

1. The same step: the same (fast) networks, batches, objective and optimizer; only the prior and its inference differ.
2. The whole way: `fit` on the FGP-VAE, with all its logging and checks, beside the leanest loop one would write by hand
   for a plain VAE with the networks in their plain form.
"""

import argparse
import math
import warnings

import gpytorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import harness
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedBatch,
    LocalChannels,
    fit,
)
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.models import Terms
from fgp_gpytorch.nets import PaperDecoder, PaperEncoder


class VAE(nn.Module):
    """The paper's K = I: the same networks, likelihood and terms, with independent standard normal latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = PaperEncoder(), PaperDecoder(), GaussianLikelihood()

    def register_parameters(self) -> None:
        """Nothing to announce."""

    def terms(self, batch: GroupedBatch, num_particles: int = 1) -> Terms:
        """The analytic parts of the ELBO."""
        mean, variance = self.encoder(batch.y.flatten(0, 1))
        z = mean + variance.sqrt() * torch.randn_like(mean)
        output = self.decoder(z)
        groups = batch.num_groups
        squared_error = (output - batch.y.flatten(0, 1)).square().reshape(groups, -1).sum(-1)
        elements = squared_error.new_full((groups,), batch.y[0].numel())
        kl = 0.5 * (mean.square() + variance - variance.log() - 1).reshape(groups, -1).sum(-1)
        return Terms(
            self.likelihood.log_prob_of_squared_error(squared_error, elements), kl, torch.zeros_like(kl), squared_error,
            elements, batch.mask.sum(-1), torch.zeros(()), batch.num_dataset_groups, batch.num_dataset_members,
        )  # fmt: skip


def fgp_vae(num_local: int, learn: bool, dropout: float = 0.0) -> FGPVAE:
    kernel = gpytorch.kernels.PeriodicKernel(batch_shape=torch.Size([num_local] if learn else []))
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 1.0
    kernel.raw_period_length.requires_grad_(False)
    kernel.raw_lengthscale.requires_grad_(learn)
    prior = FactorizedGPPrior([LocalChannels(num_local, kernel), GlobalChannels(16 - num_local)])
    return FGPVAE(PaperEncoder(), PaperDecoder(), prior, member_dropout=dropout)


def stepper(model: nn.Module, loader: DataLoader):
    """One training step: fetch a batch, compute the objective, go back, move."""
    objective = ELBO()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-3, fused=True)
    batches = iter(loader)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        terms = objective.terms(model, model, batch)
        loss = objective.loss_of(terms) / terms.num_dataset_members
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_networks() -> tuple[nn.Module, nn.Module]:
    """The paper's networks as one writes them down."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ELU(), nn.Conv2d(8, 8, 3, stride=2), nn.ELU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(32, 32),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(16, 128), nn.Unflatten(1, (8, 4, 4)),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 3, padding=1), nn.ELU(),
    )  # fmt: skip
    return encoder, decoder


def plain_epoch(images: Tensor):
    """One epoch of the leanest loop: images in one tensor, shuffled by index, nothing logged."""
    encoder, decoder = plain_networks()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)

    def epoch() -> None:
        for index in torch.randperm(len(images)).split(220):
            y = images[index]
            mean, log_variance = encoder(y).chunk(2, dim=1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            squared_error = (decoder(z) - y).square().sum()
            kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
            loss = squared_error / (2 * 0.025) + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", ".*torch.jit.*")
    data = rotated_mnist().train
    loader = DataLoader(data, batch_size=20, shuffle=True)

    harness.header("training step, 20 groups of 11 images, networks of Table A.1", seed=0)
    variants = {
        "VAE": VAE(),
        "FGP-VAE, J = 8, fixed kernel (paper)": fgp_vae(8, learn=False),
        "FGP-VAE, J = 12, learned kernels, member dropout (best)": fgp_vae(12, learn=True, dropout=2 / 11),
    }
    steps = {name: stepper(model, loader) for name, model in variants.items()}
    seconds = harness.interleaved(steps, options.repeats, warm_up=10, calls=9)
    for name, values in seconds.items():
        harness.show(name, values)
    for name in list(steps)[1:]:
        must = 1.25 if "paper" in name else None
        harness.ratio(f"{name.split(',')[0]} ({name.split('(')[-1]} over VAE", seconds[name], seconds["VAE"], must)

    print()
    epochs = 10
    images = data.flat().y
    plain = plain_epoch(images)

    def whole(learn: bool):
        model = fgp_vae(12, learn=True, dropout=2 / 11) if learn else fgp_vae(8, learn=False)
        return lambda: fit(model, data, epochs=epochs, folder=None, progress=False, seed=0, accelerator="cpu")

    tasks = {
        "plain VAE by hand, 10 epochs": lambda: [plain() for _ in range(epochs)],
        "fit, FGP-VAE (paper), 10 epochs": whole(learn=False),
        "fit, FGP-VAE (best), 10 epochs": whole(learn=True),
    }
    seconds = harness.interleaved(tasks, max(3, options.repeats // 6), warm_up=1)
    for name, values in seconds.items():
        harness.show(name, values, "s")
    base = seconds["plain VAE by hand, 10 epochs"]
    harness.ratio(
        "fit of FGP-VAE (paper) over plain VAE by hand", seconds["fit, FGP-VAE (paper), 10 epochs"], base, 0.85
    )
    harness.ratio("fit of FGP-VAE (best) over plain VAE by hand", seconds["fit, FGP-VAE (best), 10 epochs"], base)


if __name__ == "__main__":
    main()
