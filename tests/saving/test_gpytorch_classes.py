"""Every kernel, mean, prior and constraint that GPyTorch ships is described and built again, or refused in words."""

import warnings

import gpytorch
import pytest
import torch
from gpytorch import constraints, kernels, means, priors

from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.saving import describe, rebuild

J = torch.Size([2])
RBF = kernels.RBFKernel
GRID = [torch.linspace(0, 1, 5), torch.linspace(-1, 1, 5)]

# ways to make each class, for x with three features
KERNELS = {
    "ArcKernel": [
        lambda: kernels.ArcKernel(kernels.MaternKernel(nu=2.5), ard_num_dims=3),
        lambda: kernels.ArcKernel(
            RBF(), angle_prior=priors.GammaPrior(0.5, 1.0), radius_prior=priors.GammaPrior(3.0, 2.0), ard_num_dims=3
        ),
    ],
    "AdditiveKernel": [lambda: RBF(active_dims=[0]) + kernels.PeriodicKernel(active_dims=[1, 2])],
    "AdditiveStructureKernel": [lambda: kernels.AdditiveStructureKernel(RBF(), 3)],
    "ConstantKernel": [
        kernels.ConstantKernel,
        lambda: kernels.ConstantKernel(
            J, constant_prior=priors.GammaPrior(1.0, 2.0), constant_constraint=constraints.Interval(0.1, 3.0)
        ),
    ],
    "CylindricalKernel": [
        lambda: kernels.CylindricalKernel(3, kernels.MaternKernel(nu=1.5)),
        lambda: kernels.CylindricalKernel(
            2, RBF(), eps=1e-3, alpha_prior=priors.GammaPrior(1.0, 1.0), beta_constraint=constraints.LessThan(4.0)
        ),
    ],
    "CosineKernel": [lambda: kernels.CosineKernel(period_length_prior=priors.GammaPrior(1.0, 2.0))],
    "GaussianSymmetrizedKLKernel": [kernels.GaussianSymmetrizedKLKernel],
    "GridKernel": [lambda: kernels.GridKernel(RBF(), GRID)],
    "GridInterpolationKernel": [
        lambda: kernels.GridInterpolationKernel(RBF(), grid_size=8, num_dims=3),
        lambda: kernels.GridInterpolationKernel(
            RBF(), [8, 9], grid_bounds=((0.0, 1.0), (-1.0, 1.0)), active_dims=[0, 2]
        ),
    ],
    "HammingIMQKernel": [
        lambda: kernels.HammingIMQKernel(3),
        lambda: kernels.HammingIMQKernel(3, alpha_prior=priors.GammaPrior(1.0, 2.0)),
    ],
    "IndexKernel": [
        lambda: kernels.IndexKernel(4),
        lambda: kernels.IndexKernel(
            4,
            rank=2,
            prior=priors.LKJCovariancePrior(4, 1.5, priors.SmoothedBoxPrior(0.1, 2.0)),
            var_constraint=constraints.GreaterThan(0.01),
            batch_shape=J,
        ),
    ],
    "LCMKernel": [lambda: kernels.LCMKernel([RBF(), kernels.MaternKernel(nu=0.5)], 2, rank=[1, 2])],
    "LinearKernel": [
        kernels.LinearKernel,
        lambda: kernels.LinearKernel(ard_num_dims=3, variance_prior=priors.GammaPrior(1.0, 2.0), batch_shape=J),
    ],
    "MaternKernel": [lambda: kernels.MaternKernel(nu=1.5, ard_num_dims=2, active_dims=[0, 2], batch_shape=J)],
    "Matern52KernelGrad": [kernels.Matern52KernelGrad],
    "MultitaskKernel": [lambda: kernels.MultitaskKernel(RBF(), 3, rank=2)],
    "NewtonGirardAdditiveKernel": [lambda: kernels.NewtonGirardAdditiveKernel(RBF(), 3, max_degree=2)],
    "PeriodicKernel": [
        lambda: kernels.PeriodicKernel(ard_num_dims=3, batch_shape=J),
        lambda: kernels.PeriodicKernel(period_length_prior=priors.UniformPrior(0.5, 4.0)),
    ],
    "PiecewisePolynomialKernel": [lambda: kernels.PiecewisePolynomialKernel(q=0), kernels.PiecewisePolynomialKernel],
    "PolynomialKernel": [lambda: kernels.PolynomialKernel(2, offset_prior=priors.GammaPrior(1.0, 2.0))],
    "PolynomialKernelGrad": [lambda: kernels.PolynomialKernelGrad(2)],
    "ProductKernel": [lambda: RBF(active_dims=[0]) * kernels.PeriodicKernel(active_dims=[1])],
    "ProductStructureKernel": [lambda: kernels.ProductStructureKernel(RBF(), 3)],
    "RBFKernel": [
        lambda: RBF(lengthscale_prior=priors.MultivariateNormalPrior(torch.ones(3), torch.eye(3)), ard_num_dims=3)
    ],
    "RFFKernel": [lambda: kernels.RFFKernel(5, num_dims=3), lambda: kernels.RFFKernel(5)],
    "RBFKernelGrad": [kernels.RBFKernelGrad],
    "RBFKernelGradGrad": [kernels.RBFKernelGradGrad],
    "RQKernel": [lambda: kernels.RQKernel(alpha_constraint=constraints.Interval(0.1, 5.0))],
    "ScaleKernel": [
        lambda: kernels.ScaleKernel(RBF(batch_shape=J), batch_shape=J, outputscale_prior=priors.HalfCauchyPrior(1.0)),
    ],
    "SpectralDeltaKernel": [lambda: kernels.SpectralDeltaKernel(3, num_deltas=7)],
    "SpectralMixtureKernel": [lambda: kernels.SpectralMixtureKernel(num_mixtures=4, ard_num_dims=3)],
    "expand_batch": [
        lambda: RBF(ard_num_dims=3).expand_batch(J),
        lambda: kernels.ScaleKernel(kernels.PeriodicKernel()).expand_batch(J),
    ],
    "one of a batch": [
        lambda: kernels.MaternKernel(nu=0.5, batch_shape=J)[0],
        lambda: kernels.ScaleKernel(RBF(batch_shape=J), batch_shape=J)[1],
        lambda: (RBF(batch_shape=J) + kernels.PeriodicKernel(batch_shape=J))[0],
    ],
}
REFUSED = {
    "DistributionalInputKernel": lambda: kernels.DistributionalInputKernel(lambda x1, x2: (x1 - x2).abs()),
    "InducingPointKernel": lambda: kernels.InducingPointKernel(
        RBF(), torch.rand(4, 3), gpytorch.likelihoods.GaussianLikelihood()
    ),
    "MultiDeviceKernel": lambda: kernels.MultiDeviceKernel(RBF(), [torch.device("cpu")], create_cuda_context=False),
}
MEANS = {
    "ConstantMean": [
        lambda: means.ConstantMean(priors.NormalPrior(0.0, 2.0), constraints.Interval(-2.0, 2.0), batch_shape=J)
    ],
    "ConstantMeanGrad": [lambda: means.ConstantMeanGrad(priors.NormalPrior(0.0, 2.0))],
    "ConstantMeanGradGrad": [lambda: means.ConstantMeanGradGrad(priors.NormalPrior(0.0, 2.0), batch_shape=J)],
    "LinearMean": [lambda: means.LinearMean(3, batch_shape=J), lambda: means.LinearMean(3, bias=False)],
    "LinearMeanGrad": [lambda: means.LinearMeanGrad(3), lambda: means.LinearMeanGrad(3, bias=False)],
    "LinearMeanGradGrad": [lambda: means.LinearMeanGradGrad(3)],
    "MultitaskMean": [
        lambda: means.MultitaskMean([means.ConstantMean(), means.LinearMean(3)], 2),
        lambda: means.MultitaskMean(means.ConstantMean(), 2),
    ],
    "ZeroMean": [means.ZeroMean, lambda: means.ZeroMean(batch_shape=J)],
}
PRIORS = {
    "GammaPrior": lambda: priors.GammaPrior(2.0, 0.7),
    "HalfCauchyPrior": lambda: priors.HalfCauchyPrior(0.3),
    "HalfNormalPrior": lambda: priors.HalfNormalPrior(torch.tensor([0.3, 2.0])),
    "HorseshoePrior": lambda: priors.HorseshoePrior(0.2),
    "LKJPrior": lambda: priors.LKJPrior(3, 0.6),
    "LKJCholeskyFactorPrior": lambda: priors.LKJCholeskyFactorPrior(3, torch.tensor(0.6)),
    "LKJCovariancePrior": lambda: priors.LKJCovariancePrior(3, 0.6, priors.SmoothedBoxPrior(0.1, 2.0)),
    "LogNormalPrior": lambda: priors.LogNormalPrior(0.2, 0.7),
    "MultivariateNormalPrior": lambda: priors.MultivariateNormalPrior(
        torch.tensor([0.1, 1.0]), torch.tensor([[1.0, 0.4], [0.4, 0.9]])
    ),
    "NormalPrior": lambda: priors.NormalPrior(torch.tensor([0.1, 0.2]), 0.5),
    "SmoothedBoxPrior": lambda: priors.SmoothedBoxPrior(0.1, 2.0, sigma=0.2),
    "UniformPrior": lambda: priors.UniformPrior(0.1, 2.0),
}
CONSTRAINTS = {
    "GreaterThan": lambda: constraints.GreaterThan(0.1),
    "Interval": lambda: constraints.Interval(torch.tensor([0.1, 0.2]), 3.0, initial_value=1.0),
    "LessThan": lambda: constraints.LessThan(4.0),
    "Positive": constraints.Positive,
}
ABSTRACT = {"Kernel", "Mean", "Prior", "keops"}  # keops is a package of kernels that needs another library

ALL = [(name, make) for table in (KERNELS, MEANS) for name, makers in table.items() for make in makers]


@pytest.mark.parametrize("package", [kernels, means, priors, constraints])
def test_every_class_of_gpytorch_is_tried(package):
    assert set(package.__all__) - ABSTRACT <= {*KERNELS, *REFUSED, *MEANS, *PRIORS, *CONSTRAINTS}


def made(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of two kernels
        module = make()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.clone(memory_format=torch.contiguous_format)  # expand_batch repeats memory
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator).to(parameter))
    return module


def built_again(module):
    """A description and back, with the state. Nothing is printed or warned of, and no generator moves."""
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = rebuild(describe(module))
    assert torch.equal(before, torch.get_rng_state())
    again.load_state_dict(module.state_dict())
    assert type(again) is type(module)
    return again


def values(module):
    """The kernel's matrix or the mean, at inputs that the class takes."""
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    if isinstance(module, kernels.IndexKernel):
        x = torch.tensor([[0], [2], [3]])
    elif isinstance(module, kernels.HammingIMQKernel):
        x = torch.nn.functional.one_hot(torch.tensor([[0, 2], [1, 2]]), 3).flatten(1).float()
    elif type(module) is kernels.GridKernel:
        x = module.full_grid
    elif isinstance(module, kernels.GaussianSymmetrizedKLKernel):
        x = x[:, :2]
    elif isinstance(module, kernels.CylindricalKernel):
        x = 0.3 * x
    torch.manual_seed(5)  # a random feature kernel draws its weights at the first call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old arguments, and of sparse tensors
        result = module(x)
        return result if isinstance(result, torch.Tensor) else result.to_dense()


@pytest.mark.parametrize(("name", "make"), ALL, ids=[name for name, _ in ALL])
def test_kernels_and_means_come_back_with_their_values_and_hyperpriors(name, make):
    module = made(make)
    again = built_again(module)
    assert torch.equal(values(again), values(module))
    assert again.batch_shape == module.batch_shape if hasattr(module, "batch_shape") else True
    hyperpriors = [
        {n: prior.log_prob(closure(owner)).sum() for n, owner, prior, closure, _ in m.named_priors()}
        for m in (again, module)
    ]
    assert hyperpriors[0] == hyperpriors[1]
    assert {n: type(c) for n, c in again.named_constraints()} == {n: type(c) for n, c in module.named_constraints()}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_kernels_of_functions_likelihoods_and_devices_are_refused_with_a_way_out(make):
    with pytest.raises(CheckpointError, match=r"cannot describe a .*load\(path, prior=\.\.\.\)"):
        describe(make())


@pytest.mark.parametrize("name", PRIORS)
def test_priors_come_back_with_their_density(name):
    prior = PRIORS[name]()
    again = built_again(prior)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = prior.sample(torch.Size([3])) if name != "HorseshoePrior" else torch.tensor([0.1, 0.5, 2.0])
    if name == "LKJCovariancePrior":
        value = torch.eye(3)
    assert torch.equal(again.log_prob(value), prior.log_prob(value))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_come_back_with_their_bounds(name):
    constraint, raw = CONSTRAINTS[name](), torch.tensor([-1.0, 0.5])
    assert torch.equal(built_again(constraint).transform(raw), constraint.transform(raw))
