"""Channels with a full covariance within a group (design: B-form; paper, Appendix B, "exact GP posterior")."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.gaussian.precision import factorize, log_normalizer, log_plus_inverse, root_precision


class DenseMarginals(NamedTuple):
    """What training needs of the posterior at the members themselves.

    Attributes:
        mean: Posterior mean less the prior mean, (*b, Q).
        variance: Posterior variance, (*b, Q), positive.
        kl: KL(q || p), nats, (*b,).
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor


class _DenseMarginals(torch.autograd.Function):
    r"""Mean, variance and KL at the members, with the gradient written out.

    With S the posterior covariance, D = R^2, w = (K + D^-1)^-1 r, P = R B^-1 R and T = I - D S = (I + D K)^-1:

        forward     m = K w,   v = diag S,   KL = 1/2 { [log|B| + tr B^-1 - Q] + w' K w }
        dm          S dD (r - m) + S D dr + T' dK w
        dS          -S dD S + T' dK T
        dKL         w' dm - 1/2 tr(D dS) + 1/2 tr((P - w w') dK)

    Autograd through the Cholesky factor gives the same numbers (a test) in two to three times the time.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, precision: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        root = precision.sqrt()  # R
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        b = (covariance * root.unsqueeze(-1)).mul_(root.unsqueeze(-2))
        b.diagonal(dim1=-2, dim2=-1).add_(1)
        cholesky = factorize(b, covariance)  # C
        inverse = torch.linalg.solve_triangular(cholesky, identity.expand_as(cholesky), upper=False)  # C^-1
        scaled = inverse * root.unsqueeze(-2)  # C^-1 R
        weights = _matvec(scaled.mT, _matvec(scaled, residual))  # w
        mean = _matvec(covariance, weights)
        precise = precision * covariance.diagonal(dim1=-2, dim2=-1) > 1
        posterior = _posterior_covariance(covariance, precise, root, inverse, scaled)
        reduced = precision.unsqueeze(-1) * posterior  # D S
        variance = posterior.diagonal(dim1=-2, dim2=-1)
        # the diagonal of C is >= 1: a sum of log c^2 + c^-2 - 1 >= 0, and of squares below the diagonal
        bracket = log_plus_inverse(cholesky.diagonal(dim1=-2, dim2=-1).log().mul_(2)).sum(-1)
        bracket += inverse.square().tril_(-1).sum((-2, -1))
        kl = 0.5 * (bracket + (weights * mean).sum(-1))
        # r - m = D^-1 w: the difference would cancel at a precise member
        misfit = torch.where(precise, weights / precision, residual - mean)
        ctx.save_for_backward(precision, misfit, weights, posterior, reduced, scaled)
        return mean, variance.clone(), kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad_mean, grad_variance, grad_kl = grad_outputs
        precision, misfit, weights, posterior, reduced, scaled = ctx.saved_tensors  # D, r - m, w, S, D S, C^-1 R
        grad_kl = grad_kl.unsqueeze(-1)
        towards_mean = grad_mean + grad_kl * weights  # h: all that the mean is blamed for
        moved = _matvec(posterior, towards_mean)  # S h
        grad_residual = _matvec(reduced, towards_mean)  # D S h
        towards_diagonal = grad_variance - 0.5 * grad_kl * precision  # the same for diag S
        grad_precision = moved * misfit - _matvec(posterior.square(), towards_diagonal)
        grad_covariance = None
        if ctx.needs_input_grad[0]:
            shrink = -reduced  # T = I - D S
            shrink.diagonal(dim1=-2, dim2=-1).add_(1)
            grad_covariance = (shrink * grad_variance.unsqueeze(-2)) @ shrink.mT
            outer = towards_mean - grad_residual - 0.5 * grad_kl * weights  # T h - (grad_kl / 2) w
            grad_covariance += outer.unsqueeze(-1) * weights.unsqueeze(-2)
            # 1/2 (P - T D T') = 1/2 D S P
            grad_covariance += reduced @ (scaled.mT @ (scaled * (0.5 * grad_kl).unsqueeze(-1)))
        return grad_covariance, grad_precision, grad_residual


def _posterior_covariance(covariance: Tensor, precise: Tensor, root: Tensor, inverse: Tensor, scaled: Tensor) -> Tensor:
    """S, entry by entry by that expression of one number that does not cancel.

    A member is precise if R^2 k > 1. Between precise members S = (I - B^-1) / (R R'); between a precise one and
    another S = D^-1 P K, P = R B^-1 R; between others S = K - (C^-1 R K)'(C^-1 R K). Products with the rows and columns
    that are not of a kind made 0 pick them: several times faster than torch.where.
    """
    others = (~precise).to(covariance.dtype)
    divided = torch.where(precise, root, 1.0).reciprocal_().sub_(others)  # 1 / R of the precise, else 0
    explained = scaled @ covariance
    mixed = scaled.mT @ explained  # P K
    mixed.mul_((divided * divided).unsqueeze(-1)).mul_(others.unsqueeze(-2))
    by_precision = inverse.mT @ inverse
    by_precision.neg_().diagonal(dim1=-2, dim2=-1).add_(1)
    by_precision.mul_(divided.unsqueeze(-1)).mul_(divided.unsqueeze(-2))
    posterior = covariance - explained.mT @ explained
    posterior.mul_(others.unsqueeze(-1)).mul_(others.unsqueeze(-2)).add_(by_precision).add_(mixed).add_(mixed.mT)
    posterior.diagonal(dim1=-2, dim2=-1).clamp_(min=torch.finfo(posterior.dtype).tiny)
    return posterior


def dense_marginals(covariance: Tensor, precision: Tensor, residual: Tensor) -> DenseMarginals:
    """Posterior mean and variance at the members, and the KL divergence from the prior.

        m = K R C^-T a,   v = diag(K - K R B^-1 R K),   KL = 1/2 { [ log|B| + tr B^-1 - Q ] + m' K^-1 m }

    Both braces of the KL are non-negative and computed without cancellation.

    Args:
        covariance: Prior covariance K of the members, (*b, Q, Q), positive semi-definite, possibly singular.
        precision: R^2 = 1 / sigma^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Returns:
        The marginals and the KL, differentiable once.
    """
    shape = torch.broadcast_shapes(covariance.shape[:-1], precision.shape, residual.shape)
    covariance = covariance.expand(*shape, shape[-1])
    outputs = _DenseMarginals.apply(covariance, precision.expand(shape), residual.expand(shape))
    return DenseMarginals(*outputs)  # pyright: ignore[reportGeneralTypeIssues]


class DenseFactor(NamedTuple):
    r"""The factorization of B = I + R K R, for predictions and the evidence.

    Attributes:
        root_precision: R, (*b, Q).
        cholesky: C with C C' = B, (*b, Q, Q).
        whitened: a = C^-1 R r, (*b, Q).
        weights: w = R C^-T a = (K + R^-2)^-1 r, (*b, Q).
    """

    root_precision: Tensor
    cholesky: Tensor
    whitened: Tensor
    weights: Tensor

    def predict_mean(self, cross_covariance: Tensor) -> Tensor:
        """Posterior mean at new points less the prior mean: m* = k(x*, X) R C^-T a.

        Args:
            cross_covariance: k(X, x*), (*b, Q, Q*).

        Returns:
            (*b, Q*).
        """
        return _matvec(cross_covariance.mT, self.weights)

    def predict_variance(self, cross_covariance: Tensor, prior_variance: Tensor) -> Tensor:
        """Posterior variance at new points: v* = k(x*, x*) - || C^-1 R k(X, x*) ||^2.

        Args:
            cross_covariance: k(X, x*), (*b, Q, Q*).
            prior_variance: k(x*, x*), (*b, Q*).

        Returns:
            (*b, Q*), at least the smallest positive number: where x* is a precisely observed member, rounding
            would otherwise leave a zero or less, whose square root has no gradient.
        """
        explained = torch.linalg.solve_triangular(
            self.cholesky, self.root_precision.unsqueeze(-1) * cross_covariance, upper=False
        )
        variance = prior_variance - explained.square().sum(-2)
        return variance.clamp_min(torch.finfo(variance.dtype).tiny)

    def log_evidence(self) -> Tensor:
        """log Z = -1/2 (a'a + log|B| + sum_observed log 2 pi sigma^2), nats, (*b,)."""
        log_determinant = 2 * self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (self.whitened.square().sum(-1) + log_determinant + log_normalizer(self.root_precision.square()))


def dense_factor(covariance: Tensor, precision: Tensor, residual: Tensor) -> DenseFactor:
    """Factorize B = I + R K R.

    Accurate for pseudo-variances from 1e-12 to 1e12 times the prior variance in float64: B's condition number is at
    most 1 + Q max(R^2 K).

    Args:
        covariance: Prior covariance K of the members, (*b, Q, Q), positive semi-definite, possibly singular.
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Returns:
        The factor, its fields with the broadcast batch dimensions.
    """
    root = root_precision(precision)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    b = identity + root.unsqueeze(-1) * covariance * root.unsqueeze(-2)
    cholesky = factorize(b, covariance)
    whitened = torch.linalg.solve_triangular(cholesky, (root * residual).unsqueeze(-1), upper=False)
    weights = root * torch.linalg.solve_triangular(cholesky.mT, whitened, upper=True).squeeze(-1)
    return DenseFactor(root, cholesky, whitened.squeeze(-1), weights)


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
