"""Feature maps phi of kernels, k(x, x') = phi(x) phi(x')': exact inference in the number of features."""

from fgp_gpytorch.feature_maps.categorical_features import CategoricalFeatures
from fgp_gpytorch.feature_maps.kernel_features import kernel_features
from fgp_gpytorch.feature_maps.linear_features import LinearFeatures
from fgp_gpytorch.feature_maps.nystrom_features import NystromFeatures, checked_points
from fgp_gpytorch.feature_maps.periodic_features import PeriodicFeatures, angle_kernel
from fgp_gpytorch.feature_maps.product_features import ProductFeatures
from fgp_gpytorch.feature_maps.selected_features import SelectedFeatures, checked_map

__all__ = [
    "CategoricalFeatures",
    "LinearFeatures",
    "NystromFeatures",
    "PeriodicFeatures",
    "ProductFeatures",
    "SelectedFeatures",
    "angle_kernel",
    "checked_map",
    "checked_points",
    "kernel_features",
]
