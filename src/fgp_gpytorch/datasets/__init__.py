"""Data sets by name, each with the splits that published results on it use."""

from fgp_gpytorch.datasets.rotated_mnist import HeldOutViews, RotatedMNIST, ValidationSplit, rotated_mnist

__all__ = ["HeldOutViews", "RotatedMNIST", "ValidationSplit", "rotated_mnist"]
