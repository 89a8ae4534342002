"""Models and held-out members about which everything is known."""

import math

import gpytorch
import torch
from torch import nn

from factories import make_data, make_prior
from fgp_gpytorch import (
    FGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    HeldOut,
    LocalChannels,
)
from fgp_gpytorch.nets import MLPEncoder


def make_linear_model(variance=0.3, likelihood=None):
    """A decoder that is linear: then every prediction is Gaussian in closed form."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder, decoder = MLPEncoder([3], 3, (8,)), nn.Linear(3, 3).double()
    likelihood = GaussianLikelihood("fixed", variance) if likelihood is None else likelihood
    return FGPVAE(encoder.double(), decoder, make_prior(), likelihood).eval()


def make_held_out(sizes=(3, 5, 2, 4), members=2, seed=5):
    """Ragged contexts, and more members of each group at other x."""
    context = make_data(sizes, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x_new = 3 * torch.rand(len(sizes), members, 1, generator=generator, dtype=torch.float64)
    y_new = torch.randn(len(sizes), members, 3, generator=generator, dtype=torch.float64)
    return HeldOut(context, x_new, y_new)


class Reading(nn.Module):
    """An encoder for data whose elements are the latents."""

    def forward(self, y):
        return y, torch.full_like(y, 1e-6)


def make_circle_model():
    """Two local channels that hold the cosine and sine of x, a global one that holds the group's own number."""
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    return FGPVAE(Reading(), nn.Identity(), prior, GaussianLikelihood("fixed", 0.1)).eval()


def circle_rows(x, number):
    """The elements (cos x, sin x, number)."""
    return torch.stack([x.cos(), x.sin(), number.expand_as(x)], dim=-1)


def make_circle_data(groups=6, members=12):
    """Groups that go round the circle at the same x, each with its own number."""
    x = torch.linspace(0, 2 * math.pi, members + 1, dtype=torch.float64)[:-1].expand(groups, -1)
    number = torch.linspace(-1, 1, groups, dtype=torch.float64)[:, None]
    group = torch.arange(groups).repeat_interleave(members)
    return GroupedDataset(circle_rows(x, number).flatten(0, 1), x.flatten(), group)


def make_circle_held_out(groups=6):
    """The data above as context, and x between its members, others for each group."""
    context = make_circle_data(groups)
    x_new = 1.0 + 0.7 * torch.arange(groups, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.2])
    x_new = x_new.remainder(2 * math.pi - 0.6)  # the kernel does not know that 2 pi is 0
    number = torch.linspace(-1, 1, groups, dtype=torch.float64)[:, None]
    return HeldOut(context, x_new.unsqueeze(-1), circle_rows(x_new, number))
