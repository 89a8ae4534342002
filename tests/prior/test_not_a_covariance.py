"""Kernels that are no covariance are refused wherever a clamp would hide more than rounding."""

import gpytorch
import pytest
import torch

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.coupled import GroupInputs, InducingPrior
from fgp_gpytorch.errors import DataError, NonFiniteError
from fgp_gpytorch.feature_maps import NystromFeatures, PeriodicFeatures

F64 = torch.float64
WORDS = r"expected a positive semi-definite covariance, got one with"


class Stretched(gpytorch.kernels.Kernel):
    """k = 1 on the diagonal and 1.5 off it: eigenvalues -0.5."""

    is_stationary = True

    def forward(self, x1, x2, diag=False, **params):
        distance = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs().sum(-1)
        k = torch.where(distance > 0, 1.5, 1.0).to(x1.dtype)
        return k.diagonal(dim1=-2, dim2=-1) if diag else k


class Skewed(gpytorch.kernels.Kernel):
    """k(x, x') = exp(x - x'), which is not symmetric."""

    def forward(self, x1, x2, diag=False, **params):
        k = 2.0 * (x1.unsqueeze(-2) == x2.unsqueeze(-3)).all(-1) + (x1.unsqueeze(-2) - x2.unsqueeze(-3)).sum(-1).tanh()
        return k.diagonal(dim1=-2, dim2=-1) if diag else k


class Negative(gpytorch.kernels.Kernel):
    """k = -0.1."""

    def forward(self, x1, x2, diag=False, **params):
        k = torch.full((*x1.shape[:-1], x2.shape[-2]), -0.1, dtype=x1.dtype)
        return k.diagonal(dim1=-2, dim2=-1) if diag else k


def _data(members=3, channels=1):
    torch.manual_seed(0)
    x = torch.arange(members, dtype=F64).reshape(1, -1, 1)
    return x, torch.randn(1, members, channels, dtype=F64), torch.full((1, members, channels), 4.0, dtype=F64)


def _prior(kernel):
    return FactorizedGPPrior([LocalChannels(1, kernel), GlobalChannels(1)])


def test_prediction_at_new_members_is_refused_as_joint_draws_are():
    torch.manual_seed(0)
    prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.CosineKernel())])
    refused = 0
    for _ in range(20):
        x, x_new = torch.rand(1, 5, 2, dtype=F64) * 2, torch.rand(1, 20, 2, dtype=F64) * 2
        posterior = prior.posterior(x, torch.randn(1, 5, 1), torch.ones(1, 5, 1))
        cross, k = (prior.blocks[0].covariance(x, other)[0, 0] for other in (x_new, x))
        algebra = 1 - (cross.mT @ torch.linalg.solve(k + torch.eye(5, dtype=F64), cross)).diagonal()
        if algebra.min() < -0.1:
            refused += 1
            with pytest.raises(DataError, match=WORDS):
                posterior.predict(x_new)
    assert refused > 0


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(Stretched(), WORDS), (Negative(), WORDS), (Skewed(), "expected a symmetric covariance, got")],
    ids=["stretched", "negative", "skewed"],
)
def test_marginals_predictions_and_draws_are_refused(kernel, words):
    x, mean, variance = _data(channels=2)
    mean = mean.requires_grad_()
    for use in (
        lambda p: p.posterior(x, mean, variance / 8).kl,
        lambda p: p.posterior(x, mean, variance / 8).variance,
        lambda p: p.posterior(x, mean, variance / 8).predict(x + 0.5).variance,
        lambda p: p.posterior(x, mean, variance / 8).rsample(),
        lambda p: p.sample(x),
        lambda p: p(x),
        lambda p: p.posterior(x, mean, variance / 8).log_evidence,
    ):
        with pytest.raises(DataError, match=words):
            use(_prior(kernel))


def test_covariance_that_lost_three_quarters_of_its_digits_is_accepted():
    torch.manual_seed(0)
    x = 1e8 + torch.rand(1, 12, 1, dtype=F64)  # squared distances of 1e-8 relative accuracy
    prior = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel())])
    posterior = prior.posterior(x, torch.randn(1, 12, 1), torch.full((1, 12, 1), 1e-3))
    assert torch.isfinite(posterior.predict(x + 0.01).variance).all()


def test_inducing_points_are_refused():
    prior = InducingPrior(1, 2, Stretched(), num_inducing=1)
    with torch.no_grad():
        prior.inducing_vectors.copy_(torch.tensor([[1.0, 0.0]]))
    x, mean, variance = _data()
    inputs = GroupInputs.of(torch.tensor([[1.0, 0.0]]), x, mean, variance, None, F64)
    with pytest.raises(DataError, match=WORDS):
        prior.condition(inputs)


def test_missing_variance_and_fourier_coefficients_are_refused():
    with pytest.raises(DataError, match=WORDS):
        NystromFeatures(Stretched(), torch.tensor([[0.0]])).missing_variance(torch.tensor([[0.5]], dtype=F64))

    class Signed(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **params):
            t = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).squeeze(-1)
            return t.cos() - 0.5 * (2 * t).cos()

    with pytest.raises(DataError, match=WORDS):
        PeriodicFeatures(Signed())(torch.rand(3, 1, dtype=F64))


def test_kernel_that_is_not_finite_is_named():
    kernel = gpytorch.kernels.RBFKernel()
    kernel.raw_lengthscale.data.fill_(float("nan"))
    x, mean, variance = _data(channels=2)
    prior = _prior(kernel)
    for use in (
        lambda: prior.posterior(x, mean, variance).kl,
        lambda: prior.posterior(x, mean, variance).predict(x).variance,
        lambda: prior.posterior(x, mean, variance).rsample(),
        lambda: prior.sample(x),
        lambda: NystromFeatures(kernel, x[0])(x[0]),
    ):
        with pytest.raises(NonFiniteError, match="kernel: expected finite values, got") as caught:
            use()
        assert caught.value.term == "kernel"
