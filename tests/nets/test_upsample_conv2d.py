import pytest
import torch
from torch import nn

from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.nets import UpsampleConv2d


def plain_form(layer):
    convolution = nn.Conv2d(layer.weight.shape[1], layer.weight.shape[0], 3, padding=layer.padding)
    convolution.load_state_dict(layer.state_dict())
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution.to(layer.weight.dtype))


def with_gradients(module, image):
    image = image.clone().requires_grad_()
    output = module(image)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), [image, *module.parameters()])
    return [output, *gradients]


@pytest.mark.parametrize("padding", [0, 1, (0, 1), (1, 0)])
# sums of n = 30 to 45 products in another order, which each processor has its own of: n roundings of 6e-8 (float32) or
# 1e-16 (float64) at most
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_fast_form_is_upsampling_and_convolution_in_values_and_gradients(padding, dtype, tolerance):
    layer = UpsampleConv2d(3, 5, padding=padding).to(dtype)
    image = torch.randn(4, 3, 6, 7, dtype=dtype)
    pairs = list(zip(with_gradients(layer, image), with_gradients(plain_form(layer), image), strict=True))
    for name, (fast, plain) in zip(("output", "image", "weight", "bias"), pairs, strict=True):
        # a weight's gradient adds up 600 products of either sign, which cancel in part
        allowed = 5 * tolerance if name == "weight" else tolerance
        assert fast.shape == plain.shape
        assert (fast - plain).abs().max() <= allowed * plain.abs().max(), name


@pytest.mark.parametrize("padding", [0, 1, (0, 1), (1, 0)])
def test_fast_false_computes_the_same_function(padding):
    layer = UpsampleConv2d(2, 3, padding=padding).double()
    slow = UpsampleConv2d(2, 3, padding=padding, fast=False).double()
    slow.load_state_dict(layer.state_dict())
    image = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(image), slow(image), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("padding", [0, 1, (0, 1), (1, 0)])
def test_gradcheck_of_the_fast_form(padding):
    layer = UpsampleConv2d(1, 2, padding=padding).double()
    image = torch.randn(1, 1, 3, 2, dtype=torch.float64, requires_grad=True)

    def function(image, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (image,))

    assert torch.autograd.gradcheck(function, (image, layer.weight, layer.bias))


def test_state_dicts_are_interchangeable_with_those_of_a_convolution():
    layer, convolution = UpsampleConv2d(2, 3), nn.Conv2d(2, 3, 3)
    layer.load_state_dict(convolution.state_dict())
    assert torch.equal(layer.weight, convolution.weight)
    again = nn.Conv2d(2, 3, 3)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.bias, convolution.bias)


def test_initialisation_is_that_of_a_convolution():
    torch.manual_seed(3)
    layer = UpsampleConv2d(4, 6)
    torch.manual_seed(3)
    convolution = nn.Conv2d(4, 6, 3)
    assert torch.equal(layer.weight, convolution.weight)
    assert torch.equal(layer.bias, convolution.bias)


def test_another_padding_is_refused():
    for padding in (2, (0, 2)):
        with pytest.raises(ArgumentError, match=r"padding: expected one of 0, 1, got 2\. Try 1"):
            UpsampleConv2d(1, 1, padding=padding)
