"""Mutual information against sums over dictionaries of counts."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.metrics import discretize, mutual_information, mutual_information_gap


def counted(first, second):
    """I(a; b) by the definition, from two lists."""
    number = len(first)
    both, a, b = Counter(zip(first, second, strict=True)), Counter(first), Counter(second)
    return sum(n / number * math.log(n * number / (a[i] * b[j])) for (i, j), n in both.items())


def test_mutual_information_is_the_sum_over_counts():
    first, second = torch.randint(0, 5, (40, 3)), torch.randint(2, 9, (40,))
    expected = [counted(column.tolist(), second.tolist()) for column in first.unbind(-1)]
    torch.testing.assert_close(mutual_information(first, second), torch.tensor(expected, dtype=torch.float64))


def test_mutual_information_with_itself_is_the_entropy():
    value = torch.tensor([0, 0, 1, 3])
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert mutual_information(value.unsqueeze(-1), value).item() == pytest.approx(entropy)
    assert mutual_information(torch.full((4, 1), 2), value).item() == pytest.approx(0, abs=1e-15)


def test_independent_variables_have_about_the_excess_that_the_docstring_says():
    first, second = torch.randint(0, 20, (4000, 50)), torch.randint(0, 10, (4000,))
    assert mutual_information(first, second).mean().item() == pytest.approx(19 * 9 / 8000, rel=0.1)


def test_bins_are_those_of_a_histogram():
    values = torch.randn(200, 3, dtype=torch.float64)
    bins = discretize(values, 7)
    for column, found in zip(values.unbind(-1), bins.unbind(-1), strict=True):
        assert torch.bincount(found, minlength=7).tolist() == np.histogram(column.numpy(), 7)[0].tolist()
    assert discretize(torch.full((4, 1), 3.0)).tolist() == [[0]] * 4


def test_gap_is_the_difference_of_the_two_best_channels():
    factor = torch.randint(0, 4, (300,))
    noisy = torch.where(torch.rand(300) < 0.5, factor, torch.randint(0, 4, (300,)))
    latents = torch.stack([torch.randn(300), noisy.double(), factor.double()], dim=-1)
    bins = discretize(latents, 6)
    information = sorted(counted(column.tolist(), factor.tolist()) for column in bins.unbind(-1))
    entropy = counted(factor.tolist(), factor.tolist())
    expected = (information[-1] - information[-2]) / entropy
    assert mutual_information_gap(latents, factor, 6) == pytest.approx(expected)


def test_gap_is_one_for_a_channel_of_its_own_and_zero_for_two_that_share():
    factor = torch.arange(10).repeat(30)
    alone = torch.stack([factor.double(), torch.zeros(300)], dim=-1)
    shared = torch.stack([factor.double(), -factor.double()], dim=-1)
    assert mutual_information_gap(alone, factor) == pytest.approx(1)
    assert mutual_information_gap(shared, factor) == pytest.approx(0, abs=1e-12)


def test_mutual_information_says_what_is_wrong_with_its_arguments():
    factor = torch.arange(4)
    with pytest.raises(ShapeError, match=r"L of at least 2, got \(4, 1\)"):
        mutual_information_gap(torch.zeros(4, 1), factor)
    with pytest.raises(DataError, match="factor: expected values that vary"):
        mutual_information_gap(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="values"):
        discretize(torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ArgumentError, match="num_bins: expected an integer >= 2, got 1"):
        mutual_information_gap(torch.randn(4, 2), factor, 1)
    with pytest.raises(ShapeError, match=r"the same N of at least 1, got \(4, 2\) and \(3,\)"):
        mutual_information(torch.zeros(4, 2, dtype=torch.long), factor[:3])
    with pytest.raises(ShapeError, match=r"values: expected shape \(N, L\), got \(4,\)"):
        discretize(torch.zeros(4))
