"""Distances to the nearest known group, beside a loop over pairs."""

import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.metrics import nearest_group_mse


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_distances_are_the_smallest_of_a_loop_over_pairs(batch_size):
    groups, known = torch.randn(7, 3, 2, 4), torch.randn(5, 3, 2, 4)
    found = nearest_group_mse(groups, known, batch_size)
    expected = [min((a - b).double().square().mean() for b in known) for a in groups]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=0)


def test_a_known_group_is_at_distance_zero_and_a_near_one_loses_no_digits():
    known = 1000 + torch.randn(4, 3, 2, dtype=torch.float64)
    near = known[[2, 0]] + torch.tensor([0.0, 1e-3], dtype=torch.float64).reshape(2, 1, 1)
    found = nearest_group_mse(near, known)
    assert found[0] == 0
    assert float(found[1]) == pytest.approx(1e-6, rel=1e-6)


def test_wrong_arguments_are_refused():
    groups = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match=r"known: expected shape \(G, 3, 4\), got \(2, 3, 5\)"):
        nearest_group_mse(groups, torch.zeros(2, 3, 5))
    with pytest.raises(DataError, match="known: expected at least one group, got none"):
        nearest_group_mse(groups, groups[:0])
    with pytest.raises(DataError, match="groups: expected finite values"):
        nearest_group_mse(groups / 0, groups)
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
        nearest_group_mse(groups, groups, 0)
    assert nearest_group_mse(groups[:0], groups).shape == (0,)
