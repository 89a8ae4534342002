"""GPyTorch means for latent channels."""

from fgp_gpytorch.means.fourier_mean import FourierMean
from fgp_gpytorch.means.piecewise_linear_mean import AdditiveMean, PiecewiseLinearMean

__all__ = ["AdditiveMean", "FourierMean", "PiecewiseLinearMean"]
