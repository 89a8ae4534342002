"""Bernoulli observations."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods.likelihood import Likelihood, sum_per_member


class BernoulliLikelihood(Likelihood):
    """p(y | z) = Bernoulli(y | logits(z)), elements of y in [0, 1]. A value between 0 and 1 is the probability of a 1.

    Raises:
        DataError: In use, if an element of y lies outside [0, 1].

    Examples:
        >>> likelihood = BernoulliLikelihood()
        >>> likelihood.mean(torch.zeros(1)), likelihood.log_prob(torch.zeros(1, 3, 2), torch.ones(1, 3, 2)).exp()
        (tensor([0.5000]), tensor([[0.2500, 0.2500, 0.2500]]))
    """

    def distribution(self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None) -> dist.Bernoulli:
        """Bernoulli with the decoder's output as logits."""
        if y is not None:
            self.check_range(y, observed)
        return dist.Bernoulli(logits=output, validate_args=False)

    def mean(self, output: Tensor) -> Tensor:
        """Probability of a one."""
        return torch.sigmoid(output)

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """Logits of the mean of y, limited to 0.01 to 0.99."""
        return torch.logit(super().starting_output(y, observed).clamp(0.01, 0.99))

    def check_range(self, y: Tensor, observed: Tensor | None = None) -> None:
        """Require observed elements in [0, 1].

        Raises:
            DataError: If one lies outside.
        """
        bad = (y < 0) | (y > 1)
        if observed is not None:
            bad = bad & observed
        if bool(bad.any()):
            seen = y if observed is None else y[observed]
            raise DataError(
                f"y: expected values in [0, 1] for a BernoulliLikelihood, got {seen.min().item():g} to "
                f"{seen.max().item():g}. Try GaussianLikelihood(), or rescale y."
            )

    def log_prob(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """y log p + (1 - y) log (1 - p), summed over the observed elements of each member, nats, (*s, G, Q)."""
        self.check_range(y, observed)
        terms = -F.binary_cross_entropy_with_logits(output, y.expand_as(output), reduction="none")
        if observed is not None:
            terms = torch.where(observed, terms, 0.0)
        return sum_per_member(terms, y)
