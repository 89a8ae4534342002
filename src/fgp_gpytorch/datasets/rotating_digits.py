"""Rotated digits of any number, made when they are asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.data._inputs import as_numbers
from fgp_gpytorch.data.lazy_dataset import LazyDataset
from fgp_gpytorch.datasets._rotated_mnist_draws import NUM_ANGLES
from fgp_gpytorch.datasets.image_rotation import ImageRotation
from fgp_gpytorch.errors import DataError, MissingFileError

__all__ = ["complete_mnist", "rotating_digits"]


def rotating_digits(
    images: Any,  # shape: (n, 28, 28)
    views: Any = None,  # shape: (n, 16)
    dtype: torch.dtype = torch.float32,
) -> LazyDataset:
    """Rotate digits on the fly: the data set of `rotated_mnist`, without its views in memory.

    A group is one digit, its members are views at angles 0, 22.5, ... 337.5 degrees, sorted by angle. What is held are
    the upright images, a byte a pixel, and 16 bytes a view.

    Args:
        images: Grey levels 0 to 255, uint8, such as `rotated_mnist().images` or those of `complete_mnist`.
        views: True for the views that are members, boolean; None = all 16 of each digit.
        dtype: Floating dtype of the views.

    Returns:
        Groups labelled by the position of their digit among `images` (a digit without views is left out), `y` of shape
        (1, 28, 28) with ink 1 and paper 0, not clipped, and `x` the angle in radians, float64.

    Raises:
        ShapeError: If the images are not (n, 28, 28), or the views not (n, 16).
        DataError: If the images are not uint8, the views not boolean, or no view is True.

    Example:
        >>> data = rotating_digits(torch.zeros(100, 28, 28, dtype=torch.uint8))
        >>> len(data), data.num_members, data[[0, 5]].y.shape
        (100, 1600, torch.Size([2, 16, 1, 28, 28]))
    """
    images = as_numbers(images, "images")
    check.shape(images, "images", ("n", 28, 28), "Try images.squeeze(1) without the channel.")
    if images.dtype != torch.uint8:
        raise DataError(f"images: expected torch.uint8, got {images.dtype}. Try (255 * images).round().byte().")
    if views is None:
        views = torch.ones(len(images), NUM_ANGLES, dtype=torch.bool)
    hint = "It has a row for each image, a column for each angle."
    views = check.mask(as_numbers(views, "views"), "views", (len(images), NUM_ANGLES), hint)
    if not bool(views.any()):
        raise DataError("views: expected at least one view, got none. Try None for all.")
    image, angle = views.nonzero(as_tuple=True)
    radians = torch.from_numpy(np.deg2rad(360.0 / NUM_ANGLES * np.arange(NUM_ANGLES)))
    assert len(images) <= 2**24  # float32 counts that far
    rows = GroupedDataset(torch.stack([image, angle], dim=1).float(), radians[angle], image)
    return LazyDataset(rows, _Views(images, ImageRotation(NUM_ANGLES, 28, dtype)))


def complete_mnist(root: str | Path) -> tuple[Tensor, Tensor]:  # shape: (70000, 28, 28), (70000,)
    """Read all of MNIST, the 60,000 training images and then the 10,000 test images, in file order.

    Args:
        root: Folder of `torchvision.datasets.MNIST(root)`. Nothing is downloaded.

    Returns:
        Images, grey levels 0 to 255, uint8, and their digits, int64.

    Raises:
        MissingFileError: If it is not there.
    """
    try:
        parts = [MNIST(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise MissingFileError(
            f"root: expected the complete MNIST in {Path(root) / 'MNIST' / 'raw'}, got no such data set. "
            f"Try torchvision.datasets.MNIST({str(root)!r}, download=True) once."
        ) from error
    return torch.cat([part.data for part in parts]), torch.cat([part.targets for part in parts])


class _Views:
    """Makes the views of a batch whose `y` is (number of image, number of angle); a group has one image."""

    def __init__(self, images: Tensor, rotation: ImageRotation) -> None:
        self._images, self._rotation = images, rotation

    def __call__(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, 1, 28, 28)
        code = batch.y.long()
        of_group = self._rotation(self._images[code[:, 0, 0]])  # members stand before padding
        group = torch.arange(batch.num_groups).unsqueeze(-1)
        return of_group[group, code[..., 1]].unsqueeze(2)
