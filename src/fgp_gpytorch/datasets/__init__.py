"""Data sets by name: digits with the splits that published results use, and a table."""

from fgp_gpytorch.datasets.gapminder import gapminder
from fgp_gpytorch.datasets.rotated_mnist import RotatedMNIST, ValidationSplit, rotated_mnist

__all__ = ["RotatedMNIST", "ValidationSplit", "gapminder", "rotated_mnist"]
