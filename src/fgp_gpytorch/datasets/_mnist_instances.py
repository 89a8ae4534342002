"""The 400 instances of each digit of the rotated MNIST data, and their images."""

import random
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import MissingFileError

__all__ = [
    "NUM_INSTANCES",
    "Instances",
    "digit_generator",
    "draw_instances",
    "read_embedded",
    "read_torchvision",
]

NUM_INSTANCES = 400


class Instances(NamedTuple):
    """The 400 instances of one digit, in the order drawn.

    Attributes:
        images: Grey levels 0 to 255, shape (400, 28, 28), uint8.
        positions: Position of each among the images of its digit in MNIST train, in file order, shape (400,),
            int64.
        num_in_class: Number of images of the digit in MNIST train (6131 threes).
    """

    images: np.ndarray
    positions: np.ndarray
    num_in_class: int


def digit_generator(num_in_class: int) -> tuple[random.Random, list[int]]:
    """Draw the positions of the 400 instances among the images of one digit, as the authors' program does.

    The generator is returned too, after the draw. The shuffled split continues it.
    """
    generator = random.Random(0)
    return generator, generator.sample(list(range(num_in_class)), NUM_INSTANCES)


def draw_instances(images: np.ndarray, labels: np.ndarray, digit: int) -> Instances:
    """Select the 400 instances of a digit from all training images (60000, 28, 28) in file order, and their labels."""
    of_digit = images[labels == digit]
    _, positions = digit_generator(len(of_digit))
    return Instances(of_digit[positions], np.asarray(positions, dtype=np.int64), len(of_digit))


def read_embedded(digits: tuple[int, ...]) -> list[Instances]:
    """Read the instances of some digits from the file in this package."""
    file = resources.files("fgp_gpytorch.datasets._digits") / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, index, num_in_class = arrays["images"], arrays["index"], arrays["num_in_class"]
    return [Instances(images[d], index[d], int(num_in_class[d])) for d in digits]


def read_torchvision(digits: tuple[int, ...], root: str | Path) -> list[Instances]:
    """Read the instances of some digits from the complete MNIST, as torchvision stores it under `root`.

    Raises:
        ImportError: If torchvision is not installed.
        MissingFileError: If MNIST is not there.
    """
    datasets = check.package("torchvision.datasets")
    try:
        mnist = datasets.MNIST(str(root), train=True, download=False)
    except RuntimeError as error:
        raise MissingFileError(
            f"root: expected the complete MNIST in {Path(root) / 'MNIST' / 'raw'}, got no such data set. "
            f"Try torchvision.datasets.MNIST({str(root)!r}, download=True) once, or source='embedded'."
        ) from error
    images, labels = mnist.data.numpy(), mnist.targets.numpy()
    return [draw_instances(images, labels, digit) for digit in digits]
