"""Models in files: a description and tensors, no code."""

from fgp_gpytorch.saving.changes import structure_of
from fgp_gpytorch.saving.configurable import Configurable
from fgp_gpytorch.saving.description import describe, rebuild
from fgp_gpytorch.saving.model_file import (
    KEY,
    load_model,
    model_state,
    options_of,
    pack_model,
    read_checkpoint,
    save_model,
)

__all__ = [
    "KEY",
    "Configurable",
    "describe",
    "load_model",
    "model_state",
    "options_of",
    "pack_model",
    "read_checkpoint",
    "rebuild",
    "save_model",
    "structure_of",
]
