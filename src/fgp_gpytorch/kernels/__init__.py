"""GPyTorch kernels on tables whose first column is the group: exact, in blocks, for rows in any order."""

from fgp_gpytorch.kernels.global_kernel import GlobalKernel
from fgp_gpytorch.kernels.group_delta_kernel import GroupDeltaKernel
from fgp_gpytorch.kernels.independent_kernel import IndependentKernel
from fgp_gpytorch.kernels.kernel_matrix import kernel_matrix
from fgp_gpytorch.kernels.local_kernel import LocalKernel

__all__ = ["GlobalKernel", "GroupDeltaKernel", "IndependentKernel", "LocalKernel", "kernel_matrix"]
