"""Convolutional networks for images of any size. The defaults are the networks of the paper (Table A.1)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.nets._inputs import append, as_shape
from fgp_gpytorch.nets.elu import elu
from fgp_gpytorch.nets.transposed_conv2d import TransposedConv2d
from fgp_gpytorch.nets.upsample_conv2d import UpsampleConv2d
from fgp_gpytorch.saving import Configurable


class _Convolutions(nn.Module):
    """3x3 convolutions with stride 2 and ELU, and dense layers."""

    def __init__(
        self,
        outputs: int,
        shape: Sequence[int],
        widths: Sequence[int],
        num_features: int = 0,
        hidden: Sequence[int] = (),
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.widths = _image_shape(shape), as_shape(widths, "widths")
        self.num_features = check.count(num_features, "num_features", least=0)
        self.hidden = as_shape(hidden, "hidden")
        padding = check.choice(padding, "padding", (0, 1), "Try 1, which rounds half of an odd size up.")
        channels, *sides = self.shape
        least = 1 if padding else 2 ** (len(self.widths) + 1) - 1
        check.count(min(sides), "shape", least, "Every convolution halves the image. Try fewer widths, or padding=1.")
        for index, (before, after) in enumerate(itertools.pairwise([channels, *self.widths]), 1):
            self.add_module(f"conv{index}", nn.Conv2d(before, after, 3, stride=2, padding=padding))
            sides = [(side - 1 + 2 * padding) // 2 for side in sides]
        self._flat = [channels, *self.widths][-1] * sides[0] * sides[1]
        last = _add_hidden(self, self._flat + self.num_features, self.hidden)
        self.dense = nn.Linear(last, outputs)

    def _outputs(self, y: Tensor, features: Tensor | None = None) -> Tensor:  # shape: (*batch, outputs)
        network = type(self).__name__
        check.instance(y, "y", Tensor, "Try torch.as_tensor(y).")
        check.shape(y, "y", ("...", *self.shape), f"Try {network}(..., shape={tuple(y.shape[-3:])}).")
        hidden = y.reshape(-1, *self.shape)
        for convolution in _layers(self, "conv", len(self.widths)):
            hidden = elu(convolution(hidden))
        flat = append(hidden.reshape(*y.shape[:-3], self._flat), features, self.num_features, network)
        for layer in _layers(self, "hidden", len(self.hidden)):
            flat = elu(layer(flat))
        return self.dense(flat)


class ConvEncoder(Configurable, _Convolutions):
    """3x3 convolutions with stride 2 and ELU, and dense layers. The defaults are the encoder of Table A.1.

    A convolution halves the image: 28 -> 13 -> 6 -> 2, or with padding 28 -> 14 -> 7 -> 4.

    Args:
        num_channels: Latent channels L.
        shape: Colour channels C, height H and width W of an image. n convolutions without padding need 2^(n + 1) - 1
            pixels.
        widths: Filters of each convolution.
        num_features: F, features that `CVAE` appends to the first dense layer's input; 0 for none, as in the paper.
        hidden: Widths of dense layers with ELU before the last dense layer; () for none, as in the paper.
        padding: 0, as in the paper, or 1 pixel of zeros around the input of each convolution.

    Shape:
        Input (*batch, C, H, W), pixels in [0, 1], and features (*batch, F) if F > 0; output a mean and a variance,
        each (*batch, L).

    Raises:
        ArgumentError: If a size is not a positive integer, or the image is too small.

    Examples:
        >>> mean, variance = ConvEncoder(16)(torch.rand(5, 1, 28, 28))
        >>> mean.shape, bool((variance > 0).all())
        (torch.Size([5, 16]), True)
        >>> ConvEncoder(16, shape=(3, 30, 45), widths=(16, 32), padding=1)(torch.rand(5, 3, 30, 45))[0].shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        num_channels: int = 16,
        shape: Sequence[int] = (1, 28, 28),
        widths: Sequence[int] = (8, 8, 8),
        num_features: int = 0,
        hidden: Sequence[int] = (),
        padding: int = 0,
    ) -> None:
        outputs = 2 * check.count(num_channels, "num_channels")
        super().__init__(outputs, shape, widths, num_features, hidden, padding)

    def forward(self, y: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations.

        Raises:
            ShapeError: If y or the features have another shape.
        """
        mean, log_variance = self._outputs(y, features).chunk(2, dim=-1)
        return mean, log_variance.exp()


class ConvFeatures(Configurable, _Convolutions):
    """The layers of `ConvEncoder`, with one vector for each image as output.

    Args:
        width: Length of the vector.
        shape: As in `ConvEncoder`.
        widths: As in `ConvEncoder`.

    Shape:
        Input (*batch, C, H, W), pixels in [0, 1]; output (*batch, width).

    Raises:
        ArgumentError: If a size is not a positive integer, or the image is too small.

    Examples:
        >>> ConvFeatures(12)(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 12])
    """

    def __init__(self, width: int = 16, shape: Sequence[int] = (1, 28, 28), widths: Sequence[int] = (8, 8, 8)) -> None:
        width = check.count(width, "width")
        super().__init__(width, shape, widths)
        self.width = width

    def forward(self, y: Tensor) -> Tensor:
        """Return the vectors.

        Raises:
            ShapeError: If y has another shape.
        """
        return self._outputs(y)


class ConvDecoder(Configurable, nn.Module):
    """Dense layers, and n times nearest upsampling, 3x3 convolution and ELU. The defaults are Table A.1.

    The sizes follow from that of the image, H and W apart. A padded convolution doubles m pixels to 2 m. If m would be
    odd and has to be doubled itself, the convolution is not padded and makes 2 m - 2 pixels from one more:
    28 <- 14 <- 8 <- 4, as in the authors' program. An odd image is cut from one with one pixel more. ELU also follows
    the last convolution, so a pixel is at least -1.

    With `transposed=True` a 4x4 convolution that is transposed, with stride 2, doubles the image: 28 <- 14 <- 7 for two
    widths. Nothing follows the last one.

    Args:
        num_channels: Latent channels L.
        shape: Colour channels C, height H and width W of an image.
        widths: Channels of the input of each convolution. The last convolution has C filters.
        num_features: F, features that `CVAE` appends to z; 0 for none, as in the paper.
        fast: False computes all layers, and upsampling and convolution, one after the other (same function, slower).
        hidden: Widths of dense layers with ELU before the convolutions. The dense layer that makes the first image
            then has an ELU too. () for none, as in the paper.
        transposed: Whether transposed convolutions take the place of upsampling and convolution.

    Shape:
        Input (*batch, L), and features (*batch, F) if F > 0; output (*batch, C, H, W).

    Raises:
        ArgumentError: If a size is not a positive integer.

    Examples:
        >>> ConvDecoder(16)(torch.zeros(5, 16)).shape
        torch.Size([5, 1, 28, 28])
        >>> ConvDecoder(16, shape=(3, 30, 45), widths=(32, 16), transposed=True)(torch.zeros(5, 16)).shape
        torch.Size([5, 3, 30, 45])
    """

    def __init__(
        self,
        num_channels: int = 16,
        shape: Sequence[int] = (1, 28, 28),
        widths: Sequence[int] = (8, 8, 8),
        num_features: int = 0,
        fast: bool = True,
        hidden: Sequence[int] = (),
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.num_channels, self.shape = check.count(num_channels, "num_channels"), _image_shape(shape)
        self.num_features, self.widths = check.count(num_features, "num_features", 0), as_shape(widths, "widths")
        self.hidden, self.transposed, self.fast = as_shape(hidden, "hidden"), bool(transposed), bool(fast)
        channels, doublings = [*self.widths, self.shape[0]], len(self.widths)
        sizes = [_sizes(side, doublings, self.transposed) for side in self.shape[1:]]
        (height, across), *paddings = zip(*sizes, strict=True)
        self._start = (channels[0], height, across)
        last = _add_hidden(self, self.num_channels + self.num_features, self.hidden)
        self.dense = nn.Linear(last, channels[0] * height * across)
        for index, ((before, after), padding) in enumerate(zip(itertools.pairwise(channels), paddings, strict=True), 1):
            doubled = (
                TransposedConv2d(before, after) if self.transposed else UpsampleConv2d(before, after, padding, fast)
            )
            self.add_module(f"conv{index}", doubled)

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameter: a mean image, or logits.

        Raises:
            ShapeError: If z or the features have another width.
        """
        check.instance(z, "z", Tensor, "Try torch.as_tensor(z).")
        hint = f"The prior has L channels. Try ConvDecoder({z.shape[-1]})."
        check.shape(z, "z", ("...", self.num_channels), hint)
        hidden = append(z, features, self.num_features, "ConvDecoder")
        for layer in _layers(self, "hidden", len(self.hidden)):
            hidden = elu(layer(hidden))
        convolutions = _layers(self, "conv", len(self.widths))
        image = self._first_image(hidden.reshape(-1, hidden.shape[-1]), convolutions)
        for convolution in convolutions[1:]:
            image = convolution(elu(image))
        if convolutions and not self.transposed:
            image = elu(image)
        return image[..., : self.shape[1], : self.shape[2]].reshape(*z.shape[:-1], *self.shape)

    def _first_image(self, rows: Tensor, convolutions: Sequence[nn.Module]) -> Tensor:
        """The dense layer and the first convolution: rows (N, width) to images (N, C, H, W).

        They are one affine map, unless an ELU lies between them. The convolution of the dense layer's weights and bias
        gives the matrix of this map. That costs less than the convolution of N images.
        """
        if self.hidden or not convolutions or not self.fast or len(rows) <= self.dense.in_features + 1:
            image = self._as_images(self.dense(rows))
            image = elu(image) if self.hidden else image
            return convolutions[0](image) if convolutions else image
        weights = torch.cat([self.dense.weight.mT, self.dense.bias.unsqueeze(0)])
        columns = convolutions[0](self._as_images(weights)).permute(0, 2, 3, 1)  # shape: (width + 1, H, W, C)
        matrix = (columns[:-1] - convolutions[0].bias).flatten(1)
        image = torch.addmm(columns[-1].reshape(-1), rows, matrix).unflatten(-1, columns.shape[1:])
        return image.permute(0, 3, 1, 2)

    def _as_images(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, self._start).contiguous(memory_format=torch.channels_last)


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = as_shape(shape, "shape")
    check.choice(len(sizes), "len(shape)", [3], "Try shape=(1, 28, 28): colour channels, height, width.")
    return sizes


def _add_hidden(network: nn.Module, inputs: int, hidden: Sequence[int]) -> int:
    """Add dense layers "hidden1", ... and return the width of the last output."""
    for index, (before, after) in enumerate(itertools.pairwise([inputs, *hidden]), 1):
        network.add_module(f"hidden{index}", nn.Linear(before, after))
    return [inputs, *hidden][-1]


def _layers(network: nn.Module, kind: str, number: int) -> list[nn.Module]:
    return [network.get_submodule(f"{kind}{index}") for index in range(1, number + 1)]


def _sizes(side: int, doublings: int, transposed: bool) -> tuple[int, ...]:
    """The number of pixels to start from, and the padding of each doubling, for an image of `side` pixels."""
    if transposed:
        return (-(-side // 2**doublings), *[1] * doublings)
    paddings: list[int] = []
    size = side + side % 2 if doublings else side
    for left in reversed(range(doublings)):
        padding = 0 if left and size // 2 % 2 else 1
        size = size // 2 + 1 - padding
        paddings.insert(0, padding)
    return (size, *paddings)
