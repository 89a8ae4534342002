"""What the kinds of counts share."""

from abc import ABC

from torch import Tensor

from fgp_gpytorch.likelihoods.elements import Elements, column_means

_LIMIT = 15.0  # of the log of an expected count: 3.3 million


class CountElements(Elements, ABC):
    """Base class of counts 0, 1, 2, ... whose mean is exp(output), with outputs limited to [-15, 15].

    Args:
        num_elements: Elements of y.
    """

    values = "counts 0, 1, 2, ..."

    def log_mean(self, output: Tensor) -> Tensor:
        """Log of the expected counts."""
        return output.clamp(-_LIMIT, _LIMIT)

    def mean(self, output: Tensor) -> Tensor:
        """The expected counts."""
        return self.log_mean(output).exp()

    def possible(self, y: Tensor) -> Tensor:
        """True for whole numbers that are not negative."""
        return (y >= 0) & (y == y.floor())

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log of the means, with half a count added to the sum."""
        mean, number = column_means(y, observed)
        return ((mean * number + 0.5) / (number + 0.5)).log()
