"""Gaussian-process-prior variational autoencoders on grouped data, as a plugin for GPyTorch and Pyro."""

from importlib.metadata import version

from fgp_gpytorch import feature_maps, means, nets  # a saved model may name their classes
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOut
from fgp_gpytorch.likelihoods import (
    BernoulliLikelihood,
    ColumnLikelihood,
    DiagonalGaussianLikelihood,
    GaussianLikelihood,
)
from fgp_gpytorch.models import CVAE, FGPVAE, GPVAE, SVGPVAE, VAE, CorrelatedFGPVAE, LatentAngleFGPVAE
from fgp_gpytorch.objectives import ELBO, GECO
from fgp_gpytorch.prior import (
    CoregionalizedChannels,
    FactorizedGPPrior,
    GlobalChannels,
    IndependentChannels,
    LocalChannels,
)
from fgp_gpytorch.saving import Configurable
from fgp_gpytorch.tables import TableModel
from fgp_gpytorch.training import fit

__version__ = version("fgp_gpytorch")

__all__ = [
    "CVAE",
    "ELBO",
    "FGPVAE",
    "GECO",
    "GPVAE",
    "SVGPVAE",
    "VAE",
    "BernoulliLikelihood",
    "ColumnLikelihood",
    "Configurable",
    "CoregionalizedChannels",
    "CorrelatedFGPVAE",
    "DiagonalGaussianLikelihood",
    "FactorizedGPPrior",
    "GaussianLikelihood",
    "GlobalChannels",
    "GroupedBatch",
    "GroupedDataset",
    "HeldOut",
    "IndependentChannels",
    "LatentAngleFGPVAE",
    "LocalChannels",
    "TableModel",
    "feature_maps",
    "fit",
    "means",
    "nets",
]
