"""Precise pseudo-observations at one x, against sixty digits (mpmath).

Apart, B = I + R K R loses log10(K / s^2) digits, and the gradient of the KL twice as many: case by case -7e6 where 0.7
is right. Pooled, members of equal x cost nothing. The tolerance of 1e-9 leaves room for the pooled means, which differ
by up to 1 in the data, and for the digits that the kernel loses.
"""

import gpytorch
import mpmath
import numpy as np
import pytest
import torch

import oracles
from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.gaussian import dense_marginals
from fgp_gpytorch.prior import CoregionalizedChannels

F64 = torch.float64
TWICE, THRICE = [0.0, 0.0, 1.0], [0.3, 7.0, 0.3, 0.3, 1.9]


def _prior(lengthscale, nu=None):
    kernel = (gpytorch.kernels.RBFKernel() if nu is None else gpytorch.kernels.MaternKernel(nu=nu)).double()
    kernel.lengthscale = torch.tensor(lengthscale, dtype=F64)
    return FactorizedGPPrior([LocalChannels(1, kernel)])


def _data(x, gap):
    first = x[0]
    return [(0.3 if value == first else -0.2) + gap * x[:i].count(first) for i, value in enumerate(x)]


def _group(values, requires_grad=False):
    return torch.tensor(values, dtype=F64).reshape(1, -1, 1).requires_grad_(requires_grad)


def _kl_gradient(kernel, x, mean, variance):
    """M^-1 K M^-1 r with M = K + S."""
    with mpmath.workdps(60):
        rows = [[mpmath.mpf(a)] for a in x]
        k = mpmath.matrix([[kernel(a, b, mpmath.mp) for b in rows] for a in rows])
        inverse = (k + mpmath.diag([mpmath.mpf(v) for v in variance])) ** -1
        return [float(v) for v in inverse * k * inverse * mpmath.matrix([mpmath.mpf(m) for m in mean])]


@pytest.mark.parametrize("gap", [1.0, 1e-3, "one sd"])
@pytest.mark.parametrize("s2", [1e-12, 1e-10, 1e-8, 1e-6, 1e-3, 1.0, 1e2])
@pytest.mark.parametrize("x", [TWICE, THRICE], ids=["twice", "thrice"])
def test_repeated_precise_members_keep_all_digits(x, s2, gap):
    mean, variance = _data(x, s2**0.5 if gap == "one sd" else gap), [s2 * (1 + 0.5 * i) for i in range(len(x))]
    kernel = oracles.rbf(mpmath.mpf(1.3))
    exact = oracles.exact_group(kernel, [[a] for a in x], mean, variance, x_new=[[0.7]], digits=60)
    m = _group(mean, requires_grad=True)
    posterior = _prior(1.3).posterior(_group(x), m, _group(variance))
    (gradient,) = torch.autograd.grad(posterior.kl.sum(), m, retain_graph=True)
    # below R^2 k = 1e4 members are not pooled, and the old form has an error of eps / s^4
    close = {"rel": 1e-8, "abs": 1e-9}
    assert gradient.flatten().tolist() == pytest.approx(_kl_gradient(kernel, x, mean, variance), **close)
    assert posterior.kl.item() == pytest.approx(float(exact.kl), **close)
    assert posterior.log_evidence.item() == pytest.approx(float(exact.log_evidence), **close)
    assert posterior.mean.flatten().tolist() == pytest.approx([float(v) for v in exact.mean], **close)
    assert posterior.variance.flatten().tolist() == pytest.approx([float(v) for v in exact.variance], rel=1e-8)
    new = posterior.predict(_group([0.7]))
    assert new.mean.item() == pytest.approx(float(exact.new_mean[0]), **close)
    assert new.variance.item() == pytest.approx(float(exact.new_variance[0]), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("s2", [1e-12, 1e-8])
def test_gradients_of_every_answer_keep_their_digits_at_repeated_x(s2):
    """In the log variances and the log lengthscale, of the KL, the mean and the variance."""
    x, n = THRICE, len(THRICE)
    mean, variance = _data(x, 1e-3), [s2] * n

    def answer(mean, variance, kl):
        return kl + sum((1 + i) * m for i, m in enumerate(mean)) + sum((2 + i) * v for i, v in enumerate(variance))

    def exact(parameters):
        v = [mpmath.mpf(s2) * mpmath.exp(p) for p in parameters[:n]]
        kernel = oracles.rbf(mpmath.mpf(1.3) * mpmath.exp(parameters[n]))
        e = oracles.exact_group(kernel, [[a] for a in x], mean, v)
        return answer(e.mean, e.variance, e.kl)

    wanted = oracles.exact_gradient(exact, [0.0] * (n + 1))
    log_v = torch.zeros(n, dtype=F64, requires_grad=True)
    prior = _prior(1.3)
    kernel = prior.blocks[0].kernel
    posterior = prior.posterior(_group(x), _group(mean), _group(variance) * log_v.exp().reshape(1, -1, 1))
    total = answer(posterior.mean.flatten(), posterior.variance.flatten(), posterior.kl.squeeze())
    by_v, by_raw = torch.autograd.grad(total, [log_v, kernel.raw_lengthscale])
    by_log = (by_raw * kernel.lengthscale / -torch.expm1(-kernel.lengthscale)).item()
    np.testing.assert_allclose([*by_v.tolist(), by_log], wanted, rtol=1e-8, atol=1e-8)


def test_matern_kernels_pool_although_gpytorch_rounds_their_distances():
    """Matern 3/2 at |x| / lengthscale of 30: the squared distance of equal x is not exactly 0."""
    x, mean, variance = [30.0, -28.0, 30.0, 1.0], [0.3, 0.1, 1.3, -0.2], [1e-12] * 4
    m = _group(mean, requires_grad=True)
    posterior = _prior(1.0, nu=1.5).posterior(_group(x), m, _group(variance))
    (gradient,) = torch.autograd.grad(posterior.kl.sum(), m)
    wanted = _kl_gradient(oracles.matern32(mpmath.mpf(1)), x, mean, variance)
    assert gradient.flatten().tolist() == pytest.approx(wanted, rel=1e-8, abs=1e-9)


def test_masked_repeat_is_left_out_of_the_pool_and_gets_the_posterior_of_its_x():
    x, mean, variance = TWICE, [0.3, 55.0, -0.2], [1e-12] * 3
    mask = torch.tensor([[True, False, True]])
    posterior = _prior(1.3).posterior(_group(x), _group(mean), _group(variance), mask)
    alone = _prior(1.3).posterior(_group([0.0, 1.0]), _group([0.3, -0.2]), _group([1e-12] * 2))
    torch.testing.assert_close(posterior.kl, alone.kl, rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior.mean[:, [0, 2]], alone.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior.mean[:, 1], alone.mean[:, 0], rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior.log_evidence, alone.log_evidence, rtol=1e-10, atol=0)


def test_joint_draws_of_precise_repeats_have_the_posterior_mean():
    x, mean = TWICE, [0.3, 1.3, -0.2]
    posterior = _prior(1.3).posterior(_group(x), _group(mean), _group([1e-12] * 3))
    with torch.no_grad():
        draws = posterior.rsample((5,)).squeeze(-1).squeeze(-2)
    torch.testing.assert_close(draws, torch.tensor([0.8, 0.8, -0.2], dtype=F64).expand(5, 3), rtol=0, atol=1e-5)


def test_nugget_of_the_kernel_keeps_members_of_equal_x_apart():
    k = torch.ones(2, 2, dtype=F64) + 1e-3 * torch.eye(2, dtype=F64)
    precision, residual = torch.full((2,), 1e6, dtype=F64), torch.tensor([0.3, 1.3], dtype=F64)
    got = dense_marginals(k, precision, residual, torch.zeros(2, 1, dtype=F64))
    wanted = dense_marginals(k, precision, residual)
    for left, right in zip(got, wanted, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("s2", [1e-12, 1e-6, 1.0])
def test_global_and_coregionalized_channels_keep_the_gradient_at_repeated_x(s2):
    """Both compute with weights, so that repeats add up: global to 1e-9, coregionalized to 1e-5."""
    x, mean = TWICE, [0.3, 1.3, -0.2]
    torch.manual_seed(0)
    coregionalized = CoregionalizedChannels(
        1, 2, NystromFeatures(gpytorch.kernels.RBFKernel().double(), torch.tensor([0.0, 1.0]))
    )
    for block, tolerance in ((GlobalChannels(1, variance=1.7), 1e-9), (coregionalized, 1e-5)):
        prior = FactorizedGPPrior([block])
        root = block.covariance_root(_group(x)).detach()[0, 0].tolist()

        def kernel(a, b, m, root=root):
            return mpmath.fsum(
                mpmath.mpf(u) * mpmath.mpf(v) for u, v in zip(root[x.index(a[0])], root[x.index(b[0])], strict=True)
            )

        m = _group(mean, requires_grad=True)
        (gradient,) = torch.autograd.grad(prior.posterior(_group(x), m, _group([s2] * 3)).kl.sum(), m)
        wanted = _kl_gradient(kernel, x, mean, [s2] * 3)
        assert gradient.flatten().tolist() == pytest.approx(wanted, rel=tolerance, abs=tolerance)
