"""Channels that are constant within a group (paper, Appendix B: the global channels' N(mu-bar, sigma-bar^2))."""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.gaussian.precision import log_normalizer, log_plus_inverse


class RankOneFactor(NamedTuple):
    r"""Posterior of one value per group, K = s 1 1': the B-form with Phi = sqrt(s) 1, in closed form.

    Attributes:
        prior_variance: s, (*b,).
        precision: R^2, (*b, Q).
        residual: r, (*b, Q).
        total: P = sum_q R_q^2, (*b,).
        pooled: The precision-weighted mean of the residuals (0 where nothing is observed), (*b,).
    """

    prior_variance: Tensor
    precision: Tensor
    residual: Tensor
    total: Tensor
    pooled: Tensor

    def mean(self) -> Tensor:
        """Posterior mean less the prior mean, mu-bar of Appendix B: s P pooled / (1 + s P), (*b,)."""
        return self.prior_variance * self.total * self.pooled / (1 + self.prior_variance * self.total)

    def variance(self) -> Tensor:
        """Posterior variance, sigma-bar^2 of Appendix B: (1/s + P)^-1, (*b,)."""
        return self.prior_variance / (1 + self.prior_variance * self.total)

    def log_evidence(self) -> Tensor:
        """log Z, the second integral of Appendix B, per group (the authors' program sums one term over the batch).

        -1/2 ( scatter + P pooled^2 / (1 + s P) + log(1 + s P) + sum_observed log 2 pi sigma^2 ), nats, (*b,), with
        scatter = sum_q R_q^2 (r_q - pooled)^2.
        """
        scaled = self.prior_variance * self.total
        scatter = (self.precision * (self.residual - self.pooled.unsqueeze(-1)).square()).sum(-1)
        quadratic = scatter + self.total * self.pooled.square() / (1 + scaled)
        return -0.5 * (quadratic + torch.log1p(scaled) + log_normalizer(self.precision))

    def kl(self) -> Tensor:
        """KL(q || p) = 1/2 { [ log b + 1/b - 1 ] + mean^2 / s } with b = 1 + s P, nats, (*b,)."""
        bracket = log_plus_inverse(torch.log1p(self.prior_variance * self.total))
        # mean^2 / s in a form that stays finite as s -> 0
        scaled = 1 + self.prior_variance * self.total
        quadratic = self.prior_variance * (self.total * self.pooled / scaled).square()
        return 0.5 * (bracket + quadratic)


def rank_one_factor(prior_variance: Tensor, precision: Tensor, residual: Tensor) -> RankOneFactor:
    """Pool the pseudo-observations of a channel that is constant within a group.

    Args:
        prior_variance: s, (*b,), positive.
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Returns:
        The factor.
    """
    total = precision.sum(-1)
    pooled = (precision * residual).sum(-1) / torch.where(total > 0, total, 1.0)
    return RankOneFactor(prior_variance, precision, residual, total, pooled)
