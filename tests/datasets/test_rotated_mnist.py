import os
import random
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.datasets._mnist_instances import NUM_INSTANCES, read_embedded
from fgp_gpytorch.datasets.rotated_mnist import rotate_images
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, MissingFileError

MNIST_ROOT = os.environ.get("FGP_MNIST_ROOT")
needs_mnist = pytest.mark.skipif(MNIST_ROOT is None, reason="FGP_MNIST_ROOT names no complete MNIST")


@pytest.fixture(scope="module")
def equal():
    return rotated_mnist()


@pytest.fixture(scope="module")
def shuffled():
    return rotated_mnist(views="shuffled")


@pytest.fixture(scope="module", params=["equal", "shuffled", "two digits"])
def any_split(request, equal, shuffled):
    return {"equal": equal, "shuffled": shuffled}.get(request.param) or rotated_mnist((8, 3), views=2)


def angle_index(x):
    return torch.round(x.reshape(-1) * 16 / (2 * torch.pi)).long()


def views_of(dataset):
    """The pairs (label, index of the angle) of all members."""
    flat = dataset.flat()
    pairs = zip(dataset.labels[flat.group.numpy()].tolist(), angle_index(flat.x).tolist(), strict=True)
    return set(pairs)


def targets_of(part):
    return set(zip(part.context.labels.tolist(), angle_index(part.x_new).tolist(), strict=True))


def test_the_instances_are_those_of_the_paper_in_their_order():
    (threes,) = read_embedded((3,))
    assert threes.num_in_class == 6131
    assert threes.positions.tolist() == random.Random(0).sample(list(range(6131)), 400)


def test_every_digit_follows_the_same_rule():
    for instances in read_embedded(tuple(range(10))):
        expected = random.Random(0).sample(list(range(instances.num_in_class)), NUM_INSTANCES)
        assert instances.positions.tolist() == expected
        assert instances.images.shape == (400, 28, 28)


def test_the_embedded_file_is_small_and_carries_its_licence():
    folder = resources.files("fgp_gpytorch.datasets._digits")
    assert len((folder / "digits.npz").read_bytes()) < 1_000_000
    assert "CC BY-SA 3.0" in (folder / "LICENSE.md").read_text()


@pytest.mark.parametrize("degrees", [0.0, 22.5, 157.5, 337.5])
def test_a_stack_is_rotated_as_each_image_alone(degrees):
    images = read_embedded((3,))[0].images[:7] / 255.0
    alone = np.stack([scipy.ndimage.rotate(image, degrees, reshape=False) for image in images])
    np.testing.assert_allclose(rotate_images(images, degrees), alone, rtol=0, atol=1e-12)


def test_ink_turns_counter_clockwise():
    image = np.arange(784.0).reshape(1, 28, 28)
    np.testing.assert_allclose(rotate_images(image, 90.0)[0], np.rot90(image[0]), atol=1e-9)


def test_every_member_is_its_instance_at_its_angle(any_split):
    data = any_split.train
    flat = data.flat()
    for row in range(0, data.num_members, 97):
        label = int(data.labels[int(flat.group[row])])
        instance = read_embedded((any_split.digits[label // 400],))[0].images[label % 400]
        degrees = 22.5 * int(angle_index(flat.x[row]))
        expected = scipy.ndimage.rotate(instance / 255.0, degrees, reshape=False)
        # float32 rounds values of up to 1.3 by less than 1.3 * 2^-24.
        np.testing.assert_allclose(flat.y[row, 0].numpy(), expected, rtol=0, atol=1e-7)


def test_every_target_is_its_instance_at_the_held_out_angle(any_split):
    for part in (any_split.test, any_split.extrapolation):
        truth = any_split.truth(part.context.labels)
        assert torch.equal(part.y_new[:, 0], truth[:, any_split.held_out])
        assert torch.equal(part.x_new, any_split.angles[7].expand_as(part.x_new))
        assert part.y_new.shape == (len(part.context), 1, 1, 28, 28)
        assert part.x_new.shape == (len(part.context), 1, 1)


def test_angles_are_sixteenths_of_a_turn_in_radians(any_split):
    expected = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    torch.testing.assert_close(any_split.angles, expected, rtol=1e-15, atol=0)
    assert np.rad2deg(float(any_split.angles[any_split.held_out])) == pytest.approx(157.5, rel=1e-15)
    assert set(any_split.train.flat().x[:, 0].tolist()) == set(any_split.angles.tolist()) - {float(any_split.angles[7])}


def test_values_run_outside_the_unit_interval(equal):
    y = equal.train.flat().y
    assert y.dtype == torch.float32
    assert float(y.min()) < -0.1
    assert float(y.max()) > 1.1


def test_the_equal_split_has_11_views_of_each_instance(equal):
    assert (len(equal.train), equal.train.num_members) == (360, 3960)
    assert set(equal.train.group_sizes.tolist()) == {11}
    assert equal.instance_of(equal.test.labels).tolist() == list(range(270))
    assert equal.instance_of(equal.extrapolation.labels).tolist() == list(range(360, 400))
    assert equal.extrapolation.context.num_members == 440
    assert set(equal.digit_of(equal.test.labels).tolist()) == {3}


def test_the_shuffled_split_has_4050_ragged_views(shuffled):
    assert (len(shuffled.train), shuffled.train.num_members) == (360, 4050)
    sizes = shuffled.test.context.group_sizes
    assert (int(sizes.min()), int(sizes.max()), len(sizes)) == (7, 15, 270)
    assert set(shuffled.extrapolation.context.group_sizes.tolist()) == {11}


def test_the_shuffled_split_continues_the_generator_of_the_instances(shuffled):
    generator = random.Random(0)
    generator.sample(list(range(6131)), 400)
    angles = [22.5 * k for k in range(16)]
    assert generator.sample(angles, 1) == [157.5]
    training = generator.sample(list(range(5400)), 4050)
    others = [k for k in range(16) if k != 7]
    assert views_of(shuffled.train) == {(image // 15, others[image % 15]) for image in training}
    assert shuffled.instance_of(shuffled.test.labels).tolist() == sorted(generator.sample(list(range(360)), 270))


def test_the_held_out_angle_and_the_unseen_instances_are_never_trained_on(any_split):
    training = views_of(any_split.train)
    context = views_of(any_split.test.context) | views_of(any_split.extrapolation.context)
    assert 7 not in {angle for _, angle in training | context}
    assert max(label % 400 for label, _ in training) == 359
    assert views_of(any_split.test.context) < training
    assert min(label % 400 for label, _ in views_of(any_split.extrapolation.context)) == 360


def test_the_seed_draws_views_and_nothing_else(equal, shuffled):
    other = rotated_mnist(seed=1)
    assert views_of(other.train) != views_of(equal.train)
    assert views_of(other.extrapolation.context) != views_of(equal.extrapolation.context)
    assert torch.equal(other.instance_of(other.test.labels), equal.instance_of(equal.test.labels))
    assert torch.equal(other.images, equal.images)
    assert torch.equal(other.test.y_new, equal.test.y_new)
    reshuffled = rotated_mnist(views="shuffled", seed=1)
    assert views_of(reshuffled.train) == views_of(shuffled.train)
    assert views_of(reshuffled.extrapolation.context) != views_of(shuffled.extrapolation.context)


def test_the_same_seed_gives_the_same_data(equal):
    again = rotated_mnist()
    assert torch.equal(again.train.flat().y, equal.train.flat().y)
    assert torch.equal(again.train.flat().x, equal.train.flat().x)


@pytest.mark.parametrize("views", [1, 15])
def test_the_number_of_views_is_kept_of_every_instance(views):
    data = rotated_mnist(views=views)
    for part in (data.train, data.test.context, data.extrapolation.context):
        assert set(part.group_sizes.tolist()) == {views}


def test_fewer_views_are_among_more():
    assert views_of(rotated_mnist(views=2).train) < views_of(rotated_mnist(views=4).train)


def test_several_digits_are_numbered_digit_by_digit():
    data = rotated_mnist((8, 3), views=2)
    three, eight = rotated_mnist(3, views=2), rotated_mnist(8, views=2)
    assert len(data.train) == 720
    assert data.train.labels.tolist() == [*range(360), *range(400, 760)]
    assert data.digit_of(data.train.labels).tolist() == [8] * 360 + [3] * 360
    assert data.instance_of(data.train.labels).tolist() == [*range(360), *range(360)]
    assert data.digit_of(data.test.labels).tolist() == [8] * 270 + [3] * 270
    assert data.instance_of(data.extrapolation.labels).tolist() == [*range(360, 400)] * 2
    expected = torch.cat([eight.train.flat().y, three.train.flat().y])
    assert torch.equal(data.train.flat().y, expected)


def test_every_digit_has_a_shuffled_split_of_all_its_instances():
    data = rotated_mnist(range(10), views="shuffled")
    assert len(data.train) == 3600
    assert data.train.num_members == 40500
    assert len(data.test.context) == 2700


def test_truth_shows_all_angles_of_any_instance(equal):
    truth = equal.truth([399, 3])
    assert truth.shape == (2, 16, 1, 28, 28)
    upright = equal.images[[399, 3]] / 255.0
    torch.testing.assert_close(truth[:, 0, 0], upright, rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [None, 2])
@pytest.mark.parametrize("split", ["equal", "shuffled"])
def test_validation_uses_training_data_only_and_its_parts_are_disjoint(request, split, angle):
    data = request.getfixturevalue(split)
    train, test, extrapolation = data.validation(held_out_angle_index=angle)
    kept, targets = views_of(train), targets_of(test) | targets_of(extrapolation)
    unseen = set(extrapolation.context.labels.tolist())
    assert kept | targets | views_of(extrapolation.context) <= views_of(data.train)
    assert not kept & targets
    assert not unseen & set(train.labels.tolist())
    assert not views_of(extrapolation.context) & targets
    assert views_of(test.context) <= kept
    assert len(train) == 320
    if angle is None:
        assert (len(test.context), len(extrapolation.context)) == (320, 40)
        assert kept | targets | views_of(extrapolation.context) == views_of(data.train)
    else:
        assert {a for _, a in targets} == {angle}
        assert angle not in {a for _, a in kept}
        assert 200 < len(test.context) < 320
    for part in (test, extrapolation):
        truth = data.truth(part.context.labels)
        rows = torch.arange(len(truth))
        assert torch.equal(part.y_new[:, 0], truth[rows, angle_index(part.x_new)])


def test_validation_holds_out_instances_of_every_digit_and_obeys_its_seed():
    data = rotated_mnist((8, 3), views=3)
    one = data.validation(num_instances=5)
    assert data.digit_of(one.extrapolation.labels).tolist() == [8] * 5 + [3] * 5
    assert views_of(data.validation(5).train) == views_of(one.train)
    assert views_of(data.validation(5, seed=1).train) != views_of(one.train)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"digits": ()}, "different digits from 0 to 9, got"),
        ({"digits": (3, 3)}, "different digits"),
        ({"digits": (10,)}, "different digits"),
        ({"digits": 3.5}, "different digits"),
        ({"views": 0}, "views: expected one of .*15, 'shuffled', got 0"),
        ({"views": 16}, "views: expected one of"),
        ({"views": True}, "views: expected one of"),
        ({"views": "equal"}, "got 'equal'. Try views=11"),
        ({"source": "keras"}, "got 'keras' with root=None"),
        ({"source": "torchvision"}, "source='torchvision' with root, got"),
        ({"root": "somewhere"}, "source='embedded' without root"),
    ],
)
def test_a_mistaken_argument_is_named(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        rotated_mnist(**arguments)


def test_mistakes_in_figures_and_validation_are_named(equal):
    with pytest.raises(GroupError, match="expected 0 to 399, got 400 to 400"):
        equal.truth([400])
    with pytest.raises(GroupError, match="expected integers"):
        equal.truth(3)
    with pytest.raises(ArgumentError, match="expected 1 to 359 of each digit, got 360"):
        equal.validation(num_instances=360)
    with pytest.raises(ArgumentError, match="without 7, which is never trained on, got 7"):
        equal.validation(held_out_angle_index=7)
    with pytest.raises(DataError, match=r"a view to spare, got none. Try rotated_mnist\(views=2\)"):
        rotated_mnist(views=1).validation()


def test_a_missing_mnist_is_named_with_what_to_try(tmp_path):
    with pytest.raises(MissingFileError, match=r"expected the complete MNIST in .*raw.*download=True"):
        rotated_mnist(source="torchvision", root=tmp_path)


@needs_mnist
def test_the_complete_mnist_gives_the_same_data():
    embedded = rotated_mnist((3, 5), views="shuffled")
    complete = rotated_mnist((3, 5), views="shuffled", source="torchvision", root=MNIST_ROOT)
    assert torch.equal(complete.images, embedded.images)
    assert torch.equal(complete.train.flat().y, embedded.train.flat().y)
    assert views_of(complete.train) == views_of(embedded.train)


@needs_mnist
def test_the_script_makes_the_embedded_file_byte_for_byte(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "make_digits.py"
    made = tmp_path / "digits.npz"
    arguments = [sys.executable, str(script), "--root", str(MNIST_ROOT), "--output", str(made)]
    subprocess.run(arguments, check=True, capture_output=True)
    assert made.read_bytes() == (resources.files("fgp_gpytorch.datasets._digits") / "digits.npz").read_bytes()
