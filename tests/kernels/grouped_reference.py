"""Slow strangers for the grouped kernels: NumPy loops, and a GPyTorch kernel that is dense throughout."""

import math

import gpytorch
import numpy as np
import torch
from linear_operator import to_dense


def loop_rbf(lengthscales):
    return lambda w, v: math.exp(-0.5 * sum(((a - b) / s) ** 2 for a, b, s in zip(w, v, lengthscales, strict=True)))


def loop_periodic(period, lengthscale):
    # GPyTorch divides by the lengthscale, not by its square.
    return lambda w, v: math.exp(-2 * math.sin(math.pi * abs(w[0] - v[0]) / period) ** 2 / lengthscale)


def loop_matrix(k, x1, x2=None):
    """K[i, j] = 1[d_i = d_j] k(w_i, w_j), one entry at a time."""
    x1 = x1.double().numpy()
    x2 = x1 if x2 is None else x2.double().numpy()
    result = np.zeros((len(x1), len(x2)))
    for i, row in enumerate(x1):
        for j, col in enumerate(x2):
            if row[0] == col[0]:
                result[i, j] = k(row[1:], col[1:])
    return torch.from_numpy(result)


class DenseLocalKernel(gpytorch.kernels.Kernel):
    """The base kernel on every pair of rows, times the mask."""

    def __init__(self, base_kernel):
        super().__init__()
        self.base_kernel = base_kernel

    def forward(self, x1, x2, diag=False, **params):
        if diag:
            return self.base_kernel(x1[..., 1:], x2[..., 1:], diag=True) * (x1[..., 0] == x2[..., 0])
        mask = x1[..., 0].unsqueeze(-1) == x2[..., 0].unsqueeze(-2)
        return to_dense(self.base_kernel(x1[..., 1:], x2[..., 1:])) * mask


def grouped_rows(sizes, num_features=2, seed=0, dtype=torch.float64, shuffle=False):
    """Rows of len(sizes) groups, labels neither contiguous nor sorted, features standard normal."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), float((7 * g) % 11 + 11 * (g // 11))) for g, size in enumerate(sizes)])
    features = torch.randn(len(labels), num_features, generator=generator, dtype=torch.float64)
    x = torch.cat([labels.unsqueeze(-1).double(), features], dim=-1).to(dtype)
    return x[torch.randperm(len(x), generator=generator)] if shuffle else x
