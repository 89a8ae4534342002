"""Objects to plain data and back, so that a saved model executes nothing when it is read.

A description is JSON: numbers, strings, lists, and {"class": name, "arguments": {...}}. Classes are looked up among
those that are already imported and derive from a known base; nothing is imported by name.
"""

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, LinearMean, Mean
from gpytorch.priors import Prior

from fgp_gpytorch._config import Configurable
from fgp_gpytorch.errors import CheckpointError

_BASES = (Configurable, Kernel, Mean, Prior, Interval)

# Arguments that GPyTorch does not keep under their own names.
_SPECIAL: dict[type, dict[str, Callable[[Any], Any]]] = {
    ConstantMean: {"constant_prior": lambda mean: mean._priors.get("mean_prior", (None,))[0]},
    LinearMean: {
        "input_size": lambda mean: mean.weights.shape[-2],
        "batch_shape": lambda mean: mean.weights.shape[:-2],
        "bias": lambda mean: mean.bias is not None,
    },
}


def describe(value: Any) -> Any:
    """Describe an object.

    Args:
        value: Numbers, strings, None, lists, tensors, dtypes, Configurables, and GPyTorch's kernels, means, priors and
            constraints, nested as they are.

    Returns:
        JSON-able data.

    Raises:
        CheckpointError: If something cannot be described.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple | torch.nn.ModuleList):
        return [describe(element) for element in value]
    if isinstance(value, Configurable):
        arguments = value.__dict__.get("constructor_arguments", {})
        return {"class": _name(type(value)), "arguments": {k: describe(v) for k, v in arguments.items()}}
    if isinstance(value, _BASES):
        try:
            return {"class": _name(type(value)), "arguments": _arguments(value)}
        except RecursionError as error:  # GPyTorch's MultivariateNormalPrior asks itself for its attributes
            raise CheckpointError(
                f"cannot describe a {type(value).__name__}: its arguments cannot be read back. Try another prior (a "
                "NormalPrior of each), or give the part again: load(path, prior=...)."
            ) from error
    raise CheckpointError(
        f"cannot describe a {type(value).__name__} as data. Derive it from fgp_gpytorch.Configurable, or give it "
        "to load again: load(path, encoder=...)."
    )


def rebuild(description: Any) -> Any:
    """Make the described object anew; the opposite of `describe`.

    Raises:
        CheckpointError: If a class is not known, or does not take the described arguments.
    """
    if isinstance(description, list):
        return [rebuild(element) for element in description]
    if not isinstance(description, dict):
        return description
    if "float" in description:
        return float(description["float"])
    if "tensor" in description:
        return torch.tensor(description["tensor"], dtype=getattr(torch, description["dtype"]))
    if "dtype" in description:
        dtype = getattr(torch, description["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"expected the name of a torch dtype, got {description['dtype']!r}. The file is damaged."
            )
        return dtype
    kind = _find(description.get("class", ""))
    arguments = {key: rebuild(value) for key, value in description.get("arguments", {}).items()}
    return _construct(kind, arguments)


def _construct(kind: type, arguments: dict[str, Any]) -> Any:
    positional: list[Any] = []
    parameters = inspect.signature(kind).parameters
    collects = next((n for n, p in parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if collects is not None and arguments.get(collects):  # what stands before *args must come by position too
        before = itertools.takewhile(lambda name: name != collects, parameters)
        positional = [arguments.pop(name) for name in before if name in arguments]
        positional += arguments.pop(collects)
    if "batch_shape" in arguments:
        arguments["batch_shape"] = torch.Size(arguments["batch_shape"])
    try:
        return kind(*positional, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot rebuild {_name(kind)} from its description ({error}). The file may come from another version; "
            "give the part yourself: load(path, prior=...)."
        ) from error


def _arguments(value: Any) -> dict[str, Any]:
    """The constructor's arguments of a GPyTorch object, read back from its attributes."""
    arguments = {}
    for name, parameter in _parameters(type(value)).items():
        special = next((t[name] for c, t in _SPECIAL.items() if isinstance(value, c) and name in t), None)
        if special is not None:
            found = special(value)
        elif name.endswith("_prior"):
            found = value._priors[name][0] if name in getattr(value, "_priors", {}) else None
        elif name.endswith("_constraint"):
            found = value._constraints.get(f"raw_{name.removesuffix('_constraint')}_constraint")
        elif name in ("initial_value", "transform", "inv_transform"):
            continue  # values come with the state; transforms are compared after rebuilding
        elif hasattr(value, name):
            found = getattr(value, name)
        elif _defines(type(value), name).__module__.startswith("gpytorch."):
            continue  # that the rebuilt object is the same is tested of GPyTorch's own
        else:
            raise CheckpointError(
                f"cannot describe a {type(value).__name__}: expected it to keep the argument {name!r} under its own "
                f"name, got no such attribute. Try self.{name} = {name} in its constructor."
            )
        if found is not None and found is not parameter.default:
            arguments[name] = describe(found)
    return arguments


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Named parameters of a constructor, and of those it passes its keywords on to."""
    collected: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if base in (gpytorch.Module, torch.nn.Module, object):
            break
        if "__init__" not in base.__dict__:
            continue
        signature = inspect.signature(base.__dict__["__init__"]).parameters
        for name, parameter in list(signature.items())[1:]:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                collected.setdefault(name, parameter)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values()):
            break
    return collected


def _defines(kind: type, name: str) -> type:
    """The class whose own constructor has an argument of this name."""
    return next(
        base for base in kind.__mro__ if name in inspect.signature(base.__dict__.get("__init__", object)).parameters
    )


def _find(name: str) -> type:
    pending, seen = list(_BASES), set()
    while pending:
        kind = pending.pop()
        if kind in seen:
            continue
        seen.add(kind)
        if _name(kind) == name:
            return kind
        pending.extend(kind.__subclasses__())
    raise CheckpointError(
        f"class {name!r} of the saved model is not known. Import the module that defines it before loading, or give "
        "the part yourself: load(path, encoder=...)."
    )


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
