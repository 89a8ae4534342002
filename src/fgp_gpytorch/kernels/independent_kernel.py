"""The covariance of independent rows."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor


class IndependentKernel(Kernel):
    r"""k(x_i, x_j) = 1 if i and j are the same row, else 0 (paper, Section 3: K = I, the prior of a plain VAE).

    Rows are observations, so two rows with the same entries are still two. The result is the identity for a table with
    itself, and zero for two tables. GPyTorch copies tables, so the kernel compares entries: two tables with the same
    rows in the same order count as one.

    Examples:
        >>> rows = torch.tensor([[0.0, 0.1], [0.0, 0.1]])  # two observations of one group at the same x
        >>> IndependentKernel()(rows).to_dense()
        tensor([[1., 0.],
                [0., 1.]])
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any
    ) -> Tensor:
        """Covariance of rows x1 (*b, N, D) and x2 (*b, M, D)."""
        same = x1.shape == x2.shape and torch.equal(x1, x2)
        if diag:
            return torch.full(x1.shape[:-1], float(same), dtype=x1.dtype, device=x1.device)
        shape = (*x1.shape[:-1], x2.shape[-2])
        if same:  # dense: GPyTorch cannot add a diagonal operator of noise to another diagonal operator
            return torch.eye(shape[-1], dtype=x1.dtype, device=x1.device).expand(shape)
        return x1.new_zeros(shape)
