"""An ordered category as a code."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgp_gpytorch import _checks as check
from fgp_gpytorch.likelihoods.elements import Elements

_LEAST_STEP = 1e-4  # between thresholds


class OrdinalElements(Elements):
    r"""One ordered category as one element of y, its code 0, 1, ... levels - 1 (cumulative logit).

        P(y <= c | output) = sigmoid(t_c - output),   t_0 < t_1 < ... < t_{levels - 2}   learned

    The scale is that of the standard logistic distribution. Steps between thresholds are softplus(raw) + 1e-4. With
    u = t_c - output and l = t_{c-1} - output,

        log P(y = c) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u))

    is exact in the tails too. The last term does not depend on the output. See McCullagh 1980, "Regression models for
    ordinal data".

    Args:
        levels: Number of levels, at least 2. All are equally likely at output 0 before training.

    Attributes:
        thresholds: t, (levels - 1,).

    Raises:
        ArgumentError: If `levels` is not an integer of at least 2.

    Examples:
        >>> part = OrdinalElements(3)
        >>> part.log_prob(torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [2.0]])).exp().detach().T
        tensor([[0.3333, 0.3333, 0.3333]])
        >>> part.mean(torch.tensor([[-99.0], [0.0], [99.0]])).detach().T  # expected codes
        tensor([[0., 1., 2.]])
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = check.count(levels, "levels", least=2)
        self.values = f"codes 0, 1, ... {self.levels - 1}"
        first, raw_steps = _from_frequencies(torch.full((self.levels,), 1 / self.levels))
        self.first_threshold = torch.nn.Parameter(first.to(torch.get_default_dtype()))
        self.raw_steps = torch.nn.Parameter(raw_steps.to(torch.get_default_dtype()))

    @property
    def thresholds(self) -> Tensor:
        """The increasing thresholds, (levels - 1,)."""
        return torch.cat([self.first_threshold.reshape(1), self.first_threshold + self._steps().cumsum(0)])

    def log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Log probability of the code."""
        thresholds, last = self.thresholds.to(output.dtype), self.levels - 1
        code = y.clamp(0, last).long()
        above = F.logsigmoid(thresholds[code.clamp_max(last - 1)] - output)
        below = F.logsigmoid(output - thresholds[(code - 1).clamp_min(0)])
        inside = F.pad((-torch.expm1(-self._steps())).log(), (1, 1)).to(output.dtype)[code]
        return torch.where(code < last, above, 0.0) + torch.where(code > 0, below, 0.0) + inside

    def mean(self, output: Tensor) -> Tensor:
        """The expected code."""
        return self._exceeding(output).sum(-1)

    def variance(self, output: Tensor) -> Tensor:
        """The variance of the code."""
        probability = self._probabilities(output)
        codes = torch.arange(self.levels, dtype=output.dtype, device=output.device)
        return (probability * (codes - self.mean(output).unsqueeze(-1)).square()).sum(-1)

    def sample(self, output: Tensor) -> Tensor:
        """Codes: the thresholds that a logistic draw around the output exceeds."""
        uniform = torch.rand_like(output).unsqueeze(-1)
        return (uniform < self._exceeding(output)).sum(-1).to(output.dtype)

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """sigmoid(t_c - output) of the largest code c that is not above the value."""
        thresholds, last = self.thresholds.to(output.dtype), self.levels - 1
        code = value.floor().clamp(0, last - 1).long()
        return torch.where(value < 0, 0.0, torch.where(value < last, (thresholds[code] - output).sigmoid(), 1.0))

    def possible(self, y: Tensor) -> Tensor:
        """True for the codes."""
        return (y >= 0) & (y < self.levels) & (y == y.floor())

    @torch.no_grad()
    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the thresholds so that output 0 has the observed frequencies, half an observation added to each level.

        Args:
            y: Observations in the range.
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Not used.
        """
        seen = y.flatten() if observed is None else y[observed]
        number = torch.bincount(seen.long(), minlength=self.levels).to(y.dtype) + 0.5
        first, raw_steps = _from_frequencies(number / number.sum())
        self.first_threshold.copy_(first)
        self.raw_steps.copy_(raw_steps)

    def _steps(self) -> Tensor:
        return F.softplus(self.raw_steps) + _LEAST_STEP

    def _exceeding(self, output: Tensor) -> Tensor:  # shape: (*batch, 1) -> (*batch, 1, levels - 1)
        """P(y > c)."""
        return (output.unsqueeze(-1) - self.thresholds.to(output.dtype)).sigmoid()

    def _probabilities(self, output: Tensor) -> Tensor:  # shape: (*batch, 1) -> (*batch, 1, levels)
        codes = torch.arange(self.levels, dtype=output.dtype, device=output.device)
        return self.log_prob(output.unsqueeze(-1), codes.expand(*output.shape, self.levels)).exp()


def _from_frequencies(frequency: Tensor) -> tuple[Tensor, Tensor]:
    """The first threshold and raw steps of classes with these frequencies at output 0."""
    cumulative = frequency.double().cumsum(0)[:-1]
    # 1 - cumulative, from the other end: exact where it is small
    remaining = frequency.double().flip(0).cumsum(0).flip(0)[1:]
    thresholds = cumulative.log() - remaining.log()
    steps = (thresholds.diff() - _LEAST_STEP).clamp_min(_LEAST_STEP)
    raw_steps = steps + (-torch.expm1(-steps)).log()  # inverse of softplus
    return thresholds[0], raw_steps
