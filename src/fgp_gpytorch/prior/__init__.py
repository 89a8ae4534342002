"""The factorized prior: blocks of channels, their posterior, and the bridge to GPyTorch's own models."""

from fgp_gpytorch.prior.channels import ChannelBlock, GlobalChannels, LocalChannels
from fgp_gpytorch.prior.coregionalized_channels import CoregionalizedChannels
from fgp_gpytorch.prior.correlated_gp_prior import CorrelatedGPPrior, CorrelatedPosterior, CorrelatedPrediction
from fgp_gpytorch.prior.exact_gp import BlockExactGP, exact_gp
from fgp_gpytorch.prior.factorized_gp_prior import FactorizedGPPrior
from fgp_gpytorch.prior.fourier_root import FourierRoot
from fgp_gpytorch.prior.independent_channels import IndependentChannels
from fgp_gpytorch.prior.inducing_posterior import InducingPosterior, InducingPrediction
from fgp_gpytorch.prior.inducing_prior import InducingPrior
from fgp_gpytorch.prior.latent_posterior import LatentPaths, LatentPosterior, LatentPrediction
from fgp_gpytorch.prior.mean_field_posterior import MeanFieldPosterior, MeanFieldPrediction
from fgp_gpytorch.prior.nystrom_root import NystromRoot
from fgp_gpytorch.prior.object_root import ObjectRoot, ProductRoot
from fgp_gpytorch.prior.object_view_prior import ObjectViewPrior

__all__ = [
    "BlockExactGP",
    "ChannelBlock",
    "CoregionalizedChannels",
    "CorrelatedGPPrior",
    "CorrelatedPosterior",
    "CorrelatedPrediction",
    "FactorizedGPPrior",
    "FourierRoot",
    "GlobalChannels",
    "IndependentChannels",
    "InducingPosterior",
    "InducingPrediction",
    "InducingPrior",
    "LatentPaths",
    "LatentPosterior",
    "LatentPrediction",
    "LocalChannels",
    "MeanFieldPosterior",
    "MeanFieldPrediction",
    "NystromRoot",
    "ObjectRoot",
    "ObjectViewPrior",
    "ProductRoot",
    "exact_gp",
]
