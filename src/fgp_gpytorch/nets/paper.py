"""The networks of the paper's experiment (Table A.1), in a fast form of the same function."""

import torch
from torch import Tensor, nn

from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.nets.elu import elu
from fgp_gpytorch.nets.mlp import beside
from fgp_gpytorch.nets.upsample_conv2d import UpsampleConv2d
from fgp_gpytorch.saving import Configurable


class PaperEncoder(Configurable, nn.Module):
    """Three 3x3 convolutions with 8 filters and stride 2, ELU, and one dense layer (paper, Table A.1).

    Args:
        num_channels: Latent channels L.
        num_features: F, features that `CVAE` gives to the dense layer; 0 for none, as in the paper.

    Shape:
        Input (*batch, 1, 28, 28), pixels in [0, 1], and, if F > 0, (*batch, F); output a mean and a variance, each
        (*batch, L).
    """

    def __init__(self, num_channels: int = 16, num_features: int = 0) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2)  # 28 -> 13
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2)  # -> 6
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2)  # -> 2
        self.dense = nn.Linear(32 + num_features, 2 * num_channels)

    def forward(self, y: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations.

        Raises:
            ShapeError: If y are not images of one channel and 28 by 28 pixels.
        """
        if tuple(y.shape[-3:]) != (1, 28, 28):
            raise ShapeError(
                f"y: expected images (*batch, 1, 28, 28), got {tuple(y.shape)}. This is the paper's network for MNIST; "
                "for other images give FGPVAE your own encoder and decoder."
            )
        batch = y.shape[:-3]
        hidden = y.reshape(-1, *y.shape[-3:])
        for convolution in (self.conv1, self.conv2, self.conv3):
            hidden = elu(convolution(hidden))
        rows = hidden.flatten(1)
        features = None if features is None else features.reshape(len(rows), features.shape[-1])
        mean, log_variance = self.dense(beside(rows, features)).chunk(2, dim=-1)
        shape = (*batch, self.num_channels)
        return mean.reshape(shape), log_variance.exp().reshape(shape)


class PaperDecoder(Configurable, nn.Module):
    """One dense layer and three times (nearest upsampling, 3x3 convolution, ELU): the encoder's reverse (Table A.1).

    As in the authors' program: 8 filters, the last convolution has one; the middle one is not padded, which brings
    16 pixels to 14 and the image to 28; ELU also after the last, so a pixel is never below -1.

    Args:
        num_channels: Latent channels L.
        num_features: F, features that `CVAE` gives to the dense layer; 0 for none, as in the paper.
        fast: False computes upsampling and convolution one after the other (same function, slower).

    Shape:
        Input (*batch, L) and, if F > 0, (*batch, F); output (*batch, 1, 28, 28).
    """

    def __init__(self, num_channels: int = 16, fast: bool = True, num_features: int = 0) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.dense = nn.Linear(num_channels + num_features, 128)
        self.conv1 = UpsampleConv2d(8, 8, fast=fast)  # 4 -> 8
        self.conv2 = UpsampleConv2d(8, 8, padding=0, fast=fast)  # -> 14
        self.conv3 = UpsampleConv2d(8, 1, fast=fast)  # -> 28

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the mean image."""
        batch = z.shape[:-1]
        rows = beside(z, features)
        hidden = self.dense(rows.reshape(-1, rows.shape[-1])).reshape(-1, 8, 4, 4)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for convolution in (self.conv1, self.conv2, self.conv3):
            hidden = elu(convolution(hidden))
        return hidden.reshape(*batch, *hidden.shape[1:])
