"""Files of models: a description as JSON, and tensors."""

import copy
import inspect
import json
import pickle
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgp_gpytorch.errors import CheckpointError, FGPError, MissingFileError
from fgp_gpytorch.saving.changes import apply_changes, find_changes, own_name
from fgp_gpytorch.saving.configurable import Configurable, current_arguments
from fgp_gpytorch.saving.description import construct, describe, rebuild, uncompiled

_FORMAT = "fgp_gpytorch model 1"
KEY = "fgp_gpytorch"  # a training checkpoint holds the model under this key

Model = TypeVar("Model", bound=nn.Module)


def pack_model(model: nn.Module, warn: bool = True) -> dict[str, Any]:
    """Return the strings and tensors that `save_model` and training checkpoints write.

    Args:
        model: A `Configurable` module whose constructor's arguments are parts or plain values.
        warn: Whether to warn of a part that has no description. Loading then needs that part as an argument.

    Raises:
        CheckpointError: If a constructor argument that is not a module cannot be described.
    """
    assert isinstance(model, Configurable)
    parts: dict[str, Any] = {}
    again: dict[str, Any] = {}
    for name, value in current_arguments(model).items():
        try:
            parts[name], again[name] = _checked_description(value)
        except CheckpointError as error:
            if not _has_modules(value):
                raise
            parts[name], again[name] = {"missing": _class_name(value)}, _copy_of(value)
            if warn:
                _warn_missing(name, str(error))
    changes = find_changes(construct(type(model), again), model, parts_may_miss=True)
    for name, change in changes.items():
        if warn and "missing" in change:
            _warn_missing(name, f"cannot describe a {change['missing'].rpartition('.')[2]}.")
    return {
        "format": _FORMAT,
        "class": type(model).__qualname__,
        "parts": json.dumps(parts),
        "changes": json.dumps(changes),
        "frozen": json.dumps([own_name(name) for name, p in model.named_parameters() if not p.requires_grad]),
        "state_dict": model_state(model),
    }


def options_of(content: dict[str, Any]) -> dict[str, Any]:
    """The parts and options of a packed model by their names, without other attributes, such as counters."""
    changes: dict[str, Any] = json.loads(content.get("changes", "{}"))
    return json.loads(content["parts"]) | {k: change for k, change in changes.items() if "attribute" not in change}


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model. A part that `torch.compile` wrapped has the names of the part itself."""
    return {own_name(name): tensor for name, tensor in model.state_dict().items()}


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model's description and state.

    Raises:
        CheckpointError: If a constructor argument that is not a module cannot be described.
        MissingFileError: If the folder does not exist, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise MissingFileError(f"expected a file, got the folder {path}. Try {str(path / 'model.pt')!r}.")
    if not path.parent.exists():
        raise MissingFileError(
            f"expected the folder {path.parent} to exist. Try Path({str(path.parent)!r}).mkdir(parents=True)."
        )
    torch.save(pack_model(model), path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the strings and tensors of a file, without executing anything.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If the file holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"no file {path}. Expected one written by model.save(path), or a checkpoint of fit (*.ckpt)."
        )
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of fgp_gpytorch, got something else ({error})."
        ) from error


def load_model(kind: type[Model], path: str | Path, parts: dict[str, nn.Module]) -> Model:
    """Rebuild a model from a file of `save_model`, or from a training checkpoint of `fit`.

    Entries of `parts` replace the described parts.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If the file is no checkpoint of this class, or does not fit the parts.
    """
    content = read_checkpoint(path)
    content = content.get(KEY, content)
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected a file of model.save or of fit, got another content. Try torch.load to look at it."
        )
    if content["class"] != kind.__qualname__:
        raise CheckpointError(
            f"{path}: expected a {kind.__qualname__}, got a {content['class']}. Try {content['class']}.load."
        )
    described, changes = json.loads(content["parts"]), json.loads(content.get("changes", "{}"))
    options = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {}
    for name, description in {**described, **changes}.items():
        if name not in parts and isinstance(description, dict) and "missing" in description:
            raise CheckpointError(
                f"{path}: the {name} ({description['missing']}) was saved without a description. "
                f"Try {kind.__qualname__}.load(path, {name}=...) with the same module, or derive it from Configurable."
            )
    for name, description in described.items():
        if name not in parts:
            arguments[name] = rebuild(description)
    given = {name: uncompiled(part) for name, part in parts.items()}
    try:
        model = construct(kind, {**arguments, **{name: part for name, part in given.items() if name in options}})
    except CheckpointError as error:
        if given and isinstance(error.__cause__, FGPError):  # it is about a part that the caller passed
            raise error.__cause__ from None
        raise
    if unknown := set(given) - set(options) - set(model._modules):
        known = sorted({*described, *(name for name, part in model.named_children())})
        raise CheckpointError(f"load: expected parts among {known}, got {sorted(unknown)}.")
    for name in set(given) - set(options):
        setattr(model, name, given[name])
    apply_changes(model, changes, content["state_dict"], without=given)
    try:
        _load_state(model, content["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit the model that was rebuilt ({error}).") from error
    frozen = set(json.loads(content["frozen"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.eval()


def _load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state with its dtypes: a description does not contain the effect of `model.double()`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


def _checked_description(value: Any) -> tuple[Any, Any]:
    """Describe a part. Returns the description and the part that it makes."""
    description = describe(value)
    again = rebuild(description)
    if isinstance(value, nn.Module):
        value = uncompiled(value)
        try:
            if find_changes(again, value):
                again = rebuild(description)  # without the changes
        except CheckpointError as error:
            raise CheckpointError(
                f"the description of a {type(value).__name__} does not make the same module again ({error})"
            ) from error
    return description, again


def _copy_of(value: Any) -> Any:
    """A copy of a part without a description, which a constructor may change."""
    for module in [value] if isinstance(value, nn.Module) else value:
        for parameter in module.parameters():
            vars(parameter).pop("unconstrained", None)  # Pyro's weak reference has no copy
    return copy.deepcopy(uncompiled(value))


def _has_modules(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return bool(parts) and all(isinstance(part, nn.Module) for part in parts)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _warn_missing(name: str, reason: str) -> None:
    message = f"{name}: {reason} The tensors are saved; loading will need {name}=."
    warnings.warn(message, UserWarning, stacklevel=5)
