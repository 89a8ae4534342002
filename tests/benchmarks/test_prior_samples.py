"""The judge of prior samples, on digits that do rotate."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.studies import prior_samples as judge
from benchmarks.systems import PRESETS, build
from fgp_gpytorch.datasets import rotated_mnist


@pytest.fixture(scope="module")
def data():
    return rotated_mnist((0, 1), views=1)


def test_recognised_is_the_fraction_at_each_angle() -> None:
    class First(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(images[:, 0, 0, 0].long(), 10)

    named = torch.tensor([[3, 3, 1], [3, 5, 1], [0, 3, 1], [3, 3, 1]])
    views = torch.zeros(4, 3, 1, 28, 28)
    views[:, :, 0, 0, 0] = named
    assert judge.recognised(First(), views, 3).tolist() == [0.75, 0.75, 0]
    assert judge.recognised(First(), views, torch.tensor([3, 5, 0, 1])).tolist() == [0.5, 0.5, 0.25]


def test_digits_that_rotate_are_consistent_and_others_are_not(data) -> None:
    views, degrees = data.truth(range(10)), np.rad2deg(data.angles.numpy())
    assert judge.angle_consistency(views, degrees, 0).max() < 1e-10
    assert judge.angle_consistency(views, degrees, 1).max() < 2e-3  # two interpolations
    still = views[:, :1].expand(-1, 16, -1, -1, -1)
    assert judge.angle_consistency(still, degrees, 0)[1:].min() > 0.01
    another = judge.angle_consistency(views, degrees, 0, views.roll(1, 0))
    assert another.min() > 0.01
    assert another[0] == pytest.approx((views[:, 0] - views.roll(1, 0)[:, 0]).square().mean().item(), rel=1e-5)


def test_means_leave_out_the_angle_compared_with_itself() -> None:
    columns = {"recognised": torch.tensor([1.0, 0.0, 0.5]), "from_upright_mse": torch.tensor([0.0, 1.0, 2.0])}
    assert judge.summarize(columns) == {"recognised": 0.5, "from_upright_mse": 1.5}


def test_judged_instances_are_not_those_trained_on(data) -> None:
    training, digit = judge.digit_views(data, training=True)
    unseen, unseen_digit = judge.digit_views(data, training=False)
    assert training.shape == (720, 16, 1, 28, 28)
    assert digit.bincount().tolist() == [360, 360]
    assert unseen_digit.bincount().tolist() == [40, 40]
    torch.testing.assert_close(unseen[:40, 0, 0], data.images[360:400] / 255.0)


def test_classifier_learns_noughts_and_ones_and_leaves_the_random_numbers_alone(data) -> None:
    images, digit = judge.digit_views(data, training=True)
    before = torch.get_rng_state()
    classifier = judge.train_classifier(images[::4].flatten(0, 1), digit[::4].repeat_interleave(16), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(p.numel() for p in classifier.parameters()) == 6138
    unseen, unseen_digit = judge.digit_views(data, training=False)
    assert judge.recognised(classifier, unseen, unseen_digit).min() > 0.9
    assert math.isclose(float(judge.recognised(classifier, unseen, unseen_digit).max()), 1, abs_tol=0.1)


def test_draws_of_prior_and_fitted_distributions_are_at_all_angles_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    model, threes = build(PRESETS["coregionalized"]).eval(), rotated_mnist(3)
    found, again = judge.draws(model, threes, 3, 5), judge.draws(model, threes, 3, 5)
    assert list(found) == ["prior", "gaussian", "mixture"]
    assert all(views.shape == (3, 16, 1, 28, 28) for views in found.values())
    assert all(torch.equal(views, again[name]) for name, views in found.items())
    assert not any(torch.equal(found["prior"], found[name]) for name in ("gaussian", "mixture"))
    assert len(model.group_distribution.centers) == 360
