import pytest
import torch
from torch import nn

from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.nets import TransposedConv2d


def plain_form(layer):
    plain = nn.ConvTranspose2d(*layer.weight.shape[:2], 4, stride=2, padding=1).to(layer.weight.dtype)
    plain.load_state_dict(layer.state_dict())
    return plain


# sums of 12 products in another order: some roundings of 6e-8 (float32) or 1e-16 (float64) at most
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("sides", [(6, 7), (1, 1), (1, 4)])
def test_it_is_pytorchs_transposed_convolution_in_values_and_gradients(dtype, tolerance, sides):
    layer = TransposedConv2d(3, 5).to(dtype)
    plain, image = plain_form(layer), torch.randn(4, 3, *sides, dtype=dtype)
    found = []
    for module in (layer, plain):
        given = image.clone().requires_grad_()
        output = module(given)
        assert output.shape == (4, 5, 2 * sides[0], 2 * sides[1])
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=dtype).reshape(output.shape)
        found.append([output, *torch.autograd.grad((output * weights).sum(), [given, *module.parameters()])])
    for name, fast, slow in zip(("output", "image", "weight", "bias"), *found, strict=True):
        # a weight's gradient adds up 670 products of either sign, which cancel in part
        allowed = 5 * tolerance if name == "weight" else tolerance
        assert (fast - slow).abs().max() <= allowed * slow.abs().max(), name


def test_a_seed_makes_pytorchs_weights():
    torch.manual_seed(3)
    layer = TransposedConv2d(2, 4)
    torch.manual_seed(3)
    plain = nn.ConvTranspose2d(2, 4, 4, stride=2, padding=1)
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(layer.state_dict()[name], plain.state_dict()[name]) for name in plain.state_dict())


def test_numbers_of_channels_below_one_are_refused():
    with pytest.raises(ArgumentError, match="in_channels: expected an integer >= 1, got 0"):
        TransposedConv2d(0, 1)
    with pytest.raises(ArgumentError, match="out_channels: expected an integer >= 1, got 0"):
        TransposedConv2d(1, 0)
