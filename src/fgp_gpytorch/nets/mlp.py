"""Multilayer perceptrons for data that are vectors."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.saving import Configurable


class MLPEncoder(Configurable, nn.Module):
    """A perceptron that gives a mean and a variance for each latent channel.

    Args:
        y_shape: Shape of one observation; it is flattened.
        num_channels: Latent channels L.
        hidden: Widths of the hidden layers.
        num_features: F, features that `CVAE` gives beside y; 0 for none.
        takes_observed: Whether it is told which elements of y were observed, for data with missing elements: else an
            element that is missing looks like one that is 0.

    Shape:
        Input (*batch, *y_shape), if F > 0 (*batch, F), and, if it takes that, which elements were observed (*batch,
        *y_shape) or None; output a mean and a variance, each (*batch, L).
    """

    def __init__(
        self,
        y_shape: Sequence[int],
        num_channels: int,
        hidden: Sequence[int] = (64, 64),
        num_features: int = 0,
        takes_observed: bool = False,
    ) -> None:
        super().__init__()
        self.y_shape, self.num_features, self.takes_observed = tuple(y_shape), num_features, takes_observed
        inputs = math.prod(self.y_shape) * (2 if takes_observed else 1) + num_features
        self.layers = _perceptron([inputs, *hidden, 2 * num_channels])

    def forward(
        self, y: Tensor, features: Tensor | None = None, observed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations.

        Raises:
            ShapeError: If y, the features or what was observed have another shape.
        """
        check_features(features, self.num_features, "MLPEncoder")
        rows = as_rows(y, self.y_shape, "MLPEncoder")
        if self.takes_observed:
            there = torch.ones_like(rows) if observed is None else as_rows(observed, self.y_shape, "MLPEncoder")
            rows = beside(rows, there)
        mean, log_variance = self.layers(beside(rows, features)).chunk(2, dim=-1)
        return mean, log_variance.exp()


class MLPDecoder(Configurable, nn.Module):
    """A perceptron from latent channels to the parameter of the likelihood.

    Args:
        num_channels: Latent channels L.
        y_shape: Shape of one observation.
        hidden: Widths of the hidden layers.
        num_features: F, features that `CVAE` gives beside z; 0 for none.

    Shape:
        Input (*batch, L) and, if F > 0, (*batch, F); output (*batch, *y_shape).
    """

    def __init__(
        self, num_channels: int, y_shape: Sequence[int], hidden: Sequence[int] = (64, 64), num_features: int = 0
    ) -> None:
        super().__init__()
        self.y_shape, self.num_channels, self.num_features = tuple(y_shape), num_channels, num_features
        self.layers = _perceptron([num_channels + num_features, *hidden, math.prod(self.y_shape)])

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameter: a mean, or logits.

        Raises:
            ShapeError: If z or the features have another width.
        """
        if z.shape[-1] != self.num_channels:
            raise ShapeError(
                f"z: expected (*batch, L) with L = {self.num_channels}, got {tuple(z.shape)}. "
                f"Try MLPDecoder({z.shape[-1]}, y_shape): the prior's channels."
            )
        check_features(features, self.num_features, "MLPDecoder")
        return self.layers(beside(z, features)).reshape(*z.shape[:-1], *self.y_shape)


def as_rows(y: Tensor, y_shape: tuple[int, ...], network: str) -> Tensor:  # shape: (*batch, *y_shape) -> (*batch, K)
    """Flatten the observations that a network was made for.

    Raises:
        ShapeError: If they have another shape.
    """
    front = y.dim() - len(y_shape)
    if front < 0 or tuple(y.shape[front:]) != y_shape:
        raise ShapeError(
            f"y: expected (*batch, *y_shape) with y_shape = {y_shape}, got {tuple(y.shape)}. "
            f"Try {network}({list(y.shape[1:])}, ...)."
        )
    return y.reshape(*y.shape[:front], math.prod(y_shape))


def check_features(features: Tensor | None, num_features: int, network: str) -> None:
    """Require as many features as a network was made for.

    Raises:
        ShapeError: If there are others.
    """
    given = 0 if features is None else features.shape[-1]
    if given != num_features:
        raise ShapeError(
            f"features: expected {num_features} beside each row, got {given}. Try {network}(..., num_features={given})."
        )


def beside(rows: Tensor, features: Tensor | None) -> Tensor:
    """Rows (*batch, K) with features (*batch, F) appended to each, or as they are without."""
    return rows if features is None else torch.cat([rows, features.to(rows.dtype)], dim=-1)


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1])
