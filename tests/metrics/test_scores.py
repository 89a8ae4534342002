"""Scores from draws against double loops, NumPy's quantiles and closed forms."""

import math

import numpy as np
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.metrics import central_interval, crps_of_samples, log_mean_exp


def test_log_mean_exp_is_the_log_of_the_mean_density():
    log_prob = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(log_prob), log_prob.exp().mean(0).log())
    torch.testing.assert_close(log_mean_exp(log_prob - 1000), log_prob.exp().mean(0).log() - 1000)


def test_crps_is_the_double_loop_over_draws():
    samples, y = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    expected = torch.zeros_like(y)
    for s in range(6):
        expected += (samples[s] - y).abs() / 6
        for t in range(6):
            expected -= (samples[s] - samples[t]).abs() / (2 * 6 * 5)
    torch.testing.assert_close(crps_of_samples(samples, y), expected)


def test_crps_of_two_draws_is_that_of_the_gaussian_on_average():
    samples = 0.5 + 1.3 * torch.randn(2, 400_000, dtype=torch.float64)
    omega = torch.tensor((0.9 - 0.5) / 1.3, dtype=torch.float64)  # Gneiting and Raftery 2007, eq. 5
    density = torch.exp(-(omega**2) / 2) / math.sqrt(2 * math.pi)
    expected = 1.3 * (omega * torch.erf(omega / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    scores = crps_of_samples(samples, torch.full((400_000,), 0.9, dtype=torch.float64))
    # the biased form would be too high by E|X - X'| / 4 = 0.37
    assert abs(scores.mean() - expected) < 5 * scores.std() / math.sqrt(400_000)


@pytest.mark.parametrize("number", [19, 20, 57, 199])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_interval_has_the_quantiles_of_the_sixth_definition(number, level):
    samples = torch.randn(number, 4, dtype=torch.float64)
    expected = np.quantile(samples.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    for end, value in zip(central_interval(samples, level), expected, strict=True):
        np.testing.assert_allclose(end.numpy(), value, rtol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_of_nineteen_draws_holds_another_one_as_often_as_it_says(level):
    draws = torch.randn(20, 200_000).exp()
    low, high = central_interval(draws[1:], level)
    inside = ((low <= draws[0]) & (draws[0] <= high)).double().mean()
    assert abs(inside - level) < 5 * math.sqrt(level * (1 - level) / 200_000)


def test_scores_say_what_is_wrong_with_their_arguments():
    y = torch.zeros(3)
    with pytest.raises(ShapeError, match=r"samples: expected .* = \(S, 3\), got \(4, 2\)"):
        crps_of_samples(torch.zeros(4, 2), y)
    with pytest.raises(DataError, match="at least 2 draws, got 1"):
        crps_of_samples(torch.zeros(1, 3), y)
    with pytest.raises(DataError, match="at least 19 draws for an interval of 90%, got 18"):
        central_interval(torch.zeros(18, 3), 0.9)
    with pytest.raises(ArgumentError, match=r"got 1\.5\. It is a probability"):
        central_interval(torch.zeros(19, 3), 1.5)
