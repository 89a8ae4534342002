"""Data sets by name, each with the splits that published results on it use."""

from fgp_gpytorch.datasets.image_rotation import ImageRotation
from fgp_gpytorch.datasets.rotated_mnist import RotatedMNIST, ValidationSplit, rotated_mnist
from fgp_gpytorch.datasets.rotating_digits import complete_mnist, rotating_digits

__all__ = [
    "ImageRotation",
    "RotatedMNIST",
    "ValidationSplit",
    "complete_mnist",
    "rotated_mnist",
    "rotating_digits",
]
