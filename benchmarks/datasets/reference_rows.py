"""Errors of predictions without learning, for views of rotated digits. A model has to beat them.

They use what is special about these data: x is an angle in radians, and y turns with it. Every error is in squared grey
levels (ink 1, paper 0), averaged over groups, views and pixels. Lower is better. The argument `train` contains training
views, such as `rotated_mnist().train`, and `held_out` the views to predict with their context.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.datasets.rotated_mnist import rotate_images

__all__ = [
    "ReferenceRows",
    "mean_image_at_nearest_angles_mse",
    "mean_image_mse",
    "nearest_view_mse",
    "neighbouring_views_mse",
    "reference_rows",
    "rotated_nearest_view_mse",
]

_SAME_ANGLE = 1e-6  # radians; angles are multiples of 22.5 degrees in float64


class ReferenceRows(NamedTuple):
    """Mean squared errors at held-out views, per pixel (ink 1, paper 0). Lower is better.

    Attributes:
        mean_image: The mean of all training images, whatever their angle.
        mean_image_at_nearest_angles: The mean of the training images at the angle nearest to the held-out one.
        nearest_view: The view of the same digit in the context at the nearest angle, unchanged.
        neighbouring_views: The average of the next views in the context on both sides.
        rotated_nearest_view: The nearest view, rotated by the missing angle: an oracle, which uses that y turns.
    """

    mean_image: float
    mean_image_at_nearest_angles: float
    nearest_view: float
    neighbouring_views: float
    rotated_nearest_view: float


def reference_rows(train: GroupedDataset, held_out: HeldOut) -> ReferenceRows:
    """Compute all rows, for the table beside a model's `metrics.held_out_mse`."""
    return ReferenceRows(
        mean_image_mse(train, held_out),
        mean_image_at_nearest_angles_mse(train, held_out),
        nearest_view_mse(held_out),
        neighbouring_views_mse(held_out),
        rotated_nearest_view_mse(held_out),
    )


def mean_image_mse(train: GroupedDataset, held_out: HeldOut) -> float:
    """Predict the mean of all training images."""
    mean = train.flat().y.double().mean(0)
    return float((held_out.y_new.double() - mean).square().mean())


def mean_image_at_nearest_angles_mse(train: GroupedDataset, held_out: HeldOut) -> float:
    """Predict the mean of the training images at the nearest angle on the circle, or angles if two are equally near."""
    rows = train.flat()
    errors = torch.zeros(held_out.y_new.shape[:2], dtype=torch.float64)
    for angle in held_out.x_new.unique():
        mean = rows.y[_nearest(rows.x[:, 0] - angle)].double().mean(0)
        asked = held_out.x_new[..., 0] == angle
        errors[asked] = (held_out.y_new[asked].double() - mean).square().flatten(1).mean(1)
    return float(errors.mean())


def nearest_view_mse(held_out: HeldOut) -> float:
    """Predict the view of the same digit at the nearest angle on the circle.

    The errors of equally near views are averaged, not their images.
    """

    def error(views: Tensor, difference: Tensor, truth: Tensor) -> Tensor:
        return (views[_nearest(difference)] - truth).square().mean()

    return _mean_over_targets(held_out, error)


def neighbouring_views_mse(held_out: HeldOut) -> float:
    """Predict the average, in equal parts, of the next views of the same digit to the left and right on the circle.

    A view at the same angle is its own neighbour on both sides, and so is the only view of a digit.
    """

    def error(views: Tensor, difference: Tensor, truth: Tensor) -> Tensor:
        left, right = (turn.remainder(2 * math.pi).argmin() for turn in _snapped(difference))
        return ((views[left] + views[right]) / 2 - truth).square().mean()

    return _mean_over_targets(held_out, error)


def rotated_nearest_view_mse(held_out: HeldOut) -> float:
    """Predict the nearest view of the same digit, rotated by the difference of the angles: an oracle.

    The error comes from two interpolations (`rotate_images`) and from ink that leaves the picture. Errors of equally
    near views are averaged.
    """

    def error(views: Tensor, difference: Tensor, truth: Tensor) -> Tensor:
        errors = []
        for index in _nearest(difference).nonzero()[:, 0]:
            degrees = -math.degrees(float(difference[index]))
            turned = torch.from_numpy(rotate_images(views[index].numpy(), degrees))
            errors.append((turned - truth).square().mean())
        return torch.stack(errors).mean()

    return _mean_over_targets(held_out, error)


def _mean_over_targets(held_out: HeldOut, error: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """Mean of error(views (Q, 1, 28, 28), their angles minus that of the target (Q,), target (1, 28, 28))."""
    errors = []
    for group in range(len(held_out.context)):
        context = held_out.context[[group]]
        for angle, truth in zip(held_out.x_new[group, :, 0], held_out.y_new[group], strict=True):
            errors.append(error(context.y[0].double(), context.x[0, :, 0] - angle, truth.double()))
    return float(torch.stack(errors).mean())


def _nearest(difference: Tensor) -> Tensor:
    """Mark the smallest of these differences of angles, radians, on the circle."""
    distance = torch.atan2(difference.sin(), difference.cos()).abs()
    return distance < distance.min() + _SAME_ANGLE


def _snapped(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Turns to the left and to the right, with one that is zero up to rounding exactly zero."""
    turn = torch.atan2(difference.sin(), difference.cos())
    turn = torch.where(turn.abs() < _SAME_ANGLE, 0.0, turn)
    return turn, -turn
