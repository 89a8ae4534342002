r"""Channels of low rank, K = Phi Phi' with Phi (N, M): the B-form with M in the place of the number of members.

    B = I_M + Phi' R^2 Phi = C C',   u = B^-1 Phi' R^2 r        q(u) = N(u, B^-1), z = Phi u
    posterior mean at x*      m* = Phi* u
    posterior variance at x*  v* = || C^-1 Phi*' ||^2
    log evidence              log Z = -1/2 ( || R (r - Phi u) ||^2 + u'u + log|B| + sum_observed log 2 pi sigma^2 )
    KL(q || p)                1/2 { [ log|B| + tr B^-1 - M ] + u'u }

Every result is a sum of terms of one sign. z has no density where K is singular (a global channel, a repeated x). u
always has one, and the KL between posterior and prior is the same for both. A global channel is Phi = sqrt(s) 1. Group
vectors D give Phi = D (Casale et al. 2018: Sigma = D D'). Products of D with features of x give Phi of the GP-VAE.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.gaussian.precision import (
    check_finite,
    log_normalizer,
    log_plus_inverse,
    root_precision,
    too_precise,
)
from fgp_gpytorch.gaussian.repeated_rows import RepeatedRows


class LowRankFactor(NamedTuple):
    r"""The exact posterior of pseudo-observations of z = Phi u, u ~ N(0, I).

    Attributes:
        root: Phi, (*b, N, M).
        precision: R^2, (*b, N).
        residual: r = mu - m, (*b, N).
        cholesky: C with C C' = B, (*b, M, M).
        weights: Posterior mean of u, (*b, M).

    Examples:
        >>> root = torch.tensor([[1.0], [2.0]], dtype=torch.float64)  # z = (u, 2 u)
        >>> precision, residual = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)  # z_1 is observed
        >>> factor = low_rank_factor(root, precision, residual)
        >>> factor.weights, factor.predict_mean(root), factor.covariance(root)
        (tensor([1.5000], dtype=torch.float64), tensor([1.5000, 3.0000], dtype=torch.float64), tensor([[0.5000, 1.0000],
                [1.0000, 2.0000]], dtype=torch.float64))
    """

    root: Tensor
    precision: Tensor
    residual: Tensor
    cholesky: Tensor
    weights: Tensor

    def predict_mean(self, root: Tensor) -> Tensor:
        """Posterior mean less the prior mean, m* = Phi* u, (*b, N*), at rows Phi* (*b, N*, M)."""
        return _matvec(root, self.weights)

    def predict_variance(self, root: Tensor) -> Tensor:
        """Posterior variance, v* = || C^-1 Phi*' ||^2 >= 0, (*b, N*), at rows Phi* (*b, N*, M)."""
        return _whiten(self.cholesky, root).square().sum(-2)

    def covariance(self, root: Tensor) -> Tensor:
        """Joint posterior covariance Phi* B^-1 Phi*', (*b, N*, N*), of rows Phi* (*b, N*, M)."""
        whitened = _whiten(self.cholesky, root)
        return whitened.mT @ whitened

    def rsample_weights(self, sample_shape: torch.Size) -> Tensor:
        """Draw u = mean + C^-T e of q(u), (*s, *b, M). Phi* u are joint draws at rows Phi*."""
        noise = torch.randn(*sample_shape, *self.weights.shape, 1, dtype=self.weights.dtype, device=self.weights.device)
        return self.weights + torch.linalg.solve_triangular(self.cholesky.mT, noise, upper=True).squeeze(-1)

    def log_evidence(self) -> Tensor:
        """log Z = -1/2 ( || R (r - Phi u) ||^2 + u'u + log|B| + sum_observed log 2 pi sigma^2 ), nats, (*b,)."""
        misfit = self.residual - _matvec(self.root, self.weights)
        quadratic = (self.precision * misfit.square()).sum(-1) + self.weights.square().sum(-1)
        return -0.5 * (quadratic + _log_determinant(self.cholesky) + log_normalizer(self.precision))

    def kl(self) -> Tensor:
        """KL(q || p) = 1/2 { [ log|B| + tr B^-1 - M ] + u'u }, nats, (*b,).

        The KL of u equals that of z: in the null space of Phi, q(u) equals the prior.
        """
        identity = torch.eye(self.cholesky.shape[-1], dtype=self.cholesky.dtype, device=self.cholesky.device)
        inverse = torch.linalg.solve_triangular(self.cholesky, identity, upper=False)
        # the diagonal of C is >= 1: a sum of log c^2 + c^-2 - 1 >= 0, and of squares below the diagonal
        bracket = log_plus_inverse(2 * self.cholesky.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
        bracket = bracket + inverse.tril(-1).square().sum((-2, -1))
        return 0.5 * (bracket + self.weights.square().sum(-1))


def low_rank_factor(root: Tensor, precision: Tensor, residual: Tensor) -> LowRankFactor:
    """Condition u on the pseudo-observations of z = Phi u, in O(N M^2).

    Args:
        root: Phi, (*b, N, M). Its rank may be below M.
        precision: R^2 = 1 / sigma^2, (*b, N), 0 for a missing row.
        residual: r = mu - m, (*b, N), finite, 0 for a missing row.

    Returns:
        The factor. Phi broadcasts over the batch dimensions of the other two.

    Raises:
        NonFiniteError: If Phi or the precisions are not finite, or so large that rounding removes the identity.

    Examples:
        >>> root = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> factor = low_rank_factor(root, precision=torch.ones(2).double(), residual=torch.tensor([1.0, 1.0]).double())
        >>> exact = dense_factor(root @ root.mT, torch.ones(2).double(), torch.tensor([1.0, 1.0]).double())
        >>> torch.allclose(factor.log_evidence(), exact.log_evidence())
        True
    """
    scale = root_precision(precision)
    scaled = scale.unsqueeze(-1) * root  # R Phi
    try:
        cholesky = torch.linalg.cholesky(_identity_plus(scaled.mT @ scaled))
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        check_finite(root, "kernel features")
        raise too_precise(scaled.square().sum(-1)) from error
    projected = scaled.mT @ (scale * residual).unsqueeze(-1)
    weights = torch.cholesky_solve(projected, cholesky).squeeze(-1)
    return LowRankFactor(root, precision, residual, cholesky, weights)


def features_at_points(among: Tensor, cross: Tensor, name: str, jitter: float = 1e-8) -> Tensor:
    """Phi(x) = k(x, X_u) L^-T with L L' = k(X_u, X_u): the features of a kernel at points X_u (Nystrom).

    Args:
        among: k(X_u, X_u), (*b, M, M).
        cross: k(X_u, x), (*b, M, N).
        name: Of what the points belong to, for the message.
        jitter: Noise at the points, relative to their mean variance.

    Returns:
        Phi, (*b, N, M).

    Raises:
        DataError: If the kernel is not positive definite at the points.
        NonFiniteError: If it is not finite there.

    Examples:
        >>> kernel, points = gpytorch.kernels.RBFKernel().double(), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> K = kernel(points).to_dense()
        >>> features = features_at_points(K, K, "kernel")
        >>> torch.allclose(features @ features.mT, K)
        True
    """
    noise = jitter * among.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(among.shape[-1], dtype=among.dtype, device=among.device)
    cholesky, failed = torch.linalg.cholesky_ex(among + noise * identity)
    if bool(failed.any()):
        check_finite(among)
        raise DataError(
            f"{name}: expected a positive definite matrix at the {among.shape[-1]} points, got a singular one. Try "
            "fewer points, further apart, or another kernel."
        )
    return torch.linalg.solve_triangular(cholesky, cross, upper=False).mT


class MeanFieldFactor(NamedTuple):
    r"""A mean-field q(z) = prod_i N(mu_i, s_i) under the prior N(0, Phi Phi' + alpha I) (Casale et al. 2018).

    With A = I_M + Phi' Phi / alpha = C C', V = C^-1 Phi' / sqrt(alpha), h_i = 1 - || v_i ||^2 and
    w = A^-1 Phi' mu / alpha, Woodbury's identity gives (K + alpha I)^-1 = (I - V'V) / alpha, with diagonal h / alpha.

    Attributes:
        root: Phi, (*b, N, M).
        noise: alpha, (*b,) or scalar, positive.
        mean: mu, (*b, N).
        variance: s, (*b, N), positive.
        cholesky: C, (*b, M, M).
        weights: w, (*b, M).
        repeated: Phi as products of repeated vectors; None for a plain matrix.

    Examples:
        >>> root, noise = torch.tensor([[1.0], [1.0]]).double(), torch.tensor(1.0).double()
        >>> mean, variance = torch.tensor([[3.0, 3.0], [1.0, 1.0]]).double()
        >>> factor = mean_field_factor(root, noise, mean, variance)
        >>> factor.weights, factor.predict_mean(torch.tensor([[2.0]]).double())  # of u, and of z = 2 u
        (tensor([2.0000], dtype=torch.float64), tensor([4.0000], dtype=torch.float64))
    """

    root: Tensor
    noise: Tensor
    mean: Tensor
    variance: Tensor
    cholesky: Tensor
    weights: Tensor
    repeated: RepeatedRows | None = None

    def kl(self) -> Tensor:
        r"""KL(q || p), nats, (*b,), in O(N M^2), with repeated rows in O(N M + M^2 (M + m V)).

            1/2 { sum_i [rho_i - 1 - log rho_i] + [log|A| + sum_i log h_i] + || mu - Phi w ||^2 / alpha + w'w }

        with rho_i = s_i h_i / alpha, the ratio of q's variance to the prior's of z_i given all others. Every bracket is
        >= 0 (the second by Hadamard's inequality), and the last two terms are mu' (K + alpha I)^-1 mu.
        """
        noise = self.noise.unsqueeze(-1)
        if self.repeated is None:
            norms = _whiten(self.cholesky, self.root).square().sum(-2)
        else:
            norms = self.repeated.whitened_norms(self.cholesky)
        leverage = norms / noise
        # h = alpha / (k + alpha) for a row far from all others: rounding could leave 0 where alpha is tiny
        rest = (1 - leverage).clamp_min(torch.finfo(leverage.dtype).eps)  # h
        log_ratio = (self.variance * rest / noise).log()
        independent = (torch.expm1(log_ratio) - log_ratio).sum(-1)
        coupling = _log_determinant(self.cholesky) + rest.log().sum(-1)
        misfit = self.mean - _matvec(self.root, self.weights)
        quadratic = misfit.square().sum(-1) / self.noise + self.weights.square().sum(-1)
        return 0.5 * (independent + coupling + quadratic)

    def predict_mean(self, root: Tensor) -> Tensor:
        """Mean E_q E[z* | z] = k* (K + alpha I)^-1 mu = Phi* w, (*b, N*), at rows Phi* (*b, N*, M)."""
        return _matvec(root, self.weights)

    def predict_variance(self, root: Tensor) -> Tensor:
        r"""Variance of z* without its noise alpha, (*b, N*), at rows Phi* (*b, N*, M).

            k** - k* (K + alpha I)^-1 k*' + k* (K + alpha I)^-1 diag(s) (K + alpha I)^-1 k*'
              = || T ||^2 + T' H T,   T = C^-1 Phi*',   H = C^-1 Phi' diag(s) Phi C^-T / alpha^2

        The first part is the prior's variance given z, the second the variance of z under q.
        """
        new = _whiten(self.cholesky, root)  # T
        old = _whiten(self.cholesky, self.root) / self.noise[..., None, None]
        spread = (old * self.variance.unsqueeze(-2)) @ old.mT  # H
        return new.square().sum(-2) + (new * (spread @ new)).sum(-2)

    def rsample_weights(self, sample_shape: torch.Size) -> Tensor:
        """Draw z from q, then u = A^-1 Phi' z / alpha + C^-T e of p(u | z), (*s, *b, M)."""
        mean = self.mean
        z = mean + self.variance.sqrt() * torch.randn(*sample_shape, *mean.shape, dtype=mean.dtype, device=mean.device)
        centre = _mean_field_weights(self.root, self.noise, z, self.cholesky)
        step = torch.randn_like(centre)
        if self.cholesky.dim() == 2:
            return centre + _as_columns(lambda e: torch.linalg.solve_triangular(self.cholesky.mT, e, upper=True), step)
        return centre + torch.linalg.solve_triangular(self.cholesky.mT, step.unsqueeze(-1), upper=True).squeeze(-1)


def mean_field_factor(root: Tensor | RepeatedRows, noise: Tensor, mean: Tensor, variance: Tensor) -> MeanFieldFactor:
    """Factorize A = I + Phi' Phi / alpha, once for all channels that share Phi.

    Args:
        root: Phi, (*b, N, M), without batch dimensions where all channels share it. `RepeatedRows` need a scalar
            alpha.
        noise: alpha, (*b,) or scalar, positive.
        mean: mu, (*b, N).
        variance: s, (*b, N), positive.

    Returns:
        The factor. There is no mask: leave missing rows out, which gives the exact marginal.

    Raises:
        NonFiniteError: If Phi is not finite, or so large that rounding removes the identity.

    Examples:
        >>> root, noise = torch.tensor([[1.0], [1.0]]).double(), torch.tensor(1.0).double()
        >>> mean, variance = torch.tensor([[0.0, 0.0], [1.5, 1.5]]).double()
        >>> factor = mean_field_factor(root, noise, mean, variance)
        >>> prior = torch.distributions.MultivariateNormal(mean, root @ root.mT + torch.eye(2))
        >>> q = torch.distributions.MultivariateNormal(mean, variance.diag())
        >>> torch.allclose(factor.kl(), torch.distributions.kl_divergence(q, prior))
        True
    """
    if isinstance(root, RepeatedRows):
        repeated, root = root, root.dense()
        gram = repeated.gram() / noise
    else:
        repeated, scaled = None, root / noise.sqrt()[..., None, None]
        gram = scaled.mT @ scaled
    try:
        cholesky = torch.linalg.cholesky(_identity_plus(gram))
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        check_finite(root, "kernel features")
        raise too_precise(root.square().sum(-1) / noise.unsqueeze(-1)) from error
    weights = _mean_field_weights(root, noise, mean, cholesky)
    return MeanFieldFactor(root, noise, mean, variance, cholesky, weights, repeated)


def _mean_field_weights(root: Tensor, noise: Tensor, z: Tensor, cholesky: Tensor) -> Tensor:
    if cholesky.dim() == 2:  # all draws and channels share one matrix: one product serves them all
        return _as_columns(lambda p: torch.cholesky_solve(p, cholesky), z @ root / noise)
    projected = (root.mT @ z.unsqueeze(-1)) / noise[..., None, None]
    return torch.cholesky_solve(projected, cholesky).squeeze(-1)


def _as_columns(solve: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """Solve for vectors (*b, M) as the columns of one matrix."""
    return solve(vectors.reshape(-1, vectors.shape[-1]).mT).mT.reshape(vectors.shape)


def _identity_plus(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) + matrix


def _whiten(cholesky: Tensor, root: Tensor) -> Tensor:
    """C^-1 Phi', (*b, M, N)."""
    return torch.linalg.solve_triangular(cholesky, root.mT, upper=False)


def _log_determinant(cholesky: Tensor) -> Tensor:
    return 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
