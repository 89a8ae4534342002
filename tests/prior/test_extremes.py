"""Posterior, evidence, KL and their gradients against a hundred digits (mpmath), at the ends of the range.

Tolerances. B = I + R K R is formed in doubles, so its entries carry a relative error eps and everything computed from
it a relative error of about Q * eps * kappa, kappa the condition number of B with its diagonal scaled to one
(Cholesky's error does not see the scaling: van der Sluis, Demmel). kappa is 10 when members are apart however small or
mixed the variances are, and reaches Q / variance only when precise members stand at one x. Each
case computes its own kappa; a factor of 100 is allowed, and errors are measured against the scale of the answer: the
data for means, the prior for variances.
"""

import functools
import math

import gpytorch
import mpmath
import numpy as np
import pytest
import torch
from prior_cases import answers, scale, with_lengthscale

import oracles
from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels

F64 = torch.float64
EPS = np.finfo(float).eps

APART = [[0.0], [0.9], [2.1], [3.3]]
TWICE = [[0.5], [0.5], [1.7], [3.0]]
CLOSE = [[0.0], [1e-4], [2e-4], [3e-4]]  # a Gram matrix of numerical rank two
PLANE = [[0.0, 1.0], [0.4, -0.3], [1.5, 0.2], [1.5, 0.2]]
Y = [0.7, -1.1, 0.4, 1.3]

# name: (x, pseudo-variances, mask, lengthscale, amplitude)
CASES = {
    "ordinary": (APART, [0.3, 0.1, 1.2, 0.7], None, 1.1, 1.7),
    "tiny": (APART, [1e-12] * 4, None, 1.1, 1.7),
    "huge": (APART, [1e12] * 4, None, 1.1, 1.7),
    "mixed": (APART, [1e-12, 1e12, 1e-3, 1.0], None, 1.1, 0.4),
    "mixed_masked": (APART, [1e-12, 1e12, 1e-8, 1e3], [True, True, False, True], 0.8, 2.5),
    "small_amplitude": (APART, [1e-9, 1e-3, 1.0, 1e6], None, 1.1, 1e-6),
    "large_amplitude": (APART, [1e-6, 1e-3, 1.0, 1e6], None, 1.1, 1e6),
    "twice": (TWICE, [0.3, 0.1, 1.2, 0.7], None, 1.1, 1.7),
    "twice_small": (TWICE, [1e-6, 1e-6, 0.1, 1.0], None, 1.1, 1.7),
    "twice_tiny": (TWICE, [1e-12, 1e-12, 1e-12, 1.0], None, 1.1, 1.7),
    "twice_mixed": (TWICE, [1e-12, 1e12, 1.0, 1e-6], None, 1.1, 1.7),
    "near_singular": (CLOSE, [1e-3, 1e-2, 1e-3, 1.0], None, 1.0, 2.0),
    "near_singular_tiny": (CLOSE, [1e-10] * 4, None, 1.0, 2.0),
    "single": ([[0.4]], [1e-12], None, 1.1, 3.0),
    "single_huge": ([[0.4]], [1e12], None, 1.1, 3.0),
    "ard": (PLANE, [1e-8, 0.3, 1e8, 1e-2], None, [0.7, 1.9], 2.2),
    "none_observed": (APART, [0.3, 0.1, 1.2, 0.7], [False] * 4, 1.1, 1.7),
}
X_NEW = {1: [[0.2], [2.1], [50.0]], 2: [[0.2, 0.2], [1.5, 0.2], [50.0, 0.0]]}


def _case(name):
    x, variance, mask, lengthscale, amplitude = CASES[name]
    return x, Y[: len(x)], variance, mask, lengthscale, amplitude, X_NEW[len(x[0])]


def _local_prior(lengthscale, amplitude) -> FactorizedGPPrior:
    base = gpytorch.kernels.RBFKernel(ard_num_dims=len(lengthscale) if np.ndim(lengthscale) else None)
    return FactorizedGPPrior([LocalChannels(1, scale(with_lengthscale(base, lengthscale), amplitude))])


def _tensors(x, y, variance, mask, x_new):
    as_group = functools.partial(torch.tensor, dtype=F64)
    mask = None if mask is None else torch.tensor([mask])
    return as_group([x]), as_group([y]).unsqueeze(-1), as_group([variance]).unsqueeze(-1), mask, as_group([x_new])


def _kappa(gram: np.ndarray, variance, mask) -> float:
    """Condition number of B = I + R K R after scaling its diagonal to one."""
    root = np.array([1 / math.sqrt(v) for v in variance]) * (1.0 if mask is None else np.array(mask))
    b = np.eye(len(root)) + root[:, None] * gram * root
    d = 1 / np.sqrt(np.diag(b))
    return float(np.linalg.cond(d[:, None] * b * d))


def _check(got: dict[str, torch.Tensor], exact: oracles.ExactAnswer, tolerance: float, data_scale, prior_scale) -> None:
    def far(values, wanted, unit):
        return max(abs(float(a) - float(b)) / unit for a, b in zip(values.flatten().tolist(), wanted, strict=True))

    assert all(value.isfinite().all() for value in got.values())
    assert (got["variance"] > 0).all()
    assert (got["new variance"] > 0).all()
    assert (got["kl"] >= 0).all()
    assert far(got["mean"], exact.mean, data_scale) < tolerance
    assert far(got["new mean"], exact.new_mean, data_scale) < tolerance
    assert far(got["variance"], exact.variance, prior_scale) < tolerance
    assert far(got["new variance"], exact.new_variance, prior_scale) < tolerance
    for name, wanted in (("kl", exact.kl), ("log_evidence", exact.log_evidence)):
        assert abs(got[name].item() - float(wanted)) <= tolerance * (1 + abs(float(wanted))), name


@pytest.mark.parametrize("name", sorted(CASES))
def test_local_channel_equals_a_hundred_digits(name):
    x, y, variance, mask, lengthscale, amplitude, x_new = _case(name)
    kernel = oracles.rbf(lengthscale, amplitude)
    exact = oracles.exact_group(kernel, x, y, variance, mask, x_new)
    gram = np.array([[kernel(a, b) for b in x] for a in x])
    tolerance = 100 * len(x) * EPS * _kappa(gram, variance, mask)
    tx, ty, tv, tm, tn = _tensors(x, y, variance, mask, x_new)
    prior = _local_prior(lengthscale, amplitude)
    with torch.no_grad():
        got = answers(prior.posterior(tx, ty, tv, tm), tn)
    _check(got, exact, tolerance, data_scale=2.0, prior_scale=amplitude)


@pytest.mark.parametrize("name", ["tiny", "mixed", "huge", "ordinary", "small_amplitude", "twice_mixed"])
def test_precise_members_keep_the_relative_accuracy_of_a_small_variance(name):
    """At an observed member v* is at most the pseudo-variance, 1e-12: K - (...) alone would leave no digit of it."""
    x, y, variance, mask, lengthscale, amplitude, x_new = _case(name)
    kernel = oracles.rbf(lengthscale, amplitude)
    exact = oracles.exact_group(kernel, x, y, variance, mask, x_new)
    gram = np.array([[kernel(a, b) for b in x] for a in x])
    tolerance = 100 * len(x) * EPS * _kappa(gram, variance, mask)
    tx, ty, tv, tm, _ = _tensors(x, y, variance, mask, x_new)
    got = _local_prior(lengthscale, amplitude).posterior(tx, ty, tv, tm).variance.detach().flatten().tolist()
    for i, value in enumerate(got):
        if variance[i] < amplitude:
            assert value == pytest.approx(float(exact.variance[i]), rel=tolerance), i


@pytest.mark.parametrize("amplitude", [1e-6, 1.0, 3.7, 1e6])
@pytest.mark.parametrize("name", ["ordinary", "tiny", "huge", "mixed", "mixed_masked", "single", "none_observed"])
def test_global_channel_equals_a_hundred_digits(name, amplitude):
    """Closed form: no condition number enters, only the cancellation in the scatter about the pooled mean."""
    x, y, variance, mask, _, _, x_new = _case(name)
    exact = oracles.exact_group(oracles.constant(amplitude), x, y, variance, mask, x_new)
    tx, ty, tv, tm, tn = _tensors(x, y, variance, mask, x_new)
    prior = FactorizedGPPrior([GlobalChannels(1, variance=amplitude)])
    got = answers(prior.posterior(tx, ty, tv, tm), tn)
    _check(got, exact, 1e-13, data_scale=2.0, prior_scale=amplitude)
    assert got["variance"].flatten().tolist() == pytest.approx([float(v) for v in exact.variance], rel=1e-13)
    # log b + 1/b - 1 is about t^2 / 2 for t = log b, and carries the rounding of t
    t = amplitude * sum(1 / v for v, seen in zip(variance, mask or [True] * 4, strict=False) if seen)
    assert got["kl"].item() == pytest.approx(float(exact.kl), rel=1e-12, abs=EPS * min(t, 1))


@pytest.mark.parametrize("variance", [1e8, 1e12])
def test_tiny_kl_keeps_its_digits(variance):
    """Almost no information: KL is 1e-16 or 1e-24, where log|B| + tr B^-1 - Q in doubles would be rounding alone."""
    kernel = oracles.rbf(1.1, 1.7)
    exact = oracles.exact_group(kernel, APART, [0.0] * 4, [variance] * 4)
    tx, ty, tv, _, _ = _tensors(APART, [0.0] * 4, [variance] * 4, None, APART)
    got = _local_prior(1.1, 1.7).posterior(tx, ty, tv).kl.item()
    # the diagonal of C, 1 + 1e-8, keeps 1e-8 of its distance from 1; its excess enters only squared
    assert got == pytest.approx(float(exact.kl), rel=1e-6 if variance < 1e9 else 1e-3)


GRADIENT_CASES = sorted(set(CASES) - {"none_observed"})


def _mixture(mean, variance, kl, evidence, new_mean, new_variance, cos):
    """One number in which every answer has its own weight."""
    total = 0.7 * kl - 0.2 * evidence
    for i, (m, v) in enumerate(zip(mean, variance, strict=True)):
        total = total + (0.5 + i) * m + cos(i) * v
    for i, (m, v) in enumerate(zip(new_mean, new_variance, strict=True)):
        total = total - (0.3 + i) * m + (1.0 + i) * v
    return total


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients_equal_a_hundred_digits(name):
    """d / d(mean, log variance, log lengthscale, log amplitude); the logs make the entries comparable."""
    x, y, variance, mask, lengthscale, amplitude, x_new = _case(name)
    x_new = [x_new[0], x_new[2]]  # not at a member: there the prediction is the cancelling difference
    n = len(x)

    def exact(parameters):
        mp = mpmath.mp
        shift, log_v, log_r, log_s = parameters[:n], parameters[n : 2 * n], parameters[2 * n], parameters[2 * n + 1]
        r = [value * mp.exp(log_r) for value in lengthscale] if np.ndim(lengthscale) else lengthscale * mp.exp(log_r)
        v = [mp.mpf(value) * mp.exp(d) for value, d in zip(variance, log_v, strict=True)]
        m = [mp.mpf(value) + d for value, d in zip(y, shift, strict=True)]
        e = oracles.exact_group(oracles.rbf(r, amplitude * mp.exp(log_s)), x, m, v, mask, x_new)
        return _mixture(e.mean, e.variance, e.kl, e.log_evidence, e.new_mean, e.new_variance, math.cos)

    wanted = np.array(oracles.exact_gradient(exact, [0.0] * (2 * n + 2)))

    tx, ty, tv, tm, tn = _tensors(x, y, variance, mask, x_new)
    shift, log_v = (torch.zeros(n, dtype=F64, requires_grad=True) for _ in range(2))
    prior = _local_prior(lengthscale, amplitude)
    kernel = prior.blocks[0].kernel
    posterior = prior.posterior(tx, ty + shift[:, None], tv * log_v.exp()[:, None], tm)
    got = {key: value.flatten() for key, value in answers(posterior, tn).items()}
    keys = ("mean", "variance", "kl", "log_evidence", "new mean", "new variance")
    flat = [got[key].squeeze(0) if key in ("kl", "log_evidence") else got[key] for key in keys]
    raw = [kernel.base_kernel.raw_lengthscale, kernel.raw_outputscale]
    grads = torch.autograd.grad(_mixture(*flat, math.cos), [shift, log_v, *raw])
    # d / d log r = r dr: raw -> value is softplus, value = softplus(raw), d value / d raw = 1 - exp(-value)
    logs = []
    for grad, value in zip(grads[2:], (kernel.base_kernel.lengthscale, kernel.outputscale), strict=True):
        logs.append((grad * value / -torch.expm1(-value)).sum().item())
    ours = np.concatenate([grads[0].numpy(), grads[1].numpy(), logs])

    assert np.isfinite(ours).all()
    gram_kernel = oracles.rbf(lengthscale, amplitude)
    gram = np.array([[gram_kernel(a, b) for b in x] for a in x])
    # one more solve than the answers themselves, hence kappa to the answers' tolerance and 10 in front
    tolerance = 300 * n * EPS * _kappa(gram, variance, mask)
    np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance * (1 + np.abs(wanted).max()))


@pytest.mark.parametrize("amplitude", [0.5, 4.0])
@pytest.mark.parametrize("name", ["ordinary", "tiny", "huge", "mixed", "mixed_masked", "single"])
def test_global_gradients_equal_a_hundred_digits(name, amplitude):
    x, y, variance, mask, _, _, x_new = _case(name)
    n = len(x)

    def exact(parameters):
        mp = mpmath.mp
        v = [mp.mpf(value) * mp.exp(d) for value, d in zip(variance, parameters[n : 2 * n], strict=True)]
        m = [mp.mpf(value) + d for value, d in zip(y, parameters[:n], strict=True)]
        e = oracles.exact_group(oracles.constant(amplitude * mp.exp(parameters[2 * n])), x, m, v, mask, x_new)
        return _mixture(e.mean, e.variance, e.kl, e.log_evidence, e.new_mean, e.new_variance, math.cos)

    wanted = np.array(oracles.exact_gradient(exact, [0.0] * (2 * n + 1)))
    tx, ty, tv, tm, tn = _tensors(x, y, variance, mask, x_new)
    shift, log_v = (torch.zeros(n, dtype=F64, requires_grad=True) for _ in range(2))
    prior = FactorizedGPPrior([GlobalChannels(1, variance=amplitude)])
    prior.blocks[0].raw_variance.requires_grad_()
    got = answers(prior.posterior(tx, ty + shift[:, None], tv * log_v.exp()[:, None], tm), tn)
    keys = ("mean", "variance", "kl", "log_evidence", "new mean", "new variance")
    flat = [got[key].reshape(()) if key in ("kl", "log_evidence") else got[key].flatten() for key in keys]
    grads = torch.autograd.grad(_mixture(*flat, math.cos), [shift, log_v, prior.blocks[0].raw_variance])
    log_s = (grads[2] * prior.blocks[0].variance / -torch.expm1(-prior.blocks[0].variance)).detach().numpy()
    ours = np.concatenate([grads[0].numpy(), grads[1].numpy(), log_s])
    np.testing.assert_allclose(ours, wanted, rtol=1e-11, atol=1e-13 * (1 + np.abs(wanted).max()))


@pytest.mark.parametrize("name", sorted(CASES))
def test_samples_and_their_gradients_are_finite(name):
    x, y, variance, mask, lengthscale, amplitude, x_new = _case(name)
    tx, ty, tv, tm, tn = _tensors(x, y, variance, mask, x_new)
    ty, tv = ty.requires_grad_(), tv.requires_grad_()
    prior = _local_prior(lengthscale, amplitude)
    posterior = prior.posterior(tx, ty, tv, tm)
    paths = posterior.rsample_paths(tn, (3,))
    total = paths.members.square().sum() + paths.new.square().sum()
    total = total + posterior.rsample(marginals=True).square().sum()
    total = total + posterior.predict(tn).rsample(marginals=True).square().sum() + prior.sample(tx).square().sum()
    total.backward()
    for tensor in (ty, tv, *prior.parameters()):
        assert tensor.grad.isfinite().all()
