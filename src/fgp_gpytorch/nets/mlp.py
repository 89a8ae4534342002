"""Multilayer perceptrons for data that are vectors."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch._config import Configurable


class MLPEncoder(Configurable, nn.Module):
    """A perceptron that gives a mean and a variance for each latent channel.

    Args:
        y_shape: Shape of one observation; it is flattened.
        num_channels: Latent channels L.
        hidden: Widths of the hidden layers.
        num_features: F, features that `CVAE` gives beside y; 0 for none.

    Shape:
        Input (*batch, *y_shape) and, if F > 0, (*batch, F); output a mean and a variance, each (*batch, L).
    """

    def __init__(
        self, y_shape: Sequence[int], num_channels: int, hidden: Sequence[int] = (64, 64), num_features: int = 0
    ) -> None:
        super().__init__()
        self.y_shape = tuple(y_shape)
        self.layers = _perceptron([math.prod(self.y_shape) + num_features, *hidden, 2 * num_channels])

    def forward(self, y: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations."""
        rows = y.reshape(*y.shape[: y.dim() - len(self.y_shape)], -1)
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
        self.y_shape = tuple(y_shape)
        self.layers = _perceptron([num_channels + num_features, *hidden, math.prod(self.y_shape)])

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameter: a mean, or logits."""
        return self.layers(beside(z, features)).reshape(*z.shape[:-1], *self.y_shape)


def beside(rows: Tensor, features: Tensor | None) -> Tensor:
    """Rows (*batch, K) with features (*batch, F) appended to each, or as they are without."""
    return rows if features is None else torch.cat([rows, features.to(rows.dtype)], dim=-1)


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1])
