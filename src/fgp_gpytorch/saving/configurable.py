"""Objects that record their constructor's arguments."""

import contextlib
import inspect
from typing import Any, Self


class Configurable:
    """Records the arguments of the outermost constructor in `constructor_arguments`.

    Derive a network from it and from `torch.nn.Module`, and `FGPVAE.save` can describe the network. The arguments may
    be numbers, strings, None, lists, tensors, GPyTorch kernels, means, priors and constraints, and Configurables.
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
        self.__dict__["constructor_arguments"] = recorded
        return self
