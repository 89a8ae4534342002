"""Priors that couple groups: one Gaussian process over all groups, each identified by a vector."""

from fgp_gpytorch.coupled.correlated_prior import CorrelatedPosterior, CorrelatedPrior, JointPrediction
from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior, LowRankPrediction
from fgp_gpytorch.coupled.coupled_prior import CoupledPrior
from fgp_gpytorch.coupled.group_inputs import GroupInputs
from fgp_gpytorch.coupled.group_vectors import GroupVectors, unit_length
from fgp_gpytorch.coupled.inducing_prior import InducingPosterior, InducingPrior
from fgp_gpytorch.coupled.kl_expansion import KLExpansion, expand_kl
from fgp_gpytorch.coupled.product_prior import IndependentPrediction, MeanFieldPosterior, ProductPrior

__all__ = [
    "CorrelatedPosterior",
    "CorrelatedPrior",
    "CoupledPosterior",
    "CoupledPrior",
    "GroupInputs",
    "GroupVectors",
    "IndependentPrediction",
    "InducingPosterior",
    "InducingPrior",
    "JointPrediction",
    "KLExpansion",
    "LowRankPrediction",
    "MeanFieldPosterior",
    "ProductPrior",
    "expand_kl",
    "unit_length",
]
