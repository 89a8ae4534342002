"""Binary elements."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgp_gpytorch.likelihoods.elements import Elements, column_means


class BernoulliElements(Elements):
    """p(y | output) = Bernoulli(y | logits = output), y 0 or 1.

    Args:
        num_elements: Elements of y.

    Raises:
        ArgumentError: If `num_elements` is not an integer of at least 1.

    Examples:
        >>> part = BernoulliElements()
        >>> output = torch.zeros(1, 1)
        >>> part.mean(output), part.log_prob(output, torch.ones(1, 1)).exp()
        (tensor([[0.5000]]), tensor([[0.5000]]))
    """

    values = "0 or 1"

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """y log p + (1 - y) log (1 - p)."""
        return y * F.logsigmoid(output) + (1 - y) * F.logsigmoid(-output)

    def mean(self, output: Tensor) -> Tensor:
        """Probability of a one."""
        return output.sigmoid()

    def variance(self, output: Tensor) -> Tensor:
        """Return p (1 - p)."""
        return output.sigmoid() * (-output).sigmoid()

    def sample(self, output: Tensor) -> Tensor:
        """Zeros and ones."""
        return torch.bernoulli(output.sigmoid())

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """0 below 0, then 1 - p, and 1 from 1 on."""
        return torch.where(value < 0, 0.0, torch.where(value < 1, (-output).sigmoid(), 1.0))

    def possible(self, y: Tensor) -> Tensor:
        """True for 0 and 1."""
        return (y == 0) | (y == 1)

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """Logits of the frequencies, with half an observation added to each class."""
        frequency, number = column_means(y, observed)
        ones = frequency * number
        return (ones + 0.5).log() - (number - ones + 0.5).log()
