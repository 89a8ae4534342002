"""The covariance that knows groups and nothing else."""

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
    r"""One within a group and zero between groups.

    .. math::
        k(x, x') = \delta_{d, d'}, \qquad \delta_{d, d'} = 1 \text{ if } d = d' \text{ and } 0 \text{ else}

    d is the group label, the first column of x; the features after it are not looked at. Source: the
    Kronecker delta of "Factorized GP-VAE", Section 3. A label that was never seen is a new group, independent
    of all others.

    Rows come in any order and groups in any sizes. The answer is a LinearOperator of blocks, one a group; it
    never builds N x N, and solves, determinants and samples are exact. The matrix has rank one within a
    group: give it noise before you factorize it.

    Labels are integers however they are stored: float32 holds them exactly below 2^24.

    Args:
        batch_shape: As in any GPyTorch kernel. There are no parameters, so the batch elements are equal.
        active_dims: As in any GPyTorch kernel. The first of the chosen columns is the group.

    Shapes:
        x1 (*batch, N, 1 + D) and x2 (*batch, M, 1 + D) give (*batch, N, M); (*batch, N) with `diag=True`;
        with `last_dim_is_batch=True` every column is a label and they give (*batch, 1 + D, N, M).

    Raises:
        ShapeError: If x has no column.
        DataError: If a label is NaN or infinite.
        GroupError: If a label is not an integer, or too large for its dtype to tell neighbours apart.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [3.0, 0.2], [5.0, 0.1]])
        >>> GroupDeltaKernel()(x).to_dense()
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """

    @property
    def is_stationary(self) -> bool:
        """Whether k depends on x - x' alone: it does."""
        return True

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """Evaluate the kernel.

        Raises:
            ShapeError: If x has no column.
            DataError: If a label is NaN or infinite.
            GroupError: If a label is not an integer, or too large for its dtype to tell neighbours apart.
        """
        kernel_batch = self.batch_shape
        if last_dim_is_batch:
            x1, x2 = (x.transpose(-1, -2).unsqueeze(-1) for x in (x1, x2))
            kernel_batch = torch.Size((*kernel_batch, 1))
        labels1, labels2 = group_labels(x1), group_labels(x2)
        batch = torch.broadcast_shapes(kernel_batch, labels1.shape[:-1], labels2.shape[:-1])
        dtype = torch.promote_types(x1.dtype, x2.dtype)
        one = torch.ones((), dtype=dtype if dtype.is_floating_point else torch.get_default_dtype(), device=x1.device)
        if diag:
            same = (labels1 == labels2).to(one)
            return same.expand(*batch, same.shape[-1])
        rows, cols = group_layouts(labels1, labels2)
        sizes = zip(rows.counts, rows.widths, cols.widths, strict=True)
        return GroupBlockLinearOperator(*(one.expand(*batch, *size) for size in sizes), rows=rows, cols=cols)

    def __getitem__(self, index: Any) -> "GroupDeltaKernel":
        """Choose batch elements."""
        return self._with_batch(torch.empty(self.batch_shape)[index].shape)

    def expand_batch(self, *sizes: Any) -> "GroupDeltaKernel":
        """Expand to a larger batch shape."""
        shape = torch.Size(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
        return self._with_batch(torch.empty(self.batch_shape).expand(shape).shape)

    def _with_batch(self, shape: torch.Size) -> "GroupDeltaKernel":
        kernel = deepcopy(self)
        kernel.batch_shape = shape
        return kernel
