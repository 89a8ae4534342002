"""The prior alone, inside your own variational autoencoder.

Every weather station (a group) reports four measurements at irregular times. The encoder, the decoder and the loop are
plain PyTorch. fgp_gpytorch supplies the prior, the posterior and its KL. At the end the model predicts a hidden
measurement of every station.
"""

import argparse

import gpytorch
import torch
from torch import nn

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels


def stations(num_stations: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Simulate a daily cycle at 5 to 12 random hours. Every station has a phase and a level."""
    y, hours, station = [], [], []
    mixing = torch.randn(3, 4, generator=generator)
    for s in range(num_stations):
        phase, level = torch.rand(2, generator=generator)
        count = int(torch.randint(5, 13, (), generator=generator))
        hour = 24 * torch.rand(count, generator=generator)
        angle = 2 * torch.pi * (hour / 24 + phase)
        hidden = torch.stack([angle.sin(), angle.cos(), 2 * level.expand(count) - 1], dim=-1)
        y.append(hidden @ mixing + 0.05 * torch.randn(count, 4, generator=generator))
        hours.append(hour)
        station.append(torch.full((count,), s))
    return torch.cat(y), torch.cat(hours), torch.cat(station)


def main(steps: int) -> float:
    torch.manual_seed(0)
    y, hours, station = stations(200, torch.Generator().manual_seed(1))
    data = GroupedDataset(y, hours, station)

    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length = 24.0  # hours
    prior = FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1)])
    encoder, decoder = nn.Linear(4, 6), nn.Linear(3, 4)
    parameters = [*encoder.parameters(), *decoder.parameters(), *prior.parameters()]
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=0.02)

    batch = data[:]  # all groups, padded to one size; batch.mask marks the members
    for _ in range(steps):
        mean, log_variance = encoder(batch.y).chunk(2, dim=-1)
        posterior = prior.posterior(batch.x, mean, log_variance.exp(), batch.mask)
        z = posterior.rsample(marginals=True).float()
        error = (decoder(z) - batch.y).square().sum(-1)
        loss = (error * batch.mask).sum() / (2 * 0.05**2) + posterior.kl.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # hide the last measurement of every station and predict it from the others
    size = batch.mask.sum(-1)
    last = (torch.arange(batch.num_members) == (size - 1).unsqueeze(-1)) & batch.mask
    with torch.no_grad():
        mean, log_variance = encoder(batch.y).chunk(2, dim=-1)
        posterior = prior.posterior(batch.x, mean, log_variance.exp(), batch.mask & ~last)
        predicted = decoder(posterior.predict(batch.x[last].unsqueeze(1)).mean.float())[:, 0]
    error = (predicted - batch.y[last]).square().mean().item()
    baseline = (
        (batch.y * (batch.mask & ~last).unsqueeze(-1)).sum(1) / (size - 1).unsqueeze(-1) - batch.y[last]
    ).square()
    print(f"hidden measurements: mean squared error {error:.4f}, of the station's mean {baseline.mean().item():.4f}")
    return error / baseline.mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    main(parser.parse_args().steps)
