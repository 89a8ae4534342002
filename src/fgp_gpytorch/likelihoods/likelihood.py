"""What every likelihood offers."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.saving import Configurable


class Likelihood(Configurable, torch.nn.Module, ABC):
    """p(y | z) of the decoder's output, independent over the elements of y.

    Shapes: `output` (*s, G, Q, *y_shape) is what the decoder gives, `y` (G, Q, *y_shape), `observed` a boolean of the
    shape of y, True where an element was observed.
    """

    @abstractmethod
    def distribution(
        self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The distribution of the elements of y, batch shape that of `output`.

        Args:
            output: The decoder's output.
            y: The observations, for a likelihood that fits itself to them (a maximum-likelihood variance).
            observed: Which of them count.
        """

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[y | z], the shape of `output`."""

    def log_prob(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(y | z) summed over the observed elements of each member, nats, (*s, G, Q)."""
        terms = self.distribution(output, y, observed).log_prob(y)
        if observed is not None:
            terms = torch.where(observed, terms, 0.0)
        return sum_per_member(terms, y)


def sum_per_member(terms: Tensor, y: Tensor) -> Tensor:
    """Sum (*s, G, Q, *y_shape) over the elements of y (G, Q, *y_shape), to (*s, G, Q)."""
    return terms.flatten(terms.dim() - y.dim() + 2).sum(-1) if y.dim() > 2 else terms
