"""The columns of x that a kernel depends on."""

from collections.abc import Sequence

import torch
from gpytorch.kernels import AdditiveKernel, ConstantKernel, Kernel, ProductKernel, ScaleKernel

from fgp_gpytorch.kernels.within_kernel import WithinKernel


def seen_features(kernel: Kernel, num_features: int) -> list[int]:
    """The columns of x (*b, N, D) that a kernel depends on: members that agree in them are repeats to it.

    Sums, products and scaled kernels depend on the columns of their parts, and a constant on none. Any other kernel
    counts as one that depends on all of its `active_dims`.

    Examples:
        >>> kernel = gpytorch.kernels.RBFKernel(active_dims=[2]) + gpytorch.kernels.RBFKernel(active_dims=[0])
        >>> seen_features(kernel, num_features=4)
        [0, 2]
    """
    return sorted(_seen(kernel, range(num_features)))


def _seen(kernel: Kernel, columns: Sequence[int]) -> set[int]:
    if kernel.active_dims is not None:
        columns = [columns[index] for index in torch.as_tensor(kernel.active_dims).tolist()]
    if isinstance(kernel, ConstantKernel):
        return set()
    if isinstance(kernel, WithinKernel):
        code, rest = kernel.columns(len(columns))
        return {columns[code]} | _seen(kernel.base_kernel, [columns[index] for index in rest])
    if isinstance(kernel, ScaleKernel):  # which calls the forward of its base: active_dims of the base are its own
        return _seen(kernel.base_kernel, columns) if kernel.active_dims is None else set(columns)
    if isinstance(kernel, AdditiveKernel | ProductKernel):
        return set().union(*(_seen(part, columns) for part in kernel.kernels))  # pyright: ignore
    return set(columns)
