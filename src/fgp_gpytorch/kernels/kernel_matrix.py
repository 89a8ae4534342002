"""The matrix of any GPyTorch kernel as a tensor, with derivatives that are right or refused."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from gpytorch import settings
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import ArgumentError


def kernel_matrix(kernel: Kernel, x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """Evaluate a kernel, (*b, N, M).

    `RBFKernel` and `MaternKernel` of GPyTorch have written-out gradients that are constants to autograd. A second
    derivative through them would be wrong without notice. `gpytorch.settings.trace_mode` switches them off, as this
    function does under transforms of torch.func.

    Raises:
        ArgumentError: In the backward pass, if a second derivative is asked for through such a gradient.

    Examples:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> kernel_matrix(gpytorch.kernels.RBFKernel(), x, torch.tensor([[0.0], [100.0]])).detach()
        tensor([[1.0000, 0.0000],
                [0.3532, 0.0000]])
    """
    trace = settings.trace_mode.on() or transforms_active(x1)
    with settings.lazily_evaluate_kernels(False), settings.trace_mode(trace):
        matrix = kernel(x1, x2).to_dense()
    if matrix.grad_fn is not None and not trace:
        # a hook that kept its own node would never be freed; the nodes below live as long as this one
        here, below, name = _is_written_out(matrix.grad_fn), matrix.grad_fn.next_functions, type(kernel).__name__

        def refuse_second_derivative(gradient: Tensor) -> None:
            if torch.is_grad_enabled() and (here or any(map(_is_written_out, _nodes(below)))):
                raise ArgumentError(
                    f"kernel {name}: expected one derivative of its parameters (create_graph=False), got a request for "
                    "a second one, which GPyTorch's written-out gradient does not have. Try "
                    "`with gpytorch.settings.trace_mode():` around the computation of the posterior."
                )

        matrix.register_hook(refuse_second_derivative)
    return matrix


def _is_written_out(node: Any) -> bool:
    module = getattr(getattr(type(node), "_forward_cls", None), "__module__", "")
    return module.startswith(("gpytorch.", "linear_operator."))


def _nodes(functions: Iterable[tuple[Any, int]]) -> Iterator[Any]:
    """The nodes of a graph from some `next_functions` on."""
    seen, waiting = set(), [node for node, _ in functions]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
