"""Small models and ragged data for the tests of networks, objectives and training."""

import gpytorch
import torch
from torch import nn

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GaussianLikelihood, GlobalChannels, GroupedDataset, LocalChannels
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

SIZES = (3, 5, 2, 4, 6, 1, 4)


def make_data(sizes=SIZES, y_shape=(3,), seed=0, element_mask=False, dtype=torch.float32):
    """Groups of unequal size: smooth curves in x, each group shifted; a quarter of the elements unobserved if asked."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = 3 * torch.rand(len(group), 1, generator=generator)
    shift = torch.randn(len(sizes), generator=generator)[group]
    phase = torch.arange(float(torch.tensor(y_shape).prod()))
    y = torch.sin(2 * x + phase) + shift[:, None] + 0.1 * torch.randn(len(x), len(phase), generator=generator)
    y_mask = None
    if element_mask:
        y_mask = (torch.rand(y.shape, generator=generator) > 0.25).reshape(-1, *y_shape)
    return GroupedDataset(y.reshape(-1, *y_shape).to(dtype), x.to(dtype), group, y_mask)


def make_prior(hyperprior=False, **options):
    """Two local channels with amplitude 1.7, one global channel with variance 0.6, a mean that is not zero.

    The hyperprior disagrees with the lengthscale, so that its log density (-19 nats) cannot be overlooked.
    """
    prior = gpytorch.priors.GammaPrior(20.0, 4.0) if hyperprior else None
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(lengthscale_prior=prior))
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.7, 0.8
    mean = gpytorch.means.ConstantMean()
    mean.initialize(constant=0.3)
    return FactorizedGPPrior([LocalChannels(2, kernel, mean), GlobalChannels(1, variance=0.6)], **options)


def make_model(likelihood=None, member_dropout=0.0, hyperprior=False, y_shape=(3,), seed=1, encoder=None, decoder=None):
    """A tiny FGPVAE, the same for the same seed; a Gaussian of variance 0.5 unless another likelihood is given."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = MLPEncoder(y_shape, 3, (8,)) if encoder is None else encoder
        decoder = MLPDecoder(3, y_shape, (8,)) if decoder is None else decoder
    likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
    return FGPVAE(encoder, decoder, make_prior(hyperprior), likelihood, member_dropout)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class ConstantEncoder(nn.Module):
    """Pseudo-observations that do not look at y, and a record of how many rows came."""

    def __init__(self, num_channels=3):
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(-1, 1, num_channels))
        self.rows = []

    def forward(self, y):
        self.rows.append(len(y))
        mean = self.offset.expand(len(y), -1)
        return mean, torch.full_like(mean, 0.4)


class BlindDecoder(nn.Module):
    """A decoder that ignores z: the expected log likelihood is then exact with one draw."""

    def __init__(self, y_shape=(3,)):
        super().__init__()
        self.output = nn.Parameter(torch.linspace(-1, 1, 3).expand(y_shape).clone())

    def forward(self, z):
        return self.output.expand(*z.shape[:-1], *self.output.shape)
