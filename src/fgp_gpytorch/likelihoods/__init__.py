"""Likelihoods p(y | z) on top of a decoder."""

from fgp_gpytorch.likelihoods.bernoulli_likelihood import BernoulliLikelihood
from fgp_gpytorch.likelihoods.diagonal_gaussian_likelihood import DiagonalGaussianLikelihood
from fgp_gpytorch.likelihoods.gaussian_likelihood import GaussianLikelihood
from fgp_gpytorch.likelihoods.likelihood import Likelihood, Score, observed_pair, possible_values

__all__ = [
    "BernoulliLikelihood",
    "DiagonalGaussianLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "Score",
    "observed_pair",
    "possible_values",
]
