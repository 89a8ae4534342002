"""Counts with Poisson noise."""

import torch
from torch import Tensor

from fgp_gpytorch.likelihoods._count_elements import CountElements


class PoissonElements(CountElements):
    """p(y | output) = Poisson(y | rate = exp(output)), y = 0, 1, 2, ... in raw units.

    Outputs are limited to [-15, 15], so rates to 3e-7 and 3.3 million.

    Args:
        num_elements: Elements of y.

    Raises:
        ArgumentError: If `num_elements` is not an integer of at least 1.

    Examples:
        >>> part = PoissonElements()
        >>> output = torch.tensor([[3.0]]).log()
        >>> part.mean(output), part.log_prob(output, torch.zeros(1, 1))  # P(0) = exp(-3)
        (tensor([[3.]]), tensor([[-3.]]))
    """

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Return y log rate - rate - log y!."""
        log_rate = self.log_mean(output)
        return y * log_rate - log_rate.exp() - torch.lgamma(y + 1)

    def variance(self, output: Tensor) -> Tensor:
        """The rate."""
        return self.mean(output)

    def sample(self, output: Tensor) -> Tensor:
        """Counts."""
        return torch.poisson(self.mean(output))

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """The regularised upper incomplete gamma function of floor(value) + 1 and the rate."""
        count = value.floor().double()
        inside = torch.special.gammaincc(count.clamp_min(0) + 1, self.mean(output.double()))
        return torch.where(count < 0, 0.0, inside).to(output.dtype)
