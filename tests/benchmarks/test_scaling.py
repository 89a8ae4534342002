"""The sets of the scaling benchmark: nothing that is tested is trained on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies import scaling
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.datasets.rotated_mnist import rotate_images


@pytest.fixture
def small_mnist(monkeypatch):
    """Fifty threes in place of the complete MNIST, nine of which are tested."""
    images = rotated_mnist(views=1).images[:50]
    monkeypatch.setattr(scaling, "complete_mnist", lambda root: (images, torch.full((50,), 3)))
    monkeypatch.setattr(scaling, "TESTED", 9)
    return images


def test_held_out_angle_of_the_complete_set_is_never_trained_on(small_mnist) -> None:
    train, test = scaling.load("mnist", Path(), seed=0)
    assert isinstance(train, LazyDataset)
    assert train.group_sizes.tolist() == [11] * 50
    angle = math.radians(157.5)
    assert (train.features().x - angle).abs().min() > 0.1
    assert torch.equal(test.x_new, torch.full((9, 1, 1), angle, dtype=torch.float64))
    truth = rotate_images(small_mnist[test.labels].numpy() / 255.0, 157.5)
    np.testing.assert_allclose(test.y_new[:, 0, 0].numpy(), truth, rtol=0, atol=1e-5)
    assert test.context.labels.tolist() == test.labels.tolist() == [i * 50 // 9 for i in range(9)]
    for position, instance in enumerate(test.labels.tolist()):
        assert torch.equal(test.context[position].y, train[instance].y)


def test_all_sixteen_views_leave_none_to_test(small_mnist) -> None:
    train, test = scaling.load("mnist-all", Path(), seed=0)
    assert train.num_members == 50 * 16
    assert test is None


def test_a_part_of_the_tests_keeps_rows_together() -> None:
    _, test = scaling.load("1", None, seed=0)
    part = scaling.first_groups(test, 30)
    assert part.context.labels.tolist() == part.labels.tolist()
    assert len(part.labels) == len(part.x_new) == len(part.y_new) == 30
    assert torch.equal(part.y_new[1], test.y_new[9])
