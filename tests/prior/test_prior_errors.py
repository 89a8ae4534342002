"""The letters that a caller in a hurry gets: expected, got, try."""

import re

import gpytorch
import pytest
import torch
from prior_cases import CASES, data_for

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels
from fgp_gpytorch.coupled import ProductPrior
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def case():
    return CASES["paper"]()  # 4 channels, 3 groups of 4 members, 1 feature


def _raises(error, words: str):
    assert issubclass(error, ValueError)
    return pytest.raises(error, match=re.escape(words))


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_ungrouped_rows_are_recognized(case, name):
    data = data_for(case)
    setattr(data, name, getattr(data, name).flatten(0, 1))
    words = f"{name}: expected shape (3, 4, 4), got (12, 4). The rows look ungrouped. Try GroupedDataset(y, x, group)"
    with _raises(ShapeError, words):
        case.prior.posterior(*data.observations)


def test_ungrouped_features_are_recognized(case):
    data = data_for(case)
    with _raises(ShapeError, "x: expected shape (..., G, Q, D), got (12, 1). The rows look ungrouped"):
        case.prior.posterior(data.x.flatten(0, 1), data.mean.flatten(0, 1), data.variance.flatten(0, 1))
    for call in (case.prior.sample, case.prior):
        with _raises(ShapeError, "x: expected shape (..., Q, D), got (12,). The rows look ungrouped"):
            call(data.x.flatten())


@pytest.mark.parametrize("name", ["mean", "variance"])
@pytest.mark.parametrize("channels", [3, 5])
def test_wrong_number_of_channels_names_the_prior_s(case, name, channels):
    data = data_for(case)
    setattr(data, name, torch.ones(3, 4, channels))
    words = f"{name}: expected shape (3, 4, 4), got (3, 4, {channels}). The prior has 4 channels. Try an encoder"
    with _raises(ShapeError, words):
        case.prior.posterior(*data.observations)


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 4, 4), (1, 3, 4, 4), (1, 4, 4), (4, 4), (3, 4)])
def test_nothing_is_broadcast(case, shape):
    data = data_for(case)
    with _raises(ShapeError, f"variance: expected shape (3, 4, 4), got {shape}"):
        case.prior.posterior(data.x, data.mean, torch.ones(shape))


@pytest.mark.parametrize("shape", [(3,), (4,), (3, 4, 4), (3, 1), (12,)])
def test_mask_has_one_boolean_for_each_member(case, shape):
    data = data_for(case)
    with _raises(ShapeError, f"mask: expected shape (3, 4), got {shape}. One boolean for each member."):
        case.prior.posterior(data.x, data.mean, data.variance, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8])
def test_mask_of_numbers_is_not_guessed_at(case, dtype):
    data = data_for(case)
    words = f"mask: expected torch.bool, got {dtype}. Try mask.bool(), where True = observed."
    with _raises(DataError, words):
        case.prior.posterior(data.x, data.mean, data.variance, data.mask.to(dtype))


@pytest.mark.parametrize("name", ["x", "mean", "variance"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_dtype_must_be_floating(case, name, dtype):
    data = data_for(case)
    setattr(data, name, torch.ones_like(getattr(data, name)).to(dtype))
    with _raises(DataError, f"{name}: expected a floating-point dtype, got {dtype}. Try {name}.double()"):
        case.prior.posterior(*data.observations)


@pytest.mark.parametrize("name", ["x", "mean", "variance"])
@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_observed_values_must_be_finite(case, name, junk):
    data = data_for(case)
    getattr(data, name)[1, 2, 0] = junk
    assert data.mask[1, 2]
    words = f"{name}: expected finite values, got 1 NaN or infinite entries, the first at index (1, 2, 0). Try to drop"
    with _raises(DataError, words):
        case.prior.posterior(*data.observations)
    with _raises(DataError, f"{name}: expected finite values"):
        case.prior.posterior(data.x, data.mean, data.variance)


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_variances_must_be_positive(case, value):
    data = data_for(case)
    data.variance[1, 0, 2] = value
    words = f"variance: expected positive pseudo-variances, got 1 entries <= 0, the smallest {value}. Try an encoder"
    with _raises(DataError, words):
        case.prior.posterior(*data.observations)
    with _raises(DataError, words):
        case.prior.posterior(data.x, data.mean, data.variance)


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 3, 1), (3, 3, 2), (3, 1), (1, 3, 3, 1)])
def test_new_features_belong_to_the_groups_of_the_posterior(case, shape):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    words = (
        f"x_new: expected shape (3, Q*, 1), got {shape}. It needs the groups of this posterior, in their order. "
        "Try prior.sample(x) for new groups."
    )
    for call in (posterior.predict, posterior.rsample_paths):
        with _raises(ShapeError, words):
            call(torch.zeros(shape))


def test_new_features_must_be_finite_and_floating(case):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    data.x_new[2, 1, 0] = NAN
    with _raises(
        DataError, "x_new: expected finite values, got 1 NaN or infinite entries, the first at index (2, 1, 0)"
    ):
        posterior.predict(data.x_new)
    with _raises(DataError, "x_new: expected a floating-point dtype, got torch.int64"):
        posterior.predict(torch.zeros(3, 2, 1, dtype=torch.int64))


def test_features_of_new_groups_must_be_finite_and_floating(case):
    x = torch.zeros(3, 4, 1)
    x[0, 3] = NAN
    for call in (case.prior.sample, case.prior):
        with _raises(
            DataError, "x: expected finite values, got 1 NaN or infinite entries, the first at index (0, 3, 0)"
        ):
            call(x)
        with _raises(DataError, "x: expected a floating-point dtype, got torch.int64"):
            call(torch.zeros(3, 4, 1, dtype=torch.int64))


def test_devices_must_agree(case):
    data = data_for(case)
    with _raises(DataError, "expected tensors on one device, got x on cpu, mean on meta"):
        case.prior.posterior(data.x, data.mean.to("meta"), data.variance, data.mask)


@pytest.mark.parametrize("blocks", [[], ()])
def test_prior_needs_a_block(blocks):
    words = "blocks: expected a sequence of LocalChannels and GlobalChannels, got none. Try FactorizedGPPrior(["
    with _raises(ArgumentError, words):
        FactorizedGPPrior(blocks)


def test_kernel_in_the_place_of_a_block_is_named():
    with _raises(ArgumentError, "blocks: expected a sequence of LocalChannels and GlobalChannels, got ['RBFKernel']"):
        FactorizedGPPrior([gpytorch.kernels.RBFKernel(), GlobalChannels(2)])


def test_one_block_may_not_stand_twice():
    block = GlobalChannels(2)
    with _raises(
        ArgumentError, "blocks: expected different blocks, got one block twice. Try one block with more channels."
    ):
        FactorizedGPPrior([block, block])


def test_prior_dtype_must_be_floating():
    for dtype in (torch.int64, torch.float16, "float64"):
        with _raises(
            ArgumentError, f"dtype: expected one of torch.float64, torch.float32, got {dtype!r}. Try torch.float64."
        ):
            FactorizedGPPrior([GlobalChannels(1)], dtype=dtype)


@pytest.mark.parametrize("batch_shape", [(2,), (1,), (3, 1), (1, 3)])
def test_batch_shape_of_a_kernel_is_empty_or_the_channels(batch_shape):
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size(batch_shape))
    words = (
        "kernel RBFKernel: expected batch_shape [] (shared by the block) or [3] (one per channel), "
        f"got {list(batch_shape)}. "
        "Try batch_shape=torch.Size([3])."
    )
    with _raises(ShapeError, words):
        LocalChannels(3, kernel)


def test_batch_shape_of_a_mean_is_empty_or_the_channels():
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([2]))
    for build in (
        lambda: LocalChannels(3, gpytorch.kernels.RBFKernel(), mean=mean),
        lambda: GlobalChannels(3, mean=mean),
    ):
        with _raises(
            ShapeError, "mean ConstantMean: expected batch_shape [] (shared by the block) or [3] (one per channel)"
        ):
            build()


def test_local_block_needs_a_kernel():
    with _raises(ArgumentError, "kernel: expected a Kernel, got str. Try LocalChannels(8, "):
        LocalChannels(3, "rbf")


@pytest.mark.parametrize("number", [0, -1, 2.0, "4", None])
def test_number_of_channels_is_a_positive_integer(number):
    words = f"num_channels: expected an integer >= 1, got {number!r}. Try to leave an empty block out."
    with _raises(ArgumentError, words):
        GlobalChannels(number)
    with _raises(ArgumentError, words):
        LocalChannels(number, gpytorch.kernels.RBFKernel())


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_global_variance_must_be_positive(value):
    with _raises(DataError, f"variance: expected positive finite values, got {value}. Try variance=1.0."):
        GlobalChannels(2, variance=value)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (1,)])
def test_global_variance_is_one_number_or_one_per_channel(shape):
    with _raises(ShapeError, f"variance: expected a number or shape (2,), got {shape}. Try one variance"):
        GlobalChannels(2, variance=torch.ones(shape))


def test_mean_of_a_global_channel_must_be_constant():
    with _raises(ShapeError, "mean: expected a ConstantMean, got LinearMean: a global channel has one value per group"):
        GlobalChannels(2, mean=gpytorch.means.LinearMean(1))


class FirstGroups(gpytorch.kernels.Kernel):
    """A kernel that forgets the dimension of groups."""

    def forward(self, x1, x2, diag=False, **options):
        return (x1 @ x2.mT)[0]


def test_a_kernel_that_drops_the_groups_is_not_broadcast():
    prior = FactorizedGPPrior([LocalChannels(2, FirstGroups())])
    x, mean = torch.rand(3, 4, 1), torch.randn(3, 4, 2)
    with pytest.raises(ShapeError, match=r"kernel FirstGroups: expected a matrix for each group, \(3, 'J or 1'\), got"):
        prior.posterior(x, mean, torch.ones_like(mean))


class Wave(gpytorch.kernels.Kernel):
    """No covariance: its Fourier transform is negative somewhere."""

    def forward(self, x1, x2, diag=False, **options):
        distance = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs().sum(-1)
        return torch.cos(9 * distance) - 0.9 * torch.cos(3 * distance)


def test_a_kernel_that_is_no_covariance_is_named_and_not_cut_to_one():
    prior = FactorizedGPPrior([LocalChannels(2, Wave())])
    x, value = torch.linspace(0, 1, 5).reshape(1, 5, 1).expand(3, -1, -1), torch.zeros(3, 5, 2)
    message = "kernel: expected a positive semi-definite covariance, got one with eigenvalues from -"
    with pytest.raises(DataError, match=message):
        _ = prior.posterior(x, value, torch.full_like(value, 0.01)).kl
    with pytest.raises(DataError, match=message):
        prior.sample(x)


class Column(gpytorch.means.Mean):
    """A mean with one dimension too many."""

    def forward(self, x):
        return x.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (gpytorch.means.LinearMean(3), r"mean LinearMean: expected to take x with D = 1 features, got an error"),
        (Column(), r"mean Column: expected one value for each of 4 members, got \(3, 1, 4, 1\)"),
    ],
)
def test_a_mean_that_does_not_fit_is_named(mean, message):
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel(), mean)])
    x, value = torch.rand(3, 4, 1), torch.randn(3, 4, 2)
    with pytest.raises(ShapeError, match=message):
        prior.posterior(x, value, torch.ones_like(value))


@pytest.mark.parametrize("blocks", [gpytorch.kernels.MaternKernel(), None, 3])
def test_what_are_no_blocks_is_refused_and_not_read_for_ever(blocks):
    got = type(blocks).__name__
    with pytest.raises(
        ArgumentError, match=rf"blocks: expected a sequence of LocalChannels and GlobalChannels, got \['{got}"
    ):
        FactorizedGPPrior(blocks)


def test_a_mean_that_is_none_and_a_view_with_a_batch_shape_are_refused():
    with pytest.raises(ArgumentError, match="mean: expected a Module, got float"):
        LocalChannels(3, gpytorch.kernels.RBFKernel(), 3.0)
    view = PeriodicFeatures(gpytorch.kernels.PeriodicKernel(batch_shape=torch.Size([2])), 1.0)
    with pytest.raises(ShapeError, match=r"features: expected a kernel without batch shape, got \[2\]"):
        ProductPrior(2, view)
