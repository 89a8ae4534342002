"""`LocalChannels` that choose their inference: state spaces of any size, and what has none."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    ScaleKernel,
)
from prior_cases import answers
from torch import nn

from fgp_gpytorch import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.feature_maps import LinearFeatures, SelectedFeatures
from fgp_gpytorch.kernels import kernel_matrix, markov_terms
from fgp_gpytorch.prior import state_space_posterior
from fgp_gpytorch.prior.local_channels import DenseBlockPosterior
from fgp_gpytorch.prior.state_space_posterior import StateSpaceBlockPosterior

F64 = torch.float64


def observations(groups=2, members=300, channels=2, features=1, seed=0):
    """Unsorted, with repeated x and masks, in groups of different sizes."""
    g = torch.Generator().manual_seed(seed)
    x = members / 10 * torch.rand(groups, members, features, generator=g, dtype=F64)
    x[:, members // 2] = x[:, 0]
    x[:, 20:30] = x[:, : len(x[0, 20:30])]
    mean = torch.randn(groups, members, channels, generator=g, dtype=F64)
    variance = 0.01 * 1000 ** torch.rand(groups, members, channels, generator=g, dtype=F64)
    mask = torch.rand(groups, members, generator=g) > 0.2
    mask[0, members // 2 :] = False
    return x, mean, variance, mask


def level_and_process(channels=2, inference="auto"):
    own = torch.Size([channels])
    kernel = ScaleKernel(MaternKernel(nu=1.5, batch_shape=own), batch_shape=own) + ConstantKernel(batch_shape=own)
    kernel = kernel.double()
    kernel.kernels[0].base_kernel.lengthscale = torch.linspace(0.5, 2, channels, dtype=F64).reshape(channels, 1, 1)
    kernel.kernels[1].constant = torch.linspace(0.4, 0.9, channels, dtype=F64)
    return LocalChannels(channels, kernel, inference=inference)


def results(posterior, x_new):
    return list(answers(posterior, x_new).values())


@pytest.mark.parametrize("kind", [MaternKernel, None])
def test_state_space_and_dense_inference_are_the_same_function(kind):
    data, x_new = observations(), torch.linspace(-3, 33, 40, dtype=F64).reshape(1, 40, 1).expand(2, 40, 1)
    found = []
    for inference in ("state_space", "dense"):
        block = (
            level_and_process(inference=inference)
            if kind is None
            else LocalChannels(2, kind(nu=2.5), inference=inference)
        )
        prior = FactorizedGPPrior([block])
        numbers = results(prior.posterior(*data), x_new)
        loss = sum(n.square().sum() for n in numbers)
        found.append([*numbers, *torch.autograd.grad(loss, list(prior.parameters()))])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9)


def kind_of(block, members, features=1):
    x = torch.rand(1, members, features, dtype=F64)
    block = FactorizedGPPrior([block]).blocks[0]
    zero = torch.zeros(1, block.num_channels, members, dtype=F64)
    return type(block.condition(x, zero, zero + 1))


def test_auto_takes_the_state_space_of_large_groups_only():
    assert kind_of(level_and_process(), 20) is DenseBlockPosterior
    assert kind_of(level_and_process(), 400) is StateSpaceBlockPosterior
    assert kind_of(level_and_process(inference="dense"), 400) is DenseBlockPosterior
    assert kind_of(level_and_process(inference="state_space"), 20) is StateSpaceBlockPosterior
    assert kind_of(LocalChannels(1, RBFKernel()), 400) is DenseBlockPosterior


class Damped(MaternKernel):
    """A kernel of a user, which is not what its base class is."""

    def forward(self, x1, x2, **options):
        return 0.5 * super().forward(x1, x2, **options)


@pytest.mark.parametrize(
    ("kernel", "features"),
    [
        (RBFKernel(), 1),
        (PeriodicKernel(), 1),
        (Damped(nu=1.5), 1),
        (ConstantKernel(), 1),
        (MaternKernel(nu=1.5), 2),
        (MaternKernel(nu=1.5, ard_num_dims=2), 2),
        (MaternKernel(active_dims=(0,)) + MaternKernel(active_dims=(1,)), 2),
        (MaternKernel(nu=1.5) * MaternKernel(nu=0.5), 1),
        (MaternKernel(nu=1.5) + RBFKernel(), 1),
        (MaternKernel(nu=1.5) * RBFKernel(), 1),
        (ScaleKernel(RBFKernel()), 1),
    ],
)
def test_other_kernels_have_no_state_space(kernel, features):
    assert markov_terms(kernel, features) is None
    assert kind_of(LocalChannels(1, kernel), 300, features) is not StateSpaceBlockPosterior
    with pytest.raises(DataError, match=r"kernel: expected MaternKernel on one feature, or a sum of it"):
        kind_of(LocalChannels(1, kernel, inference="state_space"), 5, features)


@pytest.mark.parametrize(
    "kernel",
    [
        ScaleKernel(ScaleKernel(MaternKernel(nu=0.5, active_dims=(1,)))),
        ScaleKernel(AdditiveKernel(MaternKernel(nu=2.5, active_dims=(1,)), ConstantKernel())),
        ProductKernel(ConstantKernel(), MaternKernel(nu=1.5, active_dims=(1,)), ConstantKernel()),
        ProductKernel(MaternKernel(nu=1.5, active_dims=(1,)) + ConstantKernel(), ConstantKernel() + ConstantKernel()),
        AdditiveKernel(MaternKernel(nu=1.5, active_dims=(1,)), ScaleKernel(ConstantKernel())),
        MaternKernel(nu=1.5, active_dims=(1,), ard_num_dims=1),
    ],
)
def test_forms_of_one_covariance_have_its_terms(kernel):
    kernel = kernel.double()
    for number, parameter in enumerate(kernel.parameters()):
        parameter.data.fill_(0.3 + 0.2 * number)
    found = markov_terms(kernel, 2)
    assert found is not None
    terms, column = found
    assert column == 1
    x = torch.tensor([[5.0, 0.0], [-3.0, 0.7]], dtype=F64)
    total = 0.0
    for order, variance, rate in terms:
        t = 0.7 * rate if rate is not None else torch.zeros(1, dtype=F64)
        total = total + variance * {0: 1, 1: 1, 2: 1 + t, 3: 1 + t + t**2 / 3}[order] * torch.exp(-t)
    torch.testing.assert_close(total.squeeze(), kernel_matrix(kernel, x)[0, 1].squeeze(), rtol=1e-12, atol=0)


def test_thousands_of_members_take_a_step_of_training_and_a_forecast():
    members = 20_000
    prior = FactorizedGPPrior([level_and_process()])
    x, mean, variance, mask = observations(1, members)
    mean.requires_grad_()
    posterior = prior.posterior(x, mean, variance, mask)
    x_new = torch.tensor([[[members / 20.0], [members / 10 + 1e4]]], dtype=F64)
    gradient = torch.autograd.grad(posterior.kl.sum() + posterior.rsample((1,)).sum(), [mean, *prior.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradient)
    predicted = posterior.predict(x_new)
    # far away, the process is its prior again, and the level keeps what was learned of it
    level = prior.blocks[0].kernel.kernels[1].constant.squeeze(-1)
    assert (predicted.variance[0, 1] - 1 < 0.5 * level).all()
    assert prior.sample(x, (2,)).shape == (2, 1, members, 2)


def test_channels_that_take_turns_give_the_same(monkeypatch):
    data, x_new = observations(channels=5), torch.rand(2, 3, 1, dtype=F64)
    found = []
    for at_once in (2**23, 600):
        monkeypatch.setattr(state_space_posterior, "_NUMBERS_AT_ONCE", at_once)
        prior = FactorizedGPPrior([level_and_process(5, "state_space")])
        numbers = results(prior.posterior(*data), x_new)
        found.append([*numbers, *torch.autograd.grad(numbers[2].sum() + numbers[4].sum(), list(prior.parameters()))])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-13)


def test_no_groups_and_no_draws_have_empty_answers():
    x, mean, variance, _ = (t[:0] for t in observations())
    prior = FactorizedGPPrior([level_and_process(inference="state_space")])
    assert prior.posterior(x, mean, variance).mean.shape == (0, 300, 2)
    x, mean, variance, _ = observations(members=4)
    for inference in ("state_space", "dense"):
        prior = FactorizedGPPrior([level_and_process(inference=inference)])
        assert prior.posterior(x, mean, variance).rsample((0,)).shape == (0, 2, 4, 2)
        assert prior.sample(x[:, :0], (3,)).shape == (3, 2, 0, 2)


def test_transforms_of_torch_func_are_refused_in_words():
    x, mean, variance, _ = observations(members=4)
    prior = FactorizedGPPrior([level_and_process(inference="state_space")])
    with pytest.raises(DataError, match=r"inference: expected no transform of torch.func.*Try inference='dense'"):
        torch.func.grad(lambda m: prior.condition(x, m, variance).kl.sum())(mean)


def test_float32_is_close_to_float64():
    data = observations(members=500)
    wide = FactorizedGPPrior([level_and_process(inference="state_space")])
    narrow = FactorizedGPPrior([level_and_process(inference="state_space")], dtype=torch.float32)
    torch.testing.assert_close(narrow.posterior(*data).mean.double(), wide.posterior(*data).mean, rtol=0, atol=1e-3)


def test_effects_are_added_to_a_state_space():
    data = observations(members=300, features=2)
    found = []
    for inference in ("state_space", "dense"):
        torch.manual_seed(0)
        kernel = MaternKernel(nu=1.5, active_dims=(0,))
        effects = [SelectedFeatures(LinearFeatures(), [1])]
        prior = FactorizedGPPrior([LocalChannels(2, kernel, inference=inference)], effects=effects)
        nn.init.normal_(prior.effects.mean, generator=torch.Generator().manual_seed(1))
        found.append(prior.posterior(*data))
    torch.testing.assert_close(found[0].mean, found[1].mean)
    torch.testing.assert_close(found[0].kl, found[1].kl)


def test_groups_too_large_for_their_matrices_are_refused_with_a_way_out():
    x = torch.rand(1, 30_000, 1, dtype=F64)
    prior = FactorizedGPPrior([LocalChannels(1, RBFKernel())])
    zero = torch.zeros(1, 30_000, 1, dtype=F64)
    expected = (
        r"x: expected groups whose covariance matrices take at most 4 GiB, got 1 of 30000 x 30000 members .*Try a sum"
    )
    with pytest.raises(DataError, match=expected):
        prior.posterior(x, zero, zero + 1)
    with pytest.raises(DataError, match=expected):
        prior.sample(x)


def test_an_unknown_inference_is_refused():
    with pytest.raises(ArgumentError, match=r"inference: expected one of 'auto', 'dense', .*, got 'kalman'"):
        LocalChannels(1, gpytorch.kernels.MaternKernel(), inference="kalman")
