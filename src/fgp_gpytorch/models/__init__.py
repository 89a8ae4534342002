"""Models: each offers a Pyro pair, the terms of its objective, inference and generation."""

from fgp_gpytorch.models._batches import PseudoObservations, padded_features
from fgp_gpytorch.models._member_dropout import check_dropout
from fgp_gpytorch.models.angle_posterior import AnglePosterior
from fgp_gpytorch.models.conditioned_vae import ConditionedVAE
from fgp_gpytorch.models.correlated_fgp_vae import CorrelatedFGPVAE
from fgp_gpytorch.models.coupled_vae import CoupledVAE
from fgp_gpytorch.models.cvae import CVAE
from fgp_gpytorch.models.factorized_vae import FactorizedVAE
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.gp_vae import GPVAE
from fgp_gpytorch.models.grouped_vae import GroupedVAE
from fgp_gpytorch.models.latent_angle_fgp_vae import LatentAngleFGPVAE
from fgp_gpytorch.models.linear_start import principal_components, thinned
from fgp_gpytorch.models.svgp_vae import SVGPVAE
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.models.vae import VAE

__all__ = [
    "CVAE",
    "FGPVAE",
    "GPVAE",
    "SVGPVAE",
    "VAE",
    "AnglePosterior",
    "ConditionedVAE",
    "CorrelatedFGPVAE",
    "CoupledVAE",
    "FactorizedVAE",
    "GroupedVAE",
    "LatentAngleFGPVAE",
    "PseudoObservations",
    "Terms",
    "check_dropout",
    "padded_features",
    "principal_components",
    "thinned",
]
