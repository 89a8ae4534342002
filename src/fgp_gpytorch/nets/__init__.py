"""Networks: the paper's convolutional pair (Table A.1) and perceptrons.

Any `torch.nn.Module` serves. An encoder maps (*batch, *y_shape) to a mean and a positive variance, each (*batch, L);
a decoder maps (*batch, L) to the likelihood's parameter, (*batch, *y_shape). A `RepresentationNetwork` describes a
whole group by one vector.
"""

from fgp_gpytorch.nets.elu import elu
from fgp_gpytorch.nets.fourier_features import FourierFeatures
from fgp_gpytorch.nets.mlp import MLPDecoder, MLPEncoder
from fgp_gpytorch.nets.paper import PaperDecoder, PaperEncoder
from fgp_gpytorch.nets.representation import MLPFeatures, PaperFeatures, RepresentationNetwork
from fgp_gpytorch.nets.upsample_conv2d import UpsampleConv2d

__all__ = [
    "FourierFeatures",
    "MLPDecoder",
    "MLPEncoder",
    "MLPFeatures",
    "PaperDecoder",
    "PaperEncoder",
    "PaperFeatures",
    "RepresentationNetwork",
    "UpsampleConv2d",
    "elu",
]
