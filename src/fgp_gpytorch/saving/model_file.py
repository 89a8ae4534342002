"""Files of models: a description as JSON, and tensors."""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any, TypeVar

import gpytorch
import torch
from torch import Tensor, nn

from fgp_gpytorch.errors import CheckpointError, FGPError
from fgp_gpytorch.saving._allocation import AllocationLimit
from fgp_gpytorch.saving.checkpoint_file import read_checkpoint, write_checkpoint
from fgp_gpytorch.saving.configurable import Configurable
from fgp_gpytorch.saving.description import describe, rebuild

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
    for name, passed in model.constructor_arguments.items():
        value = getattr(model, name, passed)  # a part may have been replaced since
        value = None if passed is None and isinstance(value, nn.Identity) else _uncompiled(value)
        try:
            parts[name] = _checked_description(value)
        except CheckpointError as error:
            if not isinstance(value, nn.Module):
                raise
            parts[name] = {"missing": f"{type(value).__module__}.{type(value).__qualname__}"}
            if warn:
                message = f"{name}: {error} The tensors are saved; loading will need {name}=."
                warnings.warn(message, UserWarning, stacklevel=4)
    return {
        "format": _FORMAT,
        "class": type(model).__qualname__,
        "parts": json.dumps(parts),
        "frozen": json.dumps([_own_name(name) for name, p in model.named_parameters() if not p.requires_grad]),
        "state_dict": model_state(model),
    }


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model. A part that `torch.compile` wrapped has the names of the part itself."""
    return {_own_name(name): tensor for name, tensor in model.state_dict().items()}


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model's description and state.

    Raises:
        CheckpointError: If a constructor argument that is not a module cannot be described, or the file cannot be
            written. A file that was there before is then unchanged.
        MissingFileError: If the folder does not exist, or the path is a folder.
    """
    write_checkpoint(pack_model(model), path)


def load_model(kind: type[Model], path: str | Path, parts: dict[str, nn.Module]) -> Model:
    """Rebuild a model from a file of `save_model`, or from a training checkpoint of `fit`.

    Entries of `parts` replace the described parts.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If the file is no checkpoint of this class, or does not fit the parts.
    """
    content = read_checkpoint(path)
    content = content.get(KEY, content)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected a file of model.save or of fit, got another content. Try torch.load to look at it."
        )
    described, frozen, state = _checked_content(content, path)
    if content["class"] != kind.__qualname__:
        raise CheckpointError(
            f"{path}: expected a {kind.__qualname__}, got a {content['class']}. Try {content['class']}.load."
        )
    if unknown := set(parts) - set(described):
        raise CheckpointError(f"load: expected parts among {sorted(described)}, got {sorted(unknown)}.")
    for name, description in described.items():
        if name not in parts and isinstance(description, dict) and "missing" in description:
            raise CheckpointError(
                f"{path}: the {name} ({description['missing']}) was saved without a description. "
                f"Try {kind.__qualname__}.load(path, {name}=...) with the same module, or derive it from Configurable."
            )
    try:
        with AllocationLimit(state.values()):
            arguments = {n: _uncompiled(parts[n]) if n in parts else rebuild(d) for n, d in described.items()}
            model = kind(**arguments)
    except Exception as error:  # a damaged description can raise nearly everything
        if isinstance(error, CheckpointError) or (parts and isinstance(error, FGPError)):
            raise
        raise CheckpointError(
            f"{path}: cannot rebuild a {kind.__qualname__} from its description ({error})."
        ) from error
    try:
        _load_state(model, state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors do not fit the model that was rebuilt ({error}).") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.eval()


def _checked_content(content: dict[str, Any], path: str | Path) -> tuple[dict[str, Any], set[str], dict[str, Tensor]]:
    """The descriptions of the parts, the names of frozen parameters, and the state."""
    try:
        described, frozen, state = (
            json.loads(content["parts"]),
            set(json.loads(content["frozen"])),
            content["state_dict"],
        )
        whole = isinstance(content["class"], str) and isinstance(described, dict) and isinstance(state, dict)
        if not whole or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError("another structure")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the description and the state of a model, got a damaged file ({error}). Try an older "
            "copy of it."
        ) from error
    return described, frozen, state


def _load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state with its dtypes: a description does not contain the effect of `model.double()`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


def _uncompiled(part: Any) -> Any:
    """The module that `torch.compile` wrapped, or the part itself."""
    return getattr(part, "_orig_mod", part) if isinstance(part, nn.Module) else part


def _own_name(name: str) -> str:
    """The name of a tensor without the prefix that `torch.compile` adds to a part."""
    part, _, rest = name.partition(".")
    return f"{part}.{rest.removeprefix('_orig_mod.')}" if rest else part


def _checked_description(value: Any) -> Any:
    """Describe a part, and check that the description makes the same part."""
    description = describe(value)
    if isinstance(value, nn.Module):
        with torch.random.fork_rng(devices=[]):
            again = rebuild(description)
        if _skeleton(again) != _skeleton(value) or not _same_priors(again, value):
            raise CheckpointError(
                f"the description of a {type(value).__name__} does not make the same module again: a part keeps an "
                "argument under another name, its parts were changed after it was made, or two parts share a parameter."
            )
    return description


def _skeleton(module: nn.Module) -> list[Any]:
    """What a rebuilt part must share with the part: classes, transforms, plain arguments, shapes, shared parameters."""
    classes = {
        name: (type(part), _named_transform(part), _plain_arguments(part)) for name, part in module.named_modules()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    owners: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    return [classes, shapes, {frozenset(names) for names in owners.values()}]


def _plain_arguments(part: nn.Module) -> dict[str, Any]:
    """The numbers and strings that a part holds under the names of its constructor's arguments."""
    names = inspect.signature(type(part)).parameters if isinstance(part, Configurable) else ()
    values = {name: getattr(part, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _named_transform(part: nn.Module) -> Any:
    transform = getattr(part, "_transform", None)
    return repr(transform) if isinstance(transform, nn.Module) else transform  # a copied Softplus equals a Softplus


def _same_priors(again: nn.Module, value: nn.Module) -> bool:
    """Whether hyperpriors are on the same quantities: the closures that compute these cannot be described."""
    if not isinstance(value, gpytorch.Module) or not isinstance(again, gpytorch.Module):
        return True
    with torch.no_grad():
        _load_state(again, {name: tensor.clone() for name, tensor in value.state_dict().items()})
        there, here = ({n: closure(owner) for n, owner, _, closure, _ in m.named_priors()} for m in (again, value))
    # the rebuilt part is on the CPU
    return there.keys() == here.keys() and all(torch.equal(there[n].to(mine.device), mine) for n, mine in here.items())
