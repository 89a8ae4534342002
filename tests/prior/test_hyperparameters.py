"""Kernel hyperparameters: who gets a gradient, what constraints and hyperpriors do."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from prior_cases import CASES, answers, data_for, scale, with_lengthscale

import oracles
from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels


def _loss(case, data) -> torch.Tensor:
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    return got["kl"].sum() + got["mean"].square().sum() + got["new variance"].sum()


@pytest.mark.parametrize("name", sorted(CASES))
def test_gradients_reach_every_parameter_that_asks_and_no_other(name):
    case = CASES[name]()
    data = data_for(case)
    _loss(case, data).backward()
    for key, parameter in case.prior.named_parameters():
        if "raw_variance" in key and "kernel" not in key:
            assert not parameter.requires_grad, key
            assert parameter.grad is None, key  # global variances are fixed unless asked for
        else:
            assert parameter.requires_grad, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().min() > 0, key


def test_global_variance_gets_a_gradient_when_it_asks():
    case = CASES["per_channel"]()
    block = case.prior.blocks[1]
    block.raw_variance.requires_grad_()
    _loss(case, data_for(case)).backward()
    assert block.raw_variance.grad.shape == (2,)
    assert block.raw_variance.grad.abs().min() > 0


def test_fixed_lengthscale_gets_no_gradient():
    case = CASES["paper"]()
    kernel = case.prior.blocks[0].kernel
    kernel.base_kernel.raw_lengthscale.requires_grad_(False)
    _loss(case, data_for(case)).backward()
    assert kernel.base_kernel.raw_lengthscale.grad is None
    assert kernel.raw_outputscale.grad is not None


def test_wholly_fixed_prior_still_gives_the_encoder_its_gradient():
    case = CASES["paper"]()
    case.prior.requires_grad_(False)
    data = data_for(case)
    data.mean.requires_grad_()
    data.variance.requires_grad_()
    _loss(case, data).backward()
    observed = data.mask.unsqueeze(-1).expand_as(data.mean)
    assert (data.mean.grad[observed] != 0).all()
    assert (data.variance.grad[observed] != 0).all()


def test_hyperparameter_gradient_equals_central_differences_of_the_dense_oracle():
    case = CASES["paper"]()
    data = data_for(case)
    kernel = case.prior.blocks[0].kernel
    global_block = case.prior.blocks[1]
    global_block.raw_variance.requires_grad_()
    posterior = case.prior.posterior(*data.observations)
    leaves = [kernel.base_kernel.raw_lengthscale, kernel.raw_outputscale, global_block.raw_variance]
    values = [kernel.base_kernel.lengthscale, kernel.outputscale, global_block.variance]

    def dense(lengthscale, amplitude, variance):
        local = oracles.periodic(lengthscale, 2 * np.pi, amplitude)
        model = oracles.DenseGaussian([local] * 2 + [oracles.constant(variance)] * 2)
        answer = model.condition(*data.observations)
        return answer.kl, answer.log_evidence

    point = [1.44, 1.7, 2.5]
    for which, name in enumerate(("kl", "log_evidence")):
        ours = torch.autograd.grad(getattr(posterior, name).sum(), leaves, retain_graph=True)
        for i in range(3):
            ahead, behind = list(point), list(point)
            ahead[i] += 1e-5
            behind[i] -= 1e-5
            numeric = (dense(*ahead)[which] - dense(*behind)[which]) / 2e-5
            softplus_slope = float(-torch.expm1(-values[i].detach()))
            # central differences: step^2 = 1e-10 and rounding 1e-12 / 1e-5
            assert float(ours[i].sum()) / softplus_slope == pytest.approx(numeric, rel=1e-5), (name, i)


def test_constraints_of_the_kernel_and_of_the_global_variance_hold():
    base = gpytorch.kernels.RBFKernel(lengthscale_constraint=gpytorch.constraints.Interval(0.5, 2.0))
    variance = GlobalChannels(1, variance=1.0, variance_constraint=gpytorch.constraints.Interval(0.5, 3.0))
    prior = FactorizedGPPrior([LocalChannels(1, base), variance])
    for raw in (-50.0, 0.0, 50.0):
        base.raw_lengthscale.data.fill_(raw)
        variance.raw_variance.data.fill_(raw)
        assert 0.5 <= base.lengthscale.item() <= 2.0
        assert 0.5 <= variance.variance.item() <= 3.0
        x = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
        assert 0.5 <= prior(x).variance[0, 0, 1].item() <= 3.0


def test_variance_is_what_was_asked_for_to_every_digit():
    assert FactorizedGPPrior([GlobalChannels(3)]).blocks[0].variance.item() == pytest.approx(1.0, rel=1e-14)
    block = FactorizedGPPrior([GlobalChannels(2, variance=torch.tensor([0.1, 7.0], dtype=torch.float64))]).blocks[0]
    assert block.variance.tolist() == pytest.approx([0.1, 7.0], rel=1e-14)
    block.variance = 2.5
    assert block.variance.tolist() == pytest.approx([2.5, 2.5], rel=1e-14)


def test_no_cache_survives_a_parameter_change():
    case = CASES["paper"]()
    data = data_for(case)
    before = answers(case.prior.posterior(*data.observations), data.x_new)
    case.prior.blocks[0].kernel.outputscale = 3.1
    case.prior.blocks[1].variance = 0.7
    after = answers(case.prior.posterior(*data.observations), data.x_new)
    for name, value in before.items():
        assert not torch.allclose(value, after[name]), name
    local = oracles.periodic(1.44, 2 * np.pi, 3.1)
    dense = oracles.DenseGaussian([local] * 2 + [oracles.constant(0.7)] * 2).condition(*data.observations)
    assert after["kl"].sum().item() == pytest.approx(dense.kl, rel=1e-8)


def test_log_hyperprior_is_the_sum_of_the_prior_log_densities():
    """Densities written out: Gamma(a, b), LogNormal(m, s), Normal(m, s)."""
    base = gpytorch.kernels.RBFKernel(lengthscale_prior=GammaPrior(3.0, 2.0), batch_shape=torch.Size([2]))
    base = with_lengthscale(base, torch.tensor([0.7, 1.9], dtype=torch.float64).reshape(2, 1, 1))
    kernel = gpytorch.kernels.ScaleKernel(
        base, outputscale_prior=LogNormalPrior(0.2, 0.5), batch_shape=base.batch_shape
    )
    kernel = kernel.double()
    kernel.outputscale = torch.tensor([1.3, 0.6], dtype=torch.float64)
    prior = FactorizedGPPrior(
        [LocalChannels(2, kernel), GlobalChannels(1, variance=0.8, variance_prior=NormalPrior(1.0, 0.3))]
    )
    wanted = 0.0
    for r in (0.7, 1.9):
        wanted += 3.0 * math.log(2.0) - math.lgamma(3.0) + 2.0 * math.log(r) - 2.0 * r
    for amplitude in (1.3, 0.6):
        wanted += -math.log(amplitude) - _log_normalizer(0.5) - 0.5 * ((math.log(amplitude) - 0.2) / 0.5) ** 2
    wanted += -_log_normalizer(0.3) - 0.5 * ((0.8 - 1.0) / 0.3) ** 2
    got = prior.log_hyperprior()
    assert got.shape == ()
    assert got.item() == pytest.approx(wanted, rel=1e-6)  # GPyTorch keeps the priors' own numbers in float32
    prior.blocks[1].raw_variance.requires_grad_()
    prior.log_hyperprior().backward()
    assert base.raw_lengthscale.grad.abs().min() > 0
    assert prior.blocks[1].raw_variance.grad.abs().min() > 0


def _log_normalizer(sd: float) -> float:
    """log(sd sqrt(2 pi)), the normalizer of a normal density."""
    return 0.5 * math.log(2 * math.pi) + math.log(sd)


def test_log_hyperprior_without_hyperpriors_is_zero():
    assert CASES["paper"]().prior.log_hyperprior().item() == 0.0
    assert FactorizedGPPrior([GlobalChannels(1)]).log_hyperprior().item() == 0.0


def test_parameters_are_converted_to_the_dtype_of_the_prior():
    base = with_lengthscale(gpytorch.kernels.RBFKernel(), 0.8)
    prior = FactorizedGPPrior([LocalChannels(1, scale(base, 1.0)), GlobalChannels(1)], dtype=torch.float32)
    assert {p.dtype for p in prior.parameters()} == {torch.float32}
    assert {p.dtype for p in FactorizedGPPrior(list(prior.blocks)).parameters()} == {torch.float64}
