"""Data sets by name, each with the splits that published results on it use."""

from fgp_gpytorch.datasets.rotated_mnist import RotatedMNIST, ValidationSplit, rotated_mnist

__all__ = ["RotatedMNIST", "ValidationSplit", "rotated_mnist"]
