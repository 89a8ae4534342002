"""Log density of hyperparameters under the GPyTorch priors registered on them."""

import gpytorch
import torch
from torch import Tensor


def log_hyperprior(module: gpytorch.Module, dtype: torch.dtype) -> Tensor:
    """Sum of the log densities of all registered priors, nats, a scalar.

    Args:
        module: The prior whose hyperparameters count; a kernel that it holds twice has one hyperprior.
        dtype: Of the sum.

    Returns:
        Zero if there are none.
    """
    parameter = next(module.parameters(), None)
    total = torch.zeros((), dtype=dtype, device=None if parameter is None else parameter.device)
    seen = set()
    for _, owner, prior, closure, _ in module.named_priors():
        if (id(owner), id(prior)) in seen:
            continue
        seen.add((id(owner), id(prior)))
        total = total + prior.log_prob(closure(owner)).sum()
    return total
