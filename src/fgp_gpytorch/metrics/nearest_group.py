"""How far groups are from the nearest group of another set."""

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import group_parts
from fgp_gpytorch.errors import DataError

_VALUES = 2**20  # of known groups at a time


@torch.no_grad()
def nearest_group_mse(groups: Tensor, known: Tensor, batch_size: int = 16, progress: bool = False) -> Tensor:
    """Mean squared difference of every group to the nearest of the known groups, all at the same x.

    It shows whether new groups repeat training groups. Compare draws with real groups that were not trained on: draws
    that are much nearer to a training group are memory. Decoded means are smooth, and so nearer to everything than
    noisy data. So compare them with decoded means of real groups, too.

    Args:
        groups: Groups, (n, Q, *y_shape).
        known: Known groups, (G, Q, *y_shape).
        batch_size: Groups at a time, which limits memory.
        progress: Whether to show a progress bar.

    Returns:
        Units of y squared, averaged over members and elements, (n,).

    Raises:
        ArgumentError: If an argument is not numeric, or `batch_size` is below 1.
        ShapeError: If the shapes differ in more than the number of groups.
        DataError: If there is no known group, or a value is not finite.

    Examples:
        >>> known = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 4, 3)
        >>> nearest_group_mse(torch.full((1, 4, 3), 0.8), known)
        tensor([0.0400], dtype=torch.float64)
    """
    groups = check.as_reals(groups, "groups")
    known = check.as_reals(known, "known", like=groups)
    sizes = torch.ones(len(groups), dtype=torch.long)
    parts = group_parts(sizes, 1, check.count(batch_size, "batch_size"), progress)
    check.shape(known, "known", ("G", *groups.shape[1:]), "Try the known groups at the x of the others.")
    if not len(known):
        raise DataError("known: expected at least one group, got none. Try the training groups.")
    check.finite(groups, "groups")
    check.finite(known, "known")
    elements = max(1, groups.shape[1:].numel())
    some = known.flatten(1).split(max(1, _VALUES // elements))
    found = [groups.new_zeros(0, dtype=torch.float64)]
    for part in parts:
        own = groups[part].double().flatten(1)
        nearest = torch.full((len(own),), torch.inf, dtype=torch.float64, device=own.device)
        for others in some:
            nearest = torch.minimum(nearest, _squared_distances(own, others.double()).amin(1))
        found.append(nearest / elements)
    return torch.cat(found)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:  # shape: (n, K), (G, K) -> (n, G)
    """Squares of distances as sums of squares: the expansion in products would cancel for near groups."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square()
