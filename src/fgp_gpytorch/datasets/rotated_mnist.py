"""Rotated MNIST: 400 instances of a digit, each seen at 16 angles."""

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.datasets._mnist_instances import NUM_INSTANCES, Instances, read_embedded, read_torchvision
from fgp_gpytorch.datasets._rotated_mnist_draws import (
    HELD_OUT,
    NUM_ANGLES,
    NUM_TRAINING,
    OTHERS,
    Draw,
    draw_equal,
    draw_shuffled,
)
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError

__all__ = ["RotatedMNIST", "ValidationSplit", "rotate_images", "rotated_mnist"]


class ValidationSplit(NamedTuple):
    """Training data in three parts, to choose a model without test data.

    Attributes:
        train: The views that remain to train on.
        test: Held-out views of instances that have other views in `train`.
        extrapolation: Held-out views of instances that have none in `train`.

    Examples:
        >>> train, test, extrapolation = rotated_mnist().validation(num_instances=40)
        >>> len(train), train.num_members, len(test), len(extrapolation)
        (320, 3200, 320, 40)
    """

    train: GroupedDataset
    test: HeldOut
    extrapolation: HeldOut


@dataclass(frozen=True, eq=False)
class RotatedMNIST:
    """Rotated digits, split for training, unseen views and unseen instances. Made by `rotated_mnist`.

    A group is one instance (one handwritten digit), its members are views. The label of a group is
    `400 * (position of the digit in digits) + instance`, and groups are sorted by it. Images are (1, 28, 28), float32,
    on the scale where ink is 1 and paper 0. The cubic interpolation is not clipped, so some values lie outside [0, 1].
    Angles are in radians, float64. Members are sorted by angle.

    Attributes:
        train: The training views of instances 0-359.
        test: The held-out angle of training instances, with all their training views as context.
        extrapolation: The held-out angle of the instances 360-399, which are never trained on.
        images: The upright images as in MNIST, by label, shape (400 * number of digits, 28, 28), uint8.
        digits: The digits, in the order asked for.
        angles: The 16 angles, radians, shape (16,), float64.
        held_out: Index among `angles` of the held-out one: 7, that is 157.5 degrees.

    Examples:
        >>> data = rotated_mnist()
        >>> data.angles.rad2deg()[data.held_out], data.test.y_new.shape
        (tensor(157.5000, dtype=torch.float64), torch.Size([270, 1, 1, 28, 28]))
        >>> data.digit_of(data.test.labels).unique(), data.truth([0]).shape
        (tensor([3]), torch.Size([1, 16, 1, 28, 28]))
    """

    train: GroupedDataset
    test: HeldOut
    extrapolation: HeldOut
    images: Tensor
    digits: tuple[int, ...]
    angles: Tensor
    held_out: int

    def instance_of(self, labels: Any) -> Tensor:  # shape: (n,) -> (n,)
        """Return the number of some groups among the 400 instances of their digit, int64.

        Args:
            labels: Labels of groups, such as `data.test.labels`.

        Raises:
            GroupError: If a label is not an integer from 0 to 400 * number of digits - 1.
        """
        return self._checked(labels) % NUM_INSTANCES

    def digit_of(self, labels: Any) -> Tensor:  # shape: (n,) -> (n,)
        """Return the digit of some groups, int64.

        Args:
            labels: Labels of groups, such as `data.test.labels`.

        Raises:
            GroupError: If a label is not an integer from 0 to 400 * number of digits - 1.
        """
        return torch.tensor(self.digits)[self._checked(labels) // NUM_INSTANCES]

    def truth(self, labels: Any) -> Tensor:  # shape: (n,) -> (n, 16, 1, 28, 28)
        """Return all 16 views of some instances, for figures, in the order of `angles`. They include test images.

        Args:
            labels: Labels of groups. With one digit, they are the numbers 0-399 of its instances.

        Raises:
            GroupError: If a label is not an integer from 0 to 400 * number of digits - 1.
        """
        images = self.images[self._checked(labels)].numpy()
        return torch.from_numpy(_views(images, np.ones((len(images), NUM_ANGLES), dtype=bool))).unsqueeze(2)

    def validation(
        self,
        num_instances: int = 40,
        held_out_angle_index: int | None = None,
        seed: int = 0,
    ) -> ValidationSplit:
        """Split the training data again like the whole data, to choose models.

        Whole instances are held out for extrapolation. Of every instance, one training view becomes the one to
        predict. By default this is a random one, whose angle stays in training for other instances. With a fixed
        angle, the angle is removed from training, which is closer to the test, and only instances that have a view of
        it are tested.

        Args:
            num_instances: How many training instances of each digit are held out entirely.
            held_out_angle_index: Index among `angles` of the view to predict. None = a random one of each instance.
            seed: Draws the instances and the views.

        Returns:
            The three parts, without any image of `test` or `extrapolation` of this data set.

        Raises:
            ArgumentError: If there are not so many instances, or the angle is none of the training angles.
            DataError: If no instance has a view to spare.
        """
        per_digit = len(self.train) // len(self.digits)
        num_instances = check.count(num_instances, "num_instances", hint="Try the default, 40.")
        held_out_angle_index, seed = check.number(held_out_angle_index), check.count(seed, "seed", least=0)
        if not 1 <= num_instances < per_digit:
            raise ArgumentError(
                f"num_instances: expected 1 to {per_digit - 1} of each digit, got {num_instances}. Try the default, 40."
            )
        if held_out_angle_index is not None and held_out_angle_index not in OTHERS:
            raise ArgumentError(
                f"held_out_angle_index: expected 0 to {NUM_ANGLES - 1} without {HELD_OUT}, which is never "
                f"trained on, got {held_out_angle_index}. Try {HELD_OUT - 1}."
            )
        generator = random.Random(f"validation, seed {seed}")
        unseen = _draw_unseen(self.digit_of(self.train.labels), num_instances, generator)
        target = _draw_targets(self.train, self.angles, held_out_angle_index, generator)
        group = self.train.features().group
        has_target = torch.bincount(group[target], minlength=len(self.train)) > 0
        tested = has_target & (self.train.group_sizes > 1)
        if not (bool((tested & unseen).any()) and bool((tested & ~unseen).any())):
            raise DataError(
                "expected training instances with a view to spare, got none. Try rotated_mnist(views=2) "
                "or more, another held_out_angle_index, or more num_instances."
            )

        def part(chosen: Tensor) -> HeldOut:
            return HeldOut.of(self.train.select(~target), self.train.select(target & chosen[group]))

        train = self.train.select(~target & ~unseen[group])
        return ValidationSplit(train, part(tested & ~unseen), part(tested & unseen))

    def _checked(self, labels: Any) -> Tensor:
        index = torch.as_tensor(labels)
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise GroupError(f"labels: expected integers (n,), got {labels!r}. Try [3] for a single instance.")
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < len(self.images)):
            raise GroupError(
                f"labels: expected 0 to {len(self.images) - 1}, got {int(index.min())} to "
                f"{int(index.max())}. Try data.train.labels."
            )
        return index.long()


def rotated_mnist(
    digits: int | Sequence[int] = (3,),
    views: int | Literal["shuffled"] = 11,
    seed: int = 0,
    *,
    source: Literal["embedded", "torchvision"] = "embedded",
    root: str | Path | None = None,
) -> RotatedMNIST:
    """Return the rotated MNIST data of the factorized GP-VAE paper (Jazbec et al. 2020, section 4).

    400 instances of a digit, drawn as the authors' program draws them, are rotated by
    `scipy.ndimage.rotate(image / 255, degrees, reshape=False)` to 16 angles 0, 22.5, ... 337.5 degrees. The
    angle of 157.5 degrees is always held out. Instances 0-359 are for training, 360-399 are never trained on.

    - `views=11` is the split of the paper's FGP-VAE rows: 11 of the 15 other views of each training instance, 3960
      images (the paper says 4050, its program makes 3960). Instances 0-269 are tested.
    - `views="shuffled"` is the split of every other published model on this data set: 4050 random views of the 5400,
      so groups are ragged. 270 random instances are tested, here sorted by instance.

    Args:
        digits: One digit or several. Each has 400 instances by the same rule. Groups are numbered digit by digit.
        views: Views kept of each training instance, 1 to 15, which is also the context of each unseen one. "shuffled"
            keeps 11 views of each unseen instance as context.
        seed: Draws which views are kept and which are context of the unseen instances. It draws neither the instances
            nor the training images of the shuffled split.
        source: "embedded" reads the digits that come with this package, "torchvision" the complete MNIST
            under `root`. Both give the same numbers.
        root: Folder of `torchvision.datasets.MNIST(root)`, for that source only. Nothing is downloaded.

    Raises:
        ArgumentError: If an argument is none of the values above.
        MissingFileError: If the complete MNIST is not under `root`.

    Examples:
        >>> data = rotated_mnist()
        >>> len(data.train), data.train.num_members, len(data.test), len(data.extrapolation)
        (360, 3960, 270, 40)
    """
    chosen: tuple[Any, ...] = ()
    with contextlib.suppress(ValueError):  # lists of unequal length
        chosen = tuple(np.atleast_1d(np.asarray(digits)).tolist())
    known = all(type(digit) is int and 0 <= digit <= 9 for digit in chosen)
    if len(chosen) == 0 or not known or len(set(chosen)) < len(chosen):
        raise ArgumentError(f"digits: expected different digits from 0 to 9, got {digits!r}. Try digits=(3,).")
    views = check.choice(check.number(views), "views", [*range(1, NUM_ANGLES), "shuffled"], "Try views=11.")
    seed = check.count(seed, "seed", least=0)
    instances = _read(chosen, source, root)
    if views == "shuffled":
        draws = [draw_shuffled(i.num_in_class, seed, d) for i, d in zip(instances, chosen, strict=True)]
    else:
        draws = [draw_equal(views, seed, digit) for digit in chosen]
    return _assemble(instances, draws, chosen)


def rotate_images(images: np.ndarray, degrees: float) -> np.ndarray:  # shape: (n, 28, 28) -> (n, 28, 28)
    """Rotate images about their centres, each as `scipy.ndimage.rotate(image, degrees, reshape=False)` does.

    Args:
        images: Floating images, n at least 1. The interpolation is cubic and not clipped.
        degrees: The angle, counter-clockwise.
    """
    return scipy.ndimage.rotate(images, degrees, axes=(2, 1), reshape=False)


def _degrees() -> np.ndarray:  # shape: (16,)
    return 360.0 / NUM_ANGLES * np.arange(NUM_ANGLES)


def _read(digits: tuple[int, ...], source: str, root: str | Path | None) -> list[Instances]:
    """Read the instances of each digit.

    Raises:
        ArgumentError: If `source` is unknown, or a `root` is missing or not used.
        MissingFileError: If the complete MNIST is not under `root`.
    """
    if source == "embedded" and root is None:
        return read_embedded(digits)
    if source == "torchvision" and root is not None:
        return read_torchvision(digits, root)
    raise ArgumentError(
        f"expected source='embedded' without root, or source='torchvision' with root, got {source!r} with "
        f"root={root!r}. Try rotated_mnist(source='torchvision', root=folder)."
    )


def _views(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:  # shape: (n, 28, 28), (n, 16) -> (n, 16, 28, 28)
    """Rotate grey levels 0 to 255 to the wanted angles, float32. The other views are 0."""
    views = np.zeros((*wanted.shape, *images.shape[1:]), dtype=np.float32)
    for angle, degrees in enumerate(_degrees()):
        chosen = wanted[:, angle]
        if chosen.any():
            views[chosen, angle] = rotate_images(images[chosen] / 255.0, float(degrees))
    return views


def _assemble(instances: list[Instances], draws: list[Draw], digits: tuple[int, ...]) -> RotatedMNIST:
    """Rotate the drawn views and sort them into training, test and extrapolation."""
    images = np.concatenate([i.images for i in instances])
    kept = np.concatenate([draw.kept for draw in draws])
    unseen = np.arange(len(images)) % NUM_INSTANCES >= NUM_TRAINING
    tested = np.zeros(len(images), dtype=bool)
    for position, draw in enumerate(draws):
        tested[NUM_INSTANCES * position + draw.tested] = True
    target = np.zeros_like(kept)
    target[:, HELD_OUT] = tested | unseen
    views = torch.from_numpy(_views(images, kept | target)).unsqueeze(2)
    angles = torch.from_numpy(np.deg2rad(_degrees()))

    def grouped(chosen: np.ndarray) -> GroupedDataset:
        label, angle = np.nonzero(chosen)
        return GroupedDataset(views[label, angle], angles[angle], label)

    def held_out(chosen: np.ndarray) -> HeldOut:
        return HeldOut.of(grouped(kept & chosen[:, None]), grouped(target & chosen[:, None]))

    train = grouped(kept & ~unseen[:, None])
    return RotatedMNIST(
        train, held_out(tested), held_out(unseen), torch.from_numpy(images), digits, angles, held_out=HELD_OUT
    )


def _draw_unseen(digit: Tensor, num_instances: int, generator: random.Random) -> Tensor:  # shape: (G,)
    """Mark groups to hold out, equally many of each digit."""
    unseen = torch.zeros(len(digit), dtype=torch.bool)
    for value in digit.unique().tolist():
        groups = (digit == value).nonzero()[:, 0].tolist()
        unseen[generator.sample(groups, num_instances)] = True
    return unseen


def _draw_targets(
    data: GroupedDataset, angles: Tensor, held_out_angle_index: int | None, generator: random.Random
) -> Tensor:  # shape: (N,)
    """Mark the views to predict: those of one angle, or a random one of each group with another view left."""
    if held_out_angle_index is not None:
        return data.features().x[:, 0] == angles[held_out_angle_index]
    target = torch.zeros(data.num_members, dtype=torch.bool)
    first = 0
    for size in data.group_sizes.tolist():
        target[first + generator.randrange(size)] = size > 1
        first += size
    return target
