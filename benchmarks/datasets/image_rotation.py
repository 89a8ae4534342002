"""Cubic spline rotation of whole batches of small images, to all angles of a circle at once."""

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError, ShapeError

__all__ = ["ImageRotation"]


class ImageRotation:
    """Rotates 8-bit images to A equally spaced angles, as `scipy.ndimage.rotate(image / 255, ..., reshape=False)`.

    That function is linear in the image. It first finds the coefficients C of the cubic spline through the pixels of
    the image Y, then evaluates the spline at the turned positions of the pixels:

        C = P Y P' / 255,    vec(view_a) = W_a vec(C),    a = 0 ... A - 1.

    P is a dense matrix for one axis. W_a is sparse, with at most 16 entries a pixel. The constructor computes both by
    applying scipy to unit images. A quarter turn maps the grid of pixels to itself. So a quarter of the angles is
    interpolated, and the others are quarter turns of these views. The views agree with scipy's to about 1e-14 in
    float64 and to about 1e-6 in float32.

    Args:
        num_angles: A, a multiple of 4; angle a is 360 a / A degrees, and the ink turns counter-clockwise.
        size: Height and width of an image, pixels.
        dtype: Floating dtype of arithmetic and views.

    Attributes:
        num_angles: A.
        size: Height and width, pixels.

    Raises:
        DataError: If the number of angles is not a positive multiple of 4, the size is below 2 pixels, or the dtype
            is not floating.

    Example:
        >>> rotation = ImageRotation()
        >>> rotation(torch.zeros(3, 28, 28, dtype=torch.uint8)).shape
        torch.Size([3, 16, 28, 28])
    """

    def __init__(self, num_angles: int = 16, size: int = 28, dtype: torch.dtype = torch.float32) -> None:
        if num_angles < 4 or num_angles % 4:
            raise DataError(f"num_angles: expected a positive multiple of 4, got {num_angles}. Try 16.")
        if size < 2:
            raise DataError(f"size: expected at least 2 pixels, got {size}. Try 28.")
        if not dtype.is_floating_point:
            raise DataError(f"dtype: expected a floating dtype, got {dtype}. Try torch.float32.")
        self.num_angles, self.size = num_angles, size
        prefilter = scipy.ndimage.spline_filter1d(np.eye(size), order=3, axis=0, mode="constant")
        # each side of C = P Y P' / 255 divides by sqrt(255), so C has the scale of the views in float32
        self._prefilter = torch.from_numpy(prefilter / np.sqrt(255.0)).to(dtype)
        weights = torch.from_numpy(_interpolation(360.0 / num_angles * np.arange(num_angles // 4), size))
        row, column = weights.nonzero(as_tuple=True)
        self._weights = weights[row, column].to(dtype)
        self._columns = column.int()
        counts = torch.bincount(row, minlength=len(weights))
        self._offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()

    def __call__(self, images: Tensor) -> Tensor:  # shape: (n, size, size) -> (n, A, size, size)
        """Return all A views of each image.

        Args:
            images: Grey levels 0 to 255, uint8.

        Returns:
            The views in the order of their angles. Grey level 255 becomes 1. Values are not clipped to [0, 1].

        Raises:
            ShapeError: If the images are not (n, size, size).
            DataError: If they are not uint8.
        """
        if images.ndim != 3 or images.shape[1:] != (self.size, self.size):
            raise ShapeError(
                f"images: expected (n, {self.size}, {self.size}), got {tuple(images.shape)}. Try image[None] for one "
                "image, images.squeeze(1) without the channel."
            )
        if images.dtype != torch.uint8:
            raise DataError(
                f"images: expected torch.uint8, 0 to 255, got {images.dtype}. Try (255 * images).round().byte()."
            )
        count, pixels = len(images), self.size**2
        spline = self._prefilter @ images.to(self._prefilter.dtype) @ self._prefilter.T  # C
        # W C: C has a row for each pixel and a column for each image; a bag is a row of W
        quarter = torch.nn.functional.embedding_bag(
            self._columns, spline.reshape(count, pixels).T.contiguous(), self._offsets, mode="sum",
            per_sample_weights=self._weights, include_last_offset=True,
        )  # fmt: skip
        quarter = quarter.T.reshape(count, self.num_angles // 4, self.size, self.size)
        turned = torch.stack([torch.rot90(quarter, turns, (2, 3)) for turns in range(4)], dim=1)
        return turned.reshape(count, self.num_angles, self.size, self.size)


def _interpolation(degrees: np.ndarray, size: int) -> np.ndarray:  # shape: (n,) -> (n * size^2, size^2)
    """W of some angles, stacked. Column j contains the views of the spline with the j-th coefficient 1, others 0."""
    units = np.eye(size**2).reshape(size**2, size, size)
    views = [scipy.ndimage.rotate(units, angle, axes=(2, 1), reshape=False, prefilter=False) for angle in degrees]
    return np.concatenate([view.reshape(size**2, size**2).T for view in views])
