"""Roots of any kernel: the kernel itself at the points, a smaller one elsewhere; a GP-VAE on data without a period."""

import warnings

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.kernels import CosineKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel

from factories import make_data
from fgp_gpytorch import GPVAE, GaussianLikelihood, GroupedDataset, fit
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.saving import describe, rebuild

F64 = torch.float64


def dense(kernel, x1, x2):
    with gpytorch.settings.lazily_evaluate_kernels(False):
        return kernel(x1, x2).to_dense()


@pytest.mark.parametrize("num_features", [1, 2])
@pytest.mark.parametrize("base", [RBFKernel(), MaternKernel(nu=1.5), MaternKernel(nu=0.5)])
def test_it_is_the_kernel_at_the_points_in_any_order(base, num_features):
    kernel = ScaleKernel(base).double()
    kernel.outputscale = 1.7
    points = 4 * torch.rand(7, num_features, dtype=F64)
    rows = points[[3, 0, 3, 6, 1]]
    phi = NystromFeatures(kernel, points)(rows)
    assert phi.shape == (5, 7)
    torch.testing.assert_close(phi @ phi.T, dense(kernel, rows, rows), rtol=0, atol=1e-5)
    assert NystromFeatures(kernel, points).missing_variance(rows).max() < 1e-5


def test_between_the_points_it_is_the_nystrom_formula_and_misses_what_it_says():
    kernel, points = RBFKernel().double(), torch.linspace(0, 6, 5, dtype=F64)
    root, x = NystromFeatures(kernel, points), torch.rand(2, 9, 1, dtype=F64) * 6
    grid = points.unsqueeze(-1)
    among = dense(kernel, grid, grid)
    for b in range(2):
        cross = dense(kernel, x[b], grid)
        expected = cross @ torch.linalg.inv(among) @ cross.T
        torch.testing.assert_close(root(x)[b] @ root(x)[b].T, expected, rtol=0, atol=1e-6)
        left = dense(kernel, x[b], x[b]) - expected
        torch.testing.assert_close(root.missing_variance(x)[b], left.diagonal(), rtol=0, atol=1e-6)
        assert torch.linalg.eigvalsh(left).min() > -1e-7  # never more than the kernel
    assert root.missing_variance(x).max() > 0.01
    many = NystromFeatures(kernel, torch.linspace(0, 6, 25))
    assert many.missing_variance(x).max() < 1e-6


def test_hyperparameters_have_gradients_and_points_have_none():
    root = NystromFeatures(ScaleKernel(RBFKernel()), torch.arange(4.0)).double()
    x = torch.tensor([[0.3], [2.6]], dtype=F64)
    parameters = list(root.parameters())
    assert [p.shape.numel() for p in parameters] == [1, 1]

    def weighted(*values):
        state = dict(zip([name for name, _ in root.named_parameters()], values, strict=True))
        phi = torch.func.functional_call(root, state, (x,))
        return (phi @ phi.mT * torch.tensor([[1.0, 2.0], [2.0, -1.0]], dtype=F64)).sum()

    assert torch.autograd.gradcheck(weighted, tuple(p.detach().clone().requires_grad_() for p in parameters))


def test_it_is_described_and_rebuilt():
    root = NystromFeatures(MaternKernel(nu=1.5), torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    other = rebuild(describe(root))
    x = torch.rand(3, 2, dtype=F64)
    torch.testing.assert_close(other.double()(x), root.double()(x))


@pytest.mark.parametrize("make", [np.array, pd.Series, list, torch.tensor, lambda v: pd.DataFrame({"month": v})])
def test_points_of_any_kind_are_saved(make, tmp_path):
    model = GPVAE(
        MLPEncoder([3], 2),
        MLPDecoder(2, [3]),
        2,
        num_groups=7,
        view_features=NystromFeatures(RBFKernel(), make([0.0, 1.0, 2.0])),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model.pt")
    x = torch.rand(4, 1)
    loaded = GPVAE.load(tmp_path / "model.pt")
    assert torch.equal(loaded.prior.features(x), model.prior.features(x))


def test_no_row_depends_on_those_beside_it():
    root = NystromFeatures(RBFKernel(), 1.7e9 + torch.arange(5.0, dtype=F64))
    x = 1.7e9 + torch.tensor([[0.3], [2.2]], dtype=F64)
    beside = torch.cat([x, torch.zeros(1, 1, dtype=F64)])
    torch.testing.assert_close(root(beside)[:2], root(x), rtol=0, atol=0)


def test_gp_vae_of_months_predicts_the_last_ones_better_than_the_mean(tmp_path):
    generator = torch.Generator().manual_seed(0)
    months = torch.arange(8.0)
    phase = torch.rand(20, 1, generator=generator) * 3
    curves = torch.stack([torch.sin(0.7 * months + phase), torch.cos(0.7 * months + phase)], dim=-1)
    y = curves.flatten(0, 1) + 0.05 * torch.randn(160, 2, generator=generator)
    data = GroupedDataset(y, months.repeat(20), torch.arange(20).repeat_interleave(8))
    future = (data.flat().x[:, 0] == 5) & (data.flat().group % 2 == 0)
    train = data.select(~future)
    torch.manual_seed(0)
    root = NystromFeatures(RBFKernel(), data.flat().x.unique(dim=0))
    model = GPVAE(
        MLPEncoder([2], 3, (16,)), MLPDecoder(3, [2], (16,)), 3, num_groups=20, num_factors=2, view_features=root,
        likelihood=GaussianLikelihood("optimal"),
    )  # fmt: skip
    model.initialize_vectors(train)
    fit(model, train, epochs=400, batch_size=20, learning_rate=2e-2, seed=0, folder=None, progress=False)
    held_out = HeldOut.of(train, data.select(future)).align(train)
    error = held_out_mse(model.condition_on(train), held_out)
    assert error < 0.5 * float((held_out.y_new - train.flat().y.mean(0)).square().mean())
    model.save(tmp_path / "model.pt")
    assert held_out_mse(GPVAE.load(tmp_path / "model.pt").condition_on(train), held_out) == pytest.approx(
        error, rel=1e-9
    )


def test_errors_say_what_to_try():
    points = torch.arange(3.0)
    with pytest.raises(ShapeError, match=r"kernel: expected .*got batch_shape \[2\]"):
        NystromFeatures(RBFKernel(batch_shape=torch.Size([2])), points)
    with pytest.raises(ArgumentError, match=r"kernel: expected .*got int"):
        NystromFeatures(3, points)
    with pytest.raises(DataError, match=r"points: expected distinct points, got 2 of which 1 differ.*unique\(dim=0\)"):
        NystromFeatures(RBFKernel(), [1.0, 1.0])
    with pytest.raises(DataError, match="points: expected finite"):
        NystromFeatures(RBFKernel(), [1.0, float("nan")])
    with pytest.raises(DataError, match="kernel: expected a positive definite matrix at the 9 points"):
        NystromFeatures(CosineKernel(), torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)) / 3)(
            torch.rand(4, 2)
        )
    with pytest.raises(ShapeError, match=r"points: expected shape \(M, D\)"):
        NystromFeatures(RBFKernel(), torch.rand(2, 3, 1))
    with pytest.raises(ShapeError, match="The points have as many"):
        NystromFeatures(RBFKernel(), points)(torch.rand(4, 2))
    for view in (PeriodicKernel(), torch.nn.Linear(1, 2)):
        with pytest.raises(ArgumentError, match=r"features: expected a module.*Try PeriodicFeatures.*NystromFeatures"):
            GPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), 2, num_groups=len(make_data()), view_features=view)
