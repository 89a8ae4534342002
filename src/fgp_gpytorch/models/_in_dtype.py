"""A distribution whose log density has another dtype than its values."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class InDtype(dist.Independent):
    """A distribution with its log density in the dtype of the Gaussian algebra, as those of a program's other sites.

    Pyro's `TraceEnum_ELBO` multiplies log densities of sites, and takes no two dtypes. Values keep theirs.

    Args:
        base: The distribution.
        dtype: Of its log density.
    """

    def __init__(self, base: Any, dtype: torch.dtype) -> None:
        super().__init__(base, 0, validate_args=False)
        self.dtype = dtype

    def expand(self, batch_shape: Any, _instance: Any = None) -> "InDtype":
        """See Pyro's `expand`."""
        return InDtype(self.base_dist.expand(torch.Size(batch_shape)), self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, in the dtype."""
        return self.base_dist.log_prob(value).to(self.dtype)
