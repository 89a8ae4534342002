"""A category as a one-hot block."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods.elements import Elements, column_means


class CategoricalElements(Elements):
    """One category of C, as C elements of y: a one at its place, zeros elsewhere (one-hot).

        log p(y | output) = sum_c y_c log softmax(output)_c

    Each term is the log probability of its element, so the sum over the block is that of the category. The block is
    observed as a whole. `mean`, `variance` and `cdf` are those of every element by itself.

    Args:
        num_categories: C, at least 2.

    Raises:
        ArgumentError: If `num_categories` is not an integer of at least 2.

    Examples:
        >>> part = CategoricalElements(3)
        >>> part.mean(torch.tensor([[2.0, 1.0, 0.5]]).log())
        tensor([[0.5714, 0.2857, 0.1429]])
        >>> part.starting_output(torch.eye(3)).softmax(0)
        tensor([0.3333, 0.3333, 0.3333])
    """

    one_block = True
    values = "a one-hot block of 0 and a single 1"

    def __init__(self, num_categories: int) -> None:
        super().__init__(check.count(num_categories, "num_categories", least=2))
        self.num_categories = self.num_elements

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """y_c log softmax(output)_c."""
        return y * F.log_softmax(output, -1)

    def mean(self, output: Tensor) -> Tensor:
        """Probabilities of the categories."""
        return output.softmax(-1)

    def variance(self, output: Tensor) -> Tensor:
        """p (1 - p) of each element."""
        probability = output.softmax(-1)
        return probability * (1 - probability)

    def sample(self, output: Tensor) -> Tensor:
        """One-hot blocks."""
        rows = output.softmax(-1).reshape(-1, self.num_categories)
        if not len(rows):
            return torch.zeros_like(output)
        drawn = torch.multinomial(rows, 1)[:, 0]
        return F.one_hot(drawn, self.num_categories).to(output.dtype).reshape(output.shape)

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """Of each element by itself: 0 below 0, then 1 - p, and 1 from 1 on."""
        return torch.where(value < 0, 0.0, torch.where(value < 1, 1 - output.softmax(-1), 1.0))

    def possible(self, y: Tensor) -> Tensor:
        """True in blocks of zeros with a single one."""
        one_hot = ((y == 0) | (y == 1)).all(-1, keepdim=True) & (y.sum(-1, keepdim=True) == 1)
        return one_hot.expand(y.shape)

    def check_range(self, y: Tensor, observed: Tensor | None = None, name: str = "y") -> None:
        """Require one-hot blocks that are observed as wholes.

        Args:
            y: Observations.
            observed: Which of them count, the shape of y; None for all.
            name: Of these elements, for the message.

        Raises:
            DataError: If a block is not one-hot, or is observed in part.
        """
        if observed is not None:
            partly = observed.any(-1) & ~observed.all(-1)
            if bool(partly.any()):
                seen = int(observed[partly][0].sum())
                raise DataError(
                    f"{name}: expected a one-hot block that is observed as a whole or not at all, got one with {seen} "
                    f"of {self.num_categories} elements observed. Try the same mask for all elements of the block."
                )
        bad = ~self.possible(y)[..., 0]
        bad = bad if observed is None else bad & observed[..., 0]
        if bool(bad.any()):
            raise DataError(
                f"{name}: expected {self.values} for CategoricalElements, got {y[bad][0].tolist()}. "
                f"Try torch.nn.functional.one_hot(code, {self.num_categories})."
            )

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """Logs of the frequencies, with half an observation added to each category."""
        frequency, number = column_means(y, observed)
        return ((frequency * number + 0.5) / (number + 0.5 * self.num_categories)).log()
