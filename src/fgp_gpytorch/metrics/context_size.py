"""Error of predictions from contexts of different sizes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError
from fgp_gpytorch.metrics._evaluation import checked, checked_model, parts_of, some_members
from fgp_gpytorch.metrics.held_out_mse import squared_error
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


def mse_by_context_size(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    sizes: Iterable[int] = (1, 2, 4, 8, 11, 15),
    seed: int = 0,
    num_subsets: int = 4,
    batch_size: int | None = 64,
    progress: bool = False,
) -> dict[int, float]:
    """Mean squared error of held-out members against the number of members in the context. Lower is better.

    The paper's Section 4 generates "given either a single example" or eleven. This is the curve between. The members
    of each group are put in a random order, `num_subsets` times, and the context of size n is the first n. So larger
    contexts contain the smaller ones, which reduces the noise of the curve. Members in which nothing was observed come
    last.

    Args:
        model: A trained model. It is used in evaluation mode, then restored.
        held_out: The members to predict. For rotated MNIST `rotated_mnist(views=15).extrapolation` has all 15 views
            as context, `views=11` has 11.
        sizes: Numbers of members, each at least 1 and at most that of the smallest group.
        seed: Of the orders.
        num_subsets: Random contexts that each size is averaged over. A size of all members needs one only.
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows.
        progress: Whether to show a progress bar, for each order.

    Returns:
        For each size: units of y squared, of decoded posterior means, averaged over contexts, groups, members and
        elements.

    Raises:
        ArgumentError: If `num_subsets` is below 1, there are no sizes, or `held_out` is no `HeldOut`.
        DataError: If the model does not condition on the context.
        GroupError: If a size is below 1 or a group has fewer members.

    Examples:
        >>> data = GroupedDataset(torch.rand(9, 2), torch.arange(9.0), group=[0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> errors = mse_by_context_size(model, HeldOut.last(data), sizes=[1, 2])
        >>> list(errors), math.isclose(errors[2], held_out_mse(model, HeldOut.last(data)), rel_tol=1e-5)
        ([1, 2], True)
    """
    checked_model(model)
    given: Any = check.number(sizes)
    given = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    sizes = tuple(check.count(size, "sizes", least=0, hint="Try sizes=(1, 4).") for size in given)
    num_subsets = check.count(num_subsets, "num_subsets", hint="Try 4.")
    seed = check.count(seed, "seed", least=0)
    if not sizes:
        raise ArgumentError("sizes: expected at least one size, got none. Try sizes=(1, 4).")
    context = checked(held_out).context
    if isinstance(model, ConditionedVAE) and not getattr(model, "new_groups", False):
        raise DataError(
            "model: expected one that conditions on its context, got one that was conditioned on data and does "
            "not read the context. Try the model itself, or condition_on(data, context='new') with a representation."
        )
    smallest, largest = int(context.group_sizes.min()), int(context.group_sizes.max())
    unfit = [size for size in sizes if not 1 <= size <= smallest]
    if unfit:
        number = int((context.group_sizes < max(unfit)).sum())
        raise GroupError(
            f"sizes: expected 1 to {smallest}, the members of the smallest group of the context, got {unfit[0]}; "
            f"{number} of {len(context)} groups have fewer than {max(unfit)}. Try sizes up to {smallest}, or data with "
            "more members (rotated_mnist(views=15))."
        )
    generator = torch.Generator().manual_seed(seed)
    errors: dict[int, list[float]] = {size: [] for size in sizes}
    ends = [0, *context.group_sizes.cumsum(0).tolist()]
    with evaluation(model) as device:
        for repetition in range(num_subsets):
            place = _observed_first(context, context.random_places(generator))
            taken = [
                size for size in errors if repetition == 0 or size < largest
            ]  # of all members there is one context
            totals, count = dict.fromkeys(taken, 0.0), 0
            for part in parts_of(model, context, batch_size, progress, held_out.x_new.shape[1]):
                batch, own = held_out[part].to(device), place[ends[part.start] : ends[part.stop]]
                for size in taken:
                    some = batch._replace(context=some_members(batch.context, own < size))
                    totals[size] += squared_error(model, some, None)
                count += batch.num_elements
            for size, total in totals.items():
                errors[size].append(total / count)
    return {size: sum(values) / len(values) for size, values in errors.items()}


def _observed_first(data: GroupedDataset, place: Tensor) -> Tensor:  # shape: (N,) -> (N,)
    """Places in the group's order, 0 to its size - 1, after members in which nothing was observed moved to the end."""
    y_mask = data.members.y_mask
    if y_mask is None:
        return place
    unseen, group = ~y_mask.reshape(len(y_mask), -1).any(1), data.features().group
    largest = int(data.group_sizes.max())
    order = ((2 * group + unseen) * largest + place).argsort()
    first = data.group_sizes.cumsum(0) - data.group_sizes
    return torch.empty_like(place).scatter_(0, order, torch.arange(len(order), device=order.device) - first[group])
