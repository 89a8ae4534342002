"""Reference rows against loops that count angles in steps of 22.5 degrees."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from benchmarks.datasets.reference_rows import (
    mean_image_at_nearest_angles_mse,
    mean_image_mse,
    nearest_view_mse,
    neighbouring_views_mse,
    reference_rows,
    rotated_nearest_view_mse,
)
from fgp_gpytorch.datasets import rotated_mnist


@pytest.fixture(scope="module")
def data():
    return rotated_mnist(views=4)


@pytest.fixture(scope="module", params=["157.5 degrees", "0 degrees", "a view that is there"])
def part(request, data):
    """Views to predict: those of the test, others across the end of the circle, and ones that the context has."""
    part = data.extrapolation
    if request.param == "157.5 degrees":
        return part
    if request.param == "0 degrees":
        return replace(part, x_new=torch.zeros_like(part.x_new))
    first = part.context[:].x[:, :1]
    return replace(part, x_new=first)


def step(x):
    return round(float(x) * 16 / (2 * np.pi)) % 16


def turns(views, target):
    """Steps from the target to each view, -7 to 8."""
    return [(v - target + 7) % 16 - 7 for v in views]


def cases(part):
    """Views {step: image} of each group, the step to predict, and the truth."""
    for group in range(len(part.context)):
        batch = part.context[[group]]
        views = {step(x): y[0].double().numpy() for x, y in zip(batch.x[0, :, 0], batch.y[0], strict=True)}
        yield views, step(part.x_new[group, 0, 0]), part.y_new[group, 0, 0].double().numpy()


def nearest(views, target):
    least = min(abs(turn) for turn in turns(views, target))
    return [(v, turn) for v, turn in zip(views, turns(views, target), strict=True) if abs(turn) == least]


def test_mean_images_are_sums_over_training_views(data, part):
    rows = data.train.flat()
    images, steps = rows.y[:, 0].double().numpy(), [step(x) for x in rows.x[:, 0]]
    everything, close = [], []
    for _, target, truth in cases(part):
        everything.append(((images.mean(0) - truth) ** 2).mean())
        chosen = [s for s, _ in nearest(sorted(set(steps)), target)]
        close.append(((images[np.isin(steps, chosen)].mean(0) - truth) ** 2).mean())
    assert mean_image_mse(data.train, part) == pytest.approx(np.mean(everything), rel=1e-6)
    assert mean_image_at_nearest_angles_mse(data.train, part) == pytest.approx(np.mean(close), rel=1e-6)


def test_nearest_views_are_those_with_the_fewest_steps_on_the_circle(part):
    errors, turned = [], []
    for views, target, truth in cases(part):
        chosen = nearest(views, target)
        errors.append(np.mean([((views[v] - truth) ** 2).mean() for v, _ in chosen]))
        back = [scipy.ndimage.rotate(views[v], -22.5 * turn, reshape=False) for v, turn in chosen]
        turned.append(np.mean([((image - truth) ** 2).mean() for image in back]))
    assert nearest_view_mse(part) == pytest.approx(np.mean(errors), rel=1e-6)
    assert rotated_nearest_view_mse(part) == pytest.approx(np.mean(turned), rel=1e-6)


def test_neighbours_are_the_next_views_to_both_sides(part):
    errors = []
    for views, target, truth in cases(part):
        left = next(views[(target - n) % 16] for n in range(16) if (target - n) % 16 in views)
        right = next(views[(target + n) % 16] for n in range(16) if (target + n) % 16 in views)
        errors.append(((left / 2 + right / 2 - truth) ** 2).mean())
    assert neighbouring_views_mse(part) == pytest.approx(np.mean(errors), rel=1e-6)


def test_the_only_view_is_the_neighbour_to_both_sides():
    part = rotated_mnist(views=1).extrapolation
    assert neighbouring_views_mse(part) == pytest.approx(nearest_view_mse(part))


def test_the_paper_s_split_has_the_known_figures():
    data = rotated_mnist()
    rows = reference_rows(data.train, data.extrapolation)
    assert rows.mean_image == pytest.approx(0.078, abs=0.001)
    assert rows.rotated_nearest_view < 0.001  # what two interpolations lose
    assert rows.rotated_nearest_view < rows.mean_image_at_nearest_angles < rows.mean_image < rows.nearest_view
