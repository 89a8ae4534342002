"""Base class of the likelihoods."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.saving import Configurable


class Score(NamedTuple):
    """Fit of a decoder's output to the observations, summed over the observed elements of each group.

    Attributes:
        log_prob: log p(y | z), nats, (*s, G).
        squared_error: (E[y | z] - y)^2, units of y squared, (*s, G).
        num_elements: Observed elements, (G,).
    """

    log_prob: Tensor
    squared_error: Tensor
    num_elements: Tensor


class Likelihood(Configurable, torch.nn.Module, ABC):
    """p(y | z) of the decoder's output, independent over the elements of y.

    Shapes: `output` (*s, G, Q, *y_shape) is the decoder's output, `y` (G, Q, *y_shape) the observations, `observed` a
    boolean of the shape of y, True where an element was observed.
    """

    @abstractmethod
    def distribution(
        self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The distribution of the elements of y, with the batch shape of `output`.

        Args:
            output: The decoder's output.
            y: The observations, for a likelihood that fits itself to them (a maximum-likelihood variance).
            observed: Which of them count; None for all.
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

    def score(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Score:
        """Log probability and squared error of each group, in one pass."""
        squared_error, num_elements = self.squared_error(output, y, observed)
        return Score(self.log_prob(output, y, observed).sum(-1), squared_error, num_elements)

    def squared_error(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The squared error of E[y | z] summed over each group's observed elements (*s, G), and their number (G,)."""
        squares = (self.mean(output) - y).square()
        if observed is None:
            num_elements = squares.new_full(y.shape[:1], y[0].numel())
        else:
            squares = torch.where(observed, squares, 0.0)
            num_elements = observed.flatten(1).sum(-1).to(squares.dtype)
        return squares.flatten(output.dim() - y.dim() + 1).sum(-1), num_elements


def sum_per_member(terms: Tensor, y: Tensor) -> Tensor:
    """Sum (*s, G, Q, *y_shape) over the elements of y (G, Q, *y_shape), to (*s, G, Q)."""
    return terms.flatten(terms.dim() - y.dim() + 2).sum(-1) if y.dim() > 2 else terms
