"""Real elements with Gaussian noise."""

import math

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.likelihoods.elements import Elements, column_moments

_LOG_RATIO = 10.0  # bound of the log of a heteroscedastic variance over the learned one
_FLOOR = 1e-6  # of the residual variance over the variance of y


class GaussianElements(Elements):
    r"""p(y | output) = N(y | mean, variance), with a learned variance.

        variance = learned                              the outputs are the means
        variance = learned exp(relative)                heteroscedastic: the outputs are the means, then `relative`

    `relative` is limited to [-10, 10].

    Args:
        num_elements: Elements of y.
        variance: The start of the learned variances, in units of y squared.
        shared: Whether all elements have one learned variance, as for images. Otherwise each has its own.
        heteroscedastic: Whether the decoder also has an output for the log variance of each element.

    Attributes:
        log_variance: Log of the learned variances, (num_elements,), or (1,) if shared.

    Raises:
        ArgumentError: If the variance is not positive and finite, an option is not a boolean, or `num_elements` is
            not an integer of at least 1.

    Examples:
        >>> part = GaussianElements(2, variance=0.5, heteroscedastic=True)
        >>> output = torch.tensor([[1.0, 2.0, 0.0, math.log(3)]])  # two means, and two logs of a factor of the variance
        >>> part.mean(output), part.variance(output).detach()
        (tensor([[1., 2.]]), tensor([[0.5000, 1.5000]]))
    """

    integer = False
    values = "real numbers"

    def __init__(
        self, num_elements: int = 1, variance: float = 0.1, shared: bool = False, heteroscedastic: bool = False
    ) -> None:
        super().__init__(num_elements)
        variance = check.positive(variance, "variance", hint="Try 0.1.")
        self.shared = check.instance(shared, "shared", bool, "Try shared=True for images.")
        self.heteroscedastic = check.instance(heteroscedastic, "heteroscedastic", bool, "Try heteroscedastic=True.")
        self.num_outputs = (2 if heteroscedastic else 1) * self.num_elements
        size = 1 if shared else self.num_elements
        self.log_variance = torch.nn.Parameter(torch.full((size,), math.log(variance)))

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """-1/2 ((y - mean)^2 / variance + log 2 pi variance)."""
        log_variance = self._log_variance(output)
        square = (y - self.mean(output)).square()
        return -0.5 * (square * (-log_variance).exp() + log_variance + math.log(2 * math.pi))

    def mean(self, output: Tensor) -> Tensor:
        """The first `num_elements` outputs."""
        return output[..., : self.num_elements]

    def variance(self, output: Tensor) -> Tensor:
        """The variance of each element."""
        return self._log_variance(output).exp().expand(*output.shape[:-1], self.num_elements)

    def sample(self, output: Tensor) -> Tensor:
        """A draw of each element."""
        mean = self.mean(output)
        return mean + (0.5 * self._log_variance(output)).exp() * torch.randn_like(mean)

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """Normal cdf, exact in its lower tail too."""
        return torch.special.ndtr((value - self.mean(output)) * (-0.5 * self._log_variance(output)).exp())

    def constant_variance(self) -> Tensor | None:
        """The learned variances, (num_elements,); None if they depend on the output."""
        return None if self.heteroscedastic else self.log_variance.exp().expand(self.num_elements)

    def check_range(self, y: Tensor, observed: Tensor | None = None, name: str = "y") -> None:
        """All real numbers are possible."""

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """The means of y, and 0 for relative log variances."""
        mean, _, _ = column_moments(y, observed)
        return torch.cat([mean, mean.new_zeros(self.num_outputs - self.num_elements)])

    @torch.no_grad()
    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the variances to the residual variances, or to those of y.

        They are at least 1e-6 of the variance of y. A constant column, and one without observations, changes nothing.

        Args:
            y: Observations.
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Variance of y that the latents leave unexplained, (num_elements,), if it is known.
        """
        _, variance, number = column_moments(y, observed)
        known = (number > 1) & (variance > 0)
        start = (
            variance if residual_variance is None else torch.maximum(residual_variance.to(variance), _FLOOR * variance)
        )
        if self.shared:
            start, known = (start * known).sum(0, keepdim=True) / known.sum().clamp_min(1), known.any().reshape(1)
        start = torch.where(known, start, 1.0).log().to(self.log_variance)
        self.log_variance.copy_(torch.where(known.to(start.device), start, self.log_variance))

    def _log_variance(self, output: Tensor) -> Tensor:
        log_variance = self.log_variance.to(output.dtype)
        if not self.heteroscedastic:
            return log_variance
        return log_variance + output[..., self.num_elements :].clamp(-_LOG_RATIO, _LOG_RATIO)
