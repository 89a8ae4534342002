"""The kernel of a curve that each group scales."""

import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.kernels import ConstantKernel

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, LocalChannels, TableModel
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.kernels import PrincipalFunctionKernel
from fgp_gpytorch.means import PiecewiseLinearMean
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.tables._networks import MANY_GROUPS, curves_of


def curve(values, shape=()):
    function = PiecewiseLinearMean([0.0, 1.0, 2.0], torch.Size(shape))
    function.values.data = torch.as_tensor(values, dtype=torch.float64)
    return function


def test_values_are_products_of_the_function():
    kernel = PrincipalFunctionKernel(curve([0.0, 2.0, 1.0]))
    x, other = torch.tensor([[0.0], [0.5], [2.0]]).double(), torch.tensor([[1.0], [1.5]]).double()
    expected = torch.tensor([[0.0, 0.0], [2.0, 1.5], [2.0, 1.5]]).double()
    torch.testing.assert_close(kernel(x, other).to_dense(), expected)
    torch.testing.assert_close(kernel(x, diag=True), torch.tensor([0.0, 1.0, 1.0]).double())


def test_channels_have_functions_of_their_own():
    kernel = PrincipalFunctionKernel(curve([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]], (2,)))
    x = torch.rand(4, 1, 5, 1).double()
    found = kernel(x.expand(4, 2, 5, 1)).to_dense()
    assert found.shape == (4, 2, 5, 5)
    torch.testing.assert_close(found[:, 0], torch.ones(4, 5, 5).double())
    function = torch.stack([2 * x[:, 0, :, 0]])[0]
    torch.testing.assert_close(found[:, 1], function.unsqueeze(-1) * function.unsqueeze(-2))


def test_a_model_with_it_is_saved_and_loaded(tmp_path):
    kernel = PrincipalFunctionKernel(curve([[1.0, 2.0, 1.0], [0.0, 2.0, 1.0]], (2,))) + ConstantKernel()
    prior = FactorizedGPPrior([LocalChannels(2, kernel)])
    model = FGPVAE(MLPEncoder((3,), 2), MLPDecoder(2, (3,)), prior)
    model.save(tmp_path / "model.pt")
    x = torch.rand(6, 1).double()
    loaded = FGPVAE.load(tmp_path / "model.pt").prior.blocks[0].kernel
    torch.testing.assert_close(loaded(x).to_dense(), kernel(x).to_dense())


def test_only_means_are_functions():
    with pytest.raises(ArgumentError, match="function: expected"):
        PrincipalFunctionKernel(lambda x: x)


def multiples(groups, noise=0.02):
    """Rows of a common peak times a factor of each group."""
    rng = np.random.default_rng(0)
    frames = []
    for label in range(groups):
        t = np.arange(10.0)
        y = np.exp(0.4 * rng.normal()) * (1 + t) * np.exp(-t / 3) + noise * rng.normal(size=10)
        frames.append(pd.DataFrame({"g": label, "t": t, "y": y}))
    return pd.concat(frames, ignore_index=True)


def test_tables_of_multiples_are_forecast_by_their_factor():
    df = multiples(30)
    train, new = df[df.g < 24], df[df.g >= 24]
    model = TableModel(y=["y"], x=["t"], group="g", hidden=()).fit(train)
    scores = model.score(new[new.t < 4], new[new.t >= 4])
    assert scores.loc["y", "mse"] < 0.01 * train["y"].var()


def test_curves_start_as_a_part_of_the_mean_above_the_smallest_value():
    df = multiples(12)
    model = TableModel(y=["y"], x=["t"], group="g", hidden=(), calibrate=False).fit(df)
    data = model._dataset(df)
    (found,) = curves_of(model.features_, data)
    y, x = data.members.y[:, 0], data.features().x
    at_peak = x[:, 0] == x[20, 0]
    expected = 0.3 * (y[at_peak].mean() - y.min())
    assert found(x[20:21]).item() == pytest.approx(expected.item(), rel=0.1)


def test_many_groups_and_principal_components_have_no_curve():
    df = multiples(MANY_GROUPS + 1)
    for rows, channels, expected in ((df, "auto", False), (df[df.g < 12], 1, False), (df[df.g < 12], "auto", True)):
        model = TableModel(y=["y"], x=["t"], group="g", channels=channels, hidden=(), calibrate=False).fit(rows)
        kernels = model.vae_.prior.blocks[0].kernel.modules()
        assert any(isinstance(kernel, PrincipalFunctionKernel) for kernel in kernels) is expected
