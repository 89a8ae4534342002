import numpy as np
import pytest
import scipy.ndimage
import torch

from benchmarks.datasets import ImageRotation
from fgp_gpytorch.datasets.rotated_mnist import rotate_images
from fgp_gpytorch.errors import DataError, ShapeError


def noise(count, size):
    """Images with ink up to the border, where the interpolation is hardest."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8))


# The entries of C reach 3 times those of the views here, and 28 products are summed twice, then 16:
# float32 rounds to 6e-8 each time.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_all_views_are_those_of_scipy(dtype, tolerance) -> None:
    images = noise(5, 28)
    views = ImageRotation(dtype=dtype)(images)
    assert views.shape == (5, 16, 28, 28)
    assert views.dtype == dtype
    for angle in range(16):
        expected = rotate_images(images.numpy() / 255.0, 22.5 * angle)
        np.testing.assert_allclose(views[:, angle].numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("num_angles", "size"), [(4, 2), (12, 9), (8, 10)])
def test_other_sizes_and_numbers_of_angles(num_angles, size) -> None:
    images = noise(3, size)
    views = ImageRotation(num_angles, size, torch.float64)(images)
    for angle in range(num_angles):
        for image, view in zip(images.numpy() / 255.0, views[:, angle].numpy(), strict=True):
            expected = scipy.ndimage.rotate(image, 360 / num_angles * angle, reshape=False)
            np.testing.assert_allclose(view, expected, rtol=0, atol=1e-12)


def test_no_images_have_no_views() -> None:
    assert ImageRotation()(noise(0, 28)).shape == (0, 16, 28, 28)


def test_errors_say_what_to_try() -> None:
    with pytest.raises(DataError, match="positive multiple of 4, got 6"):
        ImageRotation(6)
    with pytest.raises(DataError, match="at least 2 pixels, got 1"):
        ImageRotation(size=1)
    with pytest.raises(DataError, match=r"dtype: expected a floating dtype, got torch.uint8"):
        ImageRotation(dtype=torch.uint8)
    rotation = ImageRotation()
    with pytest.raises(ShapeError, match=r"expected \(n, 28, 28\), got \(28, 28\)\. Try image\[None\]"):
        rotation(noise(1, 28)[0])
    with pytest.raises(DataError, match=r"expected torch.uint8, 0 to 255, got torch.float32"):
        rotation(noise(1, 28) / 255)
