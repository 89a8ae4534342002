"""Priors made with the library, each beside the same prior written out densely in Python loops."""

import math
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from torch import Tensor

import oracles
from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.feature_maps import PeriodicFeatures

F64 = torch.float64


@dataclass
class Case:
    prior: FactorizedGPPrior
    dense: oracles.DenseGaussian
    features: int

    @property
    def channels(self) -> int:
        return len(self.dense.kernels)


def scale(base: gpytorch.kernels.Kernel, outputscale, batch_shape=()) -> gpytorch.kernels.ScaleKernel:
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=torch.Size(batch_shape)).double()
    kernel.outputscale = torch.as_tensor(outputscale, dtype=F64)
    return kernel


def with_lengthscale(kernel: gpytorch.kernels.Kernel, lengthscale) -> gpytorch.kernels.Kernel:
    kernel = kernel.double()
    kernel.lengthscale = torch.as_tensor(lengthscale, dtype=F64)
    return kernel


def paper_case() -> Case:
    """Periodic local channels with amplitude not 1, global channels with variance not 1."""
    base = with_lengthscale(gpytorch.kernels.PeriodicKernel(), 1.44)
    base.period_length = torch.tensor(2 * np.pi, dtype=F64)
    prior = FactorizedGPPrior([LocalChannels(2, scale(base, 1.7)), GlobalChannels(2, variance=2.5)])
    local = oracles.periodic(1.44, 2 * np.pi, 1.7)
    return Case(prior, oracles.DenseGaussian([local] * 2 + [oracles.constant(2.5)] * 2), features=1)


def ard_case() -> Case:
    """Two features with a lengthscale each."""
    base = with_lengthscale(gpytorch.kernels.RBFKernel(ard_num_dims=2), [0.6, 2.1])
    prior = FactorizedGPPrior([LocalChannels(2, scale(base, 0.8)), GlobalChannels(1)])
    return Case(prior, oracles.DenseGaussian([oracles.rbf([0.6, 2.1], 0.8)] * 2 + [oracles.constant()]), features=2)


def per_channel_case() -> Case:
    """batch_shape [J]: every channel has its own hyperparameters, the global ones too."""
    lengthscales, amplitudes = [0.4, 0.9, 2.3], [0.5, 1.0, 3.0]
    base = gpytorch.kernels.RBFKernel(batch_shape=torch.Size([3]))
    base = with_lengthscale(base, torch.tensor(lengthscales, dtype=F64).reshape(3, 1, 1))
    kernel = scale(base, amplitudes, (3,))
    prior = FactorizedGPPrior(
        [LocalChannels(3, kernel), GlobalChannels(2, variance=torch.tensor([0.3, 4.0], dtype=F64))]
    )
    local = [oracles.rbf(r, s) for r, s in zip(lengthscales, amplitudes, strict=True)]
    return Case(prior, oracles.DenseGaussian([*local, oracles.constant(0.3), oracles.constant(4.0)]), features=1)


def many_blocks_case() -> Case:
    """Global channels before and between local ones; a linear kernel, singular from two members on."""
    matern = with_lengthscale(gpytorch.kernels.MaternKernel(nu=1.5), 0.7)
    linear = gpytorch.kernels.LinearKernel().double()
    linear.variance = torch.tensor(0.9, dtype=F64)
    blocks = [
        GlobalChannels(1, variance=0.5),
        LocalChannels(1, scale(matern, 1.3)),
        GlobalChannels(2),
        LocalChannels(2, linear),
    ]
    kernels = [oracles.constant(0.5), oracles.matern32(0.7, 1.3)]
    kernels += [oracles.constant()] * 2 + [oracles.linear(0.9)] * 2
    return Case(FactorizedGPPrior(blocks), oracles.DenseGaussian(kernels), features=1)


def means_case() -> Case:
    """Non-zero prior means: a line per local channel, a constant per global channel, a constant shared by a block."""
    lines = gpytorch.means.LinearMean(2, batch_shape=torch.Size([2])).double()
    lines.weights.data = torch.tensor([[[0.5], [-1.0]], [[2.0], [0.25]]], dtype=F64)
    lines.bias.data = torch.tensor([[0.3], [-0.7]], dtype=F64)
    constants = gpytorch.means.ConstantMean(batch_shape=torch.Size([2])).double()
    constants.constant.data = torch.tensor([1.5, -2.0], dtype=F64)
    shared = gpytorch.means.ConstantMean().double()
    shared.constant.data = torch.tensor(0.8, dtype=F64)
    base = with_lengthscale(gpytorch.kernels.RBFKernel(), 1.1)
    blocks = [
        LocalChannels(2, scale(base, 1.4), mean=lines),
        GlobalChannels(2, variance=1.6, mean=constants),
        LocalChannels(1, with_lengthscale(gpytorch.kernels.RBFKernel(), 0.5), mean=shared),
    ]
    prior = FactorizedGPPrior(blocks)
    kernels = [oracles.rbf(1.1, 1.4)] * 2 + [oracles.constant(1.6)] * 2 + [oracles.rbf(0.5)]
    means = [
        lambda a, m: 0.5 * a[0] - 1.0 * a[1] + 0.3,
        lambda a, m: 2.0 * a[0] + 0.25 * a[1] - 0.7,
        lambda a, m: 1.5,
        lambda a, m: -2.0,
        lambda a, m: 0.8,
    ]
    return Case(prior, oracles.DenseGaussian(kernels, means), features=2)


def coregionalized_case() -> Case:
    """Two channels that share three factors, beside a local and a global channel; a mean that is not zero."""
    base = with_lengthscale(gpytorch.kernels.PeriodicKernel(), 0.8)
    base.period_length = torch.tensor(2 * np.pi, dtype=F64)
    constants = gpytorch.means.ConstantMean(batch_shape=torch.Size([2])).double()
    constants.constant.data = torch.tensor([0.6, -1.1], dtype=F64)
    block = CoregionalizedChannels(2, 3, PeriodicFeatures(base, harmonics=2), constants)
    weights = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
    block.loadings.data = weights
    kernels = [[oracles.coregionalized(a, b, 0.8, 2) for b in weights.tolist()] for a in weights.tolist()]
    prior = FactorizedGPPrior(
        [LocalChannels(1, with_lengthscale(gpytorch.kernels.RBFKernel(), 0.7)), block, GlobalChannels(1, 1.3)]
    )
    dense = oracles.DenseGaussian(
        [oracles.rbf(0.7), kernels[0][0], kernels[1][1], oracles.constant(1.3)],
        [lambda a, m: 0.0, lambda a, m: 0.6, lambda a, m: -1.1, lambda a, m: 0.0],
        {(1, 2): kernels[0][1], (2, 1): kernels[1][0]},
    )
    return Case(prior, dense, features=1)


def markov_case() -> Case:
    """State spaces: channels of their own on the second feature, with means, and one kernel for two channels."""
    own = torch.Size([2])
    smooth = gpytorch.kernels.MaternKernel(nu=2.5, batch_shape=own, active_dims=(1,))
    smooth = with_lengthscale(smooth, torch.tensor([0.9, 1.7], dtype=F64).reshape(2, 1, 1))
    level = gpytorch.kernels.ConstantKernel(batch_shape=own).double()
    level.constant = torch.tensor([0.4, 0.8], dtype=F64)
    rough = with_lengthscale(gpytorch.kernels.MaternKernel(nu=0.5, active_dims=(0,)), 1.3)
    half = with_lengthscale(gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(0,)), 0.6)
    factor = gpytorch.kernels.ConstantKernel().double()
    factor.constant = torch.tensor(0.5, dtype=F64)
    constants = gpytorch.means.ConstantMean(batch_shape=own).double()
    constants.constant.data = torch.tensor([0.9, -0.4], dtype=F64)
    blocks = [
        LocalChannels(2, scale(smooth, [1.4, 0.7], (2,)) + level, constants, inference="state_space"),
        LocalChannels(2, scale(rough + factor * half, 1.2), inference="state_space"),
    ]

    def first(lengthscale, outputscale, constant):
        def k(a, b, m=math):
            r = abs(a[1] - b[1]) / lengthscale * m.sqrt(5)
            return outputscale * (1 + r + r**2 / 3) * m.exp(-r) + constant

        return k

    def second(a, b, m=math):
        return 1.2 * (m.exp(-abs(a[0] - b[0]) / 1.3) + 0.5 * oracles.matern32(0.6)(a[:1], b[:1], m))

    dense = oracles.DenseGaussian(
        [first(0.9, 1.4, 0.4), first(1.7, 0.7, 0.8), second, second],
        [lambda a, m: 0.9, lambda a, m: -0.4, lambda a, m: 0.0, lambda a, m: 0.0],
    )
    return Case(FactorizedGPPrior(blocks), dense, features=2)


CASES = {
    "coregionalized": coregionalized_case,
    "paper": paper_case,
    "ard": ard_case,
    "per_channel": per_channel_case,
    "many_blocks": many_blocks_case,
    "means": means_case,
    "markov": markov_case,
}


@dataclass
class Data:
    x: Tensor
    mean: Tensor
    variance: Tensor
    mask: Tensor
    x_new: Tensor

    @property
    def observations(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.mean, self.variance, self.mask


def data_for(case: Case, groups=3, members=4, new=3, batch=(), seed=0, ragged=True) -> Data:
    """Groups of 4, 3, 2, ... observed members, each with different features and variances from 0.02 to 3."""
    g = torch.Generator().manual_seed(seed)
    shape = (*batch, groups, members)
    mask = torch.ones(shape, dtype=torch.bool)
    if ragged:
        for group in range(groups):
            mask[..., group, max(1, members - group % members) :] = False
        if members > 2:
            mask[..., 0, 1] = False  # a hole, not only padding at the end
    return Data(
        x=3 * torch.rand((*shape, case.features), generator=g, dtype=F64),
        mean=1.5 * torch.randn((*shape, case.channels), generator=g, dtype=F64),
        variance=0.02 * 150 ** torch.rand((*shape, case.channels), generator=g, dtype=F64),
        mask=mask,
        x_new=3 * torch.rand((*batch, groups, new, case.features), generator=g, dtype=F64),
    )


def answers(posterior, x_new: Tensor) -> dict[str, Tensor]:
    """Everything deterministic that a posterior says."""
    predicted = posterior.predict(x_new)
    return {
        "mean": posterior.mean,
        "variance": posterior.variance,
        "kl": posterior.kl,
        "log_evidence": posterior.log_evidence,
        "new mean": predicted.mean,
        "new variance": predicted.variance,
    }


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], rtol=1e-9, atol=1e-10) -> None:
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
