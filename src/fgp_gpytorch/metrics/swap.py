"""Latents of two groups mixed: whose observation comes out?"""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.data.held_out import HeldOut, check_held_out, held_out_targets
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics._evaluation import check_batch_size, evaluation
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


class SwapErrors(NamedTuple):
    """Mean squared errors of decoded mixtures, units of y squared, averaged over groups, members and elements.

    Attributes:
        to_global: Against the group that gave the global latents. Lower is better: equal to `unswapped` if local
            latents say nothing of the group.
        to_local: Against the group that gave the local latents. Lower than `to_global` if these carry the identity.
        unswapped: Both from one group, against that group: `held_out_mse`.
    """

    to_global: float
    to_local: float
    unswapped: float


def swap_errors(model: GroupedVAE | ConditionedVAE, held_out: HeldOut, seed: int = 0, batch_size: int = 64) -> SwapErrors:
    r"""Decode the local latents of one group with the global latents of another, and compare with the truth.

        y = decoder(z_local of group a at x*, z_global of group b)     posterior means (paper, Section 3)

    is compared with y*_b (x* those of b) and with y*_a (x* those of a), which neither posterior was given. Each group
    gives its global latents once and its local ones once, to another group at random.

    Args:
        model: A trained model with local and global channels, or what its `given` made; it is used in evaluation mode
            and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape), and `y_new_mask` if some
            was not observed.
        seed: Of the pairs.
        batch_size: Groups at a time.

    Returns:
        The errors.

    Raises:
        DataError: If the model has not both kinds of channels, nothing of `y_new` was observed, or what was is not
            finite.
        GroupError: If there are fewer than two groups.
        ShapeError: If `x_new`, `y_new` or `y_new_mask` are not of the context's groups.
    """
    check_held_out(held_out)
    check_batch_size(batch_size)
    is_global = model.prior.is_global
    if bool(is_global.all()) or not bool(is_global.any()):
        raise DataError(
            f"model: expected local and global channels, got {int(is_global.sum())} global ones of {len(is_global)}. "
            "Try a prior with LocalChannels and GlobalChannels."
        )
    groups = len(held_out.context)
    if groups < 2:
        raise GroupError("held_out: expected at least two groups to mix, got 1. Try more groups.")
    local_from = _other_group(groups, seed)
    totals, elements = torch.zeros(3, dtype=torch.float64), 0
    with evaluation(model) as device:
        is_global = is_global.to(device)

        def mean_at(givers: Tensor, targets: Tensor) -> Tensor:
            """Posterior mean of the givers at the targets' x_new, (g, Q*, L)."""
            x_new = held_out_targets(held_out, targets).x_new.to(device)
            return model.predict(x_new, held_out.context[givers].to(device)).mean

        for b in torch.arange(groups).split(batch_size):
            a = local_from[b]
            for position, (local, shared, target) in enumerate(((a, b, b), (a, b, a), (b, b, b))):
                z = torch.where(is_global, mean_at(shared, target), mean_at(local, target))
                truth = held_out_targets(held_out, target).to(device)
                error = model.likelihood.mean(model.decode(z, truth.x_new)) - truth.y_new
                totals[position] += truth.masked(error.double().square()).sum().cpu()
                elements += truth.num_elements if position == 0 else 0  # each target is met once in each position
    return SwapErrors(*(totals / elements).tolist())


def _other_group(groups: int, seed: int) -> Tensor:  # shape: (G,)
    """For each group another one, each taken once: the next on a random circle."""
    circle = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(circle)
    other[circle] = circle.roll(1)
    return other
