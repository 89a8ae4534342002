"""Perceptrons say which width they expected."""

import pytest
import torch

from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures


def test_observations_of_any_shape_are_flattened():
    mean, variance = MLPEncoder([2, 3], 4)(torch.rand(5, 2, 3))
    assert mean.shape == variance.shape == (5, 4)
    assert (variance > 0).all()
    assert MLPDecoder(4, [2, 3])(torch.rand(7, 5, 4)).shape == (7, 5, 2, 3)
    assert MLPFeatures([2, 3], 4)(torch.rand(5, 2, 3)).shape == (5, 4)


def test_an_encoder_that_takes_it_tells_a_missing_element_from_one_that_is_zero():
    torch.manual_seed(0)
    told, plain = MLPEncoder([2, 3], 4, takes_observed=True), MLPEncoder([2, 3], 4)
    y, observed = torch.rand(5, 2, 3), torch.rand(5, 2, 3) > 0.4
    y = torch.where(observed, y, 0.0)
    assert not torch.equal(told(y, observed=observed)[1], told(y)[1])
    assert torch.equal(told(y, observed=torch.ones_like(observed))[1], told(y, observed=None)[1])
    assert torch.equal(plain(y, observed=observed)[1], plain(y)[1])


@pytest.mark.parametrize(
    ("network", "inputs", "words"),
    [
        (
            MLPEncoder([5], 3),
            [torch.rand(8, 4)],
            r"y: expected .* = \(5,\), got \(8, 4\)\. Try MLPEncoder\(\[4\]",
        ),
        (MLPFeatures([5], 3), [torch.rand(8, 4)], r"y: expected .*got \(8, 4\)\. Try MLPFeatures\(\[4\]"),
        (
            MLPEncoder([5], 3),
            [torch.rand(8, 5), torch.rand(8, 2)],
            r"expected 0 beside each row, got 2.*=2",
        ),
        (MLPEncoder([5], 3, num_features=2), [torch.rand(8, 5)], r"expected 2 beside each row, got 0"),
        (
            MLPEncoder([5], 3, takes_observed=True),
            [torch.rand(8, 5), None, torch.rand(8, 4) > 0.5],
            r"y: expected .* = \(5,\), got \(8, 4\)",
        ),
        (MLPDecoder(3, [5]), [torch.rand(8, 4)], r"z: expected .*L = 3, got \(8, 4\)\. Try MLPDecoder\(4"),
        (MLPDecoder(3, [5]), [torch.rand(8, 3), torch.rand(8, 2)], r"MLPDecoder\(\.\.\., num_features=2\)"),
    ],
)
def test_another_width_is_named(network, inputs, words):
    with pytest.raises(ShapeError, match=words):
        network(*inputs)
