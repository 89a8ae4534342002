"""What was changed in a module since its constructor: found by comparison with a module that was rebuilt.

A change is JSON under the dotted name of what it sets:

| change | sets |
| --- | --- |
| {"module": description} | another module; None removes it |
| {"prior": description, "of": name} | a hyperprior that was registered on an attribute |
| {"tensor": "parameter"} or {"tensor": "buffer"} | a tensor of another shape, or a new one; None removes it |
| {"same": name} | the module or parameter of another name, which is shared |
| {"option": value} | an attribute that has the name of a constructor's argument |
| {"attribute": value} | another attribute with a plain value |
| {"missing": class, "reason": text} | nothing: the module cannot be described, and `load` needs it as an argument |
"""

import contextlib
import functools
import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.saving.description import describe, is_number, rebuild, uncompiled

# attributes of every module, which its constructor's arguments or its state determine
_INTERNAL = frozenset(vars(nn.Module())) | frozenset(vars(gpytorch.Module())) | {"constructor_arguments"}
_ABSENT = object()

Changes = dict[str, dict[str, Any]]


def find_changes(again: nn.Module, used: nn.Module, parts_may_miss: bool = False) -> Changes:
    """What must be set in `again`, rebuilt from a description, to make it the module in use. `again` is changed.

    Args:
        again: A module of the same class.
        used: The module in use.
        parts_may_miss: Whether a direct part that cannot be described gives a change {"missing": ...}.

    Raises:
        CheckpointError: If the two differ in something that cannot be described.
    """
    comparison = _Comparison(again, used)
    comparison.compare(again, used, "", parts_may_miss)
    comparison.compare_shared_parameters()
    return comparison.found


def apply_changes(module: nn.Module, changes: Changes, state: Mapping[str, Tensor], without: Iterable[str]) -> None:
    """Make the changes in a module that was rebuilt.

    Args:
        module: The module.
        changes: Of `find_changes`.
        state: Tensors by their names, for new ones.
        without: Names of parts that stay as they are.

    Raises:
        CheckpointError: If a change does not fit the module.
    """
    for path, change in changes.items():
        part = path.split(".")[0]
        if part in without:
            continue
        try:
            _apply(module, path, change, state)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"cannot set {path} in the model that was rebuilt ({error!r}). The file may come from another version. "
                f"Try to pass the part yourself: load(path, {part}=...)."
            ) from error


def structure_of(module: nn.Module) -> list[Any]:
    """What a description depends on, cheaper than the description: two equal results have equal descriptions.

    Examples:
        >>> model = MLP(3, 2)
        >>> before = structure_of(model)
        >>> before == structure_of(model)
        True
        >>> frozen = model[0].weight.requires_grad_(False)
        >>> before == structure_of(model)
        False
    """
    parts = [(name, id(part), _values(part)) for name, part in module.named_modules(remove_duplicate=False)]
    named = module.named_parameters(remove_duplicate=False)
    return [parts, [(name, id(tensor), tensor.shape, tensor.requires_grad) for name, tensor in named]]


def own_name(name: str) -> str:
    """The name of a tensor without the prefixes that `torch.compile` adds to parts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class _Comparison:
    """A walk through two modules in parallel. `found` collects the changes, which are made in the first."""

    def __init__(self, again: nn.Module, used: nn.Module) -> None:
        self.again, self.used, self.found = again, used, Changes()
        self._state = {own_name(name): tensor.detach().cpu() for name, tensor in used.state_dict().items()}
        self._memory = {tensor.untyped_storage().data_ptr() for tensor in used.state_dict().values()}
        self._names: dict[int, str] = {}  # of the modules in use, by identity
        self._taken: set[int] = set()  # modules of the rebuilt one that have a counterpart

    def compare(self, again: nn.Module, used: nn.Module, path: str, parts_may_miss: bool = False) -> None:
        """Compare two modules of one class and their parts."""
        if _kind(again) is not _kind(used):
            raise _different(path.rstrip("."), _kind(again).__name__, _kind(used).__name__)
        self._compare_attributes(again, used, path)
        self._compare_tensors(again, used, path)
        self._compare_hyperpriors(again, used, path)
        for name, child in used._modules.items():
            self._compare_child(again, name, uncompiled(child), f"{path}{name}", parts_may_miss)
        for name in [name for name in again._modules if name not in used._modules]:
            self._change(f"{path}{name}", {"module": None})

    def compare_shared_parameters(self) -> None:
        """Compare which names share a parameter."""
        for name, first in _shared(self.used).items():
            if _shared(self.again).get(name) != first:
                self._change(name, {"tensor": "parameter"} if name == first else {"same": first})

    def _change(self, path: str, change: dict[str, Any]) -> None:
        self.found[path] = change
        _apply(self.again, path, change, self._state)

    def _compare_attributes(self, again: nn.Module, used: nn.Module, path: str) -> None:
        options = inspect.signature(_kind(used)).parameters
        for name in sorted((vars(used).keys() | vars(again).keys()) - _INTERNAL):
            here, there = vars(used).get(name, _ABSENT), vars(again).get(name, _ABSENT)
            cache = name.startswith("_") and (there is None or there is _ABSENT)  # made when it is first needed
            if _is_plain(here) or (self._is_own_tensor(here) and (name in options or not cache)):
                if not _is_same(here, there):
                    self._change(f"{path}{name}", {"option" if name in options else "attribute": describe(here)})
            elif there is _ABSENT:  # a function of the caller's own, unless it replaces a method
                if callable(here) and path and hasattr(type(used), name):
                    raise _different(f"{path}{name}", there, here)
            elif not (_same_function(here, there) if callable(here) else cache or not path or _is_same(here, there)):
                raise _different(f"{path}{name}", there, here)

    def _is_own_tensor(self, value: Any) -> bool:
        """Whether a value holds tensors or arrays of numbers that the state does not determine."""
        if isinstance(value, list | tuple):
            return all(_is_plain(element) or self._is_own_tensor(element) for element in value)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.layout is torch.strided:
            computed = value.grad_fn is not None or value.is_complex() or value.is_quantized or value.is_meta
            return not computed and value.untyped_storage().data_ptr() not in self._memory
        return isinstance(value, np.ndarray) and is_number(value.dtype)

    def _compare_tensors(self, again: nn.Module, used: nn.Module, path: str) -> None:
        for kind in ("parameter", "buffer"):
            here, there = vars(used)[f"_{kind}s"], vars(again)[f"_{kind}s"]
            for name in sorted(here.keys() | there.keys()):
                mine, other = here.get(name), there.get(name)
                if kind == "buffer" and mine is not None and f"{path}{name}" not in self._state:
                    if other is None or not torch.equal(mine.cpu(), other.cpu().to(mine.dtype)):
                        raise _different(f"{path}{name}", "a buffer", "another one that is not part of the state")
                elif mine is None and other is not None and name not in vars(used)["_buffers"]:
                    self._change(f"{path}{name}", {"tensor": None})
                elif mine is not None and (other is None or other.shape != mine.shape):
                    self._change(f"{path}{name}", {"tensor": kind})

    def _compare_hyperpriors(self, again: nn.Module, used: nn.Module, path: str) -> None:
        there = _hyperpriors(again)
        for name, (prior, closure) in _hyperpriors(used).items():
            if name in there and _same_function(closure, there[name][1]):
                continue
            attribute = inspect.getclosurevars(closure).nonlocals.get("param") if inspect.isfunction(closure) else None
            if not isinstance(attribute, str):  # GPyTorch's own closure contains the name
                raise _different(f"{path}{name}", "no such hyperprior", "one on a function of the parameters")
            self._change(f"{path}{name}", {"prior": describe(prior), "of": attribute})

    def _compare_child(self, again: nn.Module, name: str, child: Any, path: str, may_miss: bool) -> None:
        other = again._modules.get(name)
        if child is None:
            if other is not None:
                self._change(path, {"module": None})
            return
        if "." in name:
            raise _different(path, "names of parts without a dot", name)
        if id(child) in self._names:  # compared already
            if self.again.get_submodule(self._names[id(child)]) is not other:
                self._change(path, {"same": self._names[id(child)]})
            return
        self._names[id(child)] = path
        if other is not None and _have_no_state(other, child):  # GPyTorch's constraints share one nn.Softplus
            return
        before, reason = (dict(self._names), dict(self.found)), None
        if other is not None and id(other) not in self._taken:
            self._taken.add(id(other))
            try:
                self.compare(other, child, f"{path}.")
                return
            except CheckpointError as error:
                reason = error
                self._names, self.found = before
        try:
            self._change(path, {"module": describe(child)})
            other = again._modules[name]
            assert other is not None
            self._taken.add(id(other))
            self.compare(other, child, f"{path}.")
        except CheckpointError as error:
            if not may_miss:
                raise reason or error from error
            why = str(reason or error)
            self._names, self.found = before
            self.found[path] = {"missing": f"{type(child).__module__}.{type(child).__qualname__}", "reason": why}
            again._modules[name] = child


def _apply(module: nn.Module, path: str, change: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    owner_name, _, name = path.rpartition(".")
    owner = module.get_submodule(owner_name)
    if "module" in change:
        owner._modules.pop(name, None)
        if change["module"] is not None:
            _put(owner, name, rebuild(change["module"]))
    elif "prior" in change and isinstance(owner, gpytorch.Module):
        owner.register_prior(name, rebuild(change["prior"]), change["of"])
    elif "tensor" in change:
        for attributes in (vars(owner), owner._parameters, owner._buffers):
            attributes.pop(name, None)
        kind, tensor = change["tensor"], None if change["tensor"] is None else state[path].clone()
        if kind == "buffer":
            owner.register_buffer(name, tensor)
        else:
            owner.register_parameter(name, None if tensor is None else nn.Parameter(tensor, tensor.is_floating_point()))
    elif "same" in change:
        if name in owner._parameters:
            owner.register_parameter(name, module.get_parameter(change["same"]))
        else:
            _put(owner, name, module.get_submodule(change["same"]))
    elif "missing" not in change:
        if name in _INTERNAL or name.startswith("__"):
            raise KeyError(name)
        vars(owner)[name] = rebuild(change["option" if "option" in change else "attribute"])


def _put(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Set a part. GPyTorch also records constraints and hyperpriors."""
    registered = _hyperpriors(owner).get(name)
    parameter = name.removesuffix("_constraint")
    owner._modules[name] = module
    if isinstance(owner, gpytorch.Module) and isinstance(module, Interval) and parameter in owner._parameters:
        owner.register_constraint(parameter, module)
    elif isinstance(owner, gpytorch.Module) and isinstance(module, Prior) and registered is not None:
        owner.register_prior(name, module, registered[1])


def _hyperpriors(module: nn.Module) -> dict[str, tuple[Prior, Any]]:
    """The hyperpriors that a GPyTorch module itself registered, with the functions of what they are on."""
    if not isinstance(module, gpytorch.Module):
        return {}
    return {name: (prior, closure) for name, owner, prior, closure, _ in module.named_priors() if owner is module}


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of a module. A parametrization makes a subclass for every module."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def _shared(module: nn.Module) -> dict[str, str]:
    """The first name of the parameter of each name."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {own_name(name): first.setdefault(id(parameter), own_name(name)) for name, parameter in named}


def _values(module: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
    return {name: repr(value) if _is_plain(value) else id(value) for name, value in own.items()}


def _have_no_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules of one class have equal attributes, and neither tensors nor parts."""
    tensors = any([*module._parameters, *module._buffers, *module._modules] != [] for module in (first, second))
    if tensors or type(first) is not type(second):
        return False
    here, there = ({k: v for k, v in vars(module).items() if k not in _INTERNAL} for module in (first, second))
    return _is_same(here, there)


def _is_same(first: Any, second: Any, depth: int = 0) -> bool:
    """Whether two values are equal. Values that cannot be compared count as equal."""
    if first is second or depth > 8 or isinstance(first, nn.Module | nn.Parameter | weakref.ReferenceType):
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.grad_fn is not None or (first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu()))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and bool(np.array_equal(first, second))
    if type(first) in (list, tuple):
        return len(first) == len(second) and all(_is_same(a, b, depth + 1) for a, b in zip(first, second, strict=True))
    if type(first) is dict:
        return first.keys() == second.keys() and all(_is_same(first[k], second[k], depth + 1) for k in first)
    if inspect.isroutine(first) or isinstance(first, functools.partial):
        return _same_function(first, second, depth)
    if type(first).__eq__ is not object.__eq__:
        with contextlib.suppress(Exception):  # a table has no single answer
            return bool(first == second)
        return True
    if type(first).__module__.startswith("torch._") or not hasattr(first, "__dict__"):
        return True
    common = [name for name in vars(first) if name in vars(second) and not name.startswith("__")]
    return all(
        (name.startswith("_") and vars(second)[name] is None)
        or _is_same(vars(first)[name], vars(second)[name], depth + 1)
        for name in common
    )


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, None, a dtype, or a list, tuple or dictionary of such."""
    if type(value) in (list, tuple, torch.Size):
        return all(_is_plain(element) for element in value)
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(element) for key, element in value.items())
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | np.generic)


def _same_function(first: Any, second: Any, depth: int = 0) -> bool:
    """Whether two functions are one, or were made by one line of code from equal values."""
    if first is second or depth > 8:
        return True
    if type(first) is not type(second):
        return False
    if inspect.ismethod(first):
        return first.__func__ is second.__func__ and _is_same(first.__self__, second.__self__, depth + 1)
    if isinstance(first, functools.partial):
        held = [(function.args, function.keywords) for function in (first, second)]
        return _same_function(first.func, second.func, depth + 1) and _is_same(held[0], held[1], depth + 1)
    if not inspect.isfunction(first):
        return not isinstance(first, type) and not inspect.isbuiltin(first) and _is_same(first, second, depth + 1)
    if first.__code__ is not second.__code__:
        return False
    cells = [[cell.cell_contents for cell in function.__closure__ or ()] for function in (first, second)]
    defaults = [[function.__defaults__, function.__kwdefaults__] for function in (first, second)]
    return _is_same(cells[0] + defaults[0], cells[1] + defaults[1], depth + 1)


def _different(path: str, rebuilt: Any, used: Any) -> CheckpointError:
    rebuilt, used = (value if isinstance(value, str) else f"{value!r:.80}" for value in (rebuilt, used))
    return CheckpointError(
        f"the description does not make the same module: {path or 'it'} is expected to be {rebuilt}, got {used}. It "
        "was changed after it was made, or its constructor keeps an argument in another form."
    )
