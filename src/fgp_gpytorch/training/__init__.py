"""Training: `fit`, built on Lightning."""

from fgp_gpytorch.training.fit import FitResult, fit

__all__ = ["FitResult", "fit"]
