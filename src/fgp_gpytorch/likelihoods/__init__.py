"""Likelihoods p(y | z) on top of a decoder."""

from fgp_gpytorch.likelihoods.bernoulli_elements import BernoulliElements
from fgp_gpytorch.likelihoods.bernoulli_likelihood import BernoulliLikelihood
from fgp_gpytorch.likelihoods.categorical_elements import CategoricalElements
from fgp_gpytorch.likelihoods.column_likelihood import ColumnLikelihood
from fgp_gpytorch.likelihoods.diagonal_gaussian_likelihood import DiagonalGaussianLikelihood
from fgp_gpytorch.likelihoods.elements import Elements
from fgp_gpytorch.likelihoods.gaussian_elements import GaussianElements
from fgp_gpytorch.likelihoods.gaussian_likelihood import GaussianLikelihood
from fgp_gpytorch.likelihoods.likelihood import Likelihood, Score, observed_pair, possible_values
from fgp_gpytorch.likelihoods.mixtures import mixture_quantile, mixture_variance, smooth_mixture
from fgp_gpytorch.likelihoods.negative_binomial_elements import NegativeBinomialElements
from fgp_gpytorch.likelihoods.ordinal_elements import OrdinalElements
from fgp_gpytorch.likelihoods.poisson_elements import PoissonElements

__all__ = [
    "BernoulliElements",
    "BernoulliLikelihood",
    "CategoricalElements",
    "ColumnLikelihood",
    "DiagonalGaussianLikelihood",
    "Elements",
    "GaussianElements",
    "GaussianLikelihood",
    "Likelihood",
    "NegativeBinomialElements",
    "OrdinalElements",
    "PoissonElements",
    "Score",
    "mixture_quantile",
    "mixture_variance",
    "observed_pair",
    "possible_values",
    "smooth_mixture",
]
