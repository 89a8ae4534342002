"""Object vectors, and their product with the features of a view."""

import math

import gpytorch
import torch
from torch import Tensor, nn

from fgp_gpytorch._shapes import check_finite, check_shape
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.gaussian import RepeatedRows, row_products
from fgp_gpytorch.saving import Configurable


class ObjectRoot(Configurable, gpytorch.Module):
    r"""One learned vector per group, D (P, m): Sigma = D D' of the paper's Section 2 (Casale et al. 2018).

    Groups of the training data are known by their vector, so a group without one (index >= P) has no place here.

    Args:
        num_groups: P.
        num_factors: m.
        normalize: Divide every vector by its length, so that Sigma is a correlation and the amplitude is the other
            kernel's alone; False takes them as they are.

    Attributes:
        vectors: The vectors as given and learned, (P, m): at the start independent normal numbers of variance 1 / m,
            drawn from PyTorch's generator.

    Raises:
        DataError: If a number is below 1.
    """

    vectors: nn.Parameter

    def __init__(self, num_groups: int, num_factors: int = 8, normalize: bool = True) -> None:
        super().__init__()
        for name, value in (("num_groups", num_groups), ("num_factors", num_factors)):
            if not isinstance(value, int) or value < 1:
                raise DataError(f"{name}: expected an integer >= 1, got {value!r}. Try num_groups=len(data).")
        self.num_groups, self.num_factors, self.normalize = num_groups, num_factors, normalize
        self.vectors = nn.Parameter(torch.randn(num_groups, num_factors, dtype=torch.float64) / math.sqrt(num_factors))

    @property
    def num_features(self) -> int:
        """m, the columns."""
        return self.num_factors

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Start from given vectors.

        Args:
            vectors: (P, m).

        Raises:
            ShapeError: If the shape is another one.
            DataError: If an entry is not finite.
        """
        check_shape(vectors, "vectors", tuple(self.vectors.shape), "One vector for each group of the training data.")
        check_finite(vectors, "vectors")
        self.vectors.copy_(vectors)

    def forward(self, group_index: Tensor) -> Tensor:
        """The vectors of some groups, normalised if asked.

        Args:
            group_index: Positions among the P groups, (*b,), int64.

        Returns:
            (*b, m).

        Raises:
            GroupError: If a position is not below P.
        """
        if group_index.numel() and not 0 <= int(group_index.min()) <= int(group_index.max()) < self.num_groups:
            raise GroupError(
                f"group_index: expected positions from 0 to {self.num_groups - 1}, the groups that have an object "
                f"vector, got {int(group_index.min())} to {int(group_index.max())}. A new group needs training here; "
                "try FGPVAE, which generalizes to it."
            )
        vectors = self.vectors[group_index]
        return unit_length(vectors) if self.normalize else vectors


class ProductRoot(Configurable, gpytorch.Module):
    r"""Phi(d, w) = D_d (x) S(w): the root of k((d, w), (d', w')) = Sigma_dd' k(w, w') (paper, Section 2).

    Args:
        objects: D.
        view: S, a root of auxiliary features (*b, N, F) to (*b, N, M_view) with `num_features` M_view, such as
            `FourierRoot` of a periodic kernel or `NystromRoot` of any.

    Attributes:
        num_features: M = m M_view.

    Raises:
        DataError: If `view` is no root (a kernel, or a module without `num_features`), or its kernel has a batch shape.
    """

    objects: ObjectRoot
    view: nn.Module

    def __init__(self, objects: ObjectRoot, view: nn.Module) -> None:
        super().__init__()
        if not isinstance(view, nn.Module) or not hasattr(view, "num_features"):
            raise DataError(
                f"view_root: expected a root, a module from x (*b, N, F) to features (*b, N, M) with num_features = M, "
                f"got {type(view).__name__}. Try FourierRoot(kernel, period) for a periodic kernel, "
                "NystromRoot(kernel, points) for any other."
            )
        batch_shape = getattr(getattr(view, "kernel", None), "batch_shape", ())
        if len(batch_shape):
            raise DataError(
                f"view_root: expected a kernel without batch shape, got {list(batch_shape)}: all channels share it. "
                "Try a kernel without batch_shape."
            )
        self.objects, self.view = objects, view

    @property
    def num_features(self) -> int:
        """M, the columns."""
        return self.objects.num_features * int(self.view.num_features)  # pyright: ignore[reportArgumentType]

    def forward(self, group_index: Tensor, x: Tensor) -> Tensor:
        """Phi at rows (group, x).

        Args:
            group_index: Position of each row's group, (*b, N), int64.
            x: Auxiliary features of each row, (*b, N, F).

        Returns:
            (*b, N, M), column (i, j) being D_di S(w)_j.

        Raises:
            GroupError: If a position belongs to no object vector.
            ShapeError: If x does not fit the view's root.
        """
        return row_products(self.objects.forward(group_index), self.view(x))

    def rows(self, group_index: Tensor, x: Tensor, observed: Tensor) -> RepeatedRows:
        """Phi at the observed members of groups, each object and each distinct x once.

        Args:
            group_index: Position of each group, (G,), int64.
            x: Auxiliary features, (G, Q, F).
            observed: Members that are there, (G, Q); N in all.

        Returns:
            N rows in the order of `x[observed]`, M columns as in `forward`.

        Raises:
            GroupError: If a position belongs to no object vector.
            ShapeError: If x does not fit the view's root.
        """
        values = x[observed]
        if values.requires_grad:  # to be distinct has no gradient
            distinct, view_of_row = values, torch.arange(len(values), device=values.device)
        else:
            distinct, view_of_row = values.unique(dim=0, return_inverse=True)
        group_of_row = observed.nonzero()[:, 0]
        return RepeatedRows(self.objects.forward(group_index), self.view(distinct), group_of_row, view_of_row)


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors (*b, m) divided by their lengths."""
    # not torch.nn.functional.normalize, whose 1e-12 would let a short vector keep its length
    return vectors / vectors.square().sum(-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny).sqrt()
