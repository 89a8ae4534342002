"""Feature maps phi of kernels, k(x, x') = phi(x) phi(x')': exact inference in the number of features."""

from fgp_gpytorch.feature_maps.nystrom_features import NystromFeatures
from fgp_gpytorch.feature_maps.periodic_features import PeriodicFeatures, angle_kernel

__all__ = ["NystromFeatures", "PeriodicFeatures", "angle_kernel"]
