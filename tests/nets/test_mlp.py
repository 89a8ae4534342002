"""Perceptrons say which width they expected."""

import pytest
import torch
from torch import nn

from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.nets import MLP, MLPDecoder, MLPEncoder, MLPFeatures
from fgp_gpytorch.saving import describe, rebuild


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
            r"y: expected shape \(\.\.\., 5\), got \(8, 4\)\. Try MLPEncoder\(\[4\]",
        ),
        (MLPFeatures([5], 3), [torch.rand(8, 4)], r"y: expected .*got \(8, 4\)\. Try MLPFeatures\(\[4\]"),
        (
            MLPEncoder([5], 3),
            [torch.rand(8, 5), torch.rand(8, 2)],
            r"features: expected shape \(8, 0\), got \(8, 2\).*=2",
        ),
        (MLPEncoder([5], 3, num_features=2), [torch.rand(8, 5)], r"features: expected shape \(8, 2\), got \(8, 0\)"),
        (
            MLPEncoder([5], 3, takes_observed=True),
            [torch.rand(8, 5), None, torch.rand(8, 4) > 0.5],
            r"y: expected shape \(\.\.\., 5\), got \(8, 4\)",
        ),
        (
            MLPDecoder(3, [5]),
            [torch.rand(8, 4)],
            r"z: expected shape \(\.\.\., 3\), got \(8, 4\)\. .*Try MLPDecoder\(4",
        ),
        (MLPDecoder(3, [5]), [torch.rand(8, 3), torch.rand(8, 2)], r"MLPDecoder\(\.\.\., num_features=2\)"),
    ],
)
def test_another_width_is_named(network, inputs, words):
    with pytest.raises(ShapeError, match=words):
        network(*inputs)


ACTIVATIONS = {
    "elu": nn.functional.elu, "gelu": nn.functional.gelu, "relu": torch.relu, "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu, "softplus": nn.functional.softplus, "tanh": torch.tanh,
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_perceptron_is_dense_layers_with_the_activation_between_them(activation):
    network, function = MLP(3, 2, (5, 4), activation), ACTIVATIONS[activation]
    first, second, third = [layer for layer in network if isinstance(layer, nn.Linear)]
    x = torch.randn(2, 7, 3)
    torch.testing.assert_close(network(x), third(function(second(function(first(x))))))


def test_a_perceptron_without_hidden_layers_is_linear():
    network = MLP(3, 2, ())
    x = torch.randn(7, 3)
    torch.testing.assert_close(network(x), x @ network[0].weight.mT + network[0].bias)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(3, 2, (4,), "tanh"),
        lambda: MLPEncoder([3], 2, (4,), activation="tanh"),
        lambda: MLPDecoder(3, [2], (4,), activation="tanh"),
        lambda: MLPFeatures([3], 2, (4,), "tanh"),
    ],
)
def test_every_perceptron_takes_an_activation_and_comes_back_with_it(make):
    network = make()
    again = rebuild(describe(network))
    again.load_state_dict(network.state_dict())
    x = torch.randn(5, 3)
    assert [type(m) for m in again.modules()] == [type(m) for m in network.modules()]
    assert any(isinstance(m, nn.Tanh) for m in network.modules())
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(3, 2, activation="swish"), r"activation: expected one of 'elu', .*, got 'swish'\. Try 'elu'"),
        (lambda: MLP(0, 2), r"num_inputs: expected an integer >= 1, got 0"),
        (lambda: MLP(3, 2, (4, -1)), r"hidden: expected an integer >= 1, got -1"),
        (lambda: MLPEncoder(5, 3), r"y_shape: expected a tuple or list, got int\. Try y_shape=\[5\]"),
        (lambda: MLPEncoder([5], 2.5), r"num_channels: expected an integer >= 1, got 2\.5"),
        (lambda: MLPDecoder(3, [5], num_features=-1), r"num_features: expected an integer >= 0, got -1"),
        (lambda: MLPFeatures([5], 0), r"width: expected an integer >= 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()
