"""A curve that all groups share, and that each group scales by a factor of its own."""

from typing import Any

from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check


class PrincipalFunctionKernel(Kernel):
    r"""k(x, x') = f(x) f(x'): each group has a multiple of one function f, with a factor from N(0, 1).

    f is learned. It is a principal function of functional data analysis (Ramsay and Silverman 2005, "Functional data
    analysis", chapter 8). Sums of several such kernels have several functions.

    Args:
        function: f, a GPyTorch mean such as `means.PiecewiseLinearMean`. Its batch shape is that of the kernel. It must
            not start at 0, where it has no gradient.

    Shapes:
        x1 (*batch, N, D) and x2 (*batch, M, D) give (*batch, N, M), or (*batch, N) with `diag=True`.

    Raises:
        ArgumentError: If the function is no mean.

    Examples:
        >>> function = PiecewiseLinearMean([0.0, 1.0, 2.0])
        >>> function.values.data = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
        >>> kernel = PrincipalFunctionKernel(function)
    """

    def __init__(self, function: Mean) -> None:
        function = check.instance(function, "function", Mean, "Try PiecewiseLinearMean([0.0, 1.0, 2.0]).")
        super().__init__(batch_shape=function.batch_shape)  # pyright: ignore[reportArgumentType]
        self.function = function

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any
    ) -> Tensor:
        """Evaluate the kernel."""
        left: Tensor = self.function(x1)  # pyright: ignore[reportAssignmentType]
        right: Tensor = self.function(x2)  # pyright: ignore[reportAssignmentType]
        return left * right if diag else left.unsqueeze(-1) * right.unsqueeze(-2)
