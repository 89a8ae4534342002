"""Rotated digits of any number, computed when a batch is read."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from benchmarks.datasets.image_rotation import ImageRotation
from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, LazyDataset
from fgp_gpytorch.errors import DataError, MissingFileError

__all__ = ["complete_mnist", "rotating_digits"]

NUM_ANGLES = 16


def rotating_digits(
    images: Any,  # shape: (n, 28, 28)
    views: Tensor | None = None,  # shape: (n, 16)
    dtype: torch.dtype = torch.float32,
) -> LazyDataset:
    """Return the data set of `rotated_mnist` without its views in memory: digits are rotated on the fly.

    A group is one digit. Its members are views at angles 0, 22.5, ... 337.5 degrees, sorted by angle. The memory is a
    byte for each pixel of an upright image and 16 bytes for each view.

    Args:
        images: Grey levels 0 to 255, uint8, such as `rotated_mnist().images` or those of `complete_mnist`.
        views: True for the views that are members, boolean. None = all 16 of each digit.
        dtype: Floating dtype of the views.

    Returns:
        Groups labelled by the position of their digit among `images`. A digit without views is left out. `y` has shape
        (1, 28, 28), ink 1, paper 0, not clipped. `x` is the angle in radians, float64.

    Raises:
        ShapeError: If the images are not (n, 28, 28), or the views not (n, 16).
        DataError: If the images are not uint8, the views not boolean, or no view is True.

    Example:
        >>> data = rotating_digits(torch.zeros(100, 28, 28, dtype=torch.uint8))
        >>> len(data), data.num_members, data[[0, 5]].y.shape
        (100, 1600, torch.Size([2, 16, 1, 28, 28]))
    """
    images = check.as_tensor(images, "images")
    check.shape(images, "images", ("n", 28, 28), "Try images.squeeze(1) without the channel.")
    if images.dtype != torch.uint8:
        raise DataError(f"images: expected torch.uint8, got {images.dtype}. Try (255 * images).round().byte().")
    if views is None:
        views = torch.ones(len(images), NUM_ANGLES, dtype=torch.bool)
    check.mask(views, "views", (len(images), NUM_ANGLES), "It has a row for each image, a column for each angle.")
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
        MissingFileError: If the folder does not contain it.
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
    """Computes the views of a batch whose `y` is (number of image, number of angle). A group has one image."""

    def __init__(self, images: Tensor, rotation: ImageRotation) -> None:
        self._images, self._rotation = images, rotation

    def __call__(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, 1, 28, 28)
        code = batch.y.long()
        of_group = self._rotation(self._images[code[:, 0, 0]])  # members come before padding
        group = torch.arange(batch.num_groups).unsqueeze(-1)
        return of_group[group, code[..., 1]].unsqueeze(2)
