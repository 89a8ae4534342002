"""Kalman filter and smoother by stretches against the dense algebra, sequential smoothers, mpmath and differences."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.gaussian import (
    MarkovChain,
    MarkovTerm,
    dense_factor,
    dense_marginals,
    markov_chain,
    state_space_draws,
    state_space_marginals,
    state_space_paths,
)

F64 = torch.float64
SUMS = [[1], [2], [3], [2, 0], [3, 0], [1, 2, 3, 0]]  # orders of Matern terms, 0 for a constant


def times(n, seed=0, repeats=False):
    x = (n / 20) * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64).sort().values
    if repeats:
        x[n // 2 : n // 2 + n // 6] = x[n // 2]
    return x


def terms_of(orders, channels=2):
    """Terms with parameters of their own for each channel, of different lengthscales and variances."""
    scale = 1 + torch.arange(channels, dtype=F64).unsqueeze(-1) / channels
    found = []
    for place, order in enumerate(orders):
        variance = 0.7 * scale + 0.4 * place
        found.append(MarkovTerm(order, variance, math.sqrt(2 * order - 1) / (0.6 + scale) if order else None))
    return found


def covariance(terms, x1, x2):
    """The textbook's formulas."""
    total = 0.0
    for order, variance, rate in terms:
        t = torch.zeros(1, dtype=F64) if rate is None else (x1[:, None] - x2).abs() * rate.unsqueeze(-1)
        shape = {0: 1 + t, 1: 1 + 0 * t, 2: 1 + t, 3: 1 + t + t.square() / 3}[order]
        total = total + variance.unsqueeze(-1) * shape * (-t).exp()
    return total.expand(-1, len(x1), len(x2))


def gaps_of(x):
    return torch.nn.functional.pad(x[1:] - x[:-1], (0, 1))


def observations(n, channels=2, lowest=0.1, highest=100.0, seed=0):
    """Precisions, every fifth 0, and residuals."""
    g = torch.Generator().manual_seed(seed)
    precision = lowest * (highest / lowest) ** torch.rand(channels, n, generator=g, dtype=F64)
    precision[:, ::5] = 0.0
    residual = torch.randn(channels, n, generator=g, dtype=F64) + precision.clamp_min(1e-9).rsqrt()
    return precision, torch.where(precision > 0, residual, 0.0)


# against the dense algebra


@pytest.mark.parametrize("orders", SUMS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 30, 37])
@pytest.mark.parametrize("repeats", [False, True])
def test_marginals_kl_and_evidence_equal_the_dense_algebra(orders, n, repeats):
    x, terms = times(n, repeats=repeats), terms_of(orders)
    precision, residual = observations(n)
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
    k = covariance(terms, x, x)
    dense = dense_marginals(k, precision, residual, x.unsqueeze(-1))
    torch.testing.assert_close(found.mean, dense.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.variance, dense.variance, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.kl, dense.kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        found.log_evidence, dense_factor(k, precision, residual).log_evidence(), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("orders", [[2], [3, 0]], ids=str)
def test_a_thousand_members_equal_the_dense_algebra(orders):
    x, terms = times(1000, repeats=True), terms_of(orders)
    precision, residual = observations(1000, lowest=1e-6, highest=1e4)
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
    dense = dense_marginals(covariance(terms, x, x), precision, residual, x.unsqueeze(-1))
    torch.testing.assert_close(found.mean, dense.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.variance, dense.variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.kl, dense.kl, rtol=1e-9, atol=0)


@pytest.mark.parametrize("orders", SUMS, ids=str)
def test_gradients_equal_those_of_the_dense_algebra(orders):
    n, x = 23, times(23, repeats=True)
    weights = torch.linspace(-1, 1, 2 * n, dtype=F64).reshape(2, n)
    gradients = []
    for dense in (False, True):
        precision, residual = (t.requires_grad_() for t in observations(n))
        terms = [
            MarkovTerm(o, v.requires_grad_(), None if r is None else r.requires_grad_()) for o, v, r in terms_of(orders)
        ]
        if dense:
            found = dense_marginals(covariance(terms, x, x), precision, residual, x.unsqueeze(-1))
        else:
            found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
        loss = (weights * found.mean).sum() + (weights.flip(-1) * found.variance).sum() + found.kl.sum()
        inputs = [precision, residual] + [p for term in terms for p in term[1:] if p is not None]
        gradients.append(torch.autograd.grad(loss, inputs))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-9)


def test_gradcheck_of_all_results_and_arguments():
    precision, residual = observations(7, channels=1)
    chain = markov_chain(terms_of([2, 0], channels=1), gaps_of(times(7)))

    def results(transition, noise, stationary, precision, residual):
        noise, stationary = (0.5 * (t + t.transpose(0, 1)) for t in (noise, stationary))
        own = MarkovChain(transition, noise, stationary, chain.places)
        return tuple(state_space_marginals(own, precision, residual))

    inputs = [t.clone().requires_grad_() for t in (*chain[:3], precision.clamp_min(1e-3), residual)]
    assert gradcheck(results, inputs, atol=1e-6)


def test_second_derivatives_equal_those_of_plain_operations():
    precision, residual = observations(6, channels=1)
    x, seen = times(6, repeats=True), precision > 0
    k_terms = terms_of([3, 0], channels=1)

    def results(variance, rate, precision, residual):
        terms = [MarkovTerm(3, variance, rate), k_terms[1]]
        precision = torch.where(seen, precision, 0.0)
        return tuple(state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual))

    inputs = [t.clone().requires_grad_() for t in (k_terms[0].variance, k_terms[0].rate, precision, residual)]
    assert gradgradcheck(results, inputs, atol=1e-5)


def test_gradient_of_x_equals_that_of_the_dense_algebra():
    terms, (precision, residual) = terms_of([3, 0]), observations(12)
    gradients = []
    for dense in (False, True):
        x = times(12).requires_grad_()
        if dense:
            found = dense_marginals(covariance(terms, x, x), precision, residual, x.unsqueeze(-1))
        else:
            found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
        gradients.append(torch.autograd.grad(found.mean.sum() + found.kl.sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_gradients_are_finite_where_members_share_an_x_and_nothing_is_observed():
    x = torch.zeros(6, dtype=F64, requires_grad=True)
    precision = torch.zeros(1, 6, dtype=F64, requires_grad=True)
    terms = terms_of([1, 2, 3, 0], channels=1)
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, torch.zeros(1, 6, dtype=F64))
    torch.testing.assert_close(found.kl, torch.zeros(1, dtype=F64))
    torch.testing.assert_close(found.variance, sum(t.variance for t in terms).expand(1, 6))
    for gradient in torch.autograd.grad(found.kl.sum() + found.variance.sum(), [x, precision]):
        assert bool(gradient.isfinite().all())


def test_batches_are_computed_apart():
    terms, (precision, residual) = terms_of([2, 0]), observations(40, channels=2)
    x = torch.stack([times(40), times(40, seed=1)])  # two groups
    whole = state_space_marginals(
        markov_chain(terms, torch.stack([gaps_of(own) for own in x]).unsqueeze(1)),
        precision.expand(2, -1, -1), residual.expand(2, -1, -1),
    )  # fmt: skip
    for group in range(2):
        alone = state_space_marginals(markov_chain(terms, gaps_of(x[group])), precision, residual)
        for own, other in zip(alone, whole, strict=True):
            torch.testing.assert_close(own, other[group], rtol=1e-12, atol=1e-14)


def test_kl_of_observations_that_say_almost_nothing_keeps_its_digits():
    x, terms = times(40), terms_of([2], channels=1)
    residual = torch.zeros(1, 40, dtype=F64)
    precision = torch.full((1, 40), 1e-9, dtype=F64)
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual).kl
    # to second order 1/4 sum_ij R_i^2 R_j^2 K_ij^2
    expected = 0.25 * 1e-18 * covariance(terms, x, x).square().sum((-2, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


# against sequential smoothers


def test_many_members_equal_a_sequential_smoother():
    """Rauch-Tung-Striebel in NumPy, in another basis of the state, with transitions by SciPy's matrix exponential."""
    from scipy.linalg import expm

    n = 5000
    x, terms = times(n), terms_of([2], channels=1)
    precision, residual = observations(n, channels=1, lowest=1e-4, highest=1e4)
    _, variance, rate = terms[0]
    drift = np.array([[0, 1], [-(float(rate) ** 2), -2 * float(rate)]])
    stationary = float(variance) * np.diag([1, float(rate) ** 2])
    m, p, filtered, predicted, steps, evidence = np.zeros(2), stationary, [], [], [], 0.0
    for k in range(n):
        if k:
            step = expm(drift * float(x[k] - x[k - 1]))
            m, p = step @ m, step @ p @ step.T + stationary - step @ stationary @ step.T
            steps.append(step)
        predicted.append((m, p))
        if precision[0, k] > 0:
            s = p[0, 0] + 1 / float(precision[0, k])
            error = float(residual[0, k]) - m[0]
            evidence -= 0.5 * (math.log(2 * math.pi * s) + error**2 / s)
            gain = p[:, 0] / s
            m, p = m + gain * error, p - np.outer(gain, p[0])
        filtered.append((m, p))
    means, variances = [m[0]], [p[0, 0]]
    for k in range(n - 2, -1, -1):
        gain = filtered[k][1] @ steps[k].T @ np.linalg.inv(predicted[k + 1][1])
        m = filtered[k][0] + gain @ (m - predicted[k + 1][0])
        p = filtered[k][1] + gain @ (p - predicted[k + 1][1]) @ gain.T
        means.append(m[0])
        variances.append(p[0, 0])
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
    np.testing.assert_allclose(found.mean[0], means[::-1], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.variance[0], variances[::-1], rtol=1e-6)
    np.testing.assert_allclose(found.log_evidence[0], evidence, rtol=1e-10)


@pytest.mark.parametrize("orders", [[1], [2], [3], [3, 0]], ids=str)
@pytest.mark.parametrize(("lowest", "highest", "tolerance"), [(1e-6, 1e6, 1e-9), (1e6, 1e8, 1e-7)])
def test_extreme_precisions_equal_sixty_digits(orders, lowest, highest, tolerance):
    n = 24
    x, terms = times(n), terms_of(orders, channels=1)
    x[10] = x[9] + 1e-9  # members that lie close together
    x = x.sort().values
    precision, residual = observations(n, 1, lowest, highest)
    found = state_space_marginals(markov_chain(terms, gaps_of(x)), precision, residual)
    seen = [k for k in range(n) if precision[0, k] > 0]
    with mpmath.workdps(60):

        def kernel(a, b):
            total = mpmath.mpf(0)
            for order, variance, rate in terms:
                t = (
                    mpmath.mpf(0)
                    if rate is None
                    else abs(mpmath.mpf(float(a)) - mpmath.mpf(float(b))) * mpmath.mpf(float(rate))
                )
                total += (
                    mpmath.mpf(float(variance)) * {0: 1, 1: 1, 2: 1 + t, 3: 1 + t + t * t / 3}[order] * mpmath.exp(-t)
                )
            return total

        noisy = mpmath.matrix(len(seen), len(seen))
        for i, a in enumerate(seen):
            for j, b in enumerate(seen):
                noisy[i, j] = kernel(x[a], x[b]) + (1 / mpmath.mpf(float(precision[0, a])) if a == b else 0)
        inverse = mpmath.inverse(noisy)
        y = mpmath.matrix([float(residual[0, k]) for k in seen])
        weights = inverse * y
        for k in range(n):
            cross = mpmath.matrix([kernel(x[k], x[b]) for b in seen])
            mean = (cross.T * weights)[0]
            variance = kernel(x[k], x[k]) - (cross.T * inverse * cross)[0]
            assert abs(mean - float(found.mean[0, k])) < tolerance * (1 + abs(mean))
            assert abs(variance / float(found.variance[0, k]) - 1) < 1e3 * tolerance
        evidence = -((y.T * weights)[0] + mpmath.log(mpmath.det(noisy)) + len(seen) * mpmath.log(2 * mpmath.pi)) / 2
        assert abs(evidence / float(found.log_evidence[0]) - 1) < tolerance


def test_transitions_of_tiny_gaps_keep_their_digits():
    """V of a gap t of Matern 5/2 falls like t^5: the difference P - F P F' would have no digits."""
    gaps = torch.tensor([1e-4, 0.0], dtype=F64)
    terms = [MarkovTerm(3, torch.ones(1, dtype=F64), torch.ones(1, dtype=F64))]
    chain = markov_chain(terms, gaps)
    with mpmath.workdps(50):
        t = mpmath.mpf("1e-4")
        for j in range(3):
            for k in range(3):
                a, b = 2 - j, 2 - k
                weight = mpmath.mpf(16) / 3 * mpmath.mpf(1) / (mpmath.factorial(a) * mpmath.factorial(b))
                exact = weight * mpmath.quad(lambda s, n=a + b: s**n * mpmath.exp(-2 * s), [0, t])
                assert abs(float(chain.noise[j, k, 0]) / exact - 1) < 1e-13
    assert torch.equal(chain.noise[..., 1], torch.zeros(3, 3, dtype=F64))
    assert torch.equal(chain.transition[..., 1], torch.eye(3, dtype=F64))


# draws


@pytest.mark.parametrize("orders", [[1], [3], [2, 0]], ids=str)
def test_prior_paths_have_the_covariance_of_the_kernel(orders):
    torch.manual_seed(0)
    x, terms = times(6, repeats=True), terms_of(orders)
    paths = state_space_paths(markov_chain(terms, gaps_of(x)), (40_000,), (2,))
    found = torch.einsum("scq,scr->cqr", paths, paths) / len(paths)
    # a covariance of 40,000 draws: five standard errors of the largest variance, 2.6
    torch.testing.assert_close(found, covariance(terms, x, x), rtol=0, atol=5 * 2.6 * math.sqrt(2 / 40_000))


def test_draws_have_the_joint_posterior():
    torch.manual_seed(1)
    x, terms = times(7, repeats=True), terms_of([2, 0])
    precision, residual = observations(7)
    draws = state_space_draws(markov_chain(terms, gaps_of(x)), precision, residual, (40_000,))
    k = covariance(terms, x, x)
    root = precision.sqrt()
    middle = torch.linalg.inv(torch.eye(7, dtype=F64) + root.unsqueeze(-1) * k * root.unsqueeze(-2))
    weights = root.unsqueeze(-1) * middle * root.unsqueeze(-2)
    mean = (k @ weights @ residual.unsqueeze(-1)).squeeze(-1)
    posterior = k - k @ weights @ k
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=5 * 1.6 / 200)
    centred = draws - mean
    found = torch.einsum("scq,scr->cqr", centred, centred) / len(draws)
    torch.testing.assert_close(found, posterior, rtol=0, atol=5 * 2.6 * math.sqrt(2 / 40_000))


def test_members_of_one_x_have_one_draw():
    x, terms = times(12, repeats=True), terms_of([3, 0])
    draws = state_space_draws(markov_chain(terms, gaps_of(x)), *observations(12), (3,))
    torch.testing.assert_close(draws[..., 6], draws[..., 7], rtol=1e-12, atol=1e-12)


def test_gradient_of_a_draw_is_that_of_its_reparametrization():
    terms, (precision, residual) = terms_of([2, 0], channels=1), observations(6, channels=1)
    x = times(6)

    def draw(variance, rate, residual):
        torch.manual_seed(0)
        own = [MarkovTerm(2, variance, rate), terms[1]]
        return state_space_draws(markov_chain(own, gaps_of(x)), precision, residual, (2,))

    inputs = [t.clone().requires_grad_() for t in (terms[0].variance, terms[0].rate, residual)]
    assert gradcheck(draw, inputs, atol=1e-6)


def test_digits_that_rounding_took_are_an_error():
    x = torch.zeros(50, dtype=F64)
    terms = [MarkovTerm(3, torch.ones(1, dtype=F64), torch.ones(1, dtype=F64))]
    precision, residual = torch.full((1, 50), 1e300, dtype=F64), torch.ones(1, 50, dtype=F64)
    with pytest.raises(
        NonFiniteError, match=r"state space: expected pseudo-variances that leave digits, got .*Try larger"
    ):
        state_space_marginals(markov_chain(terms, gaps_of(x)), precision * 1e10, residual)
