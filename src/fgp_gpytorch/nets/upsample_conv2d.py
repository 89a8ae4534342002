"""Nearest upsampling followed by a 3x3 convolution, computed at the low resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where tap a of the 3x3 kernel falls among the low-resolution neighbours, for each of the two output phases.
# Padded: the even output pixel sees neighbours (-1, 0, 0), the odd one (0, 0, +1).
# Not padded: outputs pair up as (odd, even), which see (0, 0, +1) and (0, +1, +1): two neighbours are enough.
_TAPS = {
    1: (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0))),
    0: (((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)), ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))),
}


class UpsampleConv2d(nn.Module):
    r"""Nearest upsampling by two and a 3x3 convolution, as one convolution and a pixel shuffle.

    The plain form doubles the image (`nn.Upsample(scale_factor=2)`) and convolves it (`nn.Conv2d(in, out, 3)`).
    Four neighbouring outputs then see only the same 3x3 low-resolution pixels, so the same function is one
    convolution with four times the output channels and a pixel shuffle, at a quarter of the positions. Parameters,
    their names and the function are those of the plain form (equal to rounding); state dicts are interchangeable.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        padding: 1 keeps the doubled size (zero padding), 0 loses one pixel on each side.
        fast: False computes the plain form.

    Shape:
        Input (*batch, in_channels, H, W); output (*batch, out_channels, 2 H + 2 padding - 2, 2 W + 2 padding - 2).

    Raises:
        ValueError: If `padding` is neither 0 nor 1.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 1, fast: bool = True) -> None:
        super().__init__()
        if padding not in (0, 1):
            raise ValueError(f"padding: expected 0 or 1, got {padding}. Try 1, which keeps the doubled size.")
        convolution = nn.Conv2d(in_channels, out_channels, 3)  # for its initialisation
        self.weight = convolution.weight  # shape: (out, in, 3, 3)
        assert convolution.bias is not None
        self.bias = convolution.bias
        self.padding = padding
        self.fast = fast
        self.register_buffer("_taps", torch.tensor(_TAPS[padding]), persistent=False)  # shape: (phase, neighbour, tap)

    def forward(self, image: Tensor) -> Tensor:
        """Return the convolved image, doubled in size."""
        if not self.fast:
            return F.conv2d(F.interpolate(image, scale_factor=2.0), self.weight, self.bias, padding=self.padding)
        # kernel of phase (p, q): sum_ab taps[p, i, a] taps[q, j, b] weight[o, c, a, b]
        taps = self._taps.to(self.weight.dtype)
        kernel = torch.einsum("pia,qjb,ocab->opqcij", taps, taps, self.weight).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(image, kernel, self.bias.repeat_interleave(4), padding=self.padding), 2)
