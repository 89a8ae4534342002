"""Calibration against a model whose predictive distribution is Gaussian in closed form, and against loops."""

import math
from dataclasses import replace

import pytest
import torch
from metric_cases import make_held_out, make_linear_model
from torch.distributions import MultivariateNormal, Normal

from fgp_gpytorch import BernoulliLikelihood
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.metrics import held_out_calibration


def predictive(model, held_out):
    """N(W m + b, W diag(v) W' + noise I) of each new member."""
    latent = model.infer(held_out.context).predict(held_out.x_new)
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    mean = latent.mean.detach() @ weight.mT + bias
    covariance = torch.einsum("il,gql,jl->gqij", weight, latent.variance.detach(), weight)
    return MultivariateNormal(mean, covariance + model.likelihood.variance.double() * torch.eye(3))


def test_likelihood_and_crps_are_those_of_the_gaussian_in_closed_form():
    model, held_out = make_linear_model(), make_held_out()
    held_out = replace(held_out, y_new=1.5 * predictive(model, held_out).sample())
    exact = predictive(model, held_out)
    found = held_out_calibration(model, held_out, num_samples=20_000, batch_size=2)
    # 20,000 draws whose weights have a coefficient of variation below 5, summed over 3 elements
    expected = -exact.log_prob(held_out.y_new).mean() / 3
    assert found.negative_log_likelihood == pytest.approx(expected.item(), abs=0.01)
    deviation = exact.variance.sqrt()
    omega = (held_out.y_new - exact.mean) / deviation
    standard = Normal(torch.zeros_like(omega), 1.0)
    density = standard.log_prob(omega).exp()
    crps = deviation * (omega * (2 * standard.cdf(omega) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    assert found.crps == pytest.approx(crps.mean().item(), abs=0.005)


def test_coverage_counts_the_elements_inside_the_gaussian_intervals():
    model, held_out = make_linear_model(), make_held_out()
    exact = predictive(model, held_out)
    # 1, 2 or 3 deviations from the mean: far from the ends of both intervals, 0.67 and 1.64 deviations
    steps = torch.arange(24).reshape(4, 2, 3) % 4
    held_out = replace(held_out, y_new=exact.mean + steps * exact.variance.sqrt() * torch.where(steps % 2 == 0, 1, -1))
    found = held_out_calibration(model, held_out, num_samples=1999, batch_size=3)
    assert found.coverage_50 == pytest.approx(6 / 24)
    assert found.coverage_90 == pytest.approx(12 / 24)


def test_coverage_of_a_model_that_is_right_is_nominal_however_few_the_draws():
    model, held_out = make_linear_model(), make_held_out((3, 2) * 1000, members=1)
    held_out = replace(held_out, y_new=predictive(model, held_out).sample())
    found = held_out_calibration(model, held_out, num_samples=19, batch_size=500)
    # 2000 members, whose three elements may be dependent
    assert found.coverage_50 == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 2000))
    assert found.coverage_90 == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 2000))


def test_likelihood_is_of_whole_members_under_joint_draws():
    model, held_out = make_linear_model(likelihood=BernoulliLikelihood()), make_held_out()
    held_out = replace(held_out, y_new=(held_out.y_new > 0).double())
    found = held_out_calibration(model, held_out, num_samples=19, seed=8)
    torch.manual_seed(8)
    z = model.infer(held_out.context).predict(held_out.x_new).rsample((19,)).detach()
    total = 0.0
    for g in range(4):
        for q in range(2):
            density = 0.0
            for s in range(19):
                probability = torch.sigmoid(model.decoder(z[s, g, q]))
                y = held_out.y_new[g, q]
                density += (probability**y * (1 - probability) ** (1 - y)).prod().item() / 19
            total -= math.log(density)
    assert found.negative_log_likelihood == pytest.approx(total / 24, rel=1e-6)


def test_calibration_repeats_itself_and_touches_neither_mode_nor_random_numbers():
    model, held_out = make_linear_model().train(), make_held_out()
    before = torch.get_rng_state()
    first = held_out_calibration(model, held_out, num_samples=19)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert held_out_calibration(model, held_out, num_samples=19) == first
    assert held_out_calibration(model, held_out, num_samples=19, seed=1) != first


def test_calibration_says_what_is_wrong_with_its_arguments():
    model, held_out = make_linear_model(), make_held_out()
    with pytest.raises(ArgumentError, match=r"num_samples: expected an integer >= 19, got 10\. An interval of 90 %"):
        held_out_calibration(model, held_out, num_samples=10)
    with pytest.raises(ShapeError, match=r"y_new: expected shape \(4, 2, 3\), got \(4, 1, 3\)"):
        replace(held_out, y_new=held_out.y_new[:, :1])
