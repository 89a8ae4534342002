"""What the grouped kernels share: the group column, and keeping blocks on the way through GPyTorch."""

from typing import Any

import torch
from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import AdditiveKernel, Kernel, ScaleKernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator import LinearOperator, to_linear_operator
from torch import Tensor

from fgp_gpytorch._shapes import check_finite
from fgp_gpytorch.errors import GroupError, ShapeError
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator, posterior_covariance

__all__ = ["GroupedKernel", "GroupedSumKernel", "group_labels"]


def group_labels(x: Tensor) -> Tensor:  # x: (*batch, N, 1 + D) -> (*batch, N)
    """Read the group labels, the first column, as int64.

    Raises:
        ShapeError: If `x` has no column.
        DataError: If a label is NaN or infinite.
        GroupError: If a label is not an integer, or too large for its dtype to tell neighbours apart.
    """
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ShapeError(
            "x: expected shape (*batch, N, 1 + D) with the group label in the first column, "
            f"got {tuple(x.shape)}. Try torch.cat([group.unsqueeze(-1), features], dim=-1)."
        )
    labels = x[..., 0].detach()
    if not labels.is_floating_point():
        return labels.long()
    check_finite(labels, "group label (first column of x)")
    bad = labels != labels.round()
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise GroupError(
            f"group label (first column of x): expected integers, got {float(labels[first])!r} at index "
            f"{first}, one of {int(bad.sum())}. Is the group the first column? "
            "Try torch.cat([group.unsqueeze(-1), features], dim=-1)."
        )
    limit = 2 / torch.finfo(labels.dtype).eps  # from here on, label and label + 1 are one number
    large = labels.abs() >= limit
    if bool(large.any()):
        raise GroupError(
            f"group label (first column of x): expected less than {limit:.0f} in size, beyond which "
            f"{labels.dtype} merges neighbouring integers, got {float(labels[large][0])!r}. "
            "Try float64 from the start, or number the groups from 0 with "
            "torch.unique(group, return_inverse=True)."
        )
    return labels.long()


class GroupedKernel(Kernel):
    """Base of the kernels that are zero between groups: checks labels and keeps the answer in blocks.

    A GPyTorch kernel answers lazily, and above 800 rows GPyTorch solves lazy matrices by conjugate gradients.
    Here the lazy answer evaluates itself first: solves, determinants, samples and ExactGP predictions are
    exact at any size.
    """

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Any:
        """Call the kernel as any GPyTorch kernel: lazily, or for the diagonal alone."""
        answer = super().__call__(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params)
        if not isinstance(answer, LazyEvaluatedKernelTensor):
            return answer
        self._check_rows(answer.x1)
        if answer.x2 is not answer.x1:
            self._check_rows(answer.x2)
        return _LazyGroupedTensor(
            answer.x1, answer.x2, kernel=self, last_dim_is_batch=answer.last_dim_is_batch, **answer.params
        )

    def __add__(self, other: Kernel) -> Kernel:
        """Add a kernel; a sum of grouped kernels is a grouped kernel."""
        total = super().__add__(other)
        summands: list[Any] = list(total.kernels)  # pyright: ignore[reportArgumentType]
        return GroupedSumKernel(*summands) if all(map(_is_grouped, summands)) else total

    def prediction_strategy(
        self, train_inputs: Any, train_prior_dist: MultivariateNormal, train_labels: Tensor, likelihood: Any
    ) -> DefaultPredictionStrategy:
        """Let gpytorch.models.ExactGP predict group by group."""
        return _GroupedPredictionStrategy(train_inputs, train_prior_dist, train_labels, likelihood)

    def _check_rows(self, x: Tensor) -> None:
        """Raise if `x` is not a table of rows with a group column."""
        group_labels(x)

    def _num_lazy_batches(self, columns: int) -> int:
        """With last_dim_is_batch, how many batch elements `columns` columns make."""
        return columns


class GroupedSumKernel(GroupedKernel, AdditiveKernel):
    """A sum of grouped kernels, such as `LocalKernel(a) + GlobalKernel()`: AdditiveKernel, in blocks."""

    def _check_rows(self, x: Tensor) -> None:
        """Leave it to the summands: each may choose its own columns by active_dims."""


def _is_grouped(kernel: Any) -> bool:
    if isinstance(kernel, ScaleKernel):
        return _is_grouped(kernel.base_kernel)
    return isinstance(kernel, GroupedKernel)


class _LazyGroupedTensor(LazyEvaluatedKernelTensor):
    """GPyTorch's lazy kernel matrix, except that algebra is done on the evaluated blocks."""

    @property
    def dtype(self) -> torch.dtype:
        parameters = [p.dtype for p in self.kernel.parameters()]
        dtype = self.x1.dtype if self.x1.is_floating_point() else torch.get_default_dtype()
        for each in parameters:
            dtype = torch.promote_types(dtype, each)
        return dtype

    def _size(self) -> torch.Size:
        size = super()._size()
        if self.last_dim_is_batch:
            return torch.Size((*size[:-3], self.kernel._num_lazy_batches(self.x1.shape[-1]), *size[-2:]))
        return size

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if self.last_dim_is_batch:
            return self.evaluate_kernel()._getitem(row_index, col_index, *batch_indices)
        return super()._getitem(row_index, col_index, *batch_indices)

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        return self.evaluate_kernel()._get_indices(row_index, col_index, *batch_indices)

    def __add__(self, other: Any) -> Any:
        return self.evaluate_kernel() + other

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        return self.evaluate_kernel().add_diagonal(diag)

    def mul(self, other: Any) -> LinearOperator:
        return self.evaluate_kernel().mul(other)

    def matmul(self, other: Any) -> Any:
        return self.evaluate_kernel().matmul(other)

    def _cholesky(self, upper: bool | None = False) -> LinearOperator:
        return self.evaluate_kernel()._cholesky(upper=upper)

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        return self.evaluate_kernel().solve(right_tensor, left_tensor)

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        return self.evaluate_kernel().inv_quad(inv_quad_rhs, reduce_inv_quad=reduce_inv_quad)

    def inv_quad_logdet(
        self,
        inv_quad_rhs: Tensor | None = None,
        logdet: bool | None = False,
        reduce_inv_quad: bool | None = True,
    ) -> Any:
        return self.evaluate_kernel().inv_quad_logdet(inv_quad_rhs, logdet, reduce_inv_quad)

    def root_decomposition(self, method: str | None = None) -> LinearOperator:
        return self.evaluate_kernel().root_decomposition(method=method)

    def root_inv_decomposition(
        self,
        initial_vectors: Tensor | None = None,
        test_vectors: Tensor | None = None,
        method: str | None = None,
    ) -> Any:
        return self.evaluate_kernel().root_inv_decomposition(initial_vectors, test_vectors, method=method)

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        return self.evaluate_kernel().zero_mean_mvn_samples(num_samples)


class _GroupedPredictionStrategy(DefaultPredictionStrategy):
    """ExactGP's prediction, exact at any size and in blocks: O(sum Q^3), never N x N.

    GPyTorch would add the noise to a lazy matrix and solve the sum by conjugate gradients from 800 rows on.
    """

    def __init__(
        self,
        train_inputs: Any,
        train_prior_dist: MultivariateNormal,
        train_labels: Tensor,
        likelihood: Any,
        root: Any = None,
        inv_root: Any = None,
    ):
        covariance = train_prior_dist.lazy_covariance_matrix.evaluate_kernel()
        prior = train_prior_dist.__class__(train_prior_dist.mean, covariance)
        super().__init__(train_inputs, prior, train_labels, likelihood, root=root, inv_root=inv_root)

    def exact_predictive_covar(self, test_test_covar: Any, test_train_covar: Any) -> LinearOperator:
        """Condition the covariance of the test rows on the training rows."""
        full = self.likelihood(self.train_prior_dist, self.train_inputs).lazy_covariance_matrix
        matrices = [to_linear_operator(m).evaluate_kernel() for m in (test_test_covar, test_train_covar, full)]
        blocks = [m for m in matrices if isinstance(m, GroupBlockLinearOperator)]
        one_layout = not any(m.rows.batched or m.cols.batched for m in blocks)
        if settings.skip_posterior_variances.on() or len(blocks) < 3 or not one_layout:
            return super().exact_predictive_covar(test_test_covar, test_train_covar)
        prior, cross, noisy = blocks
        if settings.detach_test_caches.on():
            noisy = noisy.detached()
        return posterior_covariance(prior, cross, noisy)
