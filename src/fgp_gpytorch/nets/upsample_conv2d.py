"""Nearest upsampling followed by a 3x3 convolution, computed at the low resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgp_gpytorch import _checks as check

# Where tap a of the 3x3 kernel falls among the low-resolution neighbours, for each of the two output phases.
# Padded: the even output pixel depends on neighbours (-1, 0, 0), the odd one on (0, 0, +1).
# Not padded: outputs pair up as (odd, even), which depend on (0, 0, +1) and (0, +1, +1): two neighbours suffice.
_TAPS = {
    1: (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
    0: (((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)), ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))),
}


class UpsampleConv2d(nn.Module):
    r"""Nearest upsampling by two and a 3x3 convolution, as one convolution and a pixel shuffle.

    The plain form doubles the image (`nn.Upsample(scale_factor=2)`) and convolves it (`nn.Conv2d(in, out, 3)`).
    Four neighbouring outputs then depend on the same 3x3 low-resolution pixels. So one convolution with four times the
    output channels, at a quarter of the positions, and a pixel shuffle compute the same function up to rounding.
    Parameters and their names are those of the plain form: state dicts are interchangeable.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        padding: 1 keeps the doubled size (zero padding), 0 loses one pixel on each side. A pair is for H and W.
        fast: False computes the plain form.

    Shape:
        Input (N, in_channels, H, W); output (N, out_channels, 2 H + 2 padding - 2, 2 W + 2 padding - 2).

    Raises:
        ArgumentError: If `padding` is neither 0 nor 1, or a number of channels is below 1.

    Examples:
        >>> layer = UpsampleConv2d(3, 2)
        >>> images = torch.rand(1, 3, 5, 5)
        >>> doubled = torch.nn.Upsample(scale_factor=2)(images)
        >>> plain = torch.nn.functional.conv2d(doubled, layer.weight, layer.bias, padding=1)
        >>> layer(images).shape, torch.allclose(layer(images), plain, atol=1e-6)
        (torch.Size([1, 2, 10, 10]), True)
    """

    _taps: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, padding: int | tuple[int, int] = 1, fast: bool = True
    ) -> None:
        super().__init__()
        self.padding = padding if isinstance(padding, tuple) else (padding, padding)
        check.choice(len(self.padding), "len(padding)", (2,), "Try padding=1.")
        in_channels = check.count(in_channels, "in_channels")
        out_channels = check.count(out_channels, "out_channels")
        for side in self.padding:
            check.choice(side, "padding", (0, 1), "Try 1, which keeps the doubled size.")
        taps_h, taps_w = (torch.tensor(_TAPS[side]) for side in self.padding)  # shape: (phase, neighbour, tap)
        self._shape = 4, taps_h.shape[1], taps_w.shape[1]
        # kernel of phase (p, q) at (i, j): sum_ab taps_h[p, i, a] taps_w[q, j, b] weight[..., a, b]
        taps = torch.einsum("pia,qjb->abpqij", taps_h, taps_w).reshape(9, -1)
        self.register_buffer("_taps", taps, persistent=False)
        convolution = nn.Conv2d(in_channels, out_channels, 3)  # for its initialisation
        self.weight = convolution.weight  # shape: (out, in, 3, 3)
        assert convolution.bias is not None
        self.bias = convolution.bias
        self.fast = fast

    def forward(self, image: Tensor) -> Tensor:
        """Return the convolved image, doubled in size."""
        if not self.fast:
            return F.conv2d(F.interpolate(image, scale_factor=2.0), self.weight, self.bias, padding=self.padding)
        weight = self.weight.flatten(2) @ self._taps.to(self.weight.dtype)  # shape: (out, in, 4 i j)
        kernel = weight.unflatten(-1, self._shape).transpose(1, 2).flatten(0, 1)  # shape: (out * 4, in, i, j)
        return F.pixel_shuffle(F.conv2d(image, kernel, self.bias.repeat_interleave(4), padding=self.padding), 2)
