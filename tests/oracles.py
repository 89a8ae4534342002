"""Slow strangers: the model of the paper once more, written from the paper and sharing no line with the library.

Every latent number is a row (group, auxiliary features, channel). Covariances are filled entry by entry in Python
loops, Gaussians are conditioned by the textbook formula with one dense N x N matrix, and where doubles are too coarse
the same formulas run in mpmath with a hundred digits. Nothing here is fast and nothing here is clever: that is its use.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mpmath
import numpy as np
import scipy.special

Kernel = Callable[[Sequence, Sequence, object], object]  # (x, x', arithmetic) -> covariance
Mean = Callable[[Sequence, object], object]
Row = tuple[int, tuple[float, ...], int]  # group, auxiliary features, channel


# Kernels and means, one number at a time; `m` is the module of arithmetic, `math` or `mpmath.mp`.


def rbf(lengthscale, outputscale=1.0) -> Kernel:
    """s exp(-1/2 sum_d (x_d - x'_d)^2 / r_d^2); `lengthscale` is one number or one per feature (ARD)."""

    def k(a, b, m=math):
        total = 0
        for d in range(len(a)):
            r = lengthscale[d] if np.ndim(lengthscale) else lengthscale
            total += ((a[d] - b[d]) / r) ** 2
        return outputscale * m.exp(-total / 2)

    return k


def periodic(lengthscale, period, outputscale=1.0) -> Kernel:
    """s exp(-2 sum_d sin^2(pi |x_d - x'_d| / p) / lengthscale): GPyTorch's, which does not square the lengthscale."""

    def k(a, b, m=math):
        total = 0
        for d in range(len(a)):
            total += m.sin(m.pi * (a[d] - b[d]) / period) ** 2
        return outputscale * m.exp(-2 * total / lengthscale)

    return k


def matern32(lengthscale, outputscale=1.0) -> Kernel:
    """s (1 + sqrt(3) r) exp(-sqrt(3) r), r = |x - x'| / lengthscale."""

    def k(a, b, m=math):
        r = m.sqrt(sum(((a[d] - b[d]) / lengthscale) ** 2 for d in range(len(a)))) * m.sqrt(3)
        return outputscale * (1 + r) * m.exp(-r)

    return k


def coregionalized(left, right, lengthscale, harmonics) -> Kernel:
    """sum_r psi_r(x) psi'_r(x'), psi_r(x) = sum_f phi_f(x) W_fr; `left` and `right` are W of two channels, [f][r].

    phi are the terms of the Fourier series of `periodic(lengthscale, 2 pi)`: c_0 = exp(-1/r) I_0(1/r), c_n = 2
    exp(-1/r) I_n(1/r), constant first, then the cosines, then the sines.
    """

    def loading(weights, x, r):
        total = 0.0
        for n in range(harmonics + 1):
            root = math.sqrt((1 if n == 0 else 2) * scipy.special.ive(n, 1 / lengthscale))
            total += root * math.cos(n * x[0]) * weights[n][r]
            if n > 0:
                total += root * math.sin(n * x[0]) * weights[harmonics + n][r]
        return total

    def k(a, b, m=math):
        return sum(loading(left, a, r) * loading(right, b, r) for r in range(len(left[0])))

    return k


def linear(variance) -> Kernel:
    """v x'x: of rank D, so singular as soon as a group has more than D members."""

    def k(a, b, m=math):
        return variance * sum(a[d] * b[d] for d in range(len(a)))

    return k


def constant(variance=1.0) -> Kernel:
    """The paper's second kernel, delta(d, d') alone, times an amplitude."""
    return lambda a, b, m=math: variance


def within(base: Kernel, feature: int) -> Kernel:
    """A kernel between rows of one inner group, zero between others; the base never gets the code."""

    def k(a, b, m=math):
        rest = [d for d in range(len(a)) if d != feature]
        return base([a[d] for d in rest], [b[d] for d in rest], m) if a[feature] == b[feature] else 0

    return k


def on(base: Kernel, *features: int) -> Kernel:
    """A kernel of some features."""
    return lambda a, b, m=math: base([a[d] for d in features], [b[d] for d in features], m)


def total(*parts: Kernel) -> Kernel:
    """The sum of kernels."""
    return lambda a, b, m=math: sum(k(a, b, m) for k in parts)


def zero_mean(a, m=math):
    return 0


# One dense Gaussian over all groups and channels, NumPy.


@dataclass
class DenseAnswer:
    """What one dense Gaussian says of all groups: arrays shaped like the library's answers."""

    mean: np.ndarray  # (G, Q, L), at every member, observed or not
    variance: np.ndarray  # (G, Q, L)
    covariance: np.ndarray  # (G Q L, G Q L), rows ordered group, member, channel
    new_mean: np.ndarray | None  # (G, Q*, L)
    new_variance: np.ndarray | None
    joint_mean: np.ndarray  # members of all groups, then the new rows
    joint_covariance: np.ndarray
    log_evidence: float  # summed over groups and channels, nats
    kl: float  # KL(q || p) = E_q[log q~] - log Z, summed over groups and channels, nats


class DenseGaussian:
    """p(Z) = N(m, K) with K[(g, x, l), (g', x', l')] = delta(g, g') delta(l, l') k_l(x, x').

    `couplings[l, l']` is the covariance of two different channels, for those that have one.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        means: Sequence[Mean] | None = None,
        couplings: dict[tuple[int, int], Kernel] | None = None,
    ):
        self.kernels = list(kernels)
        self.couplings = couplings or {}
        self.means = list(means) if means is not None else [zero_mean] * len(self.kernels)

    def rows(self, x: np.ndarray) -> list[Row]:
        x = np.asarray(x, dtype=float)
        return [
            (g, tuple(x[g, q]), channel)
            for g in range(x.shape[0])
            for q in range(x.shape[1])
            for channel in range(len(self.kernels))
        ]

    def covariance(self, left: list[Row], right: list[Row]) -> np.ndarray:
        out = np.zeros((len(left), len(right)))
        for i, (group, a, channel) in enumerate(left):
            for j, (other_group, b, other_channel) in enumerate(right):
                if group == other_group and channel == other_channel:
                    out[i, j] = self.kernels[channel](a, b, math)
                elif group == other_group and (channel, other_channel) in self.couplings:
                    out[i, j] = self.couplings[channel, other_channel](a, b, math)
        return out

    def prior_mean(self, rows: list[Row]) -> np.ndarray:
        return np.array([float(self.means[channel](a, math)) for _, a, channel in rows])

    def condition(self, x, mean, variance, mask=None, x_new=None) -> DenseAnswer:
        """Condition on every unmasked pseudo-observation of every group and channel at once."""
        x, mean, variance = (np.asarray(t, dtype=float) for t in (x, mean, variance))
        groups, members, channels = mean.shape
        mask = np.ones((groups, members), bool) if mask is None else np.asarray(mask, bool)
        rows = self.rows(x)
        observed = [i for i in range(len(rows)) if mask.reshape(-1)[i // channels]]
        y = mean.reshape(-1)[observed]
        v = variance.reshape(-1)[observed]
        everything = rows + (self.rows(x_new) if x_new is not None else [])
        seen = [rows[i] for i in observed]

        noisy = self.covariance(seen, seen) + np.diag(v)
        cross = self.covariance(everything, seen)
        residual = y - self.prior_mean(seen)
        joint_mean = self.prior_mean(everything) + cross @ np.linalg.solve(noisy, residual)
        joint_cov = self.covariance(everything, everything) - cross @ np.linalg.solve(noisy, cross.T)

        log_evidence = -0.5 * residual @ np.linalg.solve(noisy, residual)
        log_evidence += -0.5 * np.linalg.slogdet(noisy)[1] - 0.5 * len(y) * math.log(2 * math.pi)
        # E_q[log q~]: one Gaussian log density a pseudo-observation, averaged over q's marginal.
        expected = 0.0
        for n, i in enumerate(observed):
            spread = (y[n] - joint_mean[i]) ** 2 + joint_cov[i, i]
            expected += -0.5 * math.log(2 * math.pi * v[n]) - 0.5 * spread / v[n]

        size = len(rows)
        new = x_new is not None
        new_shape = (groups, np.asarray(x_new).shape[1], channels) if new else None
        return DenseAnswer(
            mean=joint_mean[:size].reshape(mean.shape),
            variance=np.diag(joint_cov)[:size].reshape(mean.shape),
            covariance=joint_cov[:size, :size],
            new_mean=joint_mean[size:].reshape(new_shape) if new else None,
            new_variance=np.diag(joint_cov)[size:].reshape(new_shape) if new else None,
            joint_mean=joint_mean,
            joint_covariance=joint_cov,
            log_evidence=float(log_evidence),
            kl=float(expected - log_evidence),
        )


def gaussian_kl(mean_q, cov_q, mean_p, cov_p) -> float:
    """KL(N_q || N_p) of two dense Gaussians, by the definition that needs both covariances invertible."""
    shift = mean_p - mean_q
    return 0.5 * float(
        np.trace(np.linalg.solve(cov_p, cov_q))
        + shift @ np.linalg.solve(cov_p, shift)
        - len(shift)
        + np.linalg.slogdet(cov_p)[1]
        - np.linalg.slogdet(cov_q)[1]
    )


# Appendix B, as printed.


def log_normal(z, mean, variance) -> float:
    return -0.5 * math.log(2 * math.pi * variance) - 0.5 * (z - mean) ** 2 / variance


def paper_global_posterior(means, variances) -> tuple[float, float]:
    """mu-bar and sigma-bar^2 of Appendix B: (1 + sum 1/s^2)^-1 and sigma-bar^2 sum mu/s^2."""
    precision = 1.0
    weighted = 0.0
    for mu, s2 in zip(means, variances, strict=True):
        precision += 1.0 / s2
        weighted += mu / s2
    return weighted / precision, 1.0 / precision


def paper_global_log_evidence(means, variances) -> float:
    """log of N(0|0,1) prod N(0|mu, s^2) / N(0|mu-bar, sigma-bar^2), the second integral's right-hand side."""
    mu_bar, var_bar = paper_global_posterior(means, variances)
    numerator = log_normal(0.0, 0.0, 1.0)
    for mu, s2 in zip(means, variances, strict=True):
        numerator += log_normal(0.0, mu, s2)
    return numerator - log_normal(0.0, mu_bar, var_bar)


# One group, one channel, a hundred digits.


@dataclass
class ExactAnswer:
    mean: list
    variance: list
    new_mean: list
    new_variance: list
    log_evidence: object
    kl: object


def exact_group(
    kernel: Kernel, x, y, variance, mask=None, x_new=(), prior_mean: Mean = zero_mean, digits=100
) -> ExactAnswer:
    """Posterior, evidence and KL of one group and channel, as mpmath numbers."""
    with mpmath.workdps(digits):
        mp = mpmath.mp
        x = [[mp.mpf(value) for value in row] for row in x]
        y = [mp.mpf(value) for value in y]
        variance = [mp.mpf(value) for value in variance]
        x_new = [[mp.mpf(value) for value in row] for row in x_new]
        mask = [True] * len(x) if mask is None else list(mask)
        observed = [i for i in range(len(x)) if mask[i]]
        n = len(observed)
        noisy = mp.matrix(n, n)
        residual = mp.matrix(n, 1)
        for i in range(n):
            for j in range(n):
                noisy[i, j] = kernel(x[observed[i]], x[observed[j]], mp)
            noisy[i, i] += variance[observed[i]]
            residual[i] = y[observed[i]] - prior_mean(x[observed[i]], mp)
        inverse = noisy**-1 if n else None

        def predict(point):
            mean, spread = mp.mpf(prior_mean(point, mp)), mp.mpf(kernel(point, point, mp))
            cross = [kernel(point, x[j], mp) for j in observed]
            for i in range(n):
                for j in range(n):
                    mean += cross[i] * inverse[i, j] * residual[j]
                    spread -= cross[i] * inverse[i, j] * cross[j]
            return mean, spread

        old = [predict(point) for point in x]
        new = [predict(point) for point in x_new]
        log_evidence = expected = mp.mpf(0)
        if n:
            quadratic = sum(residual[i] * inverse[i, j] * residual[j] for i in range(n) for j in range(n))
            log_evidence = -(quadratic + mp.log(mp.det(noisy)) + n * mp.log(2 * mp.pi)) / 2
        for i in observed:
            spread = (y[i] - old[i][0]) ** 2 + old[i][1]
            expected -= (mp.log(2 * mp.pi * variance[i]) + spread / variance[i]) / 2
        return ExactAnswer(
            mean=[m for m, _ in old],
            variance=[v for _, v in old],
            new_mean=[m for m, _ in new],
            new_variance=[v for _, v in new],
            log_evidence=log_evidence,
            kl=expected - log_evidence,
        )


def exact_gradient(function: Callable, point: Sequence[float], digits=100) -> list[float]:
    """Central differences with a relative step of 1e-30 in a hundred digits: exact to every digit of a double."""
    with mpmath.workdps(digits):
        mp = mpmath.mp
        out = []
        base = [mp.mpf(value) for value in point]
        for i, value in enumerate(base):
            step = mp.mpf(10) ** -30 * (abs(value) if value else 1)
            up, down = list(base), list(base)
            up[i] += step
            down[i] -= step
            out.append(float((function(up) - function(down)) / (2 * step)))
        return out
