"""Inputs of networks: observations as vectors, with features appended."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check


def as_shape(value: Any, name: str) -> tuple[int, ...]:
    """Return the shape of one observation as a tuple.

    Raises:
        ArgumentError: If it is no sequence of positive integers.
    """
    check.instance(value, name, (tuple, list), f"Try {name}=[{value!r}].")
    return tuple(check.count(size, name) for size in value)


def flatten(y: Tensor, y_shape: tuple[int, ...], network: str) -> Tensor:  # shape: (*batch, *y_shape) -> (*batch, K)
    """Flatten the observations that a network was made for.

    Raises:
        ShapeError: If they have another shape.
    """
    if not isinstance(y, Tensor):
        check.instance(y, "y", Tensor, "Try torch.as_tensor(y).")
    check.shape(y, "y", ("...", *y_shape), f"Try {network}({list(y.shape[1:])}, ...).")
    return y.flatten(y.dim() - len(y_shape)) if y_shape else y.unsqueeze(-1)


def append(vectors: Tensor, features: Tensor | None, num_features: int, network: str) -> Tensor:
    """Return vectors (*batch, K) with features (*batch, F) appended. None stands for F = 0.

    Raises:
        ShapeError: If F is not the number that the network was made for, or the leading dimensions differ.
    """
    if features is None and num_features == 0:
        return vectors
    if features is None:
        features = vectors.new_zeros(*vectors.shape[:-1], 0)
    hint = f"Try {network}(..., num_features={features.shape[-1]})."
    check.shape(features, "features", (*vectors.shape[:-1], num_features), hint)
    return torch.cat([vectors, features.to(vectors.dtype)], dim=-1) if num_features else vectors
