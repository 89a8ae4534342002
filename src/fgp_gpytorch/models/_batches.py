"""What models do with batches before and after their networks."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch._shapes import as_sample_shape, check_finite, check_floating, check_shape
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.prior import ChannelBlock


def cast_for(network: nn.Module, value: Tensor) -> Tensor:
    """The value in the dtype of the network's parameters."""
    parameter = next(network.parameters(), None)
    return value if parameter is None else value.to(parameter.dtype)


def is_full(batch: GroupedBatch) -> bool:
    """Whether every member is there."""
    return bool(batch.mask.all())


def features_of(batch: GroupedBatch) -> Tensor:  # shape: (G, Q, D)
    """x with the first member's in the padding.

    Kernels centre x before they take distances: among members at 1.7e9 (seconds since 1970) a padding of 0 would
    leave no digit of them.

    Raises:
        DataError: If a feature is not known.
    """
    if bool(batch.x.isnan().any()):
        raise DataError(
            f"x: expected known auxiliary features, got {int(batch.x.isnan().sum())} unknown ones, which this model "
            "does not infer. Try LatentAngleFGPVAE (for one feature, an angle), or data.select(rows) without them."
        )
    if is_full(batch):
        return batch.x
    first = batch.mask.int().argmax(-1)
    first = batch.x[torch.arange(batch.num_groups, device=first.device), first]
    return torch.where(batch.mask.unsqueeze(-1), batch.x, first.unsqueeze(1))


def scatter(rows: Tensor, mask: Tensor, padding: float) -> Tensor:
    """Rows (N, L) of the members that are there, laid out (G, Q, L) with `padding` elsewhere."""
    padded = rows.new_full((*mask.shape, rows.shape[-1]), padding)
    return padded.masked_scatter(mask.unsqueeze(-1), rows)


def standard_normal(block: ChannelBlock, root: Tensor) -> dist.TorchDistribution:
    """p(u) of a block's whitened variables: batch (*b, G), event (J, M), or (1, M) for channels that share them."""
    shape = (*root.shape[:-3], block.num_whitened, root.shape[-1])
    mean = torch.zeros(shape, dtype=root.dtype, device=root.device)
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    return dist.MultivariateNormal(mean, scale_tril=identity, validate_args=False).to_event(1)


def checked_batch(value: GroupedBatch | GroupedDataset, name: str) -> GroupedBatch:
    """A batch of finite numbers, or a whole data set as one.

    Raises:
        DataError: If it is neither, or an observed value is not finite.
    """
    batch = whole_batch(value, name)
    check_finite(batch.y, f"{name}.y", batch.observed)
    return batch


def whole_batch(value: GroupedBatch | GroupedDataset, name: str) -> GroupedBatch:
    """A batch as it is, or a whole data set as one.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(value, GroupedDataset):
        value = value[:]
    if not isinstance(value, GroupedBatch):
        raise DataError(
            f"{name}: expected a GroupedBatch or a GroupedDataset, got {type(value).__name__}. "
            "Try GroupedDataset(y, x, group)[[0, 1]], or GroupedBatch.from_tensors(y, x)."
        )
    return value


def check_sample_shape(sample_shape: Any) -> None:
    """Require a shape of draws, or None.

    Raises:
        DataError: If it is a number, or not of whole numbers.
    """
    if sample_shape is not None:
        as_sample_shape(sample_shape, "a sequence of integers or None")


def observed_members(batch: GroupedBatch) -> Tensor:  # shape: (G, Q)
    """Members of whom something was observed."""
    return batch.mask if batch.y_mask is None else batch.mask & batch.y_mask.reshape(*batch.mask.shape, -1).any(-1)


def check_targets(x_new: Tensor, context: GroupedBatch, given: Tensor | None = None) -> None:
    """Require finite features (G, Q*, D) of new members, one row of them for each group of the context.

    Args:
        x_new: The features.
        context: The groups.
        given: Features (*b, D) that a model is conditioned on besides; None for the context's.

    Raises:
        GroupError: If there is another number of groups.
        ShapeError: If there is another number of features, or of dimensions.
        DataError: If a value is not finite or the dtype is not floating.
    """
    check_floating(x_new, "x_new")
    groups, features = context.num_groups, (context.x if given is None else given).shape[-1]
    check_shape(x_new, "x_new", ("G", "Q*", "D"), "One feature is x_new.unsqueeze(-1), one group x_new.unsqueeze(0).")
    if len(x_new) != groups:
        raise GroupError(
            f"x_new: expected (G, Q*, D) with G = {groups} and D = {features}, one row of members for each group of "
            f"the context, got {tuple(x_new.shape)}. Try context=data[[...]] with the groups of x_new; an FGPVAE draws "
            "new groups with context=None."
        )
    check_shape(x_new, "x_new", (groups, "Q*", features))
    check_finite(x_new, "x_new")
