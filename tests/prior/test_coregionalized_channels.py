"""`CoregionalizedChannels` beside the priors it contains; against the dense Gaussian it is one of `prior_cases`."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel
from prior_cases import answers, assert_same
from torch.autograd import gradcheck

from factories import make_data
from fgp_gpytorch import FGPVAE, CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, LocalChannels, fit
from fgp_gpytorch.coupled import CorrelatedPrior, GroupVectors, ProductPrior
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import NystromFeatures, PeriodicFeatures
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.prior import exact_gp

F64 = torch.float64
GRID = torch.arange(5.0, dtype=F64).unsqueeze(-1)


def periodic():
    kernel = PeriodicKernel().double()
    kernel.initialize(period_length=torch.tensor(2 * math.pi, dtype=F64), lengthscale=torch.tensor(0.9, dtype=F64))
    return kernel


def pseudo(x, channels, seed=0):
    """Pseudo-observations (x, mean, variance, mask) of groups at x (G, Q, D); the last member of each is missing."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(*x.shape[:-1], channels, generator=g, dtype=F64)
    variance = 0.05 + torch.rand(mean.shape, generator=g, dtype=F64)
    mask = torch.ones(x.shape[:-1], dtype=torch.bool)
    mask[:, -1] = False
    return x, mean, variance, mask


def angles(groups=3, members=4, seed=1):
    return 2 * math.pi * torch.rand(groups, members, 1, generator=torch.Generator().manual_seed(seed), dtype=F64)


def on_grid(*members):
    """Groups of members at points of the grid, (G, Q, 1)."""
    return GRID[torch.tensor(members)]


def with_loadings(block, loadings):
    block.loadings.data = loadings.to(F64)
    return block


def test_loadings_of_a_channel_each_are_local_channels():
    kernel = periodic()
    root = PeriodicFeatures(kernel, harmonics=12)
    block = CoregionalizedChannels(2, 2 * root.num_features, root)
    with_loadings(block, torch.eye(2 * root.num_features).reshape(2, root.num_features, -1))
    given = pseudo(angles(), 2)
    assert_same(
        answers(FactorizedGPPrior([block]).posterior(*given), angles(3, 2, seed=2)),
        answers(FactorizedGPPrior([LocalChannels(2, kernel)]).posterior(*given), angles(3, 2, seed=2)),
        rtol=1e-7,
        atol=1e-8,  # of the series that ends after 12 harmonics
    )


def test_constant_loadings_are_global_channels():
    root = PeriodicFeatures(periodic(), harmonics=1)
    loadings = torch.zeros(2, 3, 2)
    loadings[:, 0] = torch.eye(2)
    block = with_loadings(CoregionalizedChannels(2, 2, root), loadings)
    constant = root.coefficients()[0].item()
    given = pseudo(angles(), 2)
    assert_same(
        answers(FactorizedGPPrior([block]).posterior(*given), angles(3, 2, seed=2)),
        answers(FactorizedGPPrior([GlobalChannels(2, constant)]).posterior(*given), angles(3, 2, seed=2)),
    )


def test_nystrom_root_takes_any_kernel_on_a_grid():
    kernel = MaternKernel(nu=1.5).double()
    root = NystromFeatures(kernel, GRID)
    block = with_loadings(CoregionalizedChannels(1, 5, root), torch.eye(5).unsqueeze(0))
    given = pseudo(on_grid([0, 2, 3, 4], [1, 0, 4, 2]), 1)
    x_new = on_grid([1], [3])
    assert_same(
        answers(FactorizedGPPrior([block]).posterior(*given), x_new),
        answers(FactorizedGPPrior([LocalChannels(1, kernel)]).posterior(*given), x_new),
        rtol=1e-6,
        atol=1e-7,  # the root's jitter, 1e-8
    )


def test_one_channel_tells_of_another():
    block = with_loadings(CoregionalizedChannels(2, 1, PeriodicFeatures(periodic(), harmonics=1)), torch.zeros(2, 3, 1))
    block.loadings.data[:, 0, 0] = torch.tensor([1.0, -2.0], dtype=F64)
    x = angles(1, 3)
    mean = torch.stack([torch.full((1, 3), 0.7), torch.zeros(1, 3)], dim=-1).double()
    variance = torch.stack([torch.full((1, 3), 1e-6), torch.full((1, 3), 1e12)], dim=-1).double()
    told = FactorizedGPPrior([block]).posterior(x, mean, variance)
    torch.testing.assert_close(told.mean[..., 1], torch.full((1, 3), -1.4, dtype=F64), rtol=1e-5, atol=0)
    assert bool((told.variance[..., 1] < 1e-5).all())


def test_prior_covariance_of_each_channel_is_the_roots_kernel_on_average_at_the_start():
    torch.manual_seed(0)
    kernel = periodic()
    covariances = []
    for _ in range(300):
        block = CoregionalizedChannels(2, 4, PeriodicFeatures(kernel, harmonics=3)).double()
        covariances.append(block.covariance(angles(1, 3), angles(1, 3)).detach())
    draws = torch.cat(covariances).flatten(0, 1)  # (600, 3, 3)
    with gpytorch.settings.lazily_evaluate_kernels(False):
        wanted = kernel(angles(1, 3)[0]).to_dense()
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - wanted).abs() < 5 * error + 1e-3).all())
    assert float(error.max()) < 0.1


def test_loadings_have_the_hyperprior_of_a_gaussian_process_with_the_roots_kernel():
    """log N(W; 0, 1/R) of every entry; psi = phi W is then a GP with covariance k / R, by draws."""
    block = CoregionalizedChannels(2, 3, PeriodicFeatures(periodic(), harmonics=2))
    prior = FactorizedGPPrior([LocalChannels(1, RBFKernel()), block])
    wanted = sum(-0.5 * math.log(2 * math.pi / 3) - 0.5 * 3 * w**2 for w in block.loadings.flatten().detach().tolist())
    assert prior.log_hyperprior().item() == pytest.approx(wanted, rel=1e-6)  # GPyTorch keeps the scale in float32
    before = block.loadings.detach().clone()
    prior.log_hyperprior().backward()
    torch.testing.assert_close(block.loadings.grad, -3 * before, rtol=1e-6, atol=1e-9)


def test_gradients_reach_loadings_kernel_and_pseudo_observations():
    kernel = periodic()
    block = CoregionalizedChannels(2, 3, PeriodicFeatures(kernel, harmonics=2))
    prior = FactorizedGPPrior([block])
    x, mean, variance, mask = pseudo(angles(2, 3), 2)

    def everything(loadings, lengthscale, mean, log_variance):
        parameters = {"blocks.0.loadings": loadings, "blocks.0.features.kernel.raw_lengthscale": lengthscale}

        class Ask(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.prior = prior

            def forward(self):
                said = answers(prior.posterior(x, mean, log_variance.exp(), mask), angles(2, 2, seed=3))
                return tuple(said.values())

        return torch.func.functional_call(Ask(), {f"prior.{k}": v for k, v in parameters.items()}, ())

    inputs = (block.loadings.detach(), kernel.raw_lengthscale.detach(), mean, variance.log())
    assert gradcheck(everything, [value.clone().requires_grad_() for value in inputs])


def test_member_without_a_loading_has_its_mean_and_a_finite_gradient():
    block = with_loadings(CoregionalizedChannels(2, 1, PeriodicFeatures(periodic(), harmonics=1)), torch.zeros(2, 3, 1))
    x, mean, variance, mask = pseudo(angles(), 2)
    posterior = FactorizedGPPrior([block]).posterior(x, mean, variance, mask)
    posterior.rsample(marginals=True).sum().backward()
    assert torch.equal(posterior.mean, torch.zeros_like(mean))
    assert bool(torch.isfinite(block.loadings.grad).all())


def test_scores_of_a_group_are_its_whitened_site():
    torch.manual_seed(1)
    block = CoregionalizedChannels(3, 2, PeriodicFeatures(periodic(), harmonics=2))
    prior = FactorizedGPPrior([GlobalChannels(1), block])
    posterior = prior.posterior(*pseudo(angles(), 4))
    scores = posterior.whitened_distributions()[1]
    assert scores.batch_shape == (3,)
    assert scores.event_shape == (1, 2)
    paths = (block.covariance_root(angles()) @ scores.base_dist.loc[..., None]).squeeze(-1)  # (G, J, Q)
    torch.testing.assert_close(posterior.mean[..., 1:], paths.mT, rtol=1e-9, atol=1e-10)


def test_float32_prior_stays_float32():
    prior = FactorizedGPPrior([CoregionalizedChannels(2, 3, NystromFeatures(RBFKernel(), GRID))], dtype=torch.float32)
    x, mean, variance, mask = (t.float() if t.is_floating_point() else t for t in pseudo(on_grid([0, 2, 4]), 2))
    posterior = prior.posterior(x, mean, variance, mask)
    assert {t.dtype for t in answers(posterior, x).values()} == {torch.float32}
    assert posterior.rsample([2]).dtype == prior.sample(x).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:CoregionalizedChannels. expected at least")
def test_model_is_trained_saved_and_told_new_groups(tmp_path):
    torch.manual_seed(0)
    data = make_data()
    root = NystromFeatures(
        RBFKernel(lengthscale_constraint=gpytorch.constraints.GreaterThan(0.1)), torch.linspace(0, 3, 6)
    )
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([2]))
    prior = FactorizedGPPrior([CoregionalizedChannels(2, 3, root, mean), GlobalChannels(1)])
    model = FGPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), prior, member_dropout=0.2)
    before = prior.blocks[0].loadings.detach().clone()
    history = fit(model, data, epochs=30, learning_rate=1e-2, folder=None, progress=False, seed=0).history
    assert history["mse"].iloc[-1] < 0.8 * history["mse"].iloc[0]
    assert not torch.equal(prior.blocks[0].loadings.detach(), before)
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    others, x_new = make_data(seed=9)[[0, 1]], torch.rand(2, 4, 1)
    assert torch.equal(loaded.generate(x_new, others), model.generate(x_new, others))
    assert loaded.generate(x_new, others, sample_shape=[5]).shape == (5, 2, 4, 3)
    assert loaded.generate(x_new, sample_shape=[5]).shape == (5, 2, 4, 3)


def few_channels(**options):
    return CoregionalizedChannels(4, 4, PeriodicFeatures(periodic(), harmonics=4), **options)


def correlated(block):
    return CorrelatedPrior([block], 1)


@pytest.mark.parametrize("make", [lambda block: FactorizedGPPrior([GlobalChannels(1), block]), correlated])
def test_loadings_of_few_groups_are_warned_of(make):
    prior = make(few_channels())
    expected = r"CoregionalizedChannels: expected at least 288 groups, .* got 60.* about 72 %.*Try more groups, fewer"
    with pytest.warns(UserWarning, match=expected) as caught:
        prior.warn_of_few_groups(60)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "make",
    [
        lambda: FactorizedGPPrior([few_channels()]),
        lambda: correlated(few_channels()),
        lambda: FactorizedGPPrior([LocalChannels(2, RBFKernel()), GlobalChannels(1)]),
        lambda: ProductPrior(2),
    ],
)
def test_many_groups_are_not_warned_of(make):
    make().warn_of_few_groups(1000)  # warnings are errors


def test_fixed_loadings_are_not_warned_of():
    block = few_channels()
    block.loadings.requires_grad_(False)
    FactorizedGPPrior([block]).warn_of_few_groups(2)


def test_expected_coverage_rises_to_its_nominal_value():
    block = few_channels()
    coverages = [block.expected_coverage(groups) for groups in (36, 60, 200, 1000, 10**9)]
    assert coverages == sorted(coverages)
    # 1 + 2.2 = 3.2 times the squared error with as many groups as J M: 2 Phi(1.6449 / sqrt(3.2)) - 1
    assert coverages[0] == pytest.approx(2 * torch.special.ndtr(torch.tensor(1.6449 / 3.2**0.5)).item() - 1, abs=1e-4)
    assert coverages[-1] == pytest.approx(0.9, abs=1e-6)


def root_of(kernel):
    return NystromFeatures(kernel, GRID)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: CoregionalizedChannels(0, 2, root_of(RBFKernel())),
            ArgumentError,
            "num_channels: expected an integer",
        ),
        (lambda: CoregionalizedChannels(2, 0, root_of(RBFKernel())), ArgumentError, "num_factors: expected an integer"),
        (
            lambda: CoregionalizedChannels(2, 2.0, root_of(RBFKernel())),
            ArgumentError,
            "num_factors: expected an integer",
        ),
        (
            lambda: CoregionalizedChannels(2, 2, RBFKernel()),
            ArgumentError,
            "features: expected a PeriodicFeatures or Nystrom",
        ),
        (
            lambda: CoregionalizedChannels(2, 2, GroupVectors(3, 2)),
            ArgumentError,
            "features: expected a PeriodicFeatures or",
        ),
        (
            lambda: CoregionalizedChannels(2, 2, PeriodicFeatures(PeriodicKernel(batch_shape=torch.Size([2])))),
            ShapeError,
            r"features: expected a kernel without batch shape, got \[2\]",
        ),
        (
            lambda: CoregionalizedChannels(
                2, 2, root_of(RBFKernel()), gpytorch.means.ConstantMean(batch_shape=torch.Size([3]))
            ),
            ShapeError,
            r"mean ConstantMean: expected batch_shape \[\] .* or \[2\]",
        ),
        (
            lambda: exact_gp(
                CoregionalizedChannels(2, 2, root_of(RBFKernel())),
                GRID[None],
                torch.zeros(1, 5, 2),
                torch.ones(1, 5, 2),
            ),
            DataError,
            "block: expected channels that are independent of each other",
        ),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
