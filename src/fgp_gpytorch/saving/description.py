"""Objects to plain data and back, so that reading a saved model executes no code of the file.

A description is JSON: numbers, strings, lists, and {"class": name, "arguments": {...}}. A name is found only among the
imported classes that derive from a known base. Nothing is imported by name.
"""

import contextlib
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, LinearMean, Mean
from gpytorch.priors import Prior

from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.saving.configurable import Configurable

_BASES = (Configurable, Kernel, Mean, Prior, Interval)

# Arguments that GPyTorch does not keep under their own names.
_SPECIAL: dict[type, dict[str, Callable[[Any], Any]]] = {
    ConstantMean: {"constant_prior": lambda mean: _prior_of(mean, "mean_prior")},
    LinearMean: {
        "input_size": lambda mean: mean.weights.shape[-2],
        "batch_shape": lambda mean: mean.weights.shape[:-2],
        "bias": lambda mean: mean.bias is not None,
    },
}


def describe(value: Any) -> Any:
    """Return JSON that describes an object.

    Args:
        value: Numbers, strings, None, lists, tensors, dtypes, Configurables, and GPyTorch's kernels, means, priors and
            constraints, nested in any way.

    Raises:
        CheckpointError: If a part cannot be described.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().tolist(), **describe(value.dtype)}
    if isinstance(value, list | tuple | torch.nn.ModuleList):
        return [describe(element) for element in value]
    arguments = None
    with contextlib.suppress(RecursionError):  # GPyTorch's MultivariateNormalPrior looks up its attributes in itself
        if isinstance(value, Configurable):
            arguments = value.constructor_arguments
        elif isinstance(value, _BASES):
            arguments = _arguments(value)
    if arguments is None:
        raise CheckpointError(
            f"cannot describe a {type(value).__name__}: its arguments cannot be read back. Derive a network from "
            "fgp_gpytorch.Configurable, use another hyperprior, or pass the part to load: load(path, encoder=...)."
        )
    return {"class": _names(type(value))[0], "arguments": {k: describe(v) for k, v in arguments.items()}}


def rebuild(description: Any) -> Any:
    """Construct the described object: the inverse of `describe`.

    Raises:
        CheckpointError: If a class is unknown, or does not take the described arguments.
    """
    if isinstance(description, list):
        return [rebuild(element) for element in description]
    if not isinstance(description, dict):
        return description
    if "float" in description:
        return float(description["float"])
    if "dtype" in description:
        dtype = getattr(torch, description["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"expected the name of a torch dtype, got {description['dtype']!r}. The file is damaged."
            )
        return torch.tensor(description["tensor"], dtype=dtype) if "tensor" in description else dtype
    kind = _find(description.get("class", ""))
    arguments = {key: rebuild(value) for key, value in description.get("arguments", {}).items()}
    return _construct(kind, arguments)


def _construct(kind: type, arguments: dict[str, Any]) -> Any:
    signature = inspect.signature(kind)
    collected = [n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL]
    starred = {name: arguments.pop(name) for name in collected if name in arguments}
    if "batch_shape" in arguments:
        arguments["batch_shape"] = torch.Size(arguments["batch_shape"])
    try:
        bound = signature.bind_partial(**arguments)
        bound.arguments.update(starred)
        return kind(*bound.args, **bound.kwargs)
    except Exception as error:  # a damaged description can raise nearly everything
        raise CheckpointError(
            f"cannot rebuild a {kind.__name__} from its description ({error}). The file may come from another version. "
            "Try to pass the part yourself: load(path, prior=...)."
        ) from error


def _arguments(value: Any) -> dict[str, Any]:
    """The constructor's arguments of a GPyTorch object, read from its attributes."""
    arguments = {}
    for name, (parameter, owner) in _parameters(type(value)).items():
        special = next(
            (read[name] for kind, read in _SPECIAL.items() if isinstance(value, kind) and name in read), None
        )
        if special is not None:
            found = special(value)
        elif name.endswith("_prior"):
            found = _prior_of(value, name)
        elif name.endswith("_constraint"):
            found = value.constraint_for_parameter_name(f"raw_{name.removesuffix('_constraint')}")
        elif name in ("initial_value", "transform", "inv_transform"):
            continue  # the state holds the values; the transforms are compared after rebuilding
        elif hasattr(value, name):
            found = getattr(value, name)
        elif owner.__module__.startswith("gpytorch."):
            continue  # tests show that GPyTorch's own classes come back the same
        else:
            raise CheckpointError(
                f"cannot describe a {type(value).__name__}: expected it to keep the argument {name!r} under its own "
                f"name, got no such attribute. Try self.{name} = {name} in its constructor."
            )
        if found is not None and found is not parameter.default:
            arguments[name] = found
    return arguments


def _parameters(kind: type) -> dict[str, tuple[inspect.Parameter, type]]:
    """Named parameters of a constructor and of those that receive its keywords, with the class of each."""
    collected: dict[str, tuple[inspect.Parameter, type]] = {}
    for base in kind.__mro__:
        if base in (gpytorch.Module, torch.nn.Module, object):
            break
        if "__init__" not in base.__dict__:
            continue
        signature = inspect.signature(base.__dict__["__init__"]).parameters
        for name, parameter in list(signature.items())[1:]:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                collected.setdefault(name, (parameter, base))
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values()):
            break
    return collected


def _prior_of(value: Any, name: str) -> Prior | None:
    """The hyperprior that a GPyTorch module itself registered under a name."""
    return next((prior for own, _, prior, _, _ in value.named_priors() if own == name), None)


def _find(name: str) -> type:
    pending, seen = list(_BASES), set()
    while pending:
        kind = pending.pop()
        if name in _names(kind):
            return kind
        seen.add(kind)
        pending += [subclass for subclass in kind.__subclasses__() if subclass not in seen]
    raise CheckpointError(
        f"class {name!r} of the saved model is not known. Import the module that defines it before loading, or pass "
        "the part to load: load(path, encoder=...)."
    )


def _names(kind: type) -> list[str]:
    """The names of a class. The first is the shortest package that exports it: files outlive a move inside it."""
    parts = kind.__module__.split(".")
    packages = [".".join(parts[: end + 1]) for end in range(len(parts))]
    exporting = [package for package in packages if getattr(sys.modules.get(package), kind.__name__, None) is kind]
    return [f"{package}:{kind.__qualname__}" for package in (*exporting, kind.__module__)]
