"""Training: `fit`, built on Lightning."""

from fgp_gpytorch.training.fit import FitResult, fit
from fgp_gpytorch.training.settings import RunSettings

__all__ = ["FitResult", "RunSettings", "fit"]
