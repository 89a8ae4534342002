"""A feature map of some columns of x."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.saving import Configurable


class SelectedFeatures(Configurable, nn.Module):
    r"""phi(x) = phi'(some columns of x).

    Args:
        features: phi', a feature map of these columns.
        columns: The columns of x. Negative numbers count from the end.
        known: A column of x that is 1 where the others are known, and 0 where they are missing. A missing one has one
            feature of its own, which is 1, and any finite number in its columns. So its effect is the prior if training
            had no missing ones. None: all are known.

    Raises:
        ArgumentError: If `features` is no feature map, or a column no integer.
        ShapeError: If x does not have the columns.

    Examples:
        >>> sex = SelectedFeatures(CategoricalFeatures(2), [2])
        >>> sex(torch.tensor([[1950.0, 3.0, 0.0], [1960.0, 3.0, 1.0]]))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """

    def __init__(self, features: nn.Module, columns: Sequence[int], known: int | None = None) -> None:
        super().__init__()
        self.features = checked_map(features, "features")
        self.columns, self.known = list(columns), known
        for column in (*self.columns, *(() if known is None else (known,))):
            if isinstance(column, bool) or not isinstance(column, int):
                raise ArgumentError(f"columns: expected numbers of columns of x, got {column!r}. Try [0].")

    @property
    def num_features(self) -> int:
        """M, the columns of phi."""
        return int(self.features.num_features) + (self.known is not None)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """Phi at x (*b, N, D): (*b, N, M). The errors are those of the class and of the map."""
        size = x.shape[-1]
        beyond = [c for c in (*self.columns, self.known or 0) if not -size <= c < size]
        if beyond:
            raise ShapeError(f"x: expected a column {beyond[0]}, got D = {size} features. Try the columns of x.")
        features = self.features(x[..., self.columns])
        if self.known is None:
            return features
        known = (x[..., self.known].unsqueeze(-1) != 0).to(features.dtype)
        return torch.cat([known * features, 1 - known], dim=-1)


def checked_map(value: nn.Module, name: str) -> nn.Module:
    """Require a module with `num_features`.

    Raises:
        ArgumentError: If it is none.

    Examples:
        >>> checked_map(LinearFeatures(3), "features").num_features
        3
        >>> checked_map(torch.nn.Linear(1, 3), "features")
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.ArgumentError: features: expected a feature map, got Linear. ...
    """
    if not isinstance(value, nn.Module) or not isinstance(getattr(value, "num_features", None), int):
        raise ArgumentError(
            f"{name}: expected a feature map, got {type(value).__name__}. Try CategoricalFeatures(3), or "
            "NystromFeatures(kernel, points)."
        )
    return value
