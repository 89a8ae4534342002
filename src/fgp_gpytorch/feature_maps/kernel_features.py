"""Kernels with a finite feature map, and their features."""

import math
from collections.abc import Sequence

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    Kernel,
    LinearKernel,
    PeriodicKernel,
    PolynomialKernel,
    ProductKernel,
    ScaleKernel,
)
from torch import Tensor

from fgp_gpytorch.feature_maps._fourier import fourier_coefficients, fourier_features

_POINTS = 256  # of a period
_MOST_HARMONICS = 64


def kernel_features(kernel: Kernel, x: Tensor) -> Tensor | None:
    """Features Phi(x) with Phi(x) Phi(x')' = k(x, x'), with gradients to the kernel's hyperparameters and to x.

    Linear and polynomial kernels and constants have them exactly. A periodic kernel on one feature has those of its
    Fourier series down to rounding. Sums and products have those of their parts.

    Args:
        kernel: `LinearKernel`, `PolynomialKernel`, `PeriodicKernel`, `ConstantKernel`, or their sums, products and
            scales. Subclasses may compute something else, and are not taken.
        x: Auxiliary features, (*b, N, D), with as many dimensions as the kernel's `batch_shape` needs to broadcast.

    Returns:
        (*b, N, M); None if the kernel has another form, or a periodic kernel needs more than 64 harmonics.

    Examples:
        >>> kernel, x = gpytorch.kernels.PolynomialKernel(power=2), torch.tensor([[1.0], [2.0], [3.0]])
        >>> features = kernel_features(kernel, x)
        >>> torch.allclose(features @ features.mT, kernel(x).to_dense())
        True
        >>> kernel_features(gpytorch.kernels.RBFKernel(), x) is None
        True
    """
    return _features(kernel, x)


def _features(kernel: Kernel, x: Tensor, called: bool = True) -> Tensor | None:
    """Features of a kernel. One that is not called does not select its `active_dims`."""
    if called and kernel.active_dims is not None:
        x = x[..., torch.as_tensor(kernel.active_dims, device=x.device)]
    if type(kernel) is ConstantKernel:
        return kernel.constant.to(x).sqrt().unsqueeze(-1) * torch.ones_like(x[..., :1])
    if type(kernel) is LinearKernel:
        return x * kernel.variance.to(x).sqrt()
    if type(kernel) is PolynomialKernel and kernel.power >= 1 and kernel.power == int(kernel.power):
        root = kernel.offset.to(x).sqrt().unsqueeze(-1) * torch.ones_like(x[..., :1])
        one = torch.cat([x.expand(*root.shape[:-1], x.shape[-1]), root], -1)
        return _product([one] * int(kernel.power))
    if type(kernel) is PeriodicKernel:
        return _periodic(kernel, x)
    if type(kernel) is ScaleKernel:  # it calls the forward of its base
        base = _features(kernel.base_kernel, x, called=False)
        return None if base is None else kernel.outputscale.to(x).sqrt()[..., None, None] * base
    if type(kernel) is AdditiveKernel or type(kernel) is ProductKernel:
        parts = [_features(part, x) for part in kernel.kernels if isinstance(part, Kernel)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        if type(kernel) is ProductKernel:
            return _product(found)
        front = torch.broadcast_shapes(*(part.shape[:-1] for part in found))
        return torch.cat([part.expand(*front, part.shape[-1]) for part in found], -1)
    return None


def _periodic(kernel: PeriodicKernel, x: Tensor) -> Tensor | None:
    lengthscale, period = kernel.lengthscale, kernel.period_length
    assert isinstance(lengthscale, Tensor)
    if x.shape[-1] != 1:
        return None
    turns = torch.arange(_POINTS, dtype=x.dtype, device=x.device) / _POINTS
    values = (-2 * (math.pi * turns).sin().square() / lengthscale.to(x).squeeze(-1)).exp()  # (*k, N)
    coefficients = fourier_coefficients(values, _MOST_HARMONICS).clamp_min(0.0)
    largest = coefficients.detach()
    while largest.dim() > 1:
        largest = largest.amax(0)
    needed = int((largest > torch.finfo(x.dtype).eps * largest.amax()).nonzero().max())
    if needed == _MOST_HARMONICS:
        return None
    return fourier_features(coefficients[..., : needed + 1].unsqueeze(-2), 2 * math.pi / period.to(x) * x)


def _product(factors: Sequence[Tensor]) -> Tensor:
    """Products of each feature of one factor and each of the others, row by row."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)
    return product
