"""A cached property with separate values for enabled and disabled gradients."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def cached_by_grad_mode(method: Callable[[Any], Any]) -> property:
    """Make a property that is computed once with gradients and once without.

    A value read under `torch.no_grad` has no graph, so it must not serve a later loss.

    Examples:
        >>> class Answer:
        ...     @cached_by_grad_mode
        ...     def value(self):
        ...         print("computed")
        ...         return 42
        >>> answer = Answer()
        >>> answer.value, answer.value
        computed
        (42, 42)
    """
    keys = f"{method.__name__} without gradients", f"{method.__name__} with gradients"

    @functools.wraps(method)
    def cached(self: Any) -> Any:
        key, values = keys[torch.is_grad_enabled()], self.__dict__
        if key not in values:
            values[key] = method(self)
        return values[key]

    return property(cached)
