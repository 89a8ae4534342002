"""The factorized prior: blocks of channels, their posterior, and the bridge to GPyTorch's own models."""

from fgp_gpytorch.prior.block_posterior import BlockPosterior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.coregionalized_channels import CoregionalizedChannels
from fgp_gpytorch.prior.exact_gp import BlockExactGP, exact_gp
from fgp_gpytorch.prior.factorized_gp_prior import FactorizedGPPrior, check_variance
from fgp_gpytorch.prior.global_channels import GlobalChannels
from fgp_gpytorch.prior.group_distribution import GroupDistribution
from fgp_gpytorch.prior.independent_channels import IndependentChannels
from fgp_gpytorch.prior.latent_posterior import LatentPaths, LatentPosterior, LatentPrediction
from fgp_gpytorch.prior.latent_prior import LatentPrior
from fgp_gpytorch.prior.local_channels import LocalChannels
from fgp_gpytorch.prior.multitask import multitask_normal
from fgp_gpytorch.prior.posterior import KLTerms, Posterior, Prediction, check_new_members
from fgp_gpytorch.prior.shared_effects import SharedEffects

__all__ = [
    "BlockExactGP",
    "BlockPosterior",
    "ChannelBlock",
    "CoregionalizedChannels",
    "FactorizedGPPrior",
    "GlobalChannels",
    "GroupDistribution",
    "IndependentChannels",
    "KLTerms",
    "LatentPaths",
    "LatentPosterior",
    "LatentPrediction",
    "LatentPrior",
    "LocalChannels",
    "Posterior",
    "Prediction",
    "SharedEffects",
    "cached_by_grad_mode",
    "check_new_members",
    "check_variance",
    "exact_gp",
    "multitask_normal",
]
