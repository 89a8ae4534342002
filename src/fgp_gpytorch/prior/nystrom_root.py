"""Any kernel of low rank by its values at some points: K = Phi Phi', exact where the data are at the points."""

from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch._config import Configurable
from fgp_gpytorch._shapes import as_tensor, check_finite, check_shape
from fgp_gpytorch.errors import DataError

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
        points: X, (M, D) or (M,), such as the distinct rows of `data.flat().x`, or some of them.

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
        points = as_tensor(points, "points").detach().double()
        points = points.unsqueeze(-1) if points.dim() == 1 else points
        check_shape(points, "points", ("M", "D"), "Try data.flat().x.unique(dim=0).")
        check_finite(points, "points")
        if not len(points) or len(points.unique(dim=0)) < len(points):
            raise DataError(
                f"points: expected distinct ones, got {len(points)} of which {len(points.unique(dim=0))} differ. "
                "Try points.unique(dim=0)."
            )
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
        """
        check_shape(x, "x", ("...", "N", self.points.shape[-1]), "As the points have.")
        with gpytorch.settings.lazily_evaluate_kernels(False):
            among = self.kernel(self.points).to_dense()
            cross = self.kernel(x.to(self.points.dtype), self.points).to_dense()
        noise = _JITTER * among.diagonal().mean()
        identity = torch.eye(len(among), dtype=among.dtype, device=among.device)
        cholesky = torch.linalg.cholesky(among + noise * identity)
        return torch.linalg.solve_triangular(cholesky, cross.mT, upper=False).mT

    def missing_variance(self, x: Tensor) -> Tensor:
        """k(x, x) - Phi(x) Phi(x)' at x (*b, N, D), which the root leaves out: (*b, N), at least 0."""
        own = self.kernel(x.to(self.points.dtype), diag=True)
        assert isinstance(own, Tensor)
        return (own - self.forward(x).square().sum(-1)).clamp_min(0.0)
