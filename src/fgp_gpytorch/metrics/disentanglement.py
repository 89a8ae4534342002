"""Information of local and global channels about the auxiliary feature and the group."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics._evaluation import own_posterior, parts_of, some_members
from fgp_gpytorch.metrics.mutual_information import discretize, mutual_information_gap
from fgp_gpytorch.metrics.probes import centroid_accuracy, nearest_path_accuracy, ridge_r2
from fgp_gpytorch.models import GroupedVAE

_MOST_PLACES = 1000  # of x, at which the path of every group is predicted
_MOST_NUMBERS = 2**25  # of the paths of all groups


class Latents(NamedTuple):
    """Posterior means of the members of a data set, sorted by group as in `data.features()`.

    Attributes:
        mean: E[z], (N, L), usually float64.
        x: Auxiliary features, (N, D).
        group: Position of each member's group, (N,), int64.

    Examples:
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> data = GroupedDataset(torch.rand(5, 2), torch.arange(5.0), group=[0, 0, 1, 1, 1])
        >>> mean, x, group = latent_means(model, data)
        >>> mean.shape, torch.equal(mean[0], mean[1]), group  # members of a group share their global latents
        (torch.Size([5, 3]), True, tensor([0, 0, 1, 1, 1]))
    """

    mean: Tensor
    x: Tensor
    group: Tensor


class Disentanglement(NamedTuple):
    """Scores of probes of local and global channels. None where a model has no such channels (or one, for a gap).

    In the ideal that the paper describes, local channels have a `feature_r2` of 1 and a `group_accuracy` at chance,
    global channels the reverse. A `local_group_accuracy` at chance does not prove that local channels are free of the
    group: groups whose paths differ in shape show in `local_path_accuracy`.

    Attributes:
        local_feature_r2: R^2 of a linear probe for x on held-out groups, from local channels.
        global_feature_r2: The same from global channels.
        local_group_accuracy: Accuracy of a linear classifier of the group, on held-out members, from local channels.
        local_path_accuracy: Accuracy of a classifier that takes x too: the group whose local channels, predicted at x
            from one half of its members, are nearest to the posterior from the other half. None with `alone=True`.
            None too where paths would fill the memory: for a feature of more than a thousand values, or more than 32
            million latents of all groups at all values.
        global_group_accuracy: As `local_group_accuracy`, from global channels.
        chance: Accuracy of guessing the group.
        feature_gap: Mutual information gap of the feature over all channels, a fraction of its entropy.
        group_gap: The same of the group.
        mean_gap: Their mean: the MIG of Chen et al. 2018.
    """

    local_feature_r2: float | None
    global_feature_r2: float | None
    local_group_accuracy: float | None
    local_path_accuracy: float | None
    global_group_accuracy: float | None
    chance: float
    feature_gap: float | None
    group_gap: float | None
    mean_gap: float | None


def latent_means(
    model: GroupedVAE, data: GroupedDataset, alone: bool = False, batch_size: int | None = 64, progress: bool = False
) -> Latents:
    """Posterior mean of z at every member, with x and group, on the CPU.

    Args:
        model: A trained model. It is used in evaluation mode, then restored.
        data: N members in groups.
        alone: False conditions on all members of the group at their x (paper, Section 3). True conditions on that
            member only. Under a stationary kernel of mean zero z then depends on y alone, not on x (and on group
            vectors that are parameters, which were learned from all members).
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows. A prior that
            couples groups is conditioned on so many, unless `alone`.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: If `batch_size` is below 1, or `data` no data set.
        ShapeError: If the encoder's output is not two tensors of L channels.
        DataError: If a value is not finite.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(2)])
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), prior)
        >>> latents = latent_means(model, GroupedDataset(torch.rand(5, 5), torch.rand(5), group=[0, 0, 1, 1, 1]))
        >>> latents.mean.shape, latents.group
        (torch.Size([5, 4]), tensor([0, 0, 1, 1, 1]))
    """
    own_posterior(model)
    _check_data(data)
    return _means_of(model, data, None, alone, batch_size, progress)


def _means_of(
    model: GroupedVAE, data: GroupedDataset, chosen: Tensor | None, alone: bool, batch_size: int | None, progress: bool
) -> Latents:
    """`latent_means` of some members of each group, (N,), or of all for None."""
    means = []
    with evaluation(model) as device:
        for batch in _batches(model, data, chosen, batch_size, progress, device):
            parts = _each_alone(model, batch) if alone else [batch]
            means += [model.infer(part).mean[part.mask].cpu() for part in parts]
    x, group = data.features() if chosen is None else (part[chosen] for part in data.features())
    return Latents(torch.cat(means), x.cpu(), group.cpu())


def _batches(
    model: GroupedVAE,
    data: GroupedDataset,
    chosen: Tensor | None,
    batch_size: int | None,
    progress: bool,
    device: torch.device,
    added: int = 0,
) -> Iterator[GroupedBatch]:
    """Some groups at a time, with the chosen members of each, (N,), or all for None."""
    ends = [0, *data.group_sizes.cumsum(0).tolist()]
    for part in parts_of(model, data, batch_size, progress, added):
        batch = data[part].to(device)
        yield batch if chosen is None else some_members(batch, chosen[ends[part.start] : ends[part.stop]])


def disentanglement(
    model: GroupedVAE,
    data: GroupedDataset,
    period: float | None,
    feature: int = 0,
    alone: bool = False,
    num_bins: int = 20,
    seed: int = 0,
    batch_size: int | None = 64,
    progress: bool = False,
) -> Disentanglement:
    r"""Measure how far local latents carry x and global ones the group, as the paper claims (Section 3).

    - Feature: `ridge_r2` of x (of its cosine and sine) from posterior means, on groups that the probe was not fitted
      on.
    - Group: `centroid_accuracy`. The members of each group are divided into halves, each inferred without the other.
      The classifier is fitted on one half and tested on the other. So a global channel, whose posterior is one value
      for all members that are inferred together, has to take the same value for other images.
    - Group, given x: `nearest_path_accuracy` of the local channels of the tested halves, among the paths of all groups
      from the fitted halves.
    - Mutual information gap: `mutual_information_gap` of the feature and of the group over all channels.

    With `alone=False` local posteriors depend on x through the GP, so a high R^2 does not show that the encoder finds
    x. Use `alone=True` to compare models that take x with those that do not (a plain VAE).

    Args:
        model: A trained model. It is used in evaluation mode, then restored.
        data: Groups of two observed members or more. Members in which nothing was observed are left out.
        period: Period of the feature, in its units (2 pi for radians). None for one that is no angle.
        feature: Which of the D auxiliary features to probe.
        alone: As in `latent_means`.
        num_bins: Bins for the mutual information. A feature with more values than that is binned too.
        seed: Of the halves and folds.
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows.
        progress: Whether to show progress bars.

    Raises:
        ArgumentError: If an option is out of range, or `data` no data set.
        DataError: If the feature is not known everywhere, or does not vary.
        GroupError: If a group has fewer than two observed members, or there are fewer than two groups.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(2)])
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), prior)
        >>> data = GroupedDataset(torch.rand(24, 5), torch.rand(24), group=torch.arange(24) // 6)
        >>> scores = disentanglement(model, data, period=None)
        >>> scores.chance, scores.local_feature_r2 <= 1
        (0.25, True)
    """
    own_posterior(model)
    _check_data(data)
    data = data.only_observed()
    feature = check.choice(check.number(feature), "feature", range(data.num_features))
    num_bins, seed = check.count(num_bins, "num_bins", least=2, hint="Try 20."), check.count(seed, "seed", least=0)
    if period is not None:
        period = check.positive(period, "period", hint="Try 2 * math.pi, or None for a feature that is no angle.")
    if len(data) < 2 or int(data.group_sizes.min()) < 2:
        raise GroupError(
            f"data: expected two groups or more of two members or more, got {len(data)} groups, the smallest of "
            f"{int(data.group_sizes.min())}. Try data.subset(data.group_sizes > 1), of data.only_observed()."
        )
    known = data.features().x[:, feature].isfinite()
    if not bool(known.all()):
        raise DataError(
            f"data.x: expected a feature that is known everywhere, got {int((~known).sum())} members without it. "
            "Try data.select(known) with the mask of the others."
        )
    together = latent_means(model, data, alone, batch_size, progress)
    first = _random_half(data, seed)
    # the means of members that are inferred alone do not depend on the half
    fitted, tested = (
        Latents(*(part[half.cpu()] for part in together))
        if alone
        else _means_of(model, data, half, False, batch_size, progress)
        for half in (first, ~first)
    )
    value = together.x[:, feature].double()
    targets = value.unsqueeze(-1) if period is None else _on_circle(value, period)
    is_global = model.prior.is_global

    def probe(chosen: Tensor) -> tuple[float | None, float | None]:
        """R^2 and accuracy from these channels."""
        if not bool(chosen.any()):
            return None, None
        r2 = ridge_r2(together.mean[:, chosen], targets, together.group, seed=seed)
        return r2, centroid_accuracy(fitted.mean[:, chosen], fitted.group, tested.mean[:, chosen], tested.group)

    (local_r2, local_accuracy), (global_r2, global_accuracy) = probe(~is_global), probe(is_global)
    path_accuracy = None
    if not alone and not bool(is_global.all()):
        at, position = tested.x.unique(dim=0, return_inverse=True)
        if len(at) <= _MOST_PLACES and len(data) * len(at) * len(is_global) <= _MOST_NUMBERS:
            paths = _paths(model, data, first, at, batch_size, progress)[..., ~is_global]
            path_accuracy = nearest_path_accuracy(paths, tested.mean[:, ~is_global], position, tested.group)
    feature_gap = group_gap = mean_gap = None
    if len(is_global) > 1:
        level = _levels(value if period is None else value.remainder(period), num_bins)
        feature_gap = mutual_information_gap(together.mean, level, num_bins)
        group_gap = mutual_information_gap(together.mean, together.group, num_bins)
        mean_gap = (feature_gap + group_gap) / 2
    return Disentanglement(
        local_r2, global_r2, local_accuracy, path_accuracy, global_accuracy, 1 / len(data),
        feature_gap, group_gap, mean_gap,
    )  # fmt: skip


def _check_data(data: GroupedDataset) -> None:
    check.instance(data, "data", GroupedDataset, "Try data.subset(groups) in place of a batch.")


def _paths(
    model: GroupedVAE, data: GroupedDataset, chosen: Tensor, x: Tensor, batch_size: int | None, progress: bool
) -> Tensor:  # shape: (G, U, L)
    """Posterior mean of every group, given its chosen members, at all of x, (U, D), on the CPU."""
    paths = []
    with evaluation(model) as device:
        for batch in _batches(model, data, chosen, batch_size, progress, device):
            posterior = model.infer(batch)
            paths.append(posterior.predict(x.to(batch.x).expand(len(batch.mask), *x.shape)).mean.cpu())
    return torch.cat(paths)


def _on_circle(value: Tensor, period: float) -> Tensor:  # shape: (N,) -> (N, 2)
    phase = 2 * math.pi / period * value
    return torch.stack([phase.cos(), phase.sin()], dim=-1)


def _levels(value: Tensor, num_bins: int) -> Tensor:  # shape: (N,)
    """The number of each distinct value, or its bin if there are more values than bins."""
    distinct, level = value.unique(return_inverse=True)
    return level if len(distinct) <= num_bins else discretize(value.unsqueeze(-1), num_bins)[:, 0]


def _random_half(data: GroupedDataset, seed: int) -> Tensor:  # shape: (N,)
    """Mark a random half of the members of each group, at least one, and never all."""
    places = data.random_places(torch.Generator().manual_seed(seed))
    return places < (data.group_sizes // 2)[data.features().group]


def _each_alone(model: GroupedVAE, batch: GroupedBatch) -> list[GroupedBatch]:
    """Every member of the batch as a group of its own, in the order of `tensor[batch.mask]`.

    This is one batch if groups are independent, and batches of one group if the prior couples groups.
    """
    there = batch.mask
    parts = {name: getattr(batch, name)[there].unsqueeze(1) for name in ("y", "x", "mask")}
    if batch.y_mask is not None:
        parts["y_mask"] = batch.y_mask[there].unsqueeze(1)
    parts["group_index"] = batch.group_index.unsqueeze(-1).expand(there.shape)[there]
    size = 1 if model.prior.couples_groups else len(parts["mask"])
    split = [
        dict(zip(parts, values, strict=True)) for values in zip(*(p.split(size) for p in parts.values()), strict=True)
    ]
    return [dataclasses.replace(batch, **part) for part in split]
