"""The parameters of models in Pyro's parameter store, which is global.

A model's parameters are stored under the name of its class, as "FGPVAE.encoder...". While another model of the class is
in the store, the name is "FGPVAE_1", and so on. The owner of an entry is the model that registered it. An entry without
an owner was loaded by `pyro.get_param_store().load`, and its value goes into the model.
"""

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import CheckpointError

_names: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()
_owners: Any = WeakIdKeyDictionary()  # by the stored tensor: a weak reference to the model that registered it


class _PicklableReference(weakref.ref):
    """Pyro's weak reference from a parameter to itself. A pickle or a copy does not contain it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def register(model: nn.Module) -> None:
    """Register the parameters of a model that require gradients, under the model's name.

    Raises:
        CheckpointError: If the store was loaded from a file whose parameters are not those of this model.
    """
    stored = dict(pyro.get_param_store().named_parameters())
    name = _names[model] = _name_of(model, stored)
    entries = _entries(stored, name)
    own = dict(model.named_parameters())
    if loaded := {key: tensor for key, tensor in entries.items() if tensor not in _owners}:
        _check(model, own, loaded, entries, name)
        with torch.no_grad():
            for key, tensor in loaded.items():
                own[key].copy_(tensor)
    for key, tensor in entries.items():
        if own.get(key) is not tensor:  # loaded, or of a part that was replaced
            del pyro.get_param_store()[f"{name}.{key}"]
    for key, parameter in own.items():
        if parameter.requires_grad:
            if not parameter.is_contiguous():  # the store would hold a copy
                parameter.data = parameter.data.contiguous()
            pyro.param(f"{name}.{key}", parameter)
            _owners[parameter] = weakref.ref(model)
            vars(parameter)["unconstrained"] = _PicklableReference(parameter)


def _name_of(model: nn.Module, stored: dict[str, Tensor]) -> str:
    """The model's present name, else the name of parameters that were loaded, else the first that is free."""
    present, kind = _names.get(model), type(model).__name__
    if present is not None and _is_free(model, present, stored) and _entries(stored, present):
        return present
    loaded, free = [], ""
    for number in itertools.count():
        name = f"{kind}_{number}" if number else kind
        entries = _entries(stored, name)
        if _is_free(model, name, stored):
            free = free or name
            if any(tensor not in _owners for tensor in entries.values()):
                loaded.append(name)
        if not entries and number and free:
            break
    if len(loaded) > 1:
        check.warn(
            f"Pyro's parameter store was loaded with the parameters of several models of the class {kind}: "
            f"{', '.join(loaded)}. This model takes those of {loaded[0]}. Try to run the models in their old order.",
        )
    return loaded[0] if loaded else free


def _is_free(model: nn.Module, name: str, stored: dict[str, Tensor]) -> bool:
    """Whether no other model that exists has registered an entry of this name."""
    own = {id(parameter) for parameter in model.parameters()}  # two models may share parts
    owners = {_owner(tensor) for tensor in _entries(stored, name).values() if id(tensor) not in own}
    return owners <= {None, model}


def _owner(tensor: Tensor) -> nn.Module | None:
    reference = _owners.get(tensor)
    return None if reference is None else reference()


def _entries(stored: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")}


def _check(
    model: nn.Module, own: Mapping[str, Tensor], loaded: dict[str, Tensor], entries: dict[str, Tensor], name: str
) -> None:
    wrong = [f"{key} {tuple(t.shape)}" for key, t in loaded.items() if key not in own or own[key].shape != t.shape]
    absent = [f"no {key}" for key, parameter in own.items() if parameter.requires_grad and key not in entries]
    if wrong or absent:
        kind = type(model).__name__
        raise CheckpointError(
            f"pyro.get_param_store(): expected under {name!r} the parameters of this {kind}, got "
            f"{', '.join([*wrong, *absent][:4])}. Try the {kind} that was saved, with the same parameters fixed, "
            f"pyro.clear_param_store(), or model.save(path) and {kind}.load(path), which also keep options and buffers."
        )
