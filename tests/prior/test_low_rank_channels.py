"""`LocalChannels` by feature maps and by inducing points."""

import math

import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    ScaleKernel,
)
from prior_cases import answers

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import kernel_features
from fgp_gpytorch.kernels import kernel_matrix
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.prior.local_channels import DenseBlockPosterior
from fgp_gpytorch.prior.low_rank_posterior import LowRankBlockPosterior

F64 = torch.float64
TWO = torch.Size([2])


def observations(groups=2, members=30, channels=2, features=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand(groups, members, features, generator=g, dtype=F64)
    mean = torch.randn(groups, members, channels, generator=g, dtype=F64)
    variance = 0.02 * 100 ** torch.rand(groups, members, channels, generator=g, dtype=F64)
    mask = torch.rand(groups, members, generator=g) > 0.2
    return x, mean, variance, mask


def filled(kernel):
    """Different parameters, none of them at its start."""
    kernel = kernel.double()
    for number, parameter in enumerate(kernel.parameters()):
        parameter.data.copy_(0.2 + 0.3 * number + 0.4 * torch.arange(parameter.numel()).reshape(parameter.shape))
    return kernel


def results(posterior, x_new):
    return list(answers(posterior, x_new).values())


def with_gradients(kernel, data, x_new, **options):
    prior = FactorizedGPPrior([LocalChannels(2, kernel, **options)])
    for parameter in prior.parameters():
        parameter.grad = None
    numbers = results(prior.posterior(*data), x_new)
    sum(n.square().sum() for n in numbers).backward()
    return [n.detach() for n in numbers], [p.grad for p in kernel.parameters()]


FINITE = {
    "linear": lambda: LinearKernel(),
    "linear of a column": lambda: LinearKernel(active_dims=(1,)),
    "linear, each channel": lambda: ScaleKernel(LinearKernel(batch_shape=TWO), batch_shape=TWO),
    "cubic": lambda: PolynomialKernel(3),
    "square, each channel": lambda: PolynomialKernel(2, batch_shape=TWO),
    "periodic": lambda: PeriodicKernel(active_dims=(0,)),
    "periodic, each channel": lambda: ScaleKernel(PeriodicKernel(batch_shape=TWO, active_dims=(1,)), batch_shape=TWO),
    "season and trend": lambda: PeriodicKernel(active_dims=(0,)) + LinearKernel() + ConstantKernel(),
    "growing season": lambda: PeriodicKernel(active_dims=(0,)) * LinearKernel(active_dims=(0,)),
}


@pytest.mark.parametrize("name", FINITE)
def test_features_give_the_kernel(name):
    kernel = filled(FINITE[name]())
    x = torch.rand(1, 7, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    features = kernel_features(kernel, x)
    torch.testing.assert_close(
        features @ features.mT, kernel_matrix(kernel, x).expand(*features.shape[:-2], 7, 7), rtol=1e-8, atol=1e-9
    )


@pytest.mark.filterwarnings("ignore:A not p.d.")  # GPyTorch factorizes a sum with a linear kernel, for later use
@pytest.mark.parametrize("name", FINITE)
def test_low_rank_and_dense_inference_are_the_same_function(name):
    kernel, data = filled(FINITE[name]()), observations(features=2)
    x_new = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    own = with_gradients(kernel, data, x_new, inference="low_rank")
    own_gradients = [g.clone() for g in own[1]]
    other = with_gradients(kernel, data, x_new, inference="dense")
    for mine, theirs in zip([*own[0], *own_gradients], [*other[0], *other[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8 * max(1.0, float(theirs.abs().max())))


def test_joint_draws_of_a_low_rank_posterior_have_its_covariance():
    torch.manual_seed(0)
    data, x_new = observations(groups=1, members=4), torch.rand(1, 2, 1, dtype=F64)
    found = []
    for inference in ("low_rank", "dense"):
        kernel = filled(PeriodicKernel() + ConstantKernel())
        posterior = FactorizedGPPrior([LocalChannels(2, kernel, inference=inference)]).posterior(*data)
        draws = torch.cat(posterior.rsample_paths(x_new, (20_000,)), -2).flatten(1)
        found.append((draws.mean(0), torch.cov(draws.T)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0.06)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0.12)


def test_prior_draws_of_a_low_rank_kernel_have_its_covariance():
    torch.manual_seed(0)
    kernel, x = filled(LinearKernel() + ConstantKernel()), torch.rand(1, 3, 1, dtype=F64)
    draws = FactorizedGPPrior([LocalChannels(1, kernel, inference="low_rank")]).sample(x, (40_000,)).flatten(1)
    torch.testing.assert_close(torch.cov(draws.T), kernel_matrix(kernel, x[0]).detach(), rtol=0, atol=0.1)


def kind_of(block, members, features=1):
    x = torch.rand(1, members, features, dtype=F64)
    block = FactorizedGPPrior([block]).blocks[0]
    zero = torch.zeros(1, block.num_channels, members, dtype=F64)
    return type(block.condition(x, zero, zero + 1))


def test_auto_takes_the_features_of_large_groups_that_have_more_members_than_features():
    season = PeriodicKernel()
    season.lengthscale = 1.0
    assert kind_of(LocalChannels(1, season), 50) is DenseBlockPosterior
    assert kind_of(LocalChannels(1, season), 300) is LowRankBlockPosterior
    assert kind_of(LocalChannels(1, LinearKernel(), inference="low_rank"), 5) is LowRankBlockPosterior
    # 3^5 = 243 features
    assert kind_of(LocalChannels(1, PolynomialKernel(5)), 300, features=2) is DenseBlockPosterior
    assert kind_of(LocalChannels(1, LinearKernel() + RBFKernel()), 300) is DenseBlockPosterior
    rough = PeriodicKernel()
    rough.lengthscale = 1e-4  # 64 harmonics are not enough
    assert kind_of(LocalChannels(1, rough), 300) is DenseBlockPosterior


@pytest.mark.parametrize("power", [0, 1.5])
def test_powers_that_are_no_whole_number_have_no_features(power):
    assert kernel_features(PolynomialKernel(power), torch.rand(4, 1)) is None


def test_precise_observations_through_a_period_keep_their_digits():
    x = 6 * torch.rand(1, 200, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    y, found = torch.exp(torch.sin(2 * math.pi * x / 3)), []
    for inference in ("low_rank", "dense"):
        kernel = PeriodicKernel().double()
        kernel.lengthscale, kernel.period_length = torch.tensor(0.7).double(), torch.tensor(3.0).double()
        posterior = FactorizedGPPrior([LocalChannels(1, kernel, inference=inference)]).posterior(x, y, 0 * y + 1e-6)
        posterior.kl.sum().backward()
        found.append([posterior.kl.detach(), kernel.raw_period_length.grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


class Doubled(LinearKernel):
    """A kernel of a user, which is not what its base class is."""

    def forward(self, x1, x2, **options):
        return 2 * super().forward(x1, x2, **options)


@pytest.mark.parametrize("kernel", [RBFKernel(), MaternKernel(), Doubled(), PeriodicKernel() + RBFKernel()])
def test_kernels_without_features_are_refused(kernel):
    with pytest.raises(DataError, match=r"kernel: expected sums and products of LinearKernel.*Try inference='auto'"):
        kind_of(LocalChannels(1, kernel, inference="low_rank"), 5)


# inducing points


def smooth():
    kernel = ScaleKernel(RBFKernel(batch_shape=TWO), batch_shape=TWO).double()
    kernel.outputscale = torch.tensor([0.7, 1.6], dtype=F64)
    kernel.base_kernel.lengthscale = torch.tensor([0.5, 1.1], dtype=F64).reshape(2, 1, 1)
    return kernel


def inducing(points, kernel=None):
    block = LocalChannels(2, kernel or smooth(), inference="inducing", inducing_points=points)
    return FactorizedGPPrior([block])


def test_points_at_the_members_give_exact_inference():
    x, mean, variance, mask = observations(groups=1, members=12)
    x = torch.linspace(0, 3, 12, dtype=F64).reshape(1, 12, 1)
    x_new = torch.tensor([[[0.1], [1.7], [4.0]]], dtype=F64)
    kernel = filled(MaternKernel(nu=1.5, batch_shape=TWO))
    own = results(inducing(x[0], kernel).posterior(x, mean, variance, mask), x_new)
    exact = results(FactorizedGPPrior([LocalChannels(2, kernel)]).posterior(x, mean, variance, mask), x_new)
    for mine, theirs in zip(own, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)  # the jitter of the points


@pytest.mark.parametrize("num_points", [2, 5, 9])
def test_evidence_is_titsias_bound(num_points):
    x, mean, variance, mask = observations()
    points = torch.linspace(0.1, 2.9, num_points, dtype=F64)
    found = inducing(points).posterior(x, mean, variance, mask)
    exact = FactorizedGPPrior([LocalChannels(2, smooth())]).posterior(x, mean, variance, mask)
    kernel, total = smooth(), torch.zeros(2, dtype=F64)
    for group in range(2):
        seen = mask[group]
        rows, u = x[group][seen], points.unsqueeze(-1)
        among, cross, own = (kernel_matrix(kernel, a, b) for a, b in ((u, u), (u, rows), (rows, rows)))
        q = cross.mT @ torch.linalg.solve(among + 1e-8 * torch.eye(num_points), cross)
        noise = variance[group][seen].mT
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(int(seen.sum()), dtype=F64), q + torch.diag_embed(noise), validate_args=False
        )
        rest = (own - q).diagonal(dim1=-2, dim2=-1)
        total[group] = (normal.log_prob(mean[group][seen].mT) - 0.5 * (rest / noise).sum(-1)).sum()
    torch.testing.assert_close(found.log_evidence, total, rtol=1e-6, atol=1e-6)
    assert (found.log_evidence < exact.log_evidence).all()


def test_elbo_of_pseudo_observations_is_the_bound():
    """E_q log N(mu | z, sigma^2) - KL equals the bound of the evidence: q(u) is its optimum."""
    x, mean, variance, mask = observations()
    posterior = inducing(torch.linspace(0, 3, 5)).posterior(x, mean, variance, mask)
    spread = (mean - posterior.mean).square() + posterior.variance
    expected = -0.5 * (torch.log(2 * math.pi * variance) + spread / variance)
    expected = torch.where(mask.unsqueeze(-1), expected, 0.0).sum((-2, -1))
    torch.testing.assert_close(expected - posterior.kl, posterior.log_evidence, rtol=1e-8, atol=1e-8)


def test_points_are_learned_and_can_be_fixed():
    x, mean, variance, mask = observations()
    prior = inducing(torch.linspace(0, 3, 4))
    points = prior.blocks[0].inducing_points
    before = prior.posterior(x, mean, variance, mask).log_evidence.sum()
    optimizer = torch.optim.Adam([points], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (-prior.posterior(x, mean, variance, mask).log_evidence.sum()).backward()
        optimizer.step()
    assert prior.posterior(x, mean, variance, mask).log_evidence.sum() > before + 0.1
    points.requires_grad_(False)
    assert [name for name, p in prior.named_parameters() if p.requires_grad and "inducing" in name] == []


def test_joint_draws_through_inducing_points_have_the_marginals():
    torch.manual_seed(0)
    x, mean, variance, mask = observations(groups=1, members=5)
    x_new = torch.tensor([[[0.4], [2.2]]], dtype=F64)
    posterior = inducing(torch.linspace(0, 3, 3)).posterior(x, mean, variance, mask)
    members, new = posterior.rsample_paths(x_new, (20_000,))
    for draws, own in ((members, posterior), (new, posterior.predict(x_new))):
        torch.testing.assert_close(draws.mean(0), own.mean, rtol=0, atol=0.05)
        torch.testing.assert_close(draws.var(0), own.variance, rtol=0.06, atol=1e-3)
    joint = posterior.distribution().covariance_matrix
    torch.testing.assert_close(torch.cov(members[:, 0].flatten(1).T), joint[0], rtol=0, atol=0.08)


def test_many_members_fit_through_few_points():
    x, mean, variance, mask = observations(groups=1, members=50_000)
    prior = inducing(torch.linspace(0, 3, 20))
    posterior = prior.posterior(x, mean, variance, mask)
    gradient = torch.autograd.grad(posterior.kl.sum() + posterior.mean.sum(), list(prior.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradient)


def test_a_model_with_inducing_points_can_be_saved(tmp_path):
    prior = inducing(torch.linspace(0, 3, 4))
    prior.blocks[0].inducing_points.data += 0.1
    FGPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), prior).save(tmp_path / "model.pt")
    again = FGPVAE.load(tmp_path / "model.pt").prior
    assert torch.equal(again.blocks[0].inducing_points, prior.blocks[0].inducing_points)
    assert again.blocks[0].inference == "inducing"


def test_wrong_points_are_refused():
    for options in ({"inference": "inducing"}, {"inducing_points": torch.rand(3)}):
        with pytest.raises(ArgumentError, match=r"inducing_points: expected points with inference='inducing'.*Try inf"):
            LocalChannels(1, RBFKernel(), **options)
    with pytest.raises(DataError, match=r"inducing_points: expected distinct points, got 2 of which 1 differ"):
        inducing(torch.zeros(2))
    with pytest.raises(ShapeError, match=r"inducing_points: expected .*One column for each feature of x"):
        inducing(torch.rand(3, 2)).posterior(*observations())
    with pytest.raises(DataError, match=r"inducing_points: expected a positive definite matrix.*Try fewer points"):
        inducing(torch.rand(3), NotPositive()).posterior(*observations())


class NotPositive(RBFKernel):
    """No covariance."""

    def forward(self, x1, x2, **options):
        return -super().forward(x1, x2, **options)
