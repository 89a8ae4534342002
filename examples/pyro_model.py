"""Stochastic variational inference with Pyro's own tools.

`model.model` and `model.guide` are an ordinary Pyro pair: `SVI`, `Trace_ELBO`, `Predictive` and `poutine` take them as
they are. Here Pyro's ELBO trains the model. The ELBO of this package has the same expectation and less noise, because
its KL is analytic.
"""

import argparse

import gpytorch
import pyro
import torch
from torch.utils.data import DataLoader

from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


def curves(num_groups: int) -> GroupedDataset:
    """Simulate curves in three dimensions, at 8 places each. Every group has an amplitude and an offset."""
    place = torch.rand(num_groups, 8).sort(-1).values
    amplitude, offset = torch.randn(2, num_groups, 1)
    wave = amplitude * torch.sin(4 * place)
    y = torch.stack([wave, wave + offset, offset.expand_as(wave)], dim=-1) + 0.1 * torch.randn(num_groups, 8, 3)
    group = torch.arange(num_groups).repeat_interleave(8)
    return GroupedDataset(y.flatten(0, 1), place.flatten(), group)


def main(epochs: int) -> tuple[float, float]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    data = curves(120)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    prior = FactorizedGPPrior([LocalChannels(1, kernel), GlobalChannels(1)])
    model = FGPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), prior, GaussianLikelihood("learned", variance=0.1))

    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), loss=pyro.infer.TraceMeanField_ELBO())
    batch = data[:]
    before = svi.evaluate_loss(batch)
    for _ in range(epochs):
        for minibatch in DataLoader(data, batch_size=30, shuffle=True):
            svi.step(minibatch)  # the plate scales a minibatch to all 120 groups
    after = svi.evaluate_loss(batch)
    analytic = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({}), loss=ELBO()).evaluate_loss(batch)
    print(f"negative ELBO per group: {before / len(data):.2f} before, {after / len(data):.2f} after training")
    print(f"by this package's objective: {analytic / len(data):.2f}")

    predictive = pyro.infer.Predictive(model.model, guide=model.guide, num_samples=20, return_sites=("z", "y"))
    draws = predictive(data[[0, 1]], observe=False)
    print({name: tuple(value.shape) for name, value in draws.items()})
    return before / len(data), after / len(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
