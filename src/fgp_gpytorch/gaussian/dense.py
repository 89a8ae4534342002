"""Channels with a full covariance within a group (paper, Appendix B, "exact GP posterior"), in B-form."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.gaussian._gradients import gradients_with_graph
from fgp_gpytorch.gaussian.precision import (
    check_residual_variance,
    factorize,
    log_normalizer,
    log_plus_inverse,
    require_covariance,
    root_precision,
    rounding_tolerance,
)
from fgp_gpytorch.gaussian.repeated_members import PooledMembers, pool_repeated, precise_limit


class DenseMarginals(NamedTuple):
    """The posterior at the members and its KL divergence, for training.

    Attributes:
        mean: Posterior mean less the prior mean, (*b, Q).
        variance: Posterior variance, (*b, Q), positive.
        kl: KL(q || p), nats, (*b,).

    Examples:
        >>> K = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> mean, variance, kl = dense_marginals(K, precision=torch.zeros(2).double(), residual=torch.zeros(2).double())
        >>> mean, variance, kl  # without observations: the prior
        (tensor([0., 0.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64), tensor(0., dtype=torch.float64))
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor


class _DenseMarginals(torch.autograd.Function):
    r"""Mean, variance and KL at the members, with the gradient written out.

    The names in the code are these letters, with DS for D S and dX for the gradient of the loss with respect to X:

        K   prior covariance        D   precisions = R^2            r   residual
        B   I + R K R               C   chol(B)                     A   C^-1
        E   C^-1 R                  P   R B^-1 R = E' E             w   (K + D^-1)^-1 r = P r
        m   mean = K w              S   covariance = K - K P K      v   variance = diag S
        T   I - D S = (I + D K)^-1  h   dm + dKL w                  g   dv - dKL/2 D

        KL = 1/2 { [log|B| + tr B^-1 - Q] + w' K w }
        dr = D S h
        dD = (S h) (r - m) - S^2 g,  with elementwise products and squares
        dK = T diag(dv) T' + (T h - dKL/2 w) w' + dKL/2 D S P

    Autograd through the Cholesky factor gives the same numbers (a test) in two to three times the time. If the gradient
    is to be differentiated again (create_graph=True), `_plain_marginals` computes it.
    """

    @staticmethod
    def forward(
        ctx: Any, K: Tensor, D: Tensor, r: Tensor, symmetric: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, bool, bool]:
        given, K = K, K.contiguous()  # matmul would copy an expanded K each time
        R = D.sqrt()
        B = (K * R.unsqueeze(-1)).mul_(R.unsqueeze(-2))
        B.diagonal(dim1=-2, dim2=-1).add_(1)
        C, info = torch.linalg.cholesky_ex(B)
        eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
        A = torch.linalg.solve_triangular(C, eye.expand_as(C), upper=False)
        E = A * R.unsqueeze(-2)
        w = (E * _matvec(E, r).unsqueeze(-1)).sum(-2)
        m = _matvec(K, w)
        k = K.diagonal(dim1=-2, dim2=-1)
        Dk = D * k
        precise = Dk > 1
        S = _posterior_covariance(K, precise, R, A, E)
        v = S.diagonal(dim1=-2, dim2=-1)
        # the bracket: over the diagonal of C, c >= 1, a sum of log c^2 + c^-2 - 1 >= 0; below it a sum of squares
        bracket = log_plus_inverse(C.diagonal(dim1=-2, dim2=-1).log().mul_(2)).sum(-1)
        below = A.square()
        below.diagonal(dim1=-2, dim2=-1).zero_()
        bracket += below.sum((-2, -1))
        KL = 0.5 * (bracket + (w * m).sum(-1))
        # one transfer for all checks; written so that NaN fails
        tolerance = rounding_tolerance(v.dtype)
        sound = (v + tolerance * k.abs() >= 0).all() & symmetric & (info == 0).all()
        rounding = torch.finfo(v.dtype).eps * k.amax() * (w * w).sum(-1) if k.numel() else KL  # of w' K w
        flags = [sound, (Dk > precise_limit(v.dtype)).any(), (rounding > 1 + KL).any()]
        sound, very_precise, inexact = torch.stack(flags).tolist()
        if not sound:
            require_covariance(K)
            factorize(B, K)  # fails if rounding is to blame
        v.clamp_(min=torch.finfo(v.dtype).tiny)
        # r - m = D^-1 w: the difference would cancel at a precise member
        r_minus_m = torch.where(precise, w / D, r - m)
        ctx.save_for_backward(given, D, r, r_minus_m, w, S, E)
        return m, v.clone(), KL, very_precise, inexact

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        dm, dv, dKL, *_ = grad_outputs
        K, D, r, r_minus_m, w, S, E = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return *gradients_with_graph(_plain_marginals, (K, D, r), ctx.needs_input_grad[:3], (dm, dv, dKL)), None
        dKL = dKL.unsqueeze(-1)
        h = dm + dKL * w
        Sh = _matvec(S, h)
        dr = D * Sh
        g = dv - 0.5 * dKL * D
        dD = Sh * r_minus_m - _matvec(S.square(), g)
        dK = None
        if ctx.needs_input_grad[0]:
            DS = D.unsqueeze(-1) * S
            T = -DS
            T.diagonal(dim1=-2, dim2=-1).add_(1)
            dK = (T * dv.unsqueeze(-2)) @ T.mT
            dK += (h - dr - 0.5 * dKL * w).unsqueeze(-1) * w.unsqueeze(-2)  # T h = h - D S h = h - dr
            dK += DS @ (E.mT @ (E * (0.5 * dKL).unsqueeze(-1)))
        return dK, dD, dr, None


def _plain_marginals(K: Tensor, D: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_DenseMarginals` by operations that have derivatives of all orders, in the letters of that class."""
    I_DK = D.unsqueeze(-1) * K + torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    T = torch.linalg.inv(I_DK)
    w = _matvec(T, D * r)
    m = _matvec(K, w)
    v = (K * T.mT).sum(-1)  # S = K T: nothing cancels
    trace = T.diagonal(dim1=-2, dim2=-1).sum(-1)
    KL = 0.5 * (torch.linalg.slogdet(I_DK).logabsdet + trace - K.shape[-1] + (w * m).sum(-1))
    return m, v, KL


def _posterior_covariance(K: Tensor, precise: Tensor, R: Tensor, A: Tensor, E: Tensor) -> Tensor:
    """S. Each entry uses the one of three equal expressions that does not cancel.

    A member is precise if R^2 k > 1. Between precise members S = (I - B^-1) / (R R'). Between a precise member and
    another one S = D^-1 P K. Between others S = K - (E K)' (E K). With o = 1 for the others and c = 1 / R for the
    precise, else 0, all three are

        S = diag(o) K diag(o) + diag(c)^2 - W' W,   W = E K diag(o) - A diag(c)
    """
    o = (~precise).to(K.dtype)
    c = torch.where(precise, R, 1.0).reciprocal_().sub_(o)
    W = (E @ K).mul_(o.unsqueeze(-2)).sub_(A * c.unsqueeze(-2))
    S = (K * o.unsqueeze(-1)).mul_(o.unsqueeze(-2))
    S.diagonal(dim1=-2, dim2=-1).addcmul_(c, c)
    return S.sub_(W.mT @ W)


def dense_marginals(covariance: Tensor, precision: Tensor, residual: Tensor, x: Tensor | None = None) -> DenseMarginals:
    """Posterior mean and variance at the members, and the KL divergence from the prior.

        m = K R C^-T a,   v = diag(K - K R B^-1 R K),   KL = 1/2 { [ log|B| + tr B^-1 - Q ] + m' K^-1 m }

    The bracket of the KL and the term after it are non-negative. Neither is computed by a difference that cancels.

    Args:
        covariance: Prior covariance K of the members, (*b, Q, Q), positive semi-definite, possibly singular.
        precision: R^2 = 1 / sigma^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.
        x: Auxiliary features, (*b, Q, D). Precise members of equal x are pooled; see `pool_repeated`. None pools none.

    Returns:
        The marginals and the KL, with derivatives of all orders, for torch.func too.

    Raises:
        DataError: If K is not symmetric, or has a negative eigenvalue beyond rounding.
        NonFiniteError: If K is not finite, so large that rounding removes the identity of B, or so close to singular
            that the KL of precise observations that do not fit it has no digits.

    Examples:
        >>> K = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> precision, residual = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)  # one is missing
        >>> mean, variance, kl = dense_marginals(K, precision, residual)
        >>> mean, variance
        (tensor([1.0000, 0.5000], dtype=torch.float64), tensor([0.5000, 0.8750], dtype=torch.float64))
    """
    shape = torch.broadcast_shapes(covariance.shape[:-1], precision.shape, residual.shape)
    symmetric = _is_symmetric(covariance)
    covariance = covariance.expand(*shape, shape[-1])
    precision, residual = precision.expand(shape), residual.expand(shape)
    mean, variance, kl, very_precise, inexact = _marginals(covariance, precision, residual, symmetric)
    pooled = pool_repeated(covariance, precision, residual, x) if very_precise and x is not None else None
    if pooled is not None:
        mean, variance, kl, _, inexact = _marginals(covariance, pooled.precision, pooled.residual, symmetric)
        mean, variance = mean.gather(-1, pooled.first), variance.gather(-1, pooled.first)
    if inexact:
        raise NonFiniteError(
            "variance: expected pseudo-variances at which rounding of the covariance does not matter, got some down to "
            f"{1 / precision.amax().item():.1g} of means that do not fit a covariance close to singular. Try larger "
            "ones, or LocalChannels(..., inference='low_rank') if the kernel has few features."
        )
    return DenseMarginals(mean, variance, kl)


def _marginals(
    covariance: Tensor, precision: Tensor, residual: Tensor, symmetric: Tensor
) -> tuple[Tensor, Tensor, Tensor, bool, bool]:
    if transforms_active(covariance, precision, residual):
        return *_plain_marginals(covariance, precision, residual), True, False
    return _DenseMarginals.apply(covariance, precision, residual, symmetric)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _is_symmetric(covariance: Tensor) -> Tensor:
    """Whether K (*b, Q, Q) is symmetric up to rounding, a boolean scalar. False for NaN."""
    largest = covariance.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None] if covariance.numel() else 0.0
    return ((covariance - covariance.mT).abs() <= rounding_tolerance(covariance.dtype) * largest).all()


class DenseFactor(NamedTuple):
    r"""The factorization of B = I + R K R, for predictions and the evidence.

    Attributes:
        root_precision: R, (*b, Q).
        cholesky: C with C C' = B, (*b, Q, Q).
        whitened: a = C^-1 R r, (*b, Q).
        weights: w = R C^-T a = (K + R^-2)^-1 r, (*b, Q).
        covariance: K, (*b, Q, Q).
        constant: The terms of -2 log Z that do not depend on K: sum_observed log 2 pi sigma^2, and the scatter of
            observations of one value about their mean, (*b,).

    Examples:
        >>> K = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> precision, residual = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)  # one is missing
        >>> factor = dense_factor(K, precision, residual)
        >>> factor.predict_mean(K)  # at the observed member, and at the missing one
        tensor([1.0000, 0.5000], dtype=torch.float64)
        >>> factor.predict_variance(K, K.diagonal())
        tensor([0.5000, 0.8750], dtype=torch.float64)
    """

    root_precision: Tensor
    cholesky: Tensor
    whitened: Tensor
    weights: Tensor
    covariance: Tensor
    constant: Tensor

    def predict_mean(self, cross_covariance: Tensor) -> Tensor:
        """Posterior mean less the prior mean, m* = k(x*, X) R C^-T a, (*b, Q*), from k(X, x*), (*b, Q, Q*)."""
        return _matvec(cross_covariance.mT, self.weights)

    def predict_variance(self, cross_covariance: Tensor, prior_variance: Tensor) -> Tensor:
        """Posterior variance at new points: v* = k(x*, x*) - || C^-1 R k(X, x*) ||^2.

        Args:
            cross_covariance: k(X, x*), (*b, Q, Q*).
            prior_variance: k(x*, x*), (*b, Q*).

        Returns:
            (*b, Q*), at least the smallest positive number. Without this bound, rounding could give v* <= 0 at a
            precisely observed member, where the square root has no gradient.

        Raises:
            DataError: If v* is negative beyond rounding, because the joint covariance of old and new points has a
                negative eigenvalue or is not symmetric.
            NonFiniteError: If that covariance is not finite.
        """
        explained = torch.linalg.solve_triangular(
            self.cholesky, self.root_precision.unsqueeze(-1) * cross_covariance, upper=False
        )
        variance = prior_variance - explained.square().sum(-2)
        check_residual_variance(variance, self.covariance, cross_covariance, prior_variance)
        return variance.clamp_min(torch.finfo(variance.dtype).tiny)

    def log_evidence(self) -> Tensor:
        """log Z = -1/2 (a'a + log|B| + sum_observed log 2 pi sigma^2), nats, (*b,).

        Raises:
            DataError: If K is not symmetric, or makes a posterior variance negative beyond rounding.
            NonFiniteError: If K is not finite.
        """
        if not transforms_active(self.covariance, self.weights):
            with torch.no_grad():  # for its check
                self.predict_variance(self.covariance, self.covariance.diagonal(dim1=-2, dim2=-1))
        log_determinant = 2 * self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (self.whitened.square().sum(-1) + log_determinant + self.constant)


def dense_factor(
    covariance: Tensor, precision: Tensor, residual: Tensor, pooled: PooledMembers | None = None
) -> DenseFactor:
    """Factorize B = I + R K R.

    In float64 it is accurate for pseudo-variances from 1e-12 to 1e12 times the prior variance: the condition number of
    B is at most 1 + Q max(R^2 K).

    Args:
        covariance: Prior covariance K of the members, (*b, Q, Q), positive semi-definite, possibly singular.
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.
        pooled: What `pool_repeated` makes of the other arguments; it replaces precision and residual.

    Returns:
        The factor, its fields with the broadcast batch dimensions.

    Raises:
        DataError: If K is not symmetric, or has a negative eigenvalue beyond rounding.
        NonFiniteError: If K is not finite, or so large that rounding removes the identity of B.

    Examples:
        >>> K = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)  # singular
        >>> precision, residual = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
        >>> factor = dense_factor(K, precision, residual)
        >>> factor.predict_mean(K), factor.predict_variance(K, K.diagonal())
        (tensor([2., 2.], dtype=torch.float64), tensor([0.3333, 0.3333], dtype=torch.float64))
    """
    if pooled is not None:
        precision, residual = pooled.precision, pooled.residual
    root = root_precision(precision)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    b = identity + root.unsqueeze(-1) * covariance * root.unsqueeze(-2)
    cholesky = factorize(b, covariance)
    whitened = torch.linalg.solve_triangular(cholesky, (root * residual).unsqueeze(-1), upper=False)
    weights = root * torch.linalg.solve_triangular(cholesky.mT, whitened, upper=True).squeeze(-1)
    constant = log_normalizer(root.square()) if pooled is None else pooled.scatter
    return DenseFactor(root, cholesky, whitened.squeeze(-1), weights, covariance, constant)


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
