"""Feature maps of kernels: Phi Phi' against the kernels, entry by entry; hyperparameters and their gradients."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from scipy.special import ive
from torch.autograd import gradcheck

from fgp_gpytorch.coupled import GroupVectors, ProductPrior, unit_length
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures
from fgp_gpytorch.saving import describe, rebuild

F64 = torch.float64


def periodic(lengthscale=1.0, period=2 * math.pi, amplitude=None, **options):
    kernel = PeriodicKernel(**options).double()
    # as tensors: GPyTorch makes numbers float32
    kernel.initialize(
        period_length=torch.as_tensor(period, dtype=F64), lengthscale=torch.as_tensor(lengthscale, dtype=F64)
    )
    if amplitude is None:
        return kernel
    kernel = ScaleKernel(kernel).double()
    kernel.outputscale = torch.tensor(amplitude, dtype=F64)
    return kernel


def dense(kernel, x1, x2):
    with gpytorch.settings.lazily_evaluate_kernels(False):
        return kernel(x1, x2).to_dense()


def features(n=9, seed=0, low=-20.0, high=20.0):
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 1, generator=g, dtype=F64)


@pytest.mark.parametrize("cast_first", [True, False])
def test_fourier_root_follows_a_period_that_gpytorch_rounded(cast_first):
    kernel = PeriodicKernel()
    kernel = kernel.double() if cast_first else kernel
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 1.0
    kernel = kernel.double()
    phi = PeriodicFeatures(kernel, 2 * math.pi)(features())
    torch.testing.assert_close(phi @ phi.T, dense(kernel, features(), features()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("period", [2 * math.pi, 0.7])
@pytest.mark.parametrize("amplitude", [None, 1.7])
def test_fourier_root_times_itself_is_the_periodic_kernel(period, amplitude):
    kernel = periodic(1.0, period, amplitude)
    phi = PeriodicFeatures(kernel, period)(features())
    assert phi.shape == (9, 25)
    torch.testing.assert_close(phi @ phi.T, dense(kernel, features(), features()), rtol=0, atol=1e-10)


def test_default_harmonics_reach_the_documented_accuracy():
    for lengthscale, error in ((1.0, 1e-13), (0.5, 1e-10), (0.25, 1e-7)):
        kernel = periodic(lengthscale)
        root, x = PeriodicFeatures(kernel), features(40)
        phi = root(x)
        wrong = (phi @ phi.T - dense(kernel, x, x)).detach().abs().max().item()
        missing = float(root.missing_variance().detach())
        assert wrong < error
        assert missing == pytest.approx(wrong, rel=0.2, abs=1e-13)


def test_coefficients_are_the_bessel_functions_of_the_periodic_kernel():
    for lengthscale in (0.3, 1.0, 4.0):
        got = PeriodicFeatures(periodic(lengthscale), harmonics=20).coefficients()
        orders = torch.arange(21, dtype=F64).numpy()
        wanted = torch.from_numpy(2 * ive(orders, 1 / lengthscale))  # ive: exp(-z) I_n(z)
        wanted[0] /= 2
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)


def test_gradient_reaches_the_hyperparameters_and_is_the_kernels():
    x, weights = features(6), torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=F64)
    gradients = []
    for function in (lambda k: PeriodicFeatures(k)(x), None):
        kernel = periodic(0.8, amplitude=1.7)
        matrix = dense(kernel, x, x) if function is None else function(kernel) @ function(kernel).T
        (matrix * weights).sum().backward()
        gradients.append((kernel.raw_outputscale.grad, kernel.base_kernel.raw_lengthscale.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_vanished_harmonics_have_no_unbounded_gradient():
    kernel = periodic(1e6)  # constant to 1e-6: all but a few harmonics are rounding
    PeriodicFeatures(kernel)(features()).sum().backward()
    assert torch.isfinite(kernel.raw_lengthscale.grad).all()


def test_root_passes_gradcheck_in_x():
    root = PeriodicFeatures(periodic(), harmonics=3)
    assert gradcheck(root, [features(3).requires_grad_()])


def test_kernel_with_a_batch_shape_gives_a_root_of_that_batch():
    kernel = periodic(torch.tensor([[[0.5]], [[2.0]]], dtype=F64), batch_shape=torch.Size([2]))
    x = torch.stack([features(5), features(5, seed=1), features(5, seed=2)])
    phi = PeriodicFeatures(kernel)(x)
    assert phi.shape == (3, 2, 5, 25)
    torch.testing.assert_close(phi @ phi.mT, dense(kernel, x.unsqueeze(1), x.unsqueeze(1)), rtol=0, atol=1e-9)


def test_kernel_that_does_not_repeat_is_refused():
    with pytest.raises(DataError, match=r"expected k\(t\) = k\(-t\) = k\(t \+ period\).*Try kernel.period_length"):
        PeriodicFeatures(PeriodicKernel())(features())  # GPyTorch's period of log 2
    with pytest.raises(DataError, match="period"):
        PeriodicFeatures(MaternKernel())(features())
    with pytest.raises(ArgumentError, match=r"kernel: expected a Kernel, got int"):
        PeriodicFeatures(3)
    with pytest.raises(ArgumentError, match="harmonics: expected an integer >= 1, got 0"):
        PeriodicFeatures(periodic(), harmonics=0)
    with pytest.raises(ArgumentError, match="period: expected a positive finite number, got -1"):
        PeriodicFeatures(periodic(), period=-1.0)
    with pytest.raises(ShapeError, match=r"x: expected shape \(..., N, 1\), got \(4, 2\)"):
        PeriodicFeatures(periodic())(torch.zeros(4, 2))


def test_group_vectors_have_unit_length_if_asked():
    for normalize in (True, False):
        table = GroupVectors(5, 3)
        index = torch.tensor([[4, 0], [2, 2]])
        wanted = table.vectors[index]
        if normalize:
            wanted = torch.nn.functional.normalize(wanted, dim=-1)
        torch.testing.assert_close(unit_length(table(index)) if normalize else table(index), wanted)


def test_vector_of_an_unknown_group_is_refused():
    with pytest.raises(GroupError, match=r"expected positions from 0 to 4.*got 1 to 5. A new group needs training"):
        GroupVectors(5, 3)(torch.tensor([1, 5]))
    with pytest.raises(ShapeError, match=r"vectors: expected shape \(5, 3\), got \(3, 5\)"):
        GroupVectors(5, 3).set_vectors(torch.zeros(3, 5))
    with pytest.raises(ArgumentError, match="num_factors: expected an integer >= 1, got 0"):
        GroupVectors(5, 0)


@pytest.mark.parametrize("normalize", [True, False])
def test_features_of_the_product_prior_are_the_papers_product_kernel(normalize):
    """k((d, w), (d', w')) = Sigma_dd' 1.7 exp(-2 sin^2((w - w') / 2)), written out in loops."""
    table = GroupVectors(4, 2)
    prior = ProductPrior(3, PeriodicFeatures(periodic(amplitude=1.7)))
    group, x = torch.tensor([0, 3, 1, 3, 2]), features(5)
    used = unit_length(table(group)) if normalize else table(group)
    phi = prior.root(used, x.unsqueeze(1)).squeeze(1).detach()
    assert phi.shape == (5, 2 * prior.features.num_features)
    vectors = table.vectors.detach()
    if normalize:
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    got = phi @ phi.T
    for i in range(5):
        for j in range(5):
            sigma = float(vectors[group[i]] @ vectors[group[j]])
            wanted = sigma * 1.7 * math.exp(-2 * math.sin(float(x[i] - x[j]) / 2) ** 2)
            assert float(got[i, j]) == pytest.approx(wanted, abs=1e-10)


def test_feature_maps_are_rebuilt_from_their_description():
    prior = ProductPrior(3, PeriodicFeatures(periodic(0.7, amplitude=1.7), harmonics=5))
    again = rebuild(describe(prior))
    again.to(F64).load_state_dict(prior.state_dict())
    vectors, x = torch.randn(2, 4, dtype=F64), features(2).unsqueeze(1)
    torch.testing.assert_close(again.root(vectors, x), prior.root(vectors, x), rtol=1e-12, atol=1e-12)


def test_sum_of_periodic_kernels_has_a_root_and_an_rbf_has_none():
    kernel = periodic(0.9) + periodic(2.0, math.pi)
    phi = PeriodicFeatures(kernel, harmonics=24)(features())
    torch.testing.assert_close(phi @ phi.T, dense(kernel, features(), features()), rtol=0, atol=1e-10)
    with pytest.raises(DataError, match="expected k"):
        PeriodicFeatures(RBFKernel())(features())
