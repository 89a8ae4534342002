"""A pretended second device, for machines without one.

A tensor on it calls its device "meta" and holds its numbers on the CPU. An operation that mixes it with a tensor on the
CPU raises an error, as on a GPU. So do NumPy conversions and generators of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")


class PretendedTensor(Tensor):
    """A tensor that says that it is on another device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers):
        made = Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, layout=numbers.layout, device=DEVICE, requires_grad=numbers.requires_grad,
        )  # fmt: skip
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def is_meta(self) -> bool:
        return False

    def __repr__(self, **options: Any) -> str:
        return f"pretended {self.numbers!r}"

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy = PretendedTensor(self.numbers.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert a tensor on another device to numpy. Use Tensor.cpu().")

    def __array__(self, *options: Any) -> Any:
        return self.numpy()

    # PyTorch's own forms refuse subclasses or "meta"
    def tolist(self) -> Any:
        return self.numbers.tolist()

    def item(self) -> Any:
        return self.numbers.item()

    def __int__(self) -> int:
        return int(self.numbers)

    def __float__(self) -> float:
        return float(self.numbers)

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def __index__(self) -> int:
        return self.numbers.__index__()

    def __format__(self, spec: str) -> str:
        return format(self.numbers, spec)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, PretendedTensor)


def _may_mix(name: str, args: Any) -> bool:
    """Copies take two devices, and so does an index on the CPU into a tensor on a device."""
    indexed = name.startswith("index") or name == "_index_put_impl_"
    return name in ("_to_copy", "copy_") or (indexed and isinstance(args[0], PretendedTensor))


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    leaves, spec = tree_flatten((args, kwargs))
    pretended = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
    wanted = kwargs.get("device")
    on_device = bool(pretended) if wanted is None else torch.device(wanted).type == DEVICE.type
    if pretended and any(_is_plain(leaf) and leaf.dim() > 0 for leaf in leaves) and not _may_mix(name, args):
        raise RuntimeError(f"expected all tensors on one device in {name}, got two devices")
    if on_device and kwargs.get("generator") is not None:
        raise RuntimeError(f"expected a generator of the device in {name}, got one of the CPU")
    if pretended and "pin_memory" in name:
        raise RuntimeError("cannot pin a tensor on a device")
    plain = [leaf.numbers if isinstance(leaf, PretendedTensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(plain, spec)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(leaf.numbers): leaf for leaf in pretended}

    def wrap(value: Any) -> Any:
        if not on_device or not _is_plain(value):
            return value
        return known[id(value)] if id(value) in known else PretendedTensor(value)

    return tree_map(wrap, func(*args, **kwargs))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Functions that build their tensor below the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        made = func in (torch.tensor, torch.as_tensor, torch.fft.fftfreq) and kwargs.get("device") is not None
        if not made or torch.device(kwargs["device"]).type != DEVICE.type:
            return func(*args, **kwargs)
        kwargs.pop("device")
        return func(*args, **kwargs).to(DEVICE)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Within this context `tensor.to(device)` moves a tensor to the pretended device."""
    with _Constructors(), _Dispatch():
        yield DEVICE
