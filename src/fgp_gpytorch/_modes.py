"""Training and evaluation mode, the mode of differentiation, and the state of the random generators."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fgp_gpytorch import _checks as check


@contextmanager
def generators_restored(cuda: Iterable[int] = ()) -> Iterator[None]:
    """Restore the global generators of PyTorch, NumPy and Python, and those of some CUDA devices."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002  # the global generator
    with torch.random.fork_rng(devices=list(cuda)):
        try:
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, then restore the mode of each of its parts: some may be frozen."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def evaluation(module: nn.Module, seed: int | None = None) -> Iterator[torch.device]:
    """Put a module in evaluation mode without gradients. The mode and the global random numbers are restored.

    Args:
        module: The module.
        seed: Of the random numbers inside. None uses the global generator.

    Yields:
        The device of the module's parameters.

    Raises:
        ArgumentError: If it is not a module.
    """
    check.instance(module, "model", nn.Module, "Try a trained model.")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    forked = [device] if device.type == "cuda" else []
    with evaluation_mode(module), torch.no_grad(), torch.random.fork_rng(devices=forked, enabled=seed is not None):
        if seed is not None:
            # not torch.manual_seed, which also seeds the generators of all other devices
            torch.default_generator.manual_seed(seed)
            if forked:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield device


def transforms_active(*tensors: Tensor) -> bool:
    """Whether a transform of torch.func is active, or a tensor has a forward-mode derivative.

    An `autograd.Function` with a written-out gradient serves neither. Plain operations serve both.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
