"""Errors of decoded mixtures of the latents of two groups."""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import HeldOut, HeldOutBatch
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics._evaluation import checked, checked_model, parts_of
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


class SwapErrors(NamedTuple):
    """Mean squared errors of decoded mixtures, units of y squared, averaged over groups, members and elements.

    Attributes:
        to_global: Against the group of the global latents. Lower is better. It equals `unswapped` if local latents
            carry nothing of the group.
        to_local: Against the group of the local latents. Lower than `to_global` if these carry the identity.
        unswapped: Both latents from one group, against that group: `held_out_mse`.

    Examples:
        >>> errors = SwapErrors(to_global=0.2, to_local=0.9, unswapped=0.1)
        >>> errors.to_local < errors.to_global  # whether local latents carry the identity of a group
        False
    """

    to_global: float
    to_local: float
    unswapped: float


def swap_errors(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    seed: int = 0,
    batch_size: int | None = 64,
    progress: bool = False,
) -> SwapErrors:
    r"""Decode the local latents of one group with the global latents of another, and compare with the truth.

        y = decoder(z_local of group a at x*, z_global of group b)     posterior means (paper, Section 3)

    is compared with y*_b (x* those of b) and with y*_a (x* those of a). Neither is part of a context. Every group
    is once a and once b, in random pairs.

    Args:
        model: A trained model with local and global channels, or one conditioned on data. It is used in evaluation
            mode, then restored.
        held_out: The members to predict.
        seed: Of the pairs.
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `held_out` is no `HeldOut`.
        DataError: If the model has not both kinds of channels.
        GroupError: If there are fewer than two groups.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(2)])
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), prior)
        >>> held_out = HeldOut.last(GroupedDataset(torch.rand(24, 5), torch.rand(24), group=torch.arange(24) // 6))
        >>> errors = swap_errors(model, held_out)
        >>> math.isclose(errors.unswapped, held_out_mse(model, held_out), rel_tol=1e-5)
        True
    """
    checked_model(model)
    seed = check.count(seed, "seed", least=0)
    is_global = model.prior.is_global
    if bool(is_global.all()) or not bool(is_global.any()):
        raise DataError(
            f"model: expected local and global channels, got {int(is_global.sum())} global ones of {len(is_global)}. "
            "Try a prior with LocalChannels and GlobalChannels."
        )
    groups = len(checked(held_out))
    if groups < 2:
        raise GroupError("held_out: expected at least two groups to mix, got 1. Try more groups.")
    local_from = other_group(groups, seed)
    totals, elements = torch.zeros(3, dtype=torch.float64), 0
    with evaluation(model) as device:
        is_global = is_global.to(device)

        def mean_at(givers: HeldOutBatch, targets: HeldOutBatch) -> Tensor:
            """Posterior mean of the givers at the targets' x_new, (g, Q*, L)."""
            return model.predict(targets.x_new, givers.context).mean

        # a part holds two contexts, and decodes the members of one
        added = held_out.x_new.shape[1] + int(held_out.context.group_sizes.max())
        for part in parts_of(model, held_out.context, batch_size, progress, added):
            index = torch.arange(part.start, part.stop)
            a, b = (held_out[part].to(device) for part in (local_from[index], index))
            for position, (local, shared, target) in enumerate(((a, b, b), (a, b, a), (b, b, b))):
                z = torch.where(is_global, mean_at(shared, target), mean_at(local, target))
                error = model.likelihood.mean(model.decode(z, target.x_new, target.y_new.shape[2:])) - target.y_new
                totals[position] += target.masked(error.double().square()).sum().cpu()
            elements += b.num_elements  # every group is a target once in each position
    return SwapErrors(*(totals / elements).tolist())


def other_group(groups: int, seed: int) -> Tensor:  # shape: (G,)
    """For each group another one, each taken once: the next on a random circle."""
    circle = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(circle)
    other[circle] = circle.roll(1)
    return other
