"""The covariance that depends on the group alone."""

from copy import deepcopy
from typing import Any

import torch
from linear_operator import LinearOperator
from torch import Tensor

from fgp_gpytorch.kernels._group_layout import group_layouts
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator
from fgp_gpytorch.kernels._grouped_kernel import GroupedKernel, group_labels

__all__ = ["GroupDeltaKernel"]


class GroupDeltaKernel(GroupedKernel):
    """One within a group and zero between groups.

        k(x, x') = delta(d, d'),   delta(d, d') = 1 if d = d', else 0

    d is the group label, the first column of x. The features after it have no effect. Source: the Kronecker delta of
    "Factorized GP-VAE", Section 3. A new label is a new group, independent of all others.

    Rows may come in any order and groups in any sizes. The result is a LinearOperator of one block a group. It never
    builds N x N, and its solves, determinants and samples are exact. The matrix has rank one within a group: add noise
    before you factorize it.

    Labels are integers of any dtype. float32 represents them exactly below 2^24.

    Args:
        batch_shape: As in any GPyTorch kernel. There are no parameters, so the batch elements are equal.
        active_dims: As in any GPyTorch kernel. The first of the chosen columns is the group.

    Shapes:
        x1 (*batch, N, 1 + D) and x2 (*batch, M, 1 + D) give (*batch, N, M), or (*batch, N) with `diag=True`. With
        `last_dim_is_batch=True` every column is a label, and the result is (*batch, 1 + D, N, M). All batch elements
        share one grouping of the rows.

    Raises:
        ShapeError: If x has no column.
        DataError: If a label is NaN or infinite.
        GroupError: If a label is not an exact integer, or batch elements are grouped differently.

    Examples:
        >>> x = torch.tensor([[3.0, 0.1], [3.0, 0.2], [5.0, 0.1]])
        >>> GroupDeltaKernel()(x).to_dense()
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """

    @property
    def is_stationary(self) -> bool:
        """Whether k depends on x - x' alone. It does."""
        return True

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """Evaluate the kernel. The errors are those of the class."""
        kernel_batch = self.batch_shape
        if last_dim_is_batch:
            x1, x2 = (x.transpose(-1, -2).unsqueeze(-1) for x in (x1, x2))
            kernel_batch = torch.Size((*kernel_batch, 1))
        labels1, labels2 = group_labels(x1, x2)
        batch = torch.broadcast_shapes(kernel_batch, x1.shape[:-2], x2.shape[:-2])
        dtype = torch.promote_types(x1.dtype, x2.dtype)
        one = torch.ones((), dtype=dtype if dtype.is_floating_point else torch.get_default_dtype(), device=x1.device)
        if diag:
            return (labels1 == labels2).to(one).expand(*batch, -1)
        rows, cols = group_layouts(labels1, labels2)
        sizes = zip(rows.counts, rows.widths, cols.widths, strict=True)
        return GroupBlockLinearOperator(*(one.expand(*batch, *size) for size in sizes), rows=rows, cols=cols)

    def __getitem__(self, index: Any) -> "GroupDeltaKernel":
        """Choose batch elements."""
        kernel = deepcopy(self)
        kernel.batch_shape = torch.empty(self.batch_shape)[index].shape
        return kernel
