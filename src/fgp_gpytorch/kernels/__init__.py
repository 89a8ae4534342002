"""GPyTorch kernels: on tables whose first column is the group, of inner groups, and of curves that groups scale."""

from fgp_gpytorch.kernels.global_kernel import GlobalKernel
from fgp_gpytorch.kernels.group_delta_kernel import GroupDeltaKernel
from fgp_gpytorch.kernels.independent_kernel import IndependentKernel
from fgp_gpytorch.kernels.kernel_matrix import kernel_matrix
from fgp_gpytorch.kernels.local_kernel import LocalKernel
from fgp_gpytorch.kernels.markov_terms import markov_terms
from fgp_gpytorch.kernels.principal_function_kernel import PrincipalFunctionKernel
from fgp_gpytorch.kernels.seen_features import seen_features
from fgp_gpytorch.kernels.within_kernel import WithinKernel

__all__ = [
    "GlobalKernel",
    "GroupDeltaKernel",
    "IndependentKernel",
    "LocalKernel",
    "PrincipalFunctionKernel",
    "WithinKernel",
    "kernel_matrix",
    "markov_terms",
    "seen_features",
]
