"""gpytorch.models.ExactGP on the grouped kernels against the same model on dense matrices."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import ConstantKernel, RBFKernel, ScaleKernel
from grouped_reference import DenseLocalKernel, grouped_rows

from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator

RAGGED = (4, 1, 7, 3, 6, 10)  # 6 and 7 share a stack: one of them is padded
LARGE = tuple(1 + g % 9 for g in range(220))  # 1,096 rows: beyond GPyTorch's 800


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, kernel):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def rbf():
    base = RBFKernel(ard_num_dims=2)
    base.lengthscale = torch.tensor([0.8, 1.4])
    return base


def dense_delta():
    return DenseLocalKernel(ConstantKernel())


KERNELS = {
    "local": (
        lambda: LocalKernel(ScaleKernel(rbf())),
        lambda: DenseLocalKernel(ScaleKernel(rbf())),
    ),
    "scaled local": (
        lambda: ScaleKernel(LocalKernel(rbf())),
        lambda: ScaleKernel(DenseLocalKernel(rbf())),
    ),
    "scaled global": (lambda: ScaleKernel(GlobalKernel()), dense_delta),
    "sum": (
        lambda: LocalKernel(ConstantKernel()) + LocalKernel(rbf()),
        lambda: dense_delta() + DenseLocalKernel(rbf()),
    ),
}


def data(sizes, seed=0):
    x = grouped_rows(sizes, seed=seed, shuffle=True)
    y = (
        torch.sin(2 * x[:, 1])
        + 0.3 * x[:, 0].sin()
        + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(9)).double()
    )
    noise = torch.linspace(0.02, 0.5, len(x)).double()
    return x, y, noise


def build(kernel, x, y, noise):
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)
    return Model(x, y, likelihood, kernel).double(), likelihood


def twins(name, sizes):
    x, y, noise = data(sizes)
    ours, dense = (build(make(), x, y, noise) for make in KERNELS[name])
    return x, y, ours, dense


@pytest.mark.parametrize("sizes", [RAGGED, LARGE, (8,) * 5])
@pytest.mark.parametrize("name", KERNELS)
class TestAgainstDense:
    def test_evidence_and_its_gradients_agree(self, name, sizes):
        x, y, *pairs = twins(name, sizes)
        values, gradients = [], []
        for model, likelihood in pairs:
            mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
            with gpytorch.settings.max_cholesky_size(800 if model is pairs[0][0] else 10_000):
                value = mll(model(x), y)
            values.append(value)
            gradients.append(
                sorted(float(g) for p in torch.autograd.grad(value, list(model.parameters())) for g in p.flatten())
            )
        torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.tensor(gradients[0]), torch.tensor(gradients[1]), rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("fast", [False, True])
    def test_predictions_agree(self, name, sizes, fast):
        _, _, *pairs = twins(name, sizes)
        new = torch.cat([grouped_rows(sizes[:9], seed=5), grouped_rows((3,), seed=6)])
        new[-3:, 0] = 5000  # a group never seen
        means, covariances = [], []
        for model, _ in pairs:
            model.eval()
            ours = model is pairs[0][0]
            limit = gpytorch.settings.max_cholesky_size(800 if ours else 10_000)
            with limit, torch.no_grad(), gpytorch.settings.fast_pred_var(fast):
                posterior = model(new)
                means.append(posterior.mean)
                covariances.append(posterior.covariance_matrix)
        torch.testing.assert_close(means[0], means[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(covariances[0], covariances[1], rtol=1e-9, atol=1e-9)


def test_large_predictions_stay_in_blocks():
    x, y, noise = data(LARGE)
    model, _ = build(KERNELS["local"][0](), x, y, noise)
    model.eval()
    with torch.no_grad():
        posterior = model(grouped_rows(LARGE, seed=5))
    assert isinstance(posterior.lazy_covariance_matrix, GroupBlockLinearOperator)
    assert posterior.variance.shape == (len(x),)
    assert posterior.sample(torch.Size([3])).shape == (3, len(x))


def test_training_raises_the_evidence_to_where_its_gradient_vanishes():
    x, y, noise = data(RAGGED)
    model, likelihood = build(KERNELS["local"][0](), x, y, noise)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    before = mll(model(x), y).item()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

    def closure():
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    assert mll(model(x), y).item() > before + 0.05
    assert all(p.grad.abs().max() < 1e-4 for p in model.parameters())


def test_homoskedastic_likelihood_learns_its_noise_through_blocks():
    x, y, _ = data(LARGE)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Model(x, y, likelihood, LocalKernel(RBFKernel())).double()
    dense_likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    dense = Model(x, y, dense_likelihood, DenseLocalKernel(RBFKernel())).double()
    gradients = []
    for m, lik in ((model, likelihood), (dense, dense_likelihood)):
        with gpytorch.settings.max_cholesky_size(800 if m is model else 10_000):
            value = gpytorch.mlls.ExactMarginalLogLikelihood(lik, m)(m(x), y)
            gradients.append(torch.autograd.grad(value, list(lik.parameters()))[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


def test_batched_channels_share_rows_but_not_hyperparameters():
    x, _, noise = data(RAGGED)
    y = torch.randn(3, 31, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scales = torch.tensor([0.5, 1.0, 2.0]).double().view(3, 1, 1)
    batched = RBFKernel(batch_shape=torch.Size([3])).double()
    batched.lengthscale = scales
    prior = gpytorch.distributions.MultivariateNormal(torch.zeros(3, 31).double(), LocalKernel(batched)(x))
    evidence = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)(prior).log_prob(y)
    for j in range(3):
        single = RBFKernel().double()
        single.lengthscale = scales[j]
        covariance = DenseLocalKernel(single)(x).to_dense() + torch.diag(noise)
        expected = torch.distributions.MultivariateNormal(torch.zeros(31).double(), covariance).log_prob(y[j])
        torch.testing.assert_close(evidence[j], expected, rtol=1e-10, atol=1e-10)


def test_no_cache_of_a_prediction_outlives_a_training_step():
    x, y, noise = data(RAGGED)
    model, _ = build(KERNELS["local"][0](), x, y, noise)
    new = grouped_rows(RAGGED, seed=5)
    model.eval()
    before = model(new).mean
    model.train()
    with torch.no_grad():
        model.covar_module.base_kernel.raw_outputscale.fill_(3.0)
    model.eval()
    fresh, _ = build(KERNELS["local"][0](), x, y, noise)
    with torch.no_grad():
        fresh.covar_module.base_kernel.raw_outputscale.fill_(3.0)
    fresh.eval()
    torch.testing.assert_close(model(new).mean, fresh(new).mean)
    assert (model(new).mean - before).abs().max() > 1e-3
