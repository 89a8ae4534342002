"""Splitting validation groups off the training data."""

from typing import TypeVar

import numpy as np
import torch

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.models import CoupledVAE, GroupedVAE

Data = TypeVar("Data", bound=GroupedDataset)

_PURPOSE = 2  # of a seed; 0 and 1 are those of training and validation


def check_split(model: GroupedVAE, fraction: float) -> None:
    """Refuse a model that has one learned vector for each training group: other groups have none.

    Raises:
        ArgumentError: If the model is one.
    """
    if isinstance(model, CoupledVAE) and model.group_vectors is not None:
        raise ArgumentError(
            f"validation: expected held-out members for {type(model).__name__}, got the fraction {fraction} of the "
            "groups. Groups that are held out would have no learned vector. Try held_out = HeldOut.random(data, 0.2) "
            "and fit(model, held_out.context, validation=held_out)."
        )


def split_groups(train: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Split random groups off a data set.

    Args:
        train: At least two groups.
        fraction: Of the groups, in (0, 1). At least one group is split off, and at least one stays.
        seed: Of the choice.

    Returns:
        The groups that stay, and the others, both in their order in `train`.

    Raises:
        DataError: If there are fewer than two groups.
    """
    groups = len(train)
    if groups < 2:
        raise DataError(
            f"validation: expected at least 2 groups to split the fraction {fraction} off, got {groups}. Try "
            "HeldOut.random(data, 0.2), which holds out members."
        )
    number = min(max(round(fraction * groups), 1), groups - 1)
    state = np.random.SeedSequence((seed, 0, _PURPOSE)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    order = torch.randperm(groups, generator=generator)
    return train.subset(order[number:].sort().values), train.subset(order[:number].sort().values)
