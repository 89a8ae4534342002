"""Base class of the kinds of elements in a `ColumnLikelihood`."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods.mixtures import mixture_quantile, mixture_variance
from fgp_gpytorch.saving import Configurable


class Elements(Configurable, nn.Module, ABC):
    """p(y | output) of some elements of y that are of one kind: a part of a `ColumnLikelihood`.

    Shapes: `output` is (*batch, num_outputs), `y` and every answer (*batch, num_elements). The first `num_elements`
    outputs belong to the elements in their order. Further outputs follow.

    A subclass defines `log_prob`, `mean`, `variance`, `sample` and `cdf`, and usually `possible` and `initialize`. Its
    `log_prob` must be finite with finite gradients at y = 0, which stands where nothing was observed.

    Args:
        num_elements: Elements of y.

    Attributes:
        num_elements: Elements of y.
        num_outputs: Outputs of the decoder that belong to them. This class has one an element.
        integer: Whether all values are integers.
        values: The possible values in words, for error messages.
        one_block: Whether the elements are observed together or not at all.

    Raises:
        ArgumentError: If `num_elements` is not an integer of at least 1.

    Examples:
        >>> parts = [GaussianElements(2, heteroscedastic=True), CategoricalElements(4), PoissonElements()]
        >>> [(part.num_elements, part.num_outputs) for part in parts]
        [(2, 4), (4, 4), (1, 1)]
        >>> [part.values for part in parts]
        ['real numbers', 'a one-hot block of 0 and a single 1', 'counts 0, 1, 2, ...']
    """

    integer = True
    one_block = False
    values = "values of the likelihood"

    def __init__(self, num_elements: int = 1) -> None:
        super().__init__()
        self.num_elements = check.count(num_elements, "num_elements")
        self.num_outputs = self.num_elements

    @abstractmethod
    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Log probability or log density of each element, nats."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[y | output]."""

    @abstractmethod
    def variance(self, output: Tensor) -> Tensor:
        """Var[y | output]."""

    @abstractmethod
    def sample(self, output: Tensor) -> Tensor:
        """One draw of y for each row of outputs."""

    @abstractmethod
    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """P(y <= value | output) of each element by itself. `value` broadcasts against y. It has no gradient."""

    def possible(self, y: Tensor) -> Tensor:
        """True where an element is in the range. This class has no bounds."""
        return torch.ones_like(y, dtype=torch.bool)

    def check_range(self, y: Tensor, observed: Tensor | None = None, name: str = "y") -> None:
        """Require possible values where an element was observed.

        Args:
            y: Observations.
            observed: Which of them count, the shape of y; None for all.
            name: Of these elements, for the message.

        Raises:
            DataError: If a value is impossible.
        """
        bad = ~self.possible(y)
        bad = bad if observed is None else bad & observed
        if bool(bad.any()):
            raise DataError(
                f"{name}: expected {self.values} for {type(self).__name__}, got {y[bad][0].item():g}. Try another kind "
                "of elements, such as GaussianElements, or mark wrong entries as not observed."
            )

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """Outputs (num_outputs,) from which training can start: those that fit y best without latents. Here 0.

        Args:
            y: Observations in the range.
            observed: Which of them count, the shape of y; None for all.
        """
        return y.new_zeros(self.num_outputs)

    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the parameters from data. This class has none.

        Args:
            y: Observations in the range.
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Variance of y that the latents leave unexplained, (num_elements,), if it is known.
        """

    def constant_variance(self) -> Tensor | None:
        """The variances (num_elements,) of Gaussian elements that do not depend on the output; else None."""
        return None

    @torch.no_grad()
    def quantile(self, output: Tensor, probability: float) -> Tensor:  # shape: (S, *batch, num_outputs) -> (*batch, n)
        """Quantile of the mixture over S equally likely outputs.

        It is the smallest integer whose cdf reaches the probability, or exact to 1e-7 of the smallest standard
        deviation of a draw. Cantelli's inequality bounds the search.

        Args:
            output: Outputs, in float64 for this accuracy.
            probability: In (0, 1).
        """
        means, variances = self.mean(output), self.variance(output)
        center, spread = means.mean(0), mixture_variance(means, variances).sqrt()
        low = center - spread * ((1 - probability) / probability) ** 0.5
        high = center + spread * (probability / (1 - probability)) ** 0.5
        tolerance = None if self.integer else 1e-7 * variances.amin(0).sqrt()
        return mixture_quantile(lambda value: self.cdf(output, value).mean(0), probability, low, high, tolerance)


def column_means(values: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of the observed values of each column, and their number; 0 and 0 if there is none.

    Args:
        values: (*batch, n).
        observed: The shape of `values`; None for everywhere.

    Returns:
        Two tensors (n,).
    """
    rows = values.reshape(-1, values.shape[-1])
    if observed is None:
        number = rows.new_full(rows.shape[1:], len(rows))
    else:
        there = observed.reshape(rows.shape)
        rows, number = torch.where(there, rows, 0.0), there.sum(0).to(rows.dtype)
    return rows.sum(0) / number.clamp_min(1), number


def column_moments(values: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the observed values of each column, each (n,). The variance is divided by N."""
    mean, number = column_means(values, observed)
    variance, _ = column_means((values - mean).square(), observed)
    return mean, variance, number
