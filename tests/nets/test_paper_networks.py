import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, PaperDecoder, PaperEncoder, elu


def plain_decoder(num_channels):
    """Table A.1 with the layers of PyTorch alone, named as ours so that the state dict fits."""
    layers = nn.Module()
    layers.dense = nn.Linear(num_channels, 128)
    layers.conv1, layers.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
    layers.conv3 = nn.Conv2d(8, 1, 3, padding=1)
    upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def decode(z):
        hidden = layers.dense(z).reshape(-1, 8, 4, 4)
        for convolution in (layers.conv1, layers.conv2, layers.conv3):
            hidden = F.elu(convolution(upsample(hidden)))
        return hidden

    return layers, decode


# float32: the fast form adds 32 to 72 products in another order, in three layers: as many roundings of 6e-8 at most
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-12)])
def test_paper_decoder_is_the_plain_form_in_values_and_gradients(dtype, tolerance):
    decoder = PaperDecoder(16).to(dtype)
    layers, decode = plain_decoder(16)
    layers.to(dtype).load_state_dict(decoder.state_dict())
    z = torch.randn(6, 16, dtype=dtype)
    fast, plain = decoder(z), decode(z)
    assert (fast - plain).abs().max() <= tolerance * plain.abs().max()
    loss = torch.linspace(0.5, 1.5, fast.numel(), dtype=dtype).reshape(fast.shape)
    gradients = torch.autograd.grad((fast * loss).sum(), list(decoder.parameters()))
    names = [name for name, _ in decoder.named_parameters()]
    expected = torch.autograd.grad((plain * loss).sum(), [layers.get_parameter(name) for name in names])
    for mine, theirs in zip(gradients, expected, strict=True):
        # gradients add up 6 * 784 products of either sign, which cancel in part: ten times the roundings of the values
        assert (mine - theirs).abs().max() <= 10 * tolerance * theirs.abs().max()


def test_state_dicts_of_fast_and_plain_decoder_go_both_ways():
    fast, slow = PaperDecoder(5), PaperDecoder(5, fast=False)
    layers, _ = plain_decoder(5)
    layers.load_state_dict(fast.state_dict())
    slow.load_state_dict(layers.state_dict())
    fast.load_state_dict(slow.state_dict())
    z = torch.randn(3, 5)
    torch.testing.assert_close(fast(z), slow(z), rtol=0, atol=1e-6)


def test_paper_encoder_is_three_convolutions_and_a_dense_layer():
    encoder = PaperEncoder(16)
    y = torch.rand(3, 1, 28, 28)
    hidden = y
    for convolution in (encoder.conv1, encoder.conv2, encoder.conv3):
        hidden = F.elu(F.conv2d(hidden, convolution.weight, convolution.bias, stride=2))
    assert hidden.shape == (3, 8, 2, 2)
    dense = encoder.dense(hidden.flatten(1))
    mean, variance = encoder(y)
    torch.testing.assert_close(mean, dense[:, :16])
    torch.testing.assert_close(variance, dense[:, 16:].exp())


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 1, 32, 32), (3, 3, 28, 28)])
def test_paper_encoder_says_that_it_is_for_mnist(shape):
    with pytest.raises(ShapeError, match=r"expected images \(\*batch, 1, 28, 28\), got .* your own encoder"):
        PaperEncoder(4)(torch.rand(shape))


def test_layer_sizes_are_those_of_table_a1():
    convolution = 8 * 8 * 9 + 8
    assert count(PaperEncoder(16)) == (9 * 8 + 8) + 2 * convolution + (32 * 32 + 32)
    assert count(PaperDecoder(16)) == (16 * 128 + 128) + 2 * convolution + (8 * 9 + 1)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_leading_dimensions_are_kept_and_do_not_mix(batch):
    y, z = torch.rand(*batch, 1, 28, 28), torch.randn(*batch, 4)
    encoder, decoder = PaperEncoder(4), PaperDecoder(4)
    mean, variance = encoder(y)
    image = decoder(z)
    assert (mean.shape, variance.shape, image.shape) == ((*batch, 4), (*batch, 4), (*batch, 1, 28, 28))
    last = tuple(n - 1 for n in batch)
    torch.testing.assert_close(encoder(y[last][None])[0][0], mean[last])
    torch.testing.assert_close(decoder(z[last][None])[0], image[last])


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_perceptrons_flatten_an_observation_and_shape_it_again(batch):
    encoder, decoder = MLPEncoder((2, 3), 4, (7, 5)), MLPDecoder(4, (2, 3), (7,))
    y, z = torch.randn(*batch, 2, 3), torch.randn(*batch, 4)
    mean, variance = encoder(y)
    hidden = y.reshape(-1, 6)
    for layer in encoder.layers:
        hidden = F.elu(hidden) if isinstance(layer, nn.ELU) else F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(mean.reshape(-1, 4), hidden[:, :4])
    torch.testing.assert_close(variance.reshape(-1, 4), hidden[:, 4:].exp())
    assert decoder(z).shape == (*batch, 2, 3)
    assert (count(encoder), count(decoder)) == (7 * 7 + 8 * 5 + 6 * 8, 5 * 7 + 8 * 6)


def test_elu_is_torchs_to_one_rounding_of_one():
    activation = torch.cat([torch.linspace(-100, 20, 1001), torch.tensor([0.0, -0.0, -1e-30, 1e-30])])
    assert (elu(activation) - F.elu(activation)).abs().max() <= torch.finfo(torch.float32).eps
    double = activation.double()
    assert (elu(double) - F.elu(double)).abs().max() <= torch.finfo(torch.float64).eps


def test_elu_has_torchs_gradient():
    activation = torch.tensor([-5.0, -0.3, 0.2, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(elu, activation)
    (mine,) = torch.autograd.grad(elu(activation).square().sum(), activation)
    (theirs,) = torch.autograd.grad(F.elu(activation).square().sum(), activation)
    torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-15)


def test_elu_keeps_the_memory_layout():
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert elu(image).is_contiguous(memory_format=torch.channels_last)
