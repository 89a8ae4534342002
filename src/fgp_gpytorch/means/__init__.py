"""GPyTorch means for latent channels."""

from fgp_gpytorch.means.fourier_mean import FourierMean

__all__ = ["FourierMean"]
