import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.datasets import complete_mnist, rotating_digits
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.errors import DataError, MissingFileError, ShapeError

MNIST_ROOT = os.environ.get("FGP_MNIST_ROOT")

# float32 arithmetic beside float64 that is rounded at its end: see test_image_rotation
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def shuffled():
    """In memory, with 7 to 15 views of each instance."""
    return rotated_mnist(views="shuffled")


def kept_views(data):
    """The views of each instance that are for training, shape (400, 16)."""
    flat = data.train.flat()
    kept = torch.zeros(len(data.images), 16, dtype=torch.bool)
    label = torch.from_numpy(data.train.labels)[flat.group]
    kept[label, torch.round(flat.x[:, 0] * 8 / np.pi).long()] = True
    return kept


def test_padded_batches_equal_those_in_memory(shuffled) -> None:
    data = rotating_digits(shuffled.images, kept_views(shuffled))
    assert data.labels.tolist() == shuffled.train.labels.tolist()
    assert data.group_sizes.tolist() == shuffled.train.group_sizes.tolist()
    for index in ([7, 0, 359, 7], slice(100, 110), -1):
        made, kept = data[index], shuffled.train[index]
        assert made.y.dtype == kept.y.dtype
        torch.testing.assert_close(made.y, kept.y, rtol=0, atol=TOLERANCE)
        for name in ("x", "mask", "group_index"):
            assert torch.equal(getattr(made, name), getattr(kept, name))
        assert (made.num_dataset_groups, made.num_dataset_members) == (360, 4050)
        assert made.y[~made.mask].abs().sum() == 0


def test_double_precision_views_are_those_of_the_scipy_program() -> None:
    data = rotated_mnist((3, 8), views=1)
    made = rotating_digits(data.images, dtype=torch.float64)[[3, 500]]
    # rounded to float32 there
    torch.testing.assert_close(made.y.float(), data.truth([3, 500]), rtol=0, atol=1e-7)
    assert torch.equal(made.x[0, :, 0], data.angles)


def test_plain_loader_gives_every_group_once_also_with_workers(shuffled) -> None:
    data = rotating_digits(shuffled.images[:30], kept_views(shuffled)[:30])
    for workers in (0, 1):
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=workers)
        batches = list(loader)
        assert sorted(torch.cat([batch.group_index for batch in batches]).tolist()) == list(range(30))
        assert sum(int(batch.mask.sum()) for batch in batches) == data.num_members


def test_what_is_held_is_a_byte_a_pixel_and_sixteen_a_view(shuffled) -> None:
    few, many = (len(pickle.dumps(rotating_digits(shuffled.images[:n].clone()))) for n in (100, 400))
    assert (many - few) / 300 < 28 * 28 + 16 * 16 + 50


def test_errors_say_what_to_try(shuffled, tmp_path) -> None:
    images = shuffled.images[:3]
    with pytest.raises(ShapeError, match=r"images: expected shape \(n, 28, 28\)"):
        rotating_digits(images[0])
    with pytest.raises(DataError, match=r"images: expected torch.uint8, got torch.float32"):
        rotating_digits(images.float())
    with pytest.raises(ShapeError, match=r"views: expected shape \(3, 16\)"):
        rotating_digits(images, torch.ones(3, 15, dtype=torch.bool))
    with pytest.raises(DataError, match=r"views: expected torch\.bool"):
        rotating_digits(images, torch.ones(3, 16))
    with pytest.raises(DataError, match=r"at least one view, got none. Try None for all"):
        rotating_digits(images, torch.zeros(3, 16, dtype=torch.bool))
    with pytest.raises(MissingFileError, match="root: expected the complete MNIST in"):
        complete_mnist(tmp_path)


@pytest.mark.skipif(MNIST_ROOT is None, reason="FGP_MNIST_ROOT names no complete MNIST")
def test_complete_mnist_has_seventy_thousand_digits() -> None:
    assert MNIST_ROOT is not None
    images, digits = complete_mnist(MNIST_ROOT)
    assert images.shape == (70000, 28, 28)
    assert torch.bincount(digits[:60000])[3] == 6131
    data = rotating_digits(images)
    assert (len(data), data.num_members) == (70000, 1_120_000)
