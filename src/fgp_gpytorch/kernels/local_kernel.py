"""The prior covariance of a local latent channel."""

from copy import deepcopy
from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator import LinearOperator, to_dense
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.kernels._group_layout import group_layouts
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator
from fgp_gpytorch.kernels._grouped_kernel import GroupedKernel, group_labels

__all__ = ["LocalKernel"]


class LocalKernel(GroupedKernel):
    """Covariance of a local channel: a kernel on the features within a group, zero between groups.

        k1((d, w), (d', w')) = delta(d, d') k_base(w, w')

    d is the group label, the first column of x, and w the features after it. Source: "Factorized GP-VAE", Section 3,
    the kernel of the channels 1, ..., J. There w is an angle and the base is periodic,
    `sigma^2 exp(-2 sin^2(|w - w'|) / r^2)`. A new label is a new group, independent of all others.

    The base is any GPyTorch kernel: sums, products, ScaleKernel, ARD, priors, constraints, several outputs for each
    input. It is called only on rows of one group, batched over groups of similar size: O(sum Q^2) values for groups of
    Q rows. Rows may come in any order and groups in any sizes. The result is a LinearOperator of blocks. It never
    builds N x N, and its solves, determinants, samples and ExactGP predictions are exact at any N.

    Put an amplitude inside, `LocalKernel(ScaleKernel(base))`. `ScaleKernel(LocalKernel(base))` evaluates to blocks,
    too, and an ExactGP trains and predicts exactly with it. But it returns GPyTorch's own lazy matrix, which solves and
    samples by conjugate gradients above 800 rows until `evaluate_kernel()` is called.

    Args:
        base_kernel: The covariance within a group. Its `active_dims` and `ard_num_dims` count the features *after* the
            group column. Its `batch_shape` becomes this kernel's.
        active_dims: As in any GPyTorch kernel: the columns of x to use. The first of them is the group.

    Shapes:
        x1 (*batch, N, 1 + D) and x2 (*batch, M, 1 + D) give (*batch, N, M), or (*batch, N) with `diag=True`. `*batch`
        broadcasts with the base kernel's batch_shape. With `last_dim_is_batch=True` every feature is a batch element,
        and the result is (*batch, D, N, M). N and M count m times if the base has m outputs for each input. All batch
        elements share one grouping of the rows.

    Raises:
        ArgumentError: If the base is no kernel.
        ShapeError: If x has no feature after the group column.
        DataError: If a label is NaN or infinite.
        GroupError: If a label is not an exact integer, or batch elements are grouped differently.

    Examples:
        >>> kernel = LocalKernel(gpytorch.kernels.RBFKernel())
        >>> x = torch.tensor([[0.0, 0.1], [0.0, 0.3], [1.0, 0.1]])  # two rows of group 0, one of group 1
        >>> kernel(x).to_dense().count_nonzero()
        tensor(5)
    """

    def __init__(self, base_kernel: Kernel, active_dims: tuple[int, ...] | None = None):
        super().__init__(active_dims=active_dims)
        self.base_kernel = check.instance(base_kernel, "base_kernel", Kernel, "Try gpytorch.kernels.RBFKernel().")

    @property
    def is_stationary(self) -> bool:
        """Whether k depends on x - x' alone, as the base kernel does or does not."""
        return self.base_kernel.is_stationary

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> Any:
        """The base kernel's number of outputs for each input."""
        return self.base_kernel.num_outputs_per_input(x1[..., 1:], x2[..., 1:])

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """Evaluate the kernel. The errors are those of the class."""
        equal = x1 is x2 or torch.equal(x1, x2)
        labels1, labels2 = group_labels(x1, x1 if equal else x2, need_feature=True)
        features1, features2 = x1[..., 1:], x2[..., 1:]
        outputs = self.num_outputs_per_input(x1, x2)
        outputs1, outputs2 = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        batch = torch.broadcast_shapes(self.batch_shape, x1.shape[:-2], x2.shape[:-2])
        if last_dim_is_batch:  # the dimension of the features follows the batch's
            params["last_dim_is_batch"] = True
            batch = torch.Size((*batch, x1.shape[-1] - 1))
        if diag:
            values = to_dense(self.base_kernel(features1, features2, diag=True, **params))
            values = values * (labels1 == labels2).repeat_interleave(outputs1)
            return values.expand(*batch, -1)

        rows, cols = group_layouts(labels1, labels2)
        lefts = rows.gather(features1)
        rights = lefts if equal else cols.gather(features2)
        blocks = []
        for left, right in zip(lefts, rights, strict=True):
            shape = (left.shape[-3], left.shape[-2] * outputs1, right.shape[-2] * outputs2)
            block = features1.new_zeros(()) if 0 in shape else self._block(left, right, params)
            blocks.append(block.expand(*batch, *shape))
        tall = rows.repeat(outputs1)
        wide = tall if equal and outputs1 == outputs2 else cols.repeat(outputs2)
        return GroupBlockLinearOperator(*blocks, rows=tall, cols=wide)

    def _block(
        self,
        left: Tensor,  # shape: (*b, G, Q, D)
        right: Tensor,  # shape: (*b, G, P, D)
        params: dict[str, Any],
    ) -> Tensor:  # shape: (*batch, G, Q, P)
        # Groups go in front, so that the base kernel's batch_shape lines up with the batch of x.
        batch = torch.broadcast_shapes(self.batch_shape, left.shape[:-3], right.shape[:-3])
        left_in_front = left.expand(*batch, *left.shape[-3:]).movedim(-3, 0)
        right_in_front = None if right is left else right.expand(*batch, *right.shape[-3:]).movedim(-3, 0)
        return to_dense(self.base_kernel(left_in_front, right_in_front, **params)).movedim(0, -3)

    def _check_rows(self, x1: Tensor, x2: Tensor) -> None:
        group_labels(x1, x2, need_feature=True)

    def expand_batch(self, *sizes: Any) -> "LocalKernel":
        """Expand the base kernel to a larger batch shape."""
        kernel = deepcopy(self)
        kernel.base_kernel = self.base_kernel.expand_batch(*sizes)
        return kernel
