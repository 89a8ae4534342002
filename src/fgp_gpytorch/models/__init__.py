"""Models: each offers a Pyro pair, the terms of its objective, inference and generation."""

from fgp_gpytorch.models.amortized_kl_summary import AmortizedKLSummary
from fgp_gpytorch.models.angle_posterior import AnglePosterior
from fgp_gpytorch.models.correlated_fgp_vae import CorrelatedFGPVAE
from fgp_gpytorch.models.cvae import CVAE
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.given_amortized_rows import GivenAmortizedRows
from fgp_gpytorch.models.given_rows import GivenRows
from fgp_gpytorch.models.gp_vae import GPVAE
from fgp_gpytorch.models.kl_summary import KLSummary
from fgp_gpytorch.models.latent_angle_fgp_vae import LatentAngleFGPVAE
from fgp_gpytorch.models.prediction import Prediction
from fgp_gpytorch.models.svgp_vae import SVGPVAE
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.models.vae import VAE

__all__ = [
    "CVAE",
    "FGPVAE",
    "GPVAE",
    "SVGPVAE",
    "VAE",
    "AmortizedKLSummary",
    "AnglePosterior",
    "CorrelatedFGPVAE",
    "GivenAmortizedRows",
    "GivenRows",
    "KLSummary",
    "LatentAngleFGPVAE",
    "Prediction",
    "Terms",
]
