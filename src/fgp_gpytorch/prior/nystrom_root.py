"""Any kernel of low rank by its values at some points: K = Phi Phi', exact where the data are at the points."""

from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch._shapes import check_finite, check_shape
from fgp_gpytorch.data._inputs import as_features
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.saving import Configurable

_JITTER = 1e-8  # of the points' mean variance


class NystromRoot(Configurable, gpytorch.Module):
    r"""Features Phi(x) with Phi(x) Phi(x')' = k(x, X) k(X, X)^-1 k(X, x') for any kernel (Williams and Seeger 2001).

        Phi(x) = k(x, X) L^-T,   L L' = k(X, X)

    It is the kernel itself at the points X: exact for data on a grid (visits by month, sites by day) whose values are
    the points, and else the kernel of what can be told from them. What is left out, k(x, x) - Phi(x) Phi(x)', is little
    between points that are near to each other in lengthscales (`missing_variance`). The points are fixed, the
    kernel's hyperparameters are learned.

    Args:
        kernel: A GPyTorch kernel on D features, without batch shape.
        points: X, (M, D) or (M,), such as the distinct rows of `data.flat().x`, or some of them: a tensor, an array or
            columns of a table. Kept in float64.

    Attributes:
        num_features: M.

    Raises:
        DataError: If `kernel` is no kernel or has a batch shape, or a point is not finite or there twice.
        ShapeError: If the points are no (M, D).

    Example:
        >>> months = data.flat().x.unique(dim=0)
        >>> root = NystromRoot(gpytorch.kernels.MaternKernel(nu=1.5), months)
        >>> model = GPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), 4, num_groups=len(data), view_root=root)
    """

    points: Tensor

    def __init__(self, kernel: Kernel, points: Any) -> None:
        super().__init__()
        if not isinstance(kernel, Kernel) or kernel.batch_shape:
            got = f"batch_shape {list(kernel.batch_shape)}" if isinstance(kernel, Kernel) else type(kernel).__name__
            raise DataError(
                f"kernel: expected a gpytorch.kernels.Kernel without batch shape, got {got}. "
                "Try gpytorch.kernels.MaternKernel(nu=1.5)."
            )
        points = as_features(points, feature_dim=1).detach().double()
        check_shape(points, "points", ("M", "D"), "Try data.flat().x.unique(dim=0).")
        check_finite(points, "points")
        if not len(points) or len(points.unique(dim=0)) < len(points):
            raise DataError(
                f"points: expected distinct ones, got {len(points)} of which {len(points.unique(dim=0))} differ. "
                "Try points.unique(dim=0)."
            )
        if "points" in self.constructor_arguments:
            self.constructor_arguments["points"] = points  # what can be saved, whatever they were made of
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
        """
        check_shape(x, "x", ("...", "N", self.points.shape[-1]), "As the points have.")
        x, points = x.double(), self.points.double()  # the factorization would fail in float32
        with gpytorch.settings.lazily_evaluate_kernels(False):
            among = self.kernel(points).to_dense().double()
            # the points first: GPyTorch centres on the first argument, and no row must depend on those beside it
            cross = self.kernel(points.expand(*x.shape[:-2], *points.shape), x).to_dense().double()
        noise = _JITTER * among.diagonal().mean()
        identity = torch.eye(len(among), dtype=among.dtype, device=among.device)
        cholesky, failed = torch.linalg.cholesky_ex(among + noise * identity)
        if bool(failed):
            raise DataError(
                f"kernel: expected a positive definite matrix at the {len(points)} points, got none. Try fewer points, "
                "further apart, or another kernel."
            )
        return torch.linalg.solve_triangular(cholesky, cross, upper=False).mT

    def missing_variance(self, x: Tensor) -> Tensor:
        """k(x, x) - Phi(x) Phi(x)' at x (*b, N, D), which the root leaves out: (*b, N), at least 0.

        Raises:
            ShapeError: If x has another number of features than the points.
            DataError: If the kernel is not positive definite at the points.
        """
        own = self.kernel(x.double(), diag=True)
        assert isinstance(own, Tensor)
        return (own - self.forward(x).square().sum(-1)).clamp_min(0.0)
