"""Helpers that prepare a batch for the networks of a model, and lay out their results."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError, ShapeError


class PseudoObservations(NamedTuple):
    """The encoder's result for a batch: N(z | mean, variance) for every member.

    Attributes:
        x: Auxiliary features with the first member's x in the padding, (G, Q, D).
        mean: mu, (G, Q, L), 0 in the padding and at members without an observed element.
        variance: sigma^2, (G, Q, L), 1 there.
        mask: True where at least one element of a member was observed, (G, Q); None for everywhere.

    Examples:
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]))
        >>> pseudo = model.encode(GroupedDataset(torch.rand(3, 5), torch.rand(3), group=[0, 0, 1]))
        >>> pseudo.mean.shape, pseudo.mask.tolist(), pseudo.variance[1, 1]  # of the padding
        (torch.Size([2, 2, 4]), [[True, True], [True, False]], tensor([1., 1., 1., 1.], grad_fn=<SelectBackward0>))
    """

    x: Tensor
    mean: Tensor
    variance: Tensor
    mask: Tensor | None


def cast_for(network: nn.Module, value: Tensor) -> Tensor:
    """The value in the dtype of the network's parameters."""
    parameter = next(network.parameters(), None)
    return value if parameter is None else value.to(parameter.dtype)


def is_full(batch: GroupedBatch) -> bool:
    """Whether the batch has no padding."""
    return bool(batch.mask.all())


def features_of(batch: GroupedBatch, full: bool | None = None) -> Tensor:  # shape: (G, Q, D)
    """x, with the first member's x in the padding (see `padded_features`).

    Raises:
        DataError: If a feature is unknown (NaN).
    """
    if bool(batch.x.isnan().any()):
        raise DataError(
            f"x: expected known auxiliary features, got {int(batch.x.isnan().sum())} unknown ones, which this model "
            "does not infer. Try LatentAngleFGPVAE (for one feature, an angle), or data.select(members) without them."
        )
    return batch.x if (is_full(batch) if full is None else full) else padded_features(batch)


def padded_features(batch: GroupedBatch) -> Tensor:  # shape: (G, Q, D)
    """x, with the first member's x in the padding. A group without members gets that of the batch's first member.

    Kernels centre x before they take distances. A padding of 0 among x near 1.7e9 (seconds since 1970) would cost all
    digits. A network or a kernel may not take 0 at all.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(3), x=[7.0, 8.0, 9.0], group=[0, 0, 1])
        >>> data[:].x[..., 0].tolist(), padded_features(data[:])[..., 0].tolist()
        ([[7.0, 8.0], [9.0, 0.0]], [[7.0, 8.0], [9.0, 9.0]])
    """
    first = batch.mask.int().argmax(-1)
    first = batch.x[torch.arange(batch.num_groups, device=first.device), first]
    some = batch.mask.any(-1)
    first = torch.where(some.unsqueeze(-1), first, first[some.int().argmax()])
    return torch.where(batch.mask.unsqueeze(-1), batch.x, first.unsqueeze(1))


def scatter(rows: Tensor, mask: Tensor, padding: float) -> Tensor:
    """Rows (N, L) of the members in `mask`, laid out (G, Q, L) with `padding` elsewhere."""
    padded = rows.new_full((*mask.shape, rows.shape[-1]), padding)
    return padded.masked_scatter(mask.unsqueeze(-1), rows)


def no_rows(network: nn.Module, width: int, device: torch.device) -> Tensor:
    """The output (0, width) of a network that need not take an empty batch.

    It depends on all parameters: with several processes every parameter needs a gradient in every step.
    """
    return sum((parameter.sum() for parameter in network.parameters()), torch.zeros(0, width, device=device))


def checked_batch(value: GroupedBatch | GroupedDataset, name: str, model: nn.Module) -> GroupedBatch:
    """A batch of finite numbers, or a whole data set as one on the model's device.

    Raises:
        ArgumentError: If it is neither.
        DataError: If an observed value is not finite, or the batch is on another device than the model.
    """
    batch = whole_batch(value, name, model)
    check.finite(batch.y, f"{name}.y", batch.observed)
    return batch


def whole_batch(value: GroupedBatch | GroupedDataset, name: str, model: nn.Module) -> GroupedBatch:
    """A batch as it is, or a whole data set as one on the model's device.

    Raises:
        ArgumentError: If it is neither.
        DataError: If the batch is on another device than the model.
        ShapeError: If the model was trained on another number of features.
    """
    device = device_of(model)
    if isinstance(value, GroupedDataset):
        value = value[:].to(device)
    if not isinstance(value, GroupedBatch):
        hint = "Try GroupedDataset(y, x, group)[[0, 1]], or GroupedBatch.from_tensors(y, x)."
        check.instance(value, name, (GroupedBatch, GroupedDataset), hint)
    if device not in (None, value.device):
        raise DataError(
            f"{name}: expected a batch on the device of the model, {device}, got one on {value.device}. "
            f"Try {name}.to({str(device)!r})."
        )
    check_features(value.x, f"{name}.x", model)
    return value


def checked_source(value: GroupedBatch | GroupedDataset, name: str, model: nn.Module) -> GroupedBatch | GroupedDataset:
    """A batch on the device of the model, or a data set, as it is.

    Raises:
        ArgumentError, DataError, ShapeError: As in `whole_batch`.
    """
    if not isinstance(value, GroupedDataset):
        return whole_batch(value, name, model)
    check_features(value.members.x, f"{name}.x", model)
    return value


def check_features(x: Tensor, name: str, model: nn.Module) -> None:
    """Require as many features as the model was trained on. A kernel without ARD would take any number.

    Raises:
        ShapeError: If x (..., D) has another number.
    """
    trained = getattr(model, "num_features", None)
    if trained not in (None, x.shape[-1]):
        raise ShapeError(
            f"{name}: expected D = {trained} auxiliary features, which the model was trained on, got {x.shape[-1]}. "
            "Try the columns of the training data, or model.num_features = None before training on others."
        )


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the first parameter of a model; None if it has none."""
    parameter = next(model.parameters(), None)
    return None if parameter is None else parameter.device


def observed_members(batch: GroupedBatch) -> Tensor:  # shape: (G, Q)
    """True for members with at least one observed element."""
    return batch.mask if batch.y_mask is None else batch.mask & batch.y_mask.reshape(*batch.mask.shape, -1).any(-1)


def checked_targets(
    x_new: Any, context: GroupedBatch | GroupedDataset, features: int, device: torch.device | None = None
) -> Tensor:
    """Features of new members, (G, Q*, D), one group for each group of the context. (Q*, D) is the same for all groups.

    Args:
        x_new: Features.
        context: A batch, or a data set whose batches go to a device.
        features: D.
        device: That device.

    Raises:
        ArgumentError: If `x_new` is not numeric.
        GroupError: If the number of groups differs.
        ShapeError: If `x_new` does not have two or three dimensions, or not `features` features.
        DataError: If `x_new` is not floating, not finite, or on another device.
    """
    hint = "Try x_new.unsqueeze(-1) for one feature, x_new.unsqueeze(0) for one group."
    like = context.x if isinstance(context, GroupedBatch) else context.members.x[:1].to(device)
    x_new = check.as_reals(x_new, "x_new", like=like)
    if x_new.dim() == 2:
        check.shape(x_new, "x_new", ("Q*", features), hint)
        x_new = x_new.expand(context.num_groups, *x_new.shape)
    check.shape(x_new, "x_new", ("G", "Q*", "D"), hint)
    if len(x_new) != context.num_groups:
        raise GroupError(
            f"x_new: expected (G, Q*, D) with G = {context.num_groups} and D = {features}, the new members of each "
            f"group of the context, got {tuple(x_new.shape)}. Try context=data[[...]] with the groups of x_new. An "
            "FGPVAE draws new groups with context=None."
        )
    check.shape(x_new, "x_new", (context.num_groups, "Q*", features), hint)
    check.device(x_new=x_new, context=like)
    return check.finite(x_new, "x_new", hint="Try to leave these members out.")
