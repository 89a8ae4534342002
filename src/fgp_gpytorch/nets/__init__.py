"""Networks: convolutions (by default the paper's, Table A.1) and perceptrons.

Any `torch.nn.Module` may replace them. An encoder maps (*batch, *y_shape) to a mean and a positive variance, each
(*batch, L). A decoder maps (*batch, L) to the likelihood's parameter, (*batch, *y_shape). A `RepresentationNetwork`
maps a whole group to one vector.
"""

from fgp_gpytorch.nets.conv import ConvDecoder, ConvEncoder, ConvFeatures
from fgp_gpytorch.nets.elu import elu
from fgp_gpytorch.nets.fourier_features import FourierFeatures
from fgp_gpytorch.nets.linear import LinearDecoder, LinearEncoder
from fgp_gpytorch.nets.mlp import MLP, MLPDecoder, MLPEncoder, MLPFeatures
from fgp_gpytorch.nets.representation import RepresentationNetwork
from fgp_gpytorch.nets.transposed_conv2d import TransposedConv2d
from fgp_gpytorch.nets.upsample_conv2d import UpsampleConv2d

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "ConvFeatures",
    "FourierFeatures",
    "LinearDecoder",
    "LinearEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "MLPFeatures",
    "RepresentationNetwork",
    "TransposedConv2d",
    "UpsampleConv2d",
    "elu",
]
