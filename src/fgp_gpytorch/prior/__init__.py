"""The factorized prior: blocks of channels, their posterior, and the bridge to GPyTorch's own models."""

from fgp_gpytorch.prior.channels import ChannelBlock, GlobalChannels, LocalChannels
from fgp_gpytorch.prior.exact_gp import BlockExactGP, exact_gp
from fgp_gpytorch.prior.factorized_gp_prior import FactorizedGPPrior
from fgp_gpytorch.prior.independent_channels import IndependentChannels
from fgp_gpytorch.prior.latent_posterior import LatentPaths, LatentPosterior, LatentPrediction

__all__ = [
    "BlockExactGP",
    "ChannelBlock",
    "FactorizedGPPrior",
    "GlobalChannels",
    "IndependentChannels",
    "LatentPaths",
    "LatentPosterior",
    "LatentPrediction",
    "LocalChannels",
    "exact_gp",
]
