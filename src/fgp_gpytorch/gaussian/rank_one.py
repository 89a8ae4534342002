"""Channels that are constant within a group (paper, Appendix B: the global channels' N(mu-bar, sigma-bar^2))."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.gaussian._gradients import gradients_with_graph
from fgp_gpytorch.gaussian.precision import log_normalizer, log_plus_inverse


class RankOneFactor(NamedTuple):
    r"""Posterior of one value per group, K = s 1 1': the B-form with Phi = sqrt(s) 1, in closed form.

    Attributes:
        prior_variance: s, (*b,).
        precision: R^2, (*b, Q).
        residual: r, (*b, Q).
        total: P = sum_q R_q^2, (*b,).
        pooled: The precision-weighted mean of the residuals (0 where nothing is observed), (*b,).

    Examples:
        >>> precision, residual = torch.tensor([[1.0, 2.0, 0.0], [4.0, 4.0, 0.0]])  # the last member is missing
        >>> factor = rank_one_factor(torch.tensor(1.0), precision, residual)
        >>> factor.total, factor.pooled, factor.mean(), factor.variance()
        (tensor(3.), tensor(4.), tensor(3.), tensor(0.2500))
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

    Examples:
        >>> precision, residual = torch.tensor([[1.0, 2.0], [3.0, 3.0]])
        >>> factor = rank_one_factor(torch.tensor(1.0), precision, residual)
        >>> factor.mean(), factor.variance()  # P r / (P + 1 / s) and 1 / (P + 1 / s) with P = 3
        (tensor(2.2500), tensor(0.2500))
    """
    total = precision.sum(-1)
    pooled = (precision * residual).sum(-1) / torch.where(total > 0, total, 1.0)
    return RankOneFactor(prior_variance, precision, residual, total, pooled)


class RankOneMarginals(NamedTuple):
    """The posterior of one value per group and its KL divergence, for training.

    Attributes:
        mean: Posterior mean less the prior mean, (*b,).
        variance: Posterior variance, (*b,).
        kl: KL(q || p), nats, (*b,).

    Examples:
        >>> marginals = rank_one_marginals(torch.tensor(1.0), precision=torch.zeros(3), residual=torch.zeros(3))
        >>> marginals  # without observations: the prior
        RankOneMarginals(mean=tensor(0.), variance=tensor(1.), kl=tensor(0.))
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor


class _RankOneMarginals(torch.autograd.Function):
    r"""Mean, variance and KL, with the gradient written out: a step takes half as many operations.

    The names in the code are these letters, with dX for the gradient of the loss with respect to X:

        s   prior variance      D   precisions          r   residual
        P   sum D               u   sum D r             b   1 + s P
        v   variance = s / b    m   mean = v u          KL  1/2 { log b + 1/b - 1 + v u^2 / b }

        du = v (dm + dKL u / b)
        dP = -v (m dm + v dv) + dKL v (v P / 2 - m u / b)
        ds = (u dm + dv) / b^2 + dKL / 2 { v P^2 / b + (u / b)^2 (1 - 2 v P) }
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, D: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        P, u = D.sum(-1), (D * r).sum(-1)
        sP = s * P
        b = 1 + sP
        v = s / b
        m = v * u
        KL = log_plus_inverse(torch.log1p(sP)).addcmul_(m, u / b).mul_(0.5)
        ctx.save_for_backward(s, D, r, P, u, b, v, m)
        return m, v, KL

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        dm, dv, dKL = grad_outputs
        s, D, r, P, u, b, v, m = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return gradients_with_graph(_plain_marginals, (s, D, r), ctx.needs_input_grad, grad_outputs)
        u_b, vP = u / b, v * P
        du = v * (dm + dKL * u_b)
        dP = v * (dKL * (0.5 * vP - m * u_b) - m * dm - v * dv)
        ds = None
        if ctx.needs_input_grad[0]:
            ds = (u * dm + dv) / b.square() + 0.5 * dKL * (vP * P / b + u_b.square() * (1 - 2 * vP))
        du = du.unsqueeze(-1)
        return ds, torch.addcmul(dP.unsqueeze(-1), du, r), du * D


def rank_one_marginals(prior_variance: Tensor, precision: Tensor, residual: Tensor) -> RankOneMarginals:
    """Posterior mean and variance of a channel that is constant within a group, and the KL from the prior.

    Args:
        prior_variance: s, (*b,), positive.
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Returns:
        What `rank_one_factor` has as `mean()`, `variance()` and `kl()`, with derivatives of all orders, for torch.func
        too.

    Examples:
        >>> rank_one_marginals(torch.tensor(1.0), precision=torch.tensor([1.0, 2.0]), residual=torch.tensor([4.0, 4.0]))
        RankOneMarginals(mean=tensor(3.), variance=tensor(0.2500), kl=tensor(4.8181))
    """
    shape = torch.broadcast_shapes(prior_variance.shape, precision.shape[:-1])
    inputs = prior_variance.expand(shape), precision.expand(*shape, -1), residual.expand(*shape, -1)
    if transforms_active(*inputs):
        return _plain_marginals(*inputs)
    return RankOneMarginals(*_RankOneMarginals.apply(*inputs))  # pyright: ignore[reportGeneralTypeIssues]


def _plain_marginals(prior_variance: Tensor, precision: Tensor, residual: Tensor) -> RankOneMarginals:
    factor = rank_one_factor(prior_variance, precision, residual)
    return RankOneMarginals(factor.mean(), factor.variance(), factor.kl())
