"""Objects that remember how they were made, so that a saved model can be rebuilt without pickled code."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


class Configurable:
    """Records the arguments of the outermost constructor in `constructor_arguments`.

    Subclass it beside `torch.nn.Module` to make a network that `FGPVAE.save` can describe; arguments must be
    numbers, strings, None, lists, tensors, or objects that can be described in turn (other Configurables, GPyTorch
    kernels, priors and constraints). Keep it first among the bases.
    """

    constructor_arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the subclass's own constructor; an inherited one is wrapped already."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        original: Callable[..., None] = cls.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def recording_init(self: Any, *args: Any, **keywords: Any) -> None:
            if "constructor_arguments" not in self.__dict__:  # the outermost constructor comes first
                bound = signature.bind(self, *args, **keywords)
                recorded = {}
                for name, value in list(bound.arguments.items())[1:]:
                    kind = signature.parameters[name].kind
                    if kind is inspect.Parameter.VAR_KEYWORD:
                        recorded.update(value)
                    else:
                        recorded[name] = list(value) if kind is inspect.Parameter.VAR_POSITIONAL else value
                # not through Module.__setattr__: the arguments are a record, not submodules
                self.__dict__["constructor_arguments"] = recorded
            original(self, *args, **keywords)

        cls.__init__ = recording_init  # pyright: ignore[reportAttributeAccessIssue]
