"""Objects to plain data and back, so that reading a saved model executes no code of the file.

A description is JSON: numbers, strings, lists, and {"class": name, "arguments": {...}}. A name is found only among the
imported classes that derive from a known base. Nothing is imported by name.
"""

import contextlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch import kernels, means, priors
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from gpytorch.priors import Prior
from torch import nn

from fgp_gpytorch._modes import generators_restored
from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.saving.configurable import Configurable, current_arguments

_BASES = (Configurable, Kernel, Mean, Prior, Interval)

_Readers = dict[str, Callable[[Any], Any]]


def _nothing(_: Any) -> None:
    """An argument that the others determine."""


_MEAN_PRIOR: _Readers = {"prior": lambda mean: _prior_of(mean, "mean_prior")}
_LINEAR: _Readers = {
    "input_size": lambda mean: mean.weights.shape[-2],
    "batch_shape": lambda mean: mean.weights.shape[:-2],
    "bias": lambda mean: mean.bias is not None,
}

# Arguments that GPyTorch does not keep under their own names.
_SPECIAL: dict[type, _Readers] = {
    means.ConstantMean: {"constant_prior": lambda mean: _prior_of(mean, "mean_prior")},
    means.ConstantMeanGrad: _MEAN_PRIOR,
    means.ConstantMeanGradGrad: _MEAN_PRIOR,
    means.LinearMean: _LINEAR,
    means.LinearMeanGrad: _LINEAR,
    means.LinearMeanGradGrad: _LINEAR,
    priors.LKJCovariancePrior: {
        "n": lambda prior: prior.correlation_prior.n,
        "eta": lambda prior: prior.correlation_prior.eta,
        "validate_args": _nothing,
    },
    priors.UniformPrior: {"a": lambda prior: prior.low, "b": lambda prior: prior.high},
    priors.MultivariateNormalPrior: {  # which looks up other attributes in itself, without end
        "covariance_matrix": _nothing,
        "precision_matrix": _nothing,
        "scale_tril": lambda prior: prior._unbroadcasted_scale_tril,
        "validate_args": _nothing,
    },
    kernels.GaussianSymmetrizedKLKernel: {"distance_function": _nothing},
    kernels.GridInterpolationKernel: {
        "grid_size": lambda kernel: kernel.grid_sizes,
        "grid_bounds": lambda kernel: None if kernel.grid_is_dynamic else kernel.grid_bounds,
    },
    kernels.IndexKernel: {
        "num_tasks": lambda kernel: kernel.covar_factor.shape[-2],
        "rank": lambda kernel: kernel.covar_factor.shape[-1],
        "prior": lambda kernel: _prior_of(kernel, "IndexKernelPrior"),
    },
    kernels.LCMKernel: {
        "base_kernels": lambda kernel: [part.data_covar_module for part in kernel.covar_module_list],
        "num_tasks": lambda kernel: kernel.covar_module_list[0].num_tasks,
        "rank": lambda kernel: [_rank(part) for part in kernel.covar_module_list],
        "task_covar_prior": lambda kernel: _prior_of(kernel.covar_module_list[0].task_covar_module, "IndexKernelPrior"),
    },
    kernels.MultitaskKernel: {
        "rank": lambda kernel: _rank(kernel),
        "task_covar_prior": lambda kernel: _prior_of(kernel.task_covar_module, "IndexKernelPrior"),
    },
    kernels.RFFKernel: {
        "num_dims": lambda kernel: kernel.randn_weights.shape[-2] if hasattr(kernel, "randn_weights") else None
    },
    kernels.SpectralDeltaKernel: {"num_deltas": lambda kernel: kernel.raw_Z.shape[-2]},
}


def describe(value: Any) -> Any:
    """Return JSON that describes an object.

    Args:
        value: Numbers, strings, None, lists, tuples, dictionaries, arrays, tensors, dtypes, Configurables, and
            GPyTorch's kernels, means, priors and constraints, nested in any way.

    Raises:
        CheckpointError: If a part cannot be described.

    Examples:
        >>> describe({"width": 8, "shape": (1, 28, 28)})
        {'dict': {'width': 8, 'shape': {'tuple': [1, 28, 28]}}}
        >>> describe(gpytorch.kernels.RBFKernel())["class"]
        'gpytorch.kernels:RBFKernel'
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().tolist(), **describe(value.dtype)}
    if isinstance(value, np.ndarray) and is_number(value.dtype):
        return {"array": value.tolist(), "of": str(value.dtype)}
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, tuple):
        return {"tuple": [describe(element) for element in value]}
    if isinstance(value, list | nn.ModuleList):
        return [describe(element) for element in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: describe(element) for key, element in value.items()}}
    value = uncompiled(value)
    arguments = None
    with contextlib.suppress(RecursionError):  # an attribute of a distribution may look itself up
        if isinstance(value, Configurable):
            arguments = current_arguments(value)
        elif isinstance(value, _BASES):
            arguments = _arguments(value)
    if arguments is None:
        raise CheckpointError(
            f"cannot describe a {type(value).__name__}: its arguments cannot be read back. Derive a network from "
            "fgp_gpytorch.Configurable, use another kernel or hyperprior, or pass the part to load: "
            "load(path, encoder=...) or load(path, prior=...)."
        )
    return {"class": _names(type(value))[0], "arguments": {k: describe(v) for k, v in arguments.items()}}


def rebuild(description: Any) -> Any:
    """Construct the described object: the inverse of `describe`. No random generator moves.

    Raises:
        CheckpointError: If a class is unknown, or does not take the described arguments.

    Examples:
        >>> kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
        >>> rebuild(describe(kernel)).base_kernel.nu
        1.5
    """
    with undisturbed():
        return _rebuild(description)


def construct(kind: type, arguments: dict[str, Any]) -> Any:
    """Call a constructor with arguments by name, those of *args too.

    Raises:
        CheckpointError: If the constructor does not take them.
    """
    arguments = dict(arguments)
    signature = inspect.signature(kind)
    collected = [n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL]
    starred = {name: arguments.pop(name) for name in collected if name in arguments}
    if isinstance(arguments.get("batch_shape"), list | tuple):
        arguments["batch_shape"] = torch.Size(arguments["batch_shape"])
    try:
        bound = signature.bind_partial(**arguments)
        bound.arguments.update(starred)
        with undisturbed():
            return kind(*bound.args, **bound.kwargs)
    except Exception as error:  # a damaged description can raise nearly everything
        raise CheckpointError(
            f"cannot rebuild a {kind.__name__} from its description ({error}). The file may come from another version. "
            "Try to pass the part yourself: load(path, prior=...)."
        ) from error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Construct objects on the CPU without warnings, and restore the state of every random generator."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with generators_restored(cuda), warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore")  # they were given when the object was made first
        yield


def uncompiled(part: Any) -> Any:
    """The module that `torch.compile` wrapped, or the part itself."""
    return getattr(part, "_orig_mod", part) if isinstance(part, nn.Module) else part


def is_number(kind: np.dtype) -> bool:
    """Whether JSON holds the elements of arrays of this dtype exactly."""
    return kind.kind in "biuf" and kind.itemsize <= 8


def _rebuild(description: Any) -> Any:
    if isinstance(description, list):
        return [_rebuild(element) for element in description]
    if not isinstance(description, dict):
        return description
    if "float" in description:
        return float(description["float"])
    if "size" in description:
        return torch.Size(description["size"])
    if "tuple" in description:
        return tuple(_rebuild(element) for element in description["tuple"])
    if "dict" in description:
        return {key: _rebuild(element) for key, element in description["dict"].items()}
    if "array" in description:
        kind = np.dtype(description["of"])
        if not is_number(kind):  # a word of 300 000 000 letters takes a gigabyte
            raise CheckpointError(f"expected an array of numbers, got one of {kind}. The file is damaged.")
        return np.array(description["array"], dtype=kind)
    if "dtype" in description:
        dtype = getattr(torch, description["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"expected the name of a torch dtype, got {description['dtype']!r}. The file is damaged."
            )
        return torch.tensor(description["tensor"], dtype=dtype) if "tensor" in description else dtype
    kind = _find(description.get("class", ""))
    return construct(kind, {key: _rebuild(value) for key, value in description.get("arguments", {}).items()})


def _arguments(value: Any) -> dict[str, Any]:
    """The constructor's arguments of a GPyTorch object, read from its attributes."""
    arguments = {}
    for name, (parameter, owner) in _parameters(type(value)).items():
        special = next(
            (read[name] for kind, read in _SPECIAL.items() if isinstance(value, kind) and name in read), None
        )
        if special is not None:
            found = special(value)
        elif name.endswith("_prior") and isinstance(value, gpytorch.Module):
            found = _prior_of(value, name)
        elif name.endswith("_constraint"):
            found = value.constraint_for_parameter_name(f"raw_{name.removesuffix('_constraint')}")
        elif name in ("initial_value", "transform", "inv_transform"):
            continue  # the state holds the values; the transforms are compared after rebuilding
        elif hasattr(value, name):
            found = getattr(value, name)
            if getattr(found, "__self__", None) is value:  # its own method is the default
                continue
        elif owner.__module__.startswith("gpytorch."):
            continue  # tests show that GPyTorch's own classes come back the same
        else:
            raise CheckpointError(
                f"cannot describe a {type(value).__name__}: expected it to keep the argument {name!r} under its own "
                f"name, got no such attribute. Try self.{name} = {name} in its constructor, or pass the part to load: "
                "load(path, prior=...)."
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


def _rank(kernel: Any) -> int:
    return kernel.task_covar_module.covar_factor.shape[-1]


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
