"""A piecewise-linear mean against `numpy.interp`, and sums of means."""

import gpytorch
import numpy as np
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.means import AdditiveMean, FourierMean, PiecewiseLinearMean

F64 = torch.float64


def test_mean_is_numpys_interpolation_and_constant_beyond_the_knots():
    knots = torch.tensor([-1.0, 0.5, 0.7, 4.0], dtype=F64)
    mean = PiecewiseLinearMean(knots, torch.Size([3]), feature=1)
    mean.values.data = torch.randn(3, 4, dtype=F64)
    x = torch.cat([torch.linspace(-3, 6, 40, dtype=F64), knots])
    found = mean(torch.stack([torch.randn(len(x), dtype=F64), x], -1))
    expected = [np.interp(x.numpy(), knots.numpy(), row) for row in mean.values.detach().numpy()]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-12)


def test_batches_of_x_broadcast_against_channels():
    mean = PiecewiseLinearMean([0.0, 1.0, 2.0], torch.Size([2]))
    mean.values.data = torch.randn(2, 3, dtype=F64)
    x = torch.rand(5, 1, 4, 1, dtype=F64) * 2
    found = mean(x)
    assert found.shape == (5, 2, 4)
    for group in range(5):
        for channel in range(2):
            own = np.interp(x[group, 0, :, 0], [0, 1, 2], mean.values[channel].detach())
            np.testing.assert_allclose(found[group, channel].detach(), own, atol=1e-12)


def test_gradient_reaches_only_the_two_knots_beside_x():
    mean = PiecewiseLinearMean([0.0, 1.0, 2.0, 3.0])
    mean(torch.tensor([[1.25]], dtype=F64)).sum().backward()
    assert mean.values.grad.tolist() == [0.0, 0.75, 0.25, 0.0]


def test_knots_are_different_quantiles():
    x = torch.cat([torch.zeros(50), torch.arange(1.0, 51.0)])
    knots = PiecewiseLinearMean.knots_of(x, 5)
    expected = np.unique(np.quantile(x.double().numpy(), np.linspace(0, 1, 5)))
    np.testing.assert_allclose(knots.numpy(), expected)
    assert len(knots) < 5  # two quantiles are 0


def test_sum_of_means_is_the_sum():
    line, wave = PiecewiseLinearMean([0.0, 2.0], torch.Size([2])), FourierMean(2, 1.0, torch.Size([2]), feature=1)
    line.values.data = torch.randn(2, 2, dtype=F64)
    wave.coefficients.data = torch.randn(2, 2, 2)
    level = gpytorch.means.ConstantMean()
    level.initialize(constant=0.3)
    total = AdditiveMean([line, wave, level])
    x = torch.rand(7, 2, dtype=F64)
    torch.testing.assert_close(total(x), line(x) + wave(x) + 0.3)
    assert total.batch_shape == torch.Size([2])


@pytest.mark.parametrize("knots", [[1.0], [1.0, 1.0], [2.0, 1.0], [[0.0, 1.0]], [0.0, float("nan")]])
def test_knots_that_do_not_increase_are_refused(knots):
    with pytest.raises(DataError, match=r"knots: expected .* got .* Try"):
        PiecewiseLinearMean(knots)


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="feature: expected an integer >= 0, got -1"):
        PiecewiseLinearMean([0.0, 1.0], feature=-1)
    with pytest.raises(ArgumentError, match="batch_shape: expected"):
        PiecewiseLinearMean([0.0, 1.0], batch_shape=3)
    with pytest.raises(ShapeError, match="feature: expected one of the 1 features of x, got 1"):
        PiecewiseLinearMean([0.0, 1.0], feature=1)(torch.rand(3, 1))
    with pytest.raises(DataError, match="x: expected different values, got 2 only"):
        PiecewiseLinearMean.knots_of(torch.full((4,), 2.0))
    with pytest.raises(ArgumentError, match="num_knots: expected an integer >= 2"):
        PiecewiseLinearMean.knots_of(torch.rand(4), 1)
    with pytest.raises(ArgumentError, match="means: expected"):
        AdditiveMean(PiecewiseLinearMean([0.0, 1.0]))
    with pytest.raises(ArgumentError, match="number of means: expected an integer >= 1, got 0"):
        AdditiveMean([])
