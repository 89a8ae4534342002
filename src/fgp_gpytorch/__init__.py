"""Gaussian-process-prior variational autoencoders on grouped data, as a plugin for GPyTorch and Pyro."""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)  # GPyTorch compiles two helpers with it
    from fgp_gpytorch import feature_maps, means, nets  # a saved model may name their classes

from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOut
from fgp_gpytorch.likelihoods import (
    BernoulliLikelihood,
    ColumnLikelihood,
    DiagonalGaussianLikelihood,
    GaussianLikelihood,
)
from fgp_gpytorch.models import CVAE, FGPVAE, GPVAE, SVGPVAE, VAE, CorrelatedFGPVAE, LatentAngleFGPVAE
from fgp_gpytorch.objectives import ELBO, GECO
from fgp_gpytorch.prior import (
    CoregionalizedChannels,
    FactorizedGPPrior,
    GlobalChannels,
    IndependentChannels,
    LocalChannels,
)
from fgp_gpytorch.saving import Configurable

if TYPE_CHECKING:
    from fgp_gpytorch.tables import TableModel
    from fgp_gpytorch.training import fit

__version__ = version("fgp_gpytorch")

__all__ = [
    "CVAE",
    "ELBO",
    "FGPVAE",
    "GECO",
    "GPVAE",
    "SVGPVAE",
    "VAE",
    "BernoulliLikelihood",
    "ColumnLikelihood",
    "Configurable",
    "CoregionalizedChannels",
    "CorrelatedFGPVAE",
    "DiagonalGaussianLikelihood",
    "FactorizedGPPrior",
    "GaussianLikelihood",
    "GlobalChannels",
    "GroupedBatch",
    "GroupedDataset",
    "HeldOut",
    "IndependentChannels",
    "LatentAngleFGPVAE",
    "LocalChannels",
    "TableModel",
    "feature_maps",
    "fit",
    "means",
    "nets",
]

# Lightning, SciPy and Matplotlib take longer than PyTorch: they are imported when somebody asks for these
_LATER = {"TableModel": "fgp_gpytorch.tables", "fit": "fgp_gpytorch.training"}
_SUBPACKAGES = ("datasets", "metrics", "plots", "tables", "training")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"fgp_gpytorch.{name}")
    raise AttributeError(f"module 'fgp_gpytorch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
