"""A limit on what the constructors of a saved model may allocate."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fgp_gpytorch.errors import CheckpointError

_ROOM = 2**24  # elements besides those of the file: constants that a constructor computes and a file does not hold
_COPIES = 8  # of the file's elements: a constructor makes a tensor, casts it, expands it


class AllocationLimit(TorchDispatchMode):
    """Compares the sizes that constructors ask for with the tensors of a file, before memory is allocated.

    Every operation runs on the meta device first, which computes shapes alone.

    Args:
        tensors: The tensors of the file.

    Raises:
        CheckpointError: Inside the context, if an operation would exceed the limit.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        # an expanded tensor has fewer elements in memory than its shape says
        self._available = sum(min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in tensors)
        self._left = _COPIES * self._available + _ROOM

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation if its results fit."""
        kwargs = kwargs or {}
        if not (func._schema.is_mutable or func.is_view):
            self._left -= _elements_of(func, args, kwargs)
            if self._left < 0:
                raise CheckpointError(
                    f"the description asks for more memory than the {self._available} elements of the file's tensors "
                    "need. The file is damaged, or was not written by this package"
                )
        return func(*args, **kwargs)


def _elements_of(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """The number of new elements in the results of an operation."""
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    meta_args, meta_kwargs = tree_map(
        lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    if "device" in {argument.name for argument in func._schema.arguments}:
        meta_kwargs = {**meta_kwargs, "device": "meta"}
    try:
        results = func(*meta_args, **meta_kwargs)
    except (RuntimeError, TypeError):  # the result depends on values, and has at most the size of its inputs
        return sum(tensor.numel() for tensor in inputs)
    return sum(leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, Tensor))
