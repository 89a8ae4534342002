"""Probes against least squares on stacked rows and against loops over centroids."""

import math

import numpy as np
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.metrics import centroid_accuracy, nearest_path_accuracy, ridge_r2


@pytest.fixture
def rows():
    """Features of very different scales, targets that follow them with noise, groups of unequal size."""
    features = torch.randn(60, 3) * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([0.0, 5.0, 2.0])
    targets = torch.stack([features[:, 0] + features[:, 1] / 50, 30 * features[:, 2]], dim=-1)
    group = torch.tensor([7, 2, 9, 4, 11]).repeat_interleave(torch.tensor([5, 20, 10, 13, 12]))
    return features, targets + 0.5 * torch.randn(60, 2), group


def test_ridge_is_least_squares_with_extra_rows_and_each_group_is_held_out_once(rows):
    features, targets, group = (part.double().numpy() for part in rows)
    residual, total = 0.0, 0.0
    for held_out in np.unique(group):  # as many folds as groups
        fitted = group != held_out
        mean, scale = features[fitted].mean(0), features[fitted].std(0)
        z, offset = (features - mean) / scale, targets[fitted].mean(0)
        stacked = np.vstack([z[fitted], math.sqrt(fitted.sum() * 0.3) * np.eye(3)])
        weight = np.linalg.lstsq(stacked, np.vstack([targets[fitted] - offset, np.zeros((3, 2))]), rcond=None)[0]
        residual += ((targets[~fitted] - offset - z[~fitted] @ weight) ** 2).sum()
        total += ((targets[~fitted] - offset) ** 2).sum()
    assert ridge_r2(*rows, num_folds=5, penalty=0.3) == pytest.approx(1 - residual / total, rel=1e-9)
    assert ridge_r2(*rows, num_folds=50, penalty=0.3) == pytest.approx(1 - residual / total, rel=1e-9)


def test_ridge_reads_what_is_linear_and_not_what_it_only_knows_of_its_own_groups(rows):
    features, _, group = rows
    assert ridge_r2(features, features[:, :1] + features[:, 2:] * 100, group, penalty=1e-9) > 0.999
    own = torch.nn.functional.one_hot(group)  # would explain any target that is constant within groups
    assert ridge_r2(own, torch.randn(12)[group].unsqueeze(-1), group) < 0.2


def test_constant_channels_say_nothing():
    group = torch.arange(20)
    features = torch.cat([torch.full((20, 1), 1e6), torch.full((20, 1), 0.1)], dim=-1)
    assert abs(ridge_r2(features, torch.randn(20, 1), group)) < 1e-6
    assert centroid_accuracy(features, group, features, group) == pytest.approx(1 / 20)


def test_classifier_is_the_nearest_centroid_in_the_metric_within_groups():
    mixing = torch.randn(4, 4, dtype=torch.float64)
    group = torch.arange(6).repeat(9) * 3 + 1
    centres = torch.randn(17, 4, dtype=torch.float64)
    features, tested = ((centres[group] + torch.randn(54, 4).double()) @ mixing for _ in range(2))
    scale, mean = features.numpy().std(0), features.numpy().mean(0)
    z, new = ((part.numpy() - mean) / scale for part in (features, tested))
    centroids = {g: z[group.numpy() == g].mean(0) for g in group.unique().tolist()}
    scatter = 0.05 * np.eye(4)
    for row, g in zip(z, group.tolist(), strict=True):
        scatter += np.outer(row - centroids[g], row - centroids[g]) / 54
    inverse, hits = np.linalg.inv(scatter), 0
    for row, g in zip(new, group.tolist(), strict=True):
        distance = {other: (row - c) @ inverse @ (row - c) for other, c in centroids.items()}
        hits += min(distance, key=distance.__getitem__) == g
    assert 0.2 < hits / 54 < 1
    assert centroid_accuracy(features, group, tested, group, shrinkage=0.05) == pytest.approx(hits / 54)


def test_classifier_is_not_drowned_by_a_channel_that_varies_within_every_group():
    group = torch.arange(50).repeat(10)
    number = torch.linspace(-1, 1, 50)[group]
    features, tested = (torch.stack([number, 100 * torch.randn(500)], dim=-1) for _ in range(2))
    assert centroid_accuracy(features, group, tested, group) > 0.8
    assert centroid_accuracy(features[:, 1:], group, tested[:, 1:], group) < 0.1


def test_nearest_path_is_sought_at_the_place_of_the_row_in_units_of_the_groups_spread():
    scale = torch.tensor([1.0, 300.0, 0.01])
    paths = torch.randn(7, 5, 3) * scale
    at, group = torch.randint(5, (80,)), torch.randint(7, (80,))
    features = paths[group, at] + 0.7 * scale * torch.randn(80, 3)
    spread = np.stack([paths.double().numpy()[:, u].var(0) for u in range(5)]).mean(0)
    hits = 0
    for row, u, g in zip(features.double().numpy(), at.tolist(), group.tolist(), strict=True):
        distance = (((row - paths.double().numpy()[:, u]) ** 2) / spread).sum(-1)
        hits += int(distance.argmin()) == g
    assert 0.3 < hits / 80 < 0.9
    assert nearest_path_accuracy(paths, features, at, group) == pytest.approx(hits / 80)


def test_paths_that_are_all_the_same_name_nobody():
    paths = torch.randn(1, 5, 3).expand(40, -1, -1)
    at, group = torch.randint(5, (60,)), torch.zeros(60, dtype=torch.long)
    assert nearest_path_accuracy(paths, torch.randn(60, 3), at, group) == 0


def test_probes_say_what_is_wrong_with_their_arguments(rows):
    features, targets, group = rows
    with pytest.raises(GroupError, match="at least two groups, one to fit and one to test on, got 1"):
        ridge_r2(features, targets, torch.zeros(60))
    with pytest.raises(ArgumentError, match="num_folds: expected an integer >= 2, got 1"):
        ridge_r2(features, targets, group, num_folds=1)
    with pytest.raises(DataError, match="targets: expected values that vary"):
        ridge_r2(features, torch.ones(60, 1), group)
    with pytest.raises(ShapeError, match=r"targets: expected \(N, columns\) .* 60 entries of group, got \(60,\)"):
        ridge_r2(features, targets[:, 0], group)
    at = torch.zeros(60, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"paths: expected \(groups, places, 3\) .* got \(4, 2\) and \(60,\)"):
        nearest_path_accuracy(torch.zeros(4, 2), features, at, group)
    with pytest.raises(GroupError, match="group: expected positions from 0 to 3 in paths, got 2 to 11"):
        nearest_path_accuracy(torch.zeros(4, 2, 3), features, at, group)
    with pytest.raises(GroupError, match="at: expected positions from 0 to 1 in paths, got 2 to 2"):
        nearest_path_accuracy(torch.zeros(12, 2, 3), features, at + 2, group)
    with pytest.raises(GroupError, match="paths: expected two groups or more, got one"):
        nearest_path_accuracy(torch.zeros(1, 2, 3), features, at, group)
    with pytest.raises(GroupError, match="test_group: expected groups that were fitted on, got group 5"):
        centroid_accuracy(features, group, features[:1], torch.tensor([5]))
