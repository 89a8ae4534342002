"""Any kernel as features from its values at some points: K = Phi Phi', exact at the points."""

from typing import Any

import gpytorch
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.gaussian import check_residual_variance, features_at_points
from fgp_gpytorch.kernels import kernel_matrix
from fgp_gpytorch.saving import Configurable


class NystromFeatures(Configurable, gpytorch.Module):
    r"""Features Phi(x) with Phi(x) Phi(x')' = k(x, X) k(X, X)^-1 k(X, x') for any kernel (Williams and Seeger 2001).

        Phi(x) = k(x, X) L^-T,   L L' = k(X, X)

    The map is exact at the points X, and so for data on a grid of these points (visits by month, sites by day). Between
    them it leaves out the `missing_variance`, which is small where neighbouring points lie within a lengthscale. The
    points are fixed. The kernel's hyperparameters are learned.

    Args:
        kernel: A GPyTorch kernel on D features, without batch shape.
        points: X, (M, D) or (M,): a tensor, an array or columns of a table, such as distinct rows of `data.flat().x`.
            Kept in float64.

    Raises:
        ArgumentError: If `kernel` is not a kernel, or the points are not numbers.
        ShapeError: If the kernel has a batch shape, or the points are not (M, D).
        DataError: If a point is not finite, or occurs twice.

    Examples:
        >>> kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
        >>> months = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> features = NystromFeatures(kernel, months)
        >>> torch.allclose(features(months) @ features(months).mT, kernel(months).to_dense())  # exact at the points
        True
        >>> model = GPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), 4, num_groups=7, view_features=features)
    """

    points: Tensor

    def __init__(self, kernel: Kernel, points: Any) -> None:
        super().__init__()
        hint = "Try gpytorch.kernels.MaternKernel(nu=1.5)."
        if check.instance(kernel, "kernel", Kernel, hint).batch_shape:
            got = list(kernel.batch_shape)
            raise ShapeError(
                f"kernel: expected a gpytorch.kernels.Kernel without batch shape, got batch_shape {got}. {hint}"
            )
        points = checked_points(points)
        if "points" in self.constructor_arguments:
            self.constructor_arguments["points"] = points  # a tensor can be saved
        self.kernel = kernel
        self.register_buffer("points", points)

    @property
    def num_features(self) -> int:
        """M, the columns of Phi."""
        return len(self.points)

    def forward(self, x: Tensor) -> Tensor:
        """Phi at x.

        Args:
            x: Auxiliary features, (*b, N, D).

        Returns:
            (*b, N, M).

        Raises:
            ShapeError: If x has another number of features than the points.
            DataError: If the kernel is not positive definite at the points.
            NonFiniteError: If the kernel is not finite there.
        """
        return self._parts(x)[-1]

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """k(X, X), (M, M), k(X, x), (*b, M, N), and Phi, (*b, N, M)."""
        check.shape(x, "x", ("...", "N", self.points.shape[-1]), "The points have as many features.")
        x, points = x.double(), self.points.double()  # the factorization would fail in float32
        among = kernel_matrix(self.kernel, points).double()
        # the points come first: GPyTorch centres on its first argument, and rows must not depend on each other
        cross = kernel_matrix(self.kernel, points.expand(*x.shape[:-2], *points.shape), x).double()
        return among, cross, features_at_points(among, cross, "kernel")

    def missing_variance(self, x: Tensor) -> Tensor:
        """k(x, x) - Phi(x) Phi(x)' at x (*b, N, D), which the features leave out: (*b, N), at least 0.

        Raises:
            ShapeError: If x has another number of features than the points.
            DataError: If the kernel is not positive semi-definite at the points and x.
            NonFiniteError: If the kernel is not finite there.
        """
        own = self.kernel(x.double(), diag=True)
        assert isinstance(own, Tensor)
        among, cross, features = self._parts(x)
        missing = own - features.square().sum(-1)
        check_residual_variance(missing, among, cross, own)
        return missing.clamp_min(0.0)


def checked_points(points: Any, name: str = "points") -> Tensor:
    """Require distinct finite points, and return them as (M, D) in float64.

    Args:
        points: (M, D) or (M,): a tensor, an array or columns of a table.
        name: Of the argument.

    Raises:
        ArgumentError: If they are not numbers.
        ShapeError: If they are not (M, D).
        DataError: If one is not finite, or occurs twice.

    Examples:
        >>> checked_points([0.0, 0.5, 1.0]).shape
        torch.Size([3, 1])
        >>> checked_points([0.0, 0.5, 0.5])
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.DataError: points: expected distinct points, got 3 of which 2 differ. ...
    """
    points = points.double() if isinstance(points, Tensor) and not points.is_complex() else points
    points = check.as_reals(points, name, hint="Try data.flat().x.unique(dim=0).").detach().double()
    points = points.unsqueeze(-1) if points.dim() == 1 else points
    check.finite(check.shape(points, name, ("M", "D"), "Try data.flat().x.unique(dim=0)."), name)
    if not len(points) or len(points.unique(dim=0)) < len(points):
        raise DataError(
            f"{name}: expected distinct points, got {len(points)} of which {len(points.unique(dim=0))} differ. "
            f"Try {name}.unique(dim=0)."
        )
    return points
