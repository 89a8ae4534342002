"""How much a model makes of how little context."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.data.held_out import HeldOut, check_held_out
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics.held_out_mse import held_out_mse
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


class _Part(NamedTuple):
    context: GroupedDataset
    x_new: Tensor
    y_new: Tensor
    y_new_mask: Tensor | None


def mse_by_context_size(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    sizes: Iterable[int] = (1, 2, 4, 8, 11, 15),
    seed: int = 0,
    num_subsets: int = 4,
    batch_size: int = 64,
) -> dict[int, float]:
    """Mean squared error of held-out members against the number of members in the context. Lower is better.

    The paper's Section 4 generates "given either a single example" or eleven; this is the curve between. Each group
    puts its members in a random order, `num_subsets` times; the context of size n is the first n, so that larger
    contexts contain the smaller ones and the curve is not blurred by the choice.

    Args:
        model: A trained model; it is used in evaluation mode and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape), and `y_new_mask` if some
            was not observed. For rotated MNIST
            `rotated_mnist(views=15).extrapolation` has all 15 views; `views=11` has 11.
        sizes: Numbers of members, each at least 1 and at most that of the smallest group.
        seed: Of the orders.
        num_subsets: Random contexts that each size is averaged over; one is enough where a size takes all members.
        batch_size: Groups at a time.

    Returns:
        For each size: units of y squared, of decoded posterior means, averaged over contexts, groups, members and
        elements.

    Raises:
        DataError: If `num_subsets` is below 1, there are no sizes, the model reads no row of the context, nothing of
            `y_new` was observed, or what was is not finite.
        GroupError: If a size is below 1 or a group has fewer members.
        ShapeError: If `x_new`, `y_new` or `y_new_mask` are not of the context's groups.
    """
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if num_subsets < 1 or not sizes:
        raise DataError(
            f"expected at least one size and num_subsets of at least 1, got sizes={sizes} and "
            f"num_subsets={num_subsets}. Try sizes=(1, 4), num_subsets=4."
        )
    check_held_out(held_out)
    members = held_out.context.group_sizes.cpu()
    if isinstance(model, ConditionedVAE) and not getattr(model, "new_groups", False):
        raise DataError(
            "model: expected one that conditions on its context, got one that was given its rows and reads none of the "
            "context's. Try the model itself, or given(data, context='new') with a representation."
        )
    smallest = int(members.min())
    unfit = [size for size in sizes if not 1 <= size <= smallest]
    if unfit:
        number = int((members < max(unfit)).sum())
        raise GroupError(
            f"sizes: expected 1 to {smallest}, the members of the smallest group of the context, got {unfit[0]}; "
            f"{number} of {len(members)} groups have fewer than {max(unfit)}. Try sizes up to {smallest}, or data with "
            "more members (rotated_mnist(views=15))."
        )
    mask = getattr(held_out, "y_new_mask", None)
    generator = torch.Generator().manual_seed(seed)
    errors: dict[int, list[float]] = {size: [] for size in sizes}
    for repetition in range(num_subsets):
        place = _random_places(members, generator)
        for size in errors:
            if repetition > 0 and size == int(members.max()):
                continue  # all members, as before
            part = _Part(held_out.context.select(place < size), held_out.x_new, held_out.y_new, mask)
            errors[size].append(held_out_mse(model, part, batch_size=batch_size))
    return {size: sum(values) / len(values) for size, values in errors.items()}


def _random_places(members: Tensor, generator: torch.Generator) -> Tensor:  # shape: (G,) -> (N,)
    """Place of each row in a random order of its group, 0 to its size - 1; rows sorted by group."""
    return torch.cat([torch.randperm(size, generator=generator) for size in members.tolist()])
