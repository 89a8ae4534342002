"""Draws of the views of the 400 instances of one digit that are kept, and of the instances that are tested."""

import random
from typing import NamedTuple

import numpy as np

from fgp_gpytorch.datasets._mnist_instances import NUM_INSTANCES, digit_generator

__all__ = ["HELD_OUT", "NUM_ANGLES", "NUM_TRAINING", "OTHERS", "Draw", "draw_equal", "draw_shuffled"]

NUM_ANGLES = 16
HELD_OUT = 7  # 157.5 degrees
NUM_TRAINING = 360  # instances 0-359 are trained on, 360-399 never seen
NUM_TESTED = 270
OTHERS = [angle for angle in range(NUM_ANGLES) if angle != HELD_OUT]


class Draw(NamedTuple):
    """The draw of one digit.

    Attributes:
        kept: True for the views that are trained on (instances 0-359) or are context of an unseen instance
            (360-399), shape (400, 16). The held-out angle is False everywhere.
        tested: The training instances whose held-out view is tested, sorted, shape (270,).
    """

    kept: np.ndarray
    tested: np.ndarray


def draw_equal(num_views: int, seed: int, digit: int) -> Draw:
    """Keep equally many views of every instance; instances 0-269 are tested.

    Args:
        num_views: 1 to 15. With the same seed, a larger number keeps the views of a smaller one and more.
        seed: Draws the views, and nothing else.
        digit: The draw of a digit does not depend on the other digits of the data.
    """
    # Python's generator, as in the paper's program: its sample() is the same in every version so far.
    generator = random.Random(f"views of digit {digit}, seed {seed}")
    kept = np.zeros((NUM_INSTANCES, NUM_ANGLES), dtype=bool)
    for row in kept:
        row[generator.sample(OTHERS, len(OTHERS))[:num_views]] = True
    return Draw(kept, np.arange(NUM_TESTED))


def draw_shuffled(num_in_class: int, seed: int, digit: int) -> Draw:
    """Keep 4050 views of the 5400, as all other published models do; 270 random instances are tested.

    The draws continue the generator that drew the instances from the `num_in_class` images of the digit. So only the
    context of the unseen instances depends on the seed: 11 views of each, those of `draw_equal(11, seed, digit)`.
    """
    generator, _ = digit_generator(num_in_class)
    held_out = generator.sample(range(NUM_ANGLES), 1)[0]
    # The paper drew its held-out angle here. Other digits may draw another one, which keeps the generator in step and
    # is not used: the held-out angle is the same for all digits.
    assert digit != 3 or held_out == HELD_OUT
    images = generator.sample(range(NUM_TRAINING * len(OTHERS)), 4050)
    tested = generator.sample(range(NUM_TRAINING), NUM_TESTED)
    kept = draw_equal(11, seed, digit).kept
    training = np.zeros(NUM_TRAINING * len(OTHERS), dtype=bool)
    training[images] = True
    kept[:NUM_TRAINING, OTHERS] = training.reshape(NUM_TRAINING, len(OTHERS))  # instance-major
    return Draw(kept, np.sort(tested))
