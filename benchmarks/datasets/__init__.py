"""Data that only benchmarks use: the complete MNIST, digits rotated on the fly, and errors without learning."""

from benchmarks.datasets.image_rotation import ImageRotation
from benchmarks.datasets.reference_rows import ReferenceRows, reference_rows
from benchmarks.datasets.rotating_digits import complete_mnist, rotating_digits

__all__ = ["ImageRotation", "ReferenceRows", "complete_mnist", "reference_rows", "rotating_digits"]
