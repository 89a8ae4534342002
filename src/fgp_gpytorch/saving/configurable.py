"""Objects that record their constructor's arguments."""

import contextlib
import inspect
from typing import Any, Self

import torch
from torch import nn


class Configurable:
    """Records the arguments of the outermost constructor in `constructor_arguments`.

    Derive a network from it and from `torch.nn.Module`, and `FGPVAE.save` can describe the network. The arguments may
    be numbers, strings, None, lists, dictionaries, arrays, tensors, GPyTorch kernels, means, priors and constraints,
    and Configurables.

    Examples:
        >>> class Encoder(Configurable, torch.nn.Module):
        ...     def __init__(self, width, activation="elu"):
        ...         super().__init__()
        >>> Encoder(width=8).constructor_arguments
        {'width': 8}
    """

    constructor_arguments: dict[str, Any]

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Record the arguments. A copy is made without arguments, and receives the record with its state."""
        self = super().__new__(cls)
        recorded: dict[str, Any] = {}
        signature = inspect.signature(cls)
        with contextlib.suppress(TypeError):  # wrong arguments: the constructor raises, with its own name
            recorded.update(signature.bind_partial(*args, **keywords).arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    recorded.update(recorded.pop(name, {}))
        # not through Module.__setattr__, which would register the arguments as submodules
        self.__dict__["constructor_arguments"] = {name: _kept(value) for name, value in recorded.items()}
        return self


def current_arguments(value: Configurable) -> dict[str, Any]:
    """The recorded arguments. A part that was replaced since is the part in use.

    A recorded module that the object no longer contains was replaced. The attribute of the argument's name takes its
    place. An attribute that wraps the recorded module is not an argument.
    """
    arguments = dict(value.constructor_arguments)
    if not isinstance(value, nn.Module):
        return arguments
    contained = set(value.modules())
    for name, recorded in arguments.items():
        used = value._modules.get(name)
        if isinstance(used, nn.ModuleList) and not isinstance(recorded, nn.Module):
            arguments[name] = list(used)
        elif used is not None and isinstance(recorded, nn.Module) and recorded not in contained:
            arguments[name] = used
    return arguments


def _kept(value: Any) -> Any:
    """An argument as it is now: later changes of a list or a tensor change nothing."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_kept(element) for element in value)
    if type(value) is dict:
        return {key: _kept(element) for key, element in value.items()}
    return value
