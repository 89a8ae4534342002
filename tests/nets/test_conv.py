import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder, ConvFeatures, MLPDecoder, MLPEncoder, elu


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
# Above 17 rows the dense layer and the first convolution are one matrix.
@pytest.mark.parametrize("rows", [6, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-12)])
def test_default_decoder_is_the_plain_form_in_values_and_gradients(dtype, tolerance, rows):
    decoder = ConvDecoder(16).to(dtype)
    layers, decode = plain_decoder(16)
    layers.to(dtype).load_state_dict(decoder.state_dict())
    z = torch.randn(rows, 16, dtype=dtype)
    fast, plain = decoder(z), decode(z)
    assert (fast - plain).abs().max() <= tolerance * plain.abs().max()
    loss = torch.linspace(0.5, 1.5, fast.numel(), dtype=dtype).reshape(fast.shape)
    gradients = torch.autograd.grad((fast * loss).sum(), list(decoder.parameters()))
    names = [name for name, _ in decoder.named_parameters()]
    expected = torch.autograd.grad((plain * loss).sum(), [layers.get_parameter(name) for name in names])
    for mine, theirs in zip(gradients, expected, strict=True):
        # gradients add up thousands of products of either sign, which cancel in part: ten times the roundings
        assert (mine - theirs).abs().max() <= 10 * tolerance * theirs.abs().max()


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_and_their_features_are_decoded_as_each_row_alone(transposed):
    decoder = ConvDecoder(3, (2, 12, 8), (5, 4), num_features=2, transposed=transposed).double()
    z, features = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    together = decoder(z, features)
    for row in range(4):
        for column in range(5):
            alone = decoder(z[row, column], features[row, column])
            torch.testing.assert_close(together[row, column], alone, rtol=1e-11, atol=1e-13)


def test_state_dicts_of_fast_and_plain_decoder_go_both_ways():
    fast, slow = ConvDecoder(5), ConvDecoder(5, fast=False)
    layers, _ = plain_decoder(5)
    layers.load_state_dict(fast.state_dict())
    slow.load_state_dict(layers.state_dict())
    fast.load_state_dict(slow.state_dict())
    z = torch.randn(3, 5)
    torch.testing.assert_close(fast(z), slow(z), rtol=0, atol=1e-6)


def test_default_encoder_is_three_convolutions_and_a_dense_layer():
    encoder = ConvEncoder(16)
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
def test_images_of_another_shape_are_refused(shape):
    for network in (ConvEncoder(4), ConvFeatures(4)):
        with pytest.raises(ShapeError, match=r"y: expected shape \(\.\.\., 1, 28, 28\), got .* Try Conv.*, shape="):
            network(torch.rand(shape))
    with pytest.raises(ShapeError, match=r"z: expected shape \(\.\.\., 4\), got \(3, 5\).* Try ConvDecoder\(5\)"):
        ConvDecoder(4)(torch.rand(3, 5))


def test_default_layer_sizes_are_those_of_table_a1():
    convolution = 8 * 8 * 9 + 8
    assert count(ConvEncoder(16)) == (9 * 8 + 8) + 2 * convolution + (32 * 32 + 32)
    assert count(ConvDecoder(16)) == (16 * 128 + 128) + 2 * convolution + (8 * 9 + 1)


def seeded(make):
    torch.manual_seed(5)
    return make()


def test_a_seed_makes_the_default_weights_in_the_order_of_the_layers():
    def encoder(outputs):
        convolutions = {f"conv{n + 1}": nn.Conv2d(c, 8, 3) for n, c in enumerate((1, 8, 8))}
        return nn.ModuleDict({**convolutions, "dense": nn.Linear(32, outputs)})

    pairs = [
        (ConvEncoder, lambda: encoder(32)), (lambda: ConvFeatures(5), lambda: encoder(5)),
        (ConvDecoder, lambda: plain_decoder(16)[0]),
    ]  # fmt: skip
    for make, plain in pairs:
        got, wanted = seeded(make).state_dict(), seeded(plain).state_dict()
        assert list(got) == list(wanted)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


SHAPES = [(1, 28, 28), (3, 32, 32), (1, 17, 23), (2, 15, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("widths", [(8, 8, 8), (5, 4), ()])
def test_images_of_any_shape_are_encoded_and_decoded(shape, widths):
    encoder, features = ConvEncoder(4, shape, widths).double(), ConvFeatures(6, shape, widths).double()
    y = torch.rand(2, 3, *shape, dtype=torch.float64)
    hidden = y.flatten(0, 1)
    for n in range(len(widths)):
        convolution = encoder.get_submodule(f"conv{n + 1}")
        assert convolution.weight.shape == (widths[n], (*shape[:1], *widths)[n], 3, 3)
        hidden = F.elu(F.conv2d(hidden, convolution.weight, convolution.bias, stride=2))
    mean, log_variance = encoder.dense(hidden.flatten(1)).reshape(2, 3, 8).chunk(2, dim=-1)
    torch.testing.assert_close(encoder(y), (mean, log_variance.exp()))
    assert features(y).shape == (2, 3, 6)
    decoder, slow = ConvDecoder(4, shape, widths).double(), ConvDecoder(4, shape, widths, fast=False).double()
    slow.load_state_dict(decoder.state_dict())
    image = decoder(mean)
    assert image.shape == y.shape
    torch.testing.assert_close(image, slow(mean))
    image.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("side", "start", "paddings"),
    [
        (28, 4, (1, 0, 1)),
        (32, 4, (1, 1, 1)),
        (17, 3, (1, 0, 0)),
        (23, 3, (1, 1, 1)),
        (15, 2, (1, 1, 1)),
        (1, 1, (1, 0, 0)),
    ],
)
def test_decoder_doubles_to_the_image_and_cuts_at_most_one_pixel(side, start, paddings):
    decoder = ConvDecoder(2, (1, side, 28))
    pairs = list(zip(paddings, (1, 0, 1), strict=True))
    assert [decoder.get_submodule(f"conv{n}").padding for n in (1, 2, 3)] == pairs
    assert decoder.dense.out_features == 8 * start * 4
    size = start
    for padding in paddings:
        size = 2 * size - 2 + 2 * padding
    assert size in (side, side + 1)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match=r"shape: expected an integer >= 15, got 14\. Every convolution halves"):
        ConvEncoder(4, (1, 14, 28))
    for network in (ConvEncoder, ConvDecoder, ConvFeatures):
        with pytest.raises(ArgumentError, match=r"len\(shape\): expected one of 3, got 2\. Try shape=\(1, 28, 28\)"):
            network(4, (28, 28))
        with pytest.raises(ArgumentError, match=r"shape: expected a tuple or list, got int\. Try shape=\[28\]"):
            network(4, 28)
        with pytest.raises(ArgumentError, match=r"widths: expected an integer >= 1, got 0"):
            network(4, widths=(8, 0))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_leading_dimensions_are_kept_and_do_not_mix(batch):
    y, z = torch.rand(*batch, 1, 28, 28), torch.randn(*batch, 4)
    encoder, decoder = ConvEncoder(4), ConvDecoder(4)
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


LARGER = [((1, 28, 28), (16, 32, 32)), ((3, 17, 40), (4, 5)), ((1, 1, 6), (3,))]


@pytest.mark.parametrize(("shape", "widths"), LARGER)
def test_padded_encoder_with_a_hidden_layer_is_its_layers_in_turn(shape, widths):
    encoder = ConvEncoder(4, shape, widths, num_features=2, hidden=[11, 7], padding=1).double()
    y, features = torch.rand(2, 3, *shape).double(), torch.rand(2, 3, 2).double()
    hidden = y.flatten(0, 1)
    for n in range(len(widths)):
        convolution = encoder.get_submodule(f"conv{n + 1}")
        hidden = F.elu(F.conv2d(hidden, convolution.weight, convolution.bias, stride=2, padding=1))
    halved = [-(-side // 2 ** len(widths)) for side in shape[1:]]
    assert hidden.shape == (6, widths[-1], *halved)
    hidden = torch.cat([hidden.flatten(1), features.flatten(0, 1)], dim=1)
    for layer in (encoder.hidden1, encoder.hidden2):
        hidden = F.elu(layer(hidden))
    mean, log_variance = encoder.dense(hidden).reshape(2, 3, 8).chunk(2, dim=-1)
    torch.testing.assert_close(encoder(y, features), (mean, log_variance.exp()))
    assert (encoder.hidden1.out_features, encoder.hidden2.out_features) == (11, 7)


@pytest.mark.parametrize(("shape", "widths"), LARGER)
def test_transposed_decoder_is_its_layers_in_turn_with_pytorchs_convolutions(shape, widths):
    widths = tuple(reversed(widths))
    decoder = ConvDecoder(4, shape, widths, num_features=2, hidden=[11], transposed=True).double()
    z, features = torch.randn(2, 3, 4).double(), torch.rand(2, 3, 2).double()
    hidden = F.elu(decoder.hidden1(torch.cat([z, features], dim=-1).flatten(0, 1)))
    start = [-(-side // 2 ** len(widths)) for side in shape[1:]]
    hidden = F.elu(decoder.dense(hidden)).reshape(6, widths[0], *start)
    for n, after in enumerate((*widths[1:], shape[0]), 1):
        plain = nn.ConvTranspose2d(hidden.shape[1], after, 4, stride=2, padding=1).double()
        plain.load_state_dict(decoder.get_submodule(f"conv{n}").state_dict())
        hidden = plain(hidden) if n == len(widths) else F.elu(plain(hidden))
    image = decoder(z, features)
    assert image.shape == (2, 3, *shape)
    torch.testing.assert_close(image.flatten(0, 1), hidden[..., : shape[1], : shape[2]])


def test_pixels_of_a_transposed_decoder_may_be_below_minus_one():
    decoder = ConvDecoder(4, transposed=True)
    decoder.conv3.bias.data.fill_(-5.0)
    assert decoder(torch.zeros(1, 4)).max() < -1


def test_networks_with_options_are_described_with_them():
    for network in (ConvEncoder(4, hidden=[5], padding=1), ConvDecoder(4, hidden=[5], transposed=True)):
        again = type(network)(**network.constructor_arguments)
        again.load_state_dict(network.state_dict())
        given = torch.rand(2, 1, 28, 28) if isinstance(network, ConvEncoder) else torch.rand(2, 4)
        torch.testing.assert_close(again(given), network(given))


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match=r"padding: expected one of 0, 1, got 2\. Try 1"):
        ConvEncoder(4, padding=2)
    for network in (ConvEncoder, ConvDecoder):
        with pytest.raises(ArgumentError, match=r"hidden: expected a tuple or list, got int\. Try hidden=\[256\]"):
            network(4, hidden=256)
        with pytest.raises(ArgumentError, match=r"hidden: expected an integer >= 1, got 0"):
            network(4, hidden=[0])
