"""The closed form of shared effects in a linear start, beside dense matrices in NumPy."""

import gpytorch
import numpy as np
import pytest
import torch

from fgp_gpytorch import (
    FGPVAE,
    CoregionalizedChannels,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.feature_maps import CategoricalFeatures, LinearFeatures, NystromFeatures, SelectedFeatures
from fgp_gpytorch.models import linear_start
from fgp_gpytorch.models._effects_start import best_scales, set_effects
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder

SIZES = (5, 3, 4, 6, 2, 5)


def data_of(seed=0, slope=1.5):
    """Ragged groups with x = (time, dose, region). The dose has a slope, region 1 a shift."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    time, dose = (torch.rand(len(group), generator=generator, dtype=torch.float64) for _ in range(2))
    region = torch.randint(3, (len(group),), generator=generator).double()
    noise = 0.1 * torch.randn(len(group), 3, generator=generator, dtype=torch.float64)
    y = (slope * dose + (region == 1).double()).unsqueeze(-1) * torch.tensor([1.0, -1.0, 0.5]) + noise
    return GroupedDataset(y, torch.stack([time, dose, region], -1), group)


def model_of(coupled=False):
    torch.manual_seed(0)
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(0,))
    kernel.lengthscale = 0.4
    block = LocalChannels(2, gpytorch.kernels.ScaleKernel(kernel))
    if coupled:
        points = torch.tensor([[0.2, 0.0, 0.0], [0.7, 0.0, 0.0]], dtype=torch.float64)
        block = CoregionalizedChannels(2, 2, NystromFeatures(kernel, points))
    effects = [SelectedFeatures(LinearFeatures(1), [1]), SelectedFeatures(CategoricalFeatures(3), [2])]
    prior = FactorizedGPPrior([block], effects=effects)
    encoder, decoder = LinearEncoder((3,), 2, hidden=()), LinearDecoder(2, (3,), hidden=())
    return FGPVAE(encoder, decoder, prior, DiagonalGaussianLikelihood((3,))).double()


@torch.no_grad()
def dense_slope_and_curvature(model, data):
    """g and H of the weights of both channels together, (2 M,) and (2 M, 2 M), channel by channel."""
    first, second = 0.0, 0.0
    for place in range(len(data)):
        batch = data[place]
        pseudo = model.encode(batch)
        block = model.prior.blocks[0]
        joint = torch.block_diag(*model.prior.blocks[0].joint_covariances(batch.x)[0][0].unsqueeze(0)).numpy()
        if not block.couples_channels:
            joint = np.kron(np.eye(2), joint)
        features = model.prior.effects._features(batch.x)[0].numpy()
        design = np.kron(np.eye(2), features)
        noise = np.diag(pseudo.variance[0].mT.flatten().numpy())
        mean = (pseudo.mean[0].mT - block.prior_mean(batch.x)[0]).flatten().numpy()
        weights = np.linalg.solve(joint + noise, design)
        first, second = first + weights.T @ mean, second + weights.T @ design
    return first, second


@pytest.mark.parametrize("coupled", [False, True])
def test_effects_are_those_of_dense_matrices(coupled):
    model, data = model_of(coupled), data_of()
    slope, curvature = dense_slope_and_curvature(model, data)
    set_effects(model, data)
    effects = model.prior.effects
    scale = effects._scales().detach().numpy()  # (L, M)
    size = scale.shape[1]
    for channel in range(2):
        own = slice(channel * size, (channel + 1) * size)
        precision = curvature[own, own] + np.diag(scale[channel] ** -2.0)
        mean = np.linalg.solve(precision, slope[own])
        root = effects.root[channel].detach().numpy() * scale[channel][:, None]
        np.testing.assert_allclose(effects.mean[channel].detach().numpy() * scale[channel], mean, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(root @ root.T, np.linalg.inv(precision), rtol=1e-7, atol=1e-9)


def test_scales_increase_the_evidence_to_its_maximum():
    """Up to a constant, the evidence of s is -1/2 log det(I + s^2 H) + 1/2 g' P^-1 g."""
    gradient = torch.tensor([[3.0, -40.0, 2.0]], dtype=torch.float64)
    curvature = torch.diag_embed(torch.tensor([[50.0, 20.0, 30.0]], dtype=torch.float64))
    scale = best_scales(gradient, curvature, [1, 2])[2]

    def evidence(log_scale):
        own = log_scale.exp()[:, [0, 1, 1]]
        explained = (gradient.square() / (curvature.diagonal(dim1=-2, dim2=-1) + own**-2)).sum()
        return 0.5 * explained - 0.5 * (1 + own.square() * curvature.diagonal(dim1=-2, dim2=-1)).log().sum()

    log_scale = scale.log().requires_grad_()
    (slope,) = torch.autograd.grad(evidence(log_scale), log_scale)
    assert slope[0, 1].abs() < 1e-3
    assert scale[0, 1] > 10 * scale[0, 0]


def test_linear_start_finds_the_effects_and_knows_whose_they_are():
    model, data = model_of(), data_of(slope=1.5)
    linear_start.linear_start(model, data, 30, "components")
    assert model.effects_seen == data.labels_digest
    dose = torch.tensor([[[0.5, 0.0, 0.0], [0.5, 1.0, 0.0]]], dtype=torch.float64)
    with torch.no_grad():
        z = model.prior.effects.values(dose, model.prior.effects.mean).mT
        low, high = model.decode(z, dose)[0]
    torch.testing.assert_close(high - low, 1.5 * torch.tensor([1.0, -1.0, 0.5]).double(), rtol=0.1, atol=0.02)


def test_root_that_is_set_is_read_back():
    effects = model_of().prior.effects
    root = torch.randn(effects.root.shape, dtype=torch.float64).tril()
    root.diagonal(dim1=-2, dim2=-1).abs_()
    effects.root = root
    torch.testing.assert_close(effects.root, root)
