"""Error against the size of the context, with every choice of members written out."""

import itertools
from dataclasses import replace

import pytest
import torch
from metric_cases import make_held_out, make_linear_model

from fgp_gpytorch.errors import ArgumentError, GroupError
from fgp_gpytorch.metrics import held_out_mse, mse_by_context_size


def error_with(model, held_out, members):
    """MSE with these members as the only context of a single group."""
    row = torch.zeros(held_out.context.num_members, dtype=torch.bool)
    row[list(members)] = True
    part = replace(held_out, context=held_out.context.select(row))
    return held_out_mse(model, part)


def test_error_is_the_mean_over_all_choices_of_members():
    model, held_out = make_linear_model(), make_held_out((4,))
    found = mse_by_context_size(model, held_out, (1, 2), num_subsets=600)
    for size, error in found.items():
        choices = [error_with(model, held_out, members) for members in itertools.combinations(range(4), size)]
        deviation = torch.tensor(choices).std().item()
        assert error == pytest.approx(sum(choices) / len(choices), abs=5 * deviation / 600**0.5)


def test_all_members_give_the_ordinary_error():
    model, held_out = make_linear_model(), make_held_out((4, 4, 4))
    assert mse_by_context_size(model, held_out, (4,))[4] == pytest.approx(held_out_mse(model, held_out), rel=1e-12)


def test_context_size_repeats_itself_by_seed():
    model, held_out = make_linear_model().train(), make_held_out()
    first = mse_by_context_size(model, held_out, (1, 2), seed=4)
    assert list(first) == [1, 2]
    assert mse_by_context_size(model, held_out, (1, 2), seed=4) == first
    assert mse_by_context_size(model, held_out, (1, 2), seed=5) != first
    assert model.training


def test_context_size_says_what_is_wrong_with_its_arguments():
    model, held_out = make_linear_model(), make_held_out((3, 5, 2, 4))
    with pytest.raises(GroupError, match=r"expected 1 to 2, .* got 4; 2 of 4 groups have fewer than 4"):
        mse_by_context_size(model, held_out, (1, 2, 4))
    with pytest.raises(GroupError, match=r"expected 1 to 2, .* got 0"):
        mse_by_context_size(model, held_out, (0,))
    with pytest.raises(ArgumentError, match="sizes: expected at least one size, got none"):
        mse_by_context_size(model, held_out, ())
    with pytest.raises(ArgumentError, match="num_subsets: expected an integer >= 1, got 0"):
        mse_by_context_size(model, held_out, (1,), num_subsets=0)


def test_one_size_is_a_curve_of_one_point_and_a_data_set_no_held_out_members():
    model, held_out = make_linear_model(), make_held_out()
    assert mse_by_context_size(model, held_out, 2) == mse_by_context_size(model, held_out, (2,))
    with pytest.raises(ArgumentError, match="held_out: expected a HeldOut, got GroupedDataset"):
        mse_by_context_size(model, held_out.context, (1,))
