"""A transposed convolution that doubles an image, computed as an ordinary one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgp_gpytorch import _checks as check

# Output pixel 2 i + p is a sum over low-resolution pixels j of w[2 (i - j) + p + 1] in[j]: which tap of four belongs to
# the neighbours (i - 1, i, i + 1), for the two phases p.
_TAPS = (
    ((0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
)


class TransposedConv2d(nn.Module):
    r"""`nn.ConvTranspose2d(in, out, 4, stride=2, padding=1)`, as one convolution and a pixel shuffle.

    Four neighbouring outputs depend on the same 3x3 pixels of the input. So a 3x3 convolution with four times the
    output channels and a pixel shuffle compute the same function up to rounding, several times faster on a CPU.
    Parameters, their names and their start are those of PyTorch's module: state dicts are interchangeable.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Shape:
        Input (N, in_channels, H, W); output (N, out_channels, 2 H, 2 W).

    Raises:
        ArgumentError: If a number of channels is below 1.

    Examples:
        >>> ours, theirs = TransposedConv2d(3, 2), torch.nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)
        >>> ours.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> images = torch.rand(1, 3, 5, 5)
        >>> ours(images).shape, torch.allclose(ours(images), theirs(images), atol=1e-6)
        (torch.Size([1, 2, 10, 10]), True)
    """

    _taps: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        in_channels = check.count(in_channels, "in_channels")
        out_channels = check.count(out_channels, "out_channels")
        plain = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)  # for its initialisation
        self.weight = plain.weight  # shape: (in, out, 4, 4)
        assert plain.bias is not None
        self.bias = plain.bias
        self.register_buffer("_taps", torch.tensor(_TAPS), persistent=False)  # shape: (phase, neighbour, tap)

    def forward(self, image: Tensor) -> Tensor:
        """Return the convolved image, doubled in size."""
        taps = self._taps.to(self.weight.dtype)
        # kernel of phase (p, q): sum_ab taps[p, i, a] taps[q, j, b] weight[c, o, a, b]
        kernel = torch.einsum("pia,qjb,coab->opqcij", taps, taps, self.weight).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(image, kernel, self.bias.repeat_interleave(4), padding=1), 2)
