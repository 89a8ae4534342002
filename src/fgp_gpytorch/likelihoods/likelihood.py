"""Base class of the likelihoods."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.likelihoods.elements import column_means
from fgp_gpytorch.saving import Configurable

_ROWS_AT_ONCE = 4096  # of `check_data`


class Score(NamedTuple):
    """Fit of a decoder's output to the observations, summed over the observed elements of each group.

    Attributes:
        log_prob: log p(y | z), nats, (*s, G).
        squared_error: (E[y | z] - y)^2, units of y squared, (*s, G).
        num_elements: Observed elements, (G,).

    Examples:
        >>> y, output = torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 1)
        >>> GaussianLikelihood("fixed", variance=0.5).score(output, y)
        Score(log_prob=tensor([-2.1447]), squared_error=tensor([1.]), num_elements=tensor([2.]))
    """

    log_prob: Tensor
    squared_error: Tensor
    num_elements: Tensor


class Likelihood(Configurable, torch.nn.Module, ABC):
    """p(y | z) of the decoder's output, independent over the elements of y.

    Shapes: `output` (*s, G, Q, *y_shape) is the decoder's output, `y` (G, Q, *y_shape) the observations, `observed` a
    boolean of the shape of y, True where an element was observed. `output_shape` may set another shape of `output`.

    A subclass defines `distribution` and `mean`, and may define `check_range`, `gap_value`, `output_shape` and
    `without_gaps`. Its `distribution` gets no value that was not observed: `without_gaps` puts observed values in the
    place of padding and gaps.

    Examples:
        >>> class Laplace(Likelihood):
        ...     def distribution(self, output, y=None, observed=None):
        ...         return pyro.distributions.Laplace(output, 0.5)
        ...     def mean(self, output):
        ...         return output
        >>> Laplace().log_prob(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))  # nats of each of 3 members
        tensor([[0., 0., 0.]])
    """

    @abstractmethod
    def distribution(
        self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The distribution of the elements of y, with their batch shape.

        Args:
            output: The decoder's output.
            y: The observations, for a likelihood that fits itself to them (a maximum-likelihood variance).
            observed: Which of them count; None for all.
        """

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[y | z], (*s, G, Q, *y_shape)."""

    def output_shape(self, y_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output for one observation: here the shape of y itself.

        A subclass whose elements need several outputs returns another shape.

        Args:
            y_shape: Shape of one observation.
        """
        return tuple(y_shape)

    def without_gaps(self, output: Tensor, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs and observations, with harmless ones where nothing was observed: those of `observed_pair`.

        Outputs of another shape than y stay as they are.

        Args:
            output: The decoder's output, (*s, G, Q, *output_shape).
            y: Observations, (G, Q, *y_shape).
            observed: True where an element was observed, the shape of y; None for everywhere.
        """
        if self.output_shape(y.shape[2:]) == tuple(y.shape[2:]):
            return observed_pair(output, y, observed)
        return output, observed_pair(y, y, observed)[1]

    def check_range(self, y: Tensor, observed: Tensor | None = None) -> None:
        """Raise a `DataError` if an observed element lies outside the range of the likelihood. This one has no range.

        Args:
            y: Observations, (*batch, *y_shape).
            observed: Which of them count, the shape of y; None for all.
        """

    def check_data(self, data: GroupedDataset) -> None:
        """Apply `check_range` to a whole data set, some rows at a time. A lazy data set passes.

        Raises:
            DataError: If an observed element lies outside the range of the likelihood.
        """
        if data.is_lazy:
            return
        y, y_mask = data.members.y, data.members.y_mask
        for start in range(0, len(y), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self.check_range(y[rows], None if y_mask is None else y_mask[rows])

    # starts

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """The output of one observation that fits y best without latents: a start for the decoder's last bias.

        This one is the mean of y, the start of an identity link.

        Args:
            y: Observations, (N, *y_shape).
            observed: Which of them count, the shape of y; None for all.
        """
        mean, _ = column_means(y.reshape(len(y), -1), None if observed is None else observed.reshape(len(y), -1))
        return mean.reshape(y.shape[1:])

    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set learned parameters from data. This one has none.

        Args:
            y: Observations, (*batch, *y_shape).
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Variance of y that the latents leave unexplained, (*y_shape); None if it is unknown.
        """

    def constant_variance(self) -> Tensor | None:
        """The variance of each element, (*y_shape) or a scalar, of a Gaussian whose mean is the output; else None."""
        return None

    def element_variances(self) -> Tensor | None:
        """`constant_variance` of the elements that have one, and NaN for the others; None if no element has one."""
        return self.constant_variance()

    def element_outputs(self, y_shape: Sequence[int]) -> Tensor:
        """The position of each element's own output among the flattened outputs, int64 (K,)."""
        return torch.arange(math.prod(y_shape))

    @torch.no_grad()
    def gap_value(self, y: Tensor) -> float:
        """The value that networks get where nothing was observed: 0 if it has a density, otherwise 1 or 0.5.

        Args:
            y: Observations, (G, Q, *y_shape). Only their shape and dtype matter.
        """
        distribution = self.distribution(y.new_full((1, 1, *self.output_shape(y.shape[2:])), 0.5))
        return next((value for value in (0.0, 1.0, 0.5) if _has_density(distribution, y, value)), 0.0)

    def log_prob(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(y | z) summed over the observed elements of each member, nats, (*s, G, Q)."""
        output, y = self.without_gaps(output, y, observed)
        distribution = self.distribution(output, y, observed)
        terms = distribution.log_prob(possible_values(distribution, y, y, observed))
        if observed is not None:
            terms = torch.where(observed, terms, 0.0)
        return sum_per_member(terms, y)

    def score(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Score:
        """Log probability and squared error of each group, in one pass."""
        output, y = self.without_gaps(output, y, observed)
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
        return squares.flatten(squares.dim() - y.dim() + 1).sum(-1), num_elements


def sum_per_member(terms: Tensor, y: Tensor) -> Tensor:
    """Sum (*s, G, Q, *y_shape) over the elements of y (G, Q, *y_shape), to (*s, G, Q)."""
    return terms.flatten(terms.dim() - y.dim() + 2).sum(-1) if y.dim() > 2 else terms


def observed_pair(output: Tensor, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs and observations, with those of an observed element where nothing was observed.

    A density of padding may be 0, or not defined. Its gradient, infinity times 0, would be NaN. The element is the
    first observed one at the same place of y, or of the batch if this place was never observed.

    Args:
        output: The decoder's output, (*s, G, Q, *y_shape).
        y: Observations, (G, Q, *y_shape).
        observed: True where an element was observed, the shape of y; None for everywhere.

    Returns:
        Both in their shapes. What was put in has no gradient.

    Examples:
        >>> y, observed = torch.tensor([[[1.0], [math.nan]]]), torch.tensor([[[True], [False]]])
        >>> observed_pair(torch.tensor([[[3.0], [4.0]]]), y, observed)
        (tensor([[[3.],
                 [3.]]]), tensor([[[1.],
                 [1.]]]))
    """
    if observed is None:
        return output, y
    front, size = output.shape[: output.dim() - y.dim()], y.shape[2:].numel()
    seen = observed.reshape(-1, size)
    if not seen.numel():
        return output, y
    anywhere = seen.flatten().int().argmax()  # the batch's first observed element
    member = torch.where(seen.any(0), seen.int().argmax(0), anywhere // size)  # shape: (K,)
    source = member * size + torch.arange(size, device=y.device)
    other = output.detach().reshape(*front, -1)[..., source].reshape(*front, 1, 1, *y.shape[2:])
    value = y.reshape(-1)[torch.where(seen.any(0), source, anywhere)].reshape(y.shape[2:])
    return torch.where(observed, output, other), torch.where(observed, y, value)


def possible_values(distribution: dist.TorchDistribution, y: Tensor, filled: Tensor, observed: Tensor | None) -> Tensor:
    """Observations with values that the distribution can have where nothing was observed.

    Places of y may have different kinds of values. So a place that was never observed in the batch gets a draw of its
    own distribution. The random numbers are restored.

    Args:
        distribution: Of the elements of y.
        y: Observations, (G, Q, *y_shape). Returned as they are for a class of distributions of all real numbers, such
            as Normal. PyTorch may report that support for an instance, such as a shifted log-normal, which has another.
        filled: Those of `observed_pair`.
        observed: True where an element was observed, the shape of y; None for everywhere.

    Examples:
        >>> y = torch.tensor([[[2.0, math.nan], [math.nan, math.nan]]])  # counts, the second one never observed
        >>> counts = pyro.distributions.Poisson(torch.ones(1, 2, 2))
        >>> filled = possible_values(counts, y, torch.full_like(y, 2.0), ~y.isnan())
        >>> filled[..., 0], filled.isnan().any()
        (tensor([[2., 2.]]), tensor(False))
    """
    # an attribute of the class itself is a constraint; where it depends on the instance, it is a property
    if observed is None or isinstance(getattr(type(distribution), "support", None), type(constraints.real)):
        return y
    never = ~observed.flatten(0, 1).any(0)
    if not bool(never.any()):
        return filled
    kind = y.device.type
    with torch.no_grad(), torch.random.fork_rng([] if kind == "cpu" else [y.device], device_type=kind):
        return torch.where(never, distribution.sample(), filled)


def _has_density(distribution: dist.TorchDistribution, y: Tensor, value: float) -> bool:
    try:
        return bool(distribution.log_prob(y.new_full((1, 1, *y.shape[2:]), value)).isfinite().all())
    except ValueError:  # of a distribution that validates
        return False
