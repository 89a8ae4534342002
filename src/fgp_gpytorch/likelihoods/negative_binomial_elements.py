"""Counts with more noise than Poisson's."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fgp_gpytorch import _checks as check
from fgp_gpytorch.likelihoods._count_elements import CountElements
from fgp_gpytorch.likelihoods.elements import column_moments

_LIMIT = 10.0  # of the log of a dispersion
_SMALL = 600.0  # a mean m, such that p(0) >= exp(-m) is a normal number of float64
_STEPS = 2000
_UNEXPLAINED = 0.1  # of the dispersion
_LEAST_START = 0.01  # a smaller dispersion has next to no gradient


class NegativeBinomialElements(CountElements):
    r"""p(y | output): negative binomial counts 0, 1, 2, ... in raw units, with a learned dispersion for each element.

        E[y] = m = exp(output),   Var[y] = m + dispersion m^2

    It is a Poisson distribution whose rate is gamma distributed. Dispersion 0 would be the Poisson distribution.
    Outputs are limited to [-15, 15], the log of the dispersion to [-10, 10]. Log probabilities are computed in float64.

    Args:
        num_elements: Elements of y.
        dispersion: The start of all dispersions.

    Attributes:
        log_dispersion: Log of the learned dispersions, (num_elements,).

    Raises:
        ArgumentError: If the dispersion is not positive and finite, or `num_elements` is not an integer of at least 1.

    Examples:
        >>> part = NegativeBinomialElements(dispersion=0.5)
        >>> output = torch.tensor([[4.0]]).log()
        >>> part.mean(output), part.variance(output).detach()  # 4 and 4 + 0.5 * 4^2
        (tensor([[4.]]), tensor([[12.]]))
    """

    def __init__(self, num_elements: int = 1, dispersion: float = 0.1) -> None:
        super().__init__(num_elements)
        dispersion = check.positive(dispersion, "dispersion", hint="Try 0.1.")
        self.log_dispersion = torch.nn.Parameter(torch.full((self.num_elements,), math.log(dispersion)))

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Log probability of the counts."""
        log_mean, log_size = self.log_mean(output).double(), self._log_size()
        count, size, ratio = y.double(), log_size.exp(), log_mean - log_size
        # in float32, differences of lgamma lose all digits
        ways = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
        return (ways + size * F.logsigmoid(-ratio) + count * F.logsigmoid(ratio)).to(output.dtype)

    def variance(self, output: Tensor) -> Tensor:
        """Return m + dispersion m^2."""
        mean = self.mean(output)
        return mean + (-self._log_size()).exp().to(output.dtype) * mean.square()

    def sample(self, output: Tensor) -> Tensor:
        """Poisson counts of gamma distributed rates."""
        mean = self.mean(output).double()
        size = self._log_size().exp().expand_as(mean)
        rate = torch.distributions.Gamma(size, size / mean, validate_args=False).sample()
        return torch.poisson(rate).to(output.dtype)

    @torch.no_grad()
    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """The regularised incomplete beta function (SciPy's, on the CPU)."""
        log_size = self._log_size()
        ratio, count = torch.broadcast_tensors(self.log_mean(output).double() - log_size, value.floor().double())
        size = log_size.exp().expand_as(ratio)
        arrays = (part.cpu().numpy() for part in (ratio, size, count.clamp_min(0)))
        inside = torch.from_numpy(np.asarray(_beta_cdf(*arrays))).to(output.device)
        return torch.where(count < 0, 0.0, inside).to(output.dtype)

    @torch.no_grad()
    def quantile(self, output: Tensor, probability: float) -> Tensor:  # shape: (S, *batch, num_outputs) -> (*batch, n)
        """As for other integers. Where counts are small, sums of probabilities replace the cdf, which is slow."""
        rows = output.reshape(len(output), -1, self.num_outputs)
        answer, found = self._first_count(rows, probability)
        missing = ~found.all(-1)
        if bool(missing.any()):
            answer[missing] = super().quantile(rows[:, missing], probability)
        return answer.reshape(output.shape[1:])

    @torch.no_grad()
    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the dispersion by the method of moments: (variance - mean) / mean^2 of y, at least 0.01.

        If latents explain a part of the variance, it is a tenth of that. Training that starts from the whole dispersion
        may end where latents explain nothing. A column without a count above 0 changes nothing.

        Args:
            y: Observations in the range.
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Of y, (num_elements,), if latents explain the rest; None if they explain nothing.
        """
        mean, variance, number = column_moments(y, observed)
        known = (number > 1) & (mean > 0)
        dispersion = (variance - mean) / torch.where(known, mean, 1.0).square()
        dispersion = dispersion if residual_variance is None else _UNEXPLAINED * dispersion
        start = dispersion.clamp_min(_LEAST_START).log().to(self.log_dispersion)
        self.log_dispersion.copy_(torch.where(known.to(start.device), start, self.log_dispersion))

    def _first_count(self, output: Tensor, probability: float) -> tuple[Tensor, Tensor]:
        """The smallest count whose cumulated probability, averaged over the draws, reaches a probability.

            p(0) = (r / (r + m))^r,   p(y + 1) = p(y) (y + r) / (y + 1) m / (r + m)

        Args:
            output: (S, N, num_elements).
            probability: In (0, 1).

        Returns:
            The counts, and whether they were found among the first, each (N, num_elements).
        """
        log_size = self._log_size()
        size, ratio = log_size.exp(), self.log_mean(output).double() - log_size
        density, odds = (size * F.logsigmoid(-ratio)).exp(), ratio.sigmoid()
        cumulated = density.mean(0)
        answer, usable = torch.zeros_like(cumulated), self.mean(output).amax(0) <= _SMALL
        for count in range(1, _STEPS):
            below = cumulated < probability
            if not bool((below & usable).any()):
                break
            density = density * odds * ((count - 1 + size) / count)
            answer, cumulated = torch.where(below, count, answer), cumulated + density.mean(0)
        return answer.to(output.dtype), usable & (cumulated >= probability)

    def _log_size(self) -> Tensor:  # shape: (num_elements,)
        """Log of r = 1 / dispersion, the shape of the gamma distribution, in float64."""
        return -self.log_dispersion.double().clamp(-_LIMIT, _LIMIT)


def _beta_cdf(log_ratio: np.ndarray, size: np.ndarray, count: np.ndarray) -> np.ndarray:
    """P(y <= count) = I_p(r, count + 1), p = r / (r + m) = sigmoid(-log m / r).

    The form of which the argument is the smaller of p and 1 - p keeps its digits.
    """
    from scipy import special  # only models of counts need it

    small = special.expit(-np.abs(log_ratio))
    return np.where(log_ratio > 0, special.betainc(size, count + 1, small), special.betaincc(count + 1, size, small))
