"""The base of the grouped kernels: it reads the group column, and keeps blocks on the way through GPyTorch."""

import functools
from typing import Any

import torch
from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import AdditiveKernel, Kernel, ScaleKernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator import LinearOperator, to_linear_operator
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import GroupError, ShapeError
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator, posterior_covariance

__all__ = ["GroupedKernel", "GroupedSumKernel", "group_labels"]

_COLUMN = "group label (first column of x)"


def group_labels(
    x1: Tensor,  # shape: (*batch, N, 1 + D)
    x2: Tensor,  # shape: (*batch, M, 1 + D)
    need_feature: bool = False,
) -> tuple[Tensor, Tensor]:  # shapes: (N,), (M,)
    """Read the group labels, the first column, as int64: one label a row, for all batch elements.

    Batch elements may label their groups differently, but the same rows must form a group. `need_feature` requires a
    feature after the group column.

    Raises:
        ShapeError: If a table has too few columns.
        DataError: If a label is NaN or infinite.
        GroupError: If a label is not an exact integer, or batch elements are grouped differently.
    """
    labels1 = _read_labels(x1, need_feature)
    labels2 = labels1 if x2 is x1 else _read_labels(x2, need_feature)
    batch = torch.broadcast_shapes(labels1.shape[:-1], labels2.shape[:-1])
    if not batch:
        return labels1, labels2
    table = torch.cat([labels1.expand(*batch, -1), labels2.expand(*batch, -1)], dim=-1).flatten(0, -2)
    labels = table[0] if len(table) else table.new_zeros(table.shape[-1])  # an empty batch: any grouping
    if not bool((table == labels).all()):
        _require_one_grouping(table)
    return labels[: labels1.shape[-1]], labels[labels1.shape[-1] :]


def _require_one_grouping(table: Tensor) -> None:  # shape: (B, N)
    found, group = torch.unique(table[0], return_inverse=True)
    member = torch.zeros_like(found).scatter_(0, group, torch.arange(len(group), device=group.device))  # of each group
    names = table[:, member]
    split = (table != names[:, group]).any(-1)
    merged = (names.sort(-1).values.diff(dim=-1) == 0).any(-1)
    if bool((split | merged).any()):
        first = int((split | merged).nonzero()[0])
        raise GroupError(
            f"{_COLUMN}: expected the same rows to form a group in every batch element, got element {first} grouped "
            "differently from element 0. Try one call for each element, or all elements as rows of one table."
        )


def _read_labels(x: Tensor, need_feature: bool) -> Tensor:  # x: (*batch, N, 1 + D) -> (*batch, N)
    if x.dim() < 2 or x.shape[-1] < 1 + need_feature:
        raise ShapeError(
            "x: expected shape (*batch, N, 1 + D), the group label in the first column"
            f"{' and at least one feature' if need_feature else ''}, got {tuple(x.shape)}. "
            "Try torch.cat([group.unsqueeze(-1), features], dim=-1)"
            f"{', or GlobalKernel(), which needs no feature.' if need_feature else '.'}"
        )
    labels = x[..., 0].detach()
    if not labels.is_floating_point():
        return labels.long()
    check.finite(labels, _COLUMN)
    bad = labels != labels.round()
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise GroupError(
            f"{_COLUMN}: expected integers, got {float(labels[first])!r} at index {first}, one of {int(bad.sum())}. "
            "Is the group the first column? Try torch.cat([group.unsqueeze(-1), features], dim=-1)."
        )
    limit = 2 / torch.finfo(labels.dtype).eps  # from here on, label and label + 1 are one number
    large = labels.abs() >= limit
    if bool(large.any()):
        raise GroupError(
            f"{_COLUMN}: expected less than {limit:.0f} in size, beyond which {labels.dtype} merges neighbouring "
            f"integers, got {float(labels[large][0])!r}. Try float64 from the start, or number the groups from 0 with "
            "torch.unique(group, return_inverse=True)."
        )
    return labels.long()


class GroupedKernel(Kernel):
    """Base of the kernels that are zero between groups. It checks labels and keeps results in blocks.

    A GPyTorch kernel returns a lazy matrix, and above 800 rows GPyTorch solves it by conjugate gradients. The lazy
    matrix of this class evaluates itself first: solves, determinants, samples and ExactGP predictions are exact at any
    size.
    """

    def __call__(
        self, x1: Tensor, x2: Tensor | None = None, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Call the kernel as any GPyTorch kernel: lazily, or for the diagonal alone."""
        lazily = bool(settings.lazily_evaluate_kernels.on()) and not last_dim_is_batch
        with settings.lazily_evaluate_kernels(lazily):
            result = super().__call__(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params)
        if not isinstance(result, LazyEvaluatedKernelTensor):
            return result
        self._check_rows(result.x1, result.x2)
        return _LazyGroupedTensor(result.x1, result.x2, kernel=self, **result.params)

    def __add__(self, other: Kernel) -> Kernel:
        """Add a kernel; a sum of grouped kernels is a grouped kernel."""
        total = super().__add__(other)
        summands: list[Any] = list(total.kernels)  # pyright: ignore[reportArgumentType]
        return GroupedSumKernel(*summands) if all(map(_is_grouped, summands)) else total

    def prediction_strategy(
        self, train_inputs: Any, train_prior_dist: MultivariateNormal, train_labels: Tensor, likelihood: Any
    ) -> DefaultPredictionStrategy:
        """The strategy by which gpytorch.models.ExactGP predicts group by group."""
        return _GroupedPredictionStrategy(train_inputs, train_prior_dist, train_labels, likelihood)

    def _check_rows(self, x1: Tensor, x2: Tensor) -> None:
        """Raise if the tables have no valid group column."""
        group_labels(x1, x2)


class GroupedSumKernel(GroupedKernel, AdditiveKernel):
    """A sum of grouped kernels, such as `LocalKernel(a) + GlobalKernel()`: AdditiveKernel, in blocks."""

    def _check_rows(self, x1: Tensor, x2: Tensor) -> None:
        """Check nothing: each summand may choose its own columns by active_dims, and checks them itself."""


def _is_grouped(kernel: Any) -> bool:
    if isinstance(kernel, ScaleKernel):
        return _is_grouped(kernel.base_kernel)
    return isinstance(kernel, GroupedKernel)


def _evaluated(name: str) -> Any:
    def method(self: LazyEvaluatedKernelTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.evaluate_kernel(), name)(*args, **kwargs)

    return method


class _LazyGroupedTensor(LazyEvaluatedKernelTensor):
    """GPyTorch's lazy kernel matrix, except that algebra uses the evaluated blocks."""

    @property
    def dtype(self) -> torch.dtype:
        first = self.x1.dtype if self.x1.is_floating_point() else torch.get_default_dtype()
        return functools.reduce(torch.promote_types, (p.dtype for p in self.kernel.parameters()), first)

    __add__ = _evaluated("__add__")
    add_diagonal = _evaluated("add_diagonal")
    mul = _evaluated("mul")
    matmul = _evaluated("matmul")
    solve = _evaluated("solve")
    inv_quad = _evaluated("inv_quad")
    inv_quad_logdet = _evaluated("inv_quad_logdet")
    root_decomposition = _evaluated("root_decomposition")
    root_inv_decomposition = _evaluated("root_inv_decomposition")
    zero_mean_mvn_samples = _evaluated("zero_mean_mvn_samples")
    _cholesky = _evaluated("_cholesky")
    _get_indices = _evaluated("_get_indices")


class _GroupedPredictionStrategy(DefaultPredictionStrategy):
    """ExactGP's prediction, exact at any size and in blocks: O(sum Q^3), never N x N.

    GPyTorch adds the noise to a lazy matrix and solves the sum by conjugate gradients from 800 rows on.
    """

    def __init__(self, train_inputs: Any, train_prior_dist: MultivariateNormal, *args: Any, **kwargs: Any):
        covariance = train_prior_dist.lazy_covariance_matrix.evaluate_kernel()
        prior = train_prior_dist.__class__(train_prior_dist.mean, covariance)
        super().__init__(train_inputs, prior, *args, **kwargs)

    def exact_predictive_covar(self, test_test_covar: Any, test_train_covar: Any) -> LinearOperator:
        """Condition the covariance of the test rows on the training rows."""
        full = self.likelihood(self.train_prior_dist, self.train_inputs).lazy_covariance_matrix
        if settings.detach_test_caches.on():
            full = full.detach()
        matrices = [to_linear_operator(m).evaluate_kernel() for m in (test_test_covar, test_train_covar, full)]
        blocks = [m for m in matrices if isinstance(m, GroupBlockLinearOperator)]
        if settings.skip_posterior_variances.on() or len(blocks) < 3:
            return super().exact_predictive_covar(test_test_covar, test_train_covar)
        return posterior_covariance(*blocks)
