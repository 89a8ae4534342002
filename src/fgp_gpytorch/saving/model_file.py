"""Files of models: a description as JSON, and tensors."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import CheckpointError, FGPError
from fgp_gpytorch.saving._allocation import AllocationLimit
from fgp_gpytorch.saving.changes import apply_changes, find_changes, own_name
from fgp_gpytorch.saving.checkpoint_file import read_checkpoint, write_checkpoint
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

    Examples:
        >>> content = pack_model(MLP(3, 2))
        >>> content["class"], content["parts"], sorted(content)
        ('MLP', '{"num_inputs": 3, "num_outputs": 2}', ['changes', 'class', 'format', 'frozen', 'parts', 'state_dict'])
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
            parts[name], again[name] = {"missing": _class_name(value), "reason": str(error)}, _copy_of(value)
            if warn:
                _warn_missing(name, str(error))
    changes = find_changes(construct(type(model), again), model, parts_may_miss=True)
    for name, change in changes.items():
        if warn and "missing" in change:
            _warn_missing(name, f"cannot describe a {change['missing'].rpartition('.')[2]} ({change['reason']}).")
    return {
        "format": _FORMAT,
        "class": type(model).__qualname__,
        "parts": json.dumps(parts),
        "changes": json.dumps(changes),
        "frozen": json.dumps([own_name(name) for name, p in model.named_parameters() if not p.requires_grad]),
        "state_dict": model_state(model),
    }


def options_of(content: dict[str, Any]) -> dict[str, Any]:
    """The parts and options of a packed model by their names, without other attributes, such as counters.

    Examples:
        >>> options_of(pack_model(MLP(3, 2, hidden=[16])))
        {'num_inputs': 3, 'num_outputs': 2, 'hidden': [16]}
    """
    changes: dict[str, Any] = json.loads(content.get("changes", "{}"))
    options = json.loads(content["parts"]) | {k: change for k, change in changes.items() if "attribute" not in change}
    for option in options.values():
        if isinstance(option, dict) and "missing" in option:
            option.pop("reason", None)  # it may contain an address
    return options


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model. A part that `torch.compile` wrapped has the names of the part itself.

    Examples:
        >>> list(model_state(MLP(3, 2, hidden=[])))
        ['0.weight', '0.bias']
    """
    return {own_name(name): tensor for name, tensor in model.state_dict().items()}


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model's description and state.

    Raises:
        CheckpointError: If a constructor argument that is not a module cannot be described, or the file cannot be
            written. A file that was there before is then unchanged.
        MissingFileError: If the folder does not exist, or the path is a folder.

    Examples:
        >>> model = MLP(3, 2)
        >>> save_model(model, "mlp.pt")
        >>> again = load_model(MLP, "mlp.pt", parts={})
        >>> torch.equal(model(torch.ones(3)), again(torch.ones(3)))
        True
    """
    write_checkpoint(pack_model(model), path)


def load_model(kind: type[Model], path: str | Path, parts: dict[str, nn.Module]) -> Model:
    """Rebuild a model from a file of `save_model`, or from a training checkpoint of `fit`.

    Entries of `parts` replace the described parts.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If the file is no checkpoint of this class, or does not fit the parts.

    Examples:
        >>> save_model(MLP(3, 2), "mlp.pt")
        >>> load_model(MLP, "mlp.pt", parts={}).constructor_arguments
        {'num_inputs': 3, 'num_outputs': 2}
    """
    content = read_checkpoint(path)
    return unpack_model(kind, content.get(KEY, content), path, parts)


def unpack_model(kind: type[Model], content: Any, path: str | Path, parts: dict[str, nn.Module]) -> Model:
    """Rebuild a model from what `pack_model` returned. `path` is for messages.

    Raises:
        CheckpointError: If the content is not of this class, or does not fit the parts.

    Examples:
        >>> content = pack_model(MLP(3, 2))
        >>> unpack_model(MLP, content, "in memory", parts={}).constructor_arguments
        {'num_inputs': 3, 'num_outputs': 2}
        >>> unpack_model(ConvEncoder, content, "in memory", parts={})
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.CheckpointError: in memory: expected a ConvEncoder, got a MLP. ...
    """
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected a file of model.save or of fit, got another content. Try torch.load to look at it."
        )
    described, changes, frozen, state = _checked_content(content, path)
    if content["class"] != kind.__qualname__:
        raise CheckpointError(
            f"{path}: expected a {kind.__qualname__}, got a {content['class']}. Try {content['class']}.load."
        )
    for name, description in {**described, **changes}.items():
        if name not in parts and isinstance(description, dict) and "missing" in description:
            raise CheckpointError(
                f"{path}: the {name} ({description['missing']}) was saved without a description. "
                f"Try {kind.__qualname__}.load(path, {name}=...) with the same module, or derive it from Configurable. "
                f"The reason: {description.get('reason', 'not recorded')}"
            )
    options = inspect.signature(kind).parameters
    given = {name: uncompiled(part) for name, part in parts.items()}
    try:
        with AllocationLimit(state.values()):
            arguments = {name: rebuild(description) for name, description in described.items() if name not in parts}
            model = construct(kind, {**arguments, **{name: part for name, part in given.items() if name in options}})
            if unknown := set(given) - set(options) - set(model._modules):
                known = sorted({*described, *(name for name, part in model.named_children())})
                raise CheckpointError(f"load: expected parts among {known}, got {sorted(unknown)}.")
            for name in set(given) - set(options):
                setattr(model, name, given[name])
            apply_changes(model, changes, state, without=given)
    except Exception as error:  # a damaged description can raise nearly everything
        if given and isinstance(error.__cause__, FGPError):  # it is about a part that the caller passed
            raise error.__cause__ from None
        if isinstance(error, CheckpointError):
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


def _checked_content(
    content: dict[str, Any], path: str | Path
) -> tuple[dict[str, Any], dict[str, Any], set[str], dict[str, Tensor]]:
    """The descriptions of the parts, the changes to them, the names of frozen parameters, and the state."""
    try:
        described, changes = json.loads(content["parts"]), json.loads(content.get("changes", "{}"))
        frozen, state = set(json.loads(content["frozen"])), content["state_dict"]
        whole = isinstance(content["class"], str) and all(isinstance(d, dict) for d in (described, changes, state))
        if not whole or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError("another structure")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the description and the state of a model, got a damaged file ({error}). Try an older "
            "copy of it."
        ) from error
    return described, changes, frozen, state


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
    check.warn(f"{name}: {reason} The tensors are saved; loading will need {name}=.")
