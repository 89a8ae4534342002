"""Models in files: a description and tensors, no code."""

from fgp_gpytorch.saving.changes import structure_of
from fgp_gpytorch.saving.checkpoint_file import cannot_write, read_checkpoint, remove_leftovers, write_checkpoint
from fgp_gpytorch.saving.configurable import Configurable
from fgp_gpytorch.saving.description import describe, rebuild
from fgp_gpytorch.saving.model_file import (
    KEY,
    load_model,
    model_state,
    options_of,
    pack_model,
    save_model,
    unpack_model,
)

__all__ = [
    "KEY",
    "Configurable",
    "cannot_write",
    "describe",
    "load_model",
    "model_state",
    "options_of",
    "pack_model",
    "read_checkpoint",
    "rebuild",
    "remove_leftovers",
    "save_model",
    "structure_of",
    "unpack_model",
    "write_checkpoint",
]
