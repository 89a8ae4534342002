"""How a table's model is fitted: which linear start, how far networks move from it, how wide intervals are.

Every choice is made inside the training groups. Some of them are held out, and the model predicts a part of their rows
from the others.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.likelihoods import ColumnLikelihood, GaussianElements
from fgp_gpytorch.metrics.scores import gaussian_crps
from fgp_gpytorch.models import FGPVAE, principal_components
from fgp_gpytorch.tables._features import Feature
from fgp_gpytorch.tables._frames import FEWEST_GROUPS
from fgp_gpytorch.tables._networks import MANY_GROUPS, MOST_KNOTS, column_evidence
from fgp_gpytorch.tables.columns import Column, Gaussian
from fgp_gpytorch.training import FitResult, fit

MOST_CHANNELS = 16  # one for each element of y
_MOST_COMPONENTS, _EXPLAINED = 128, 0.99  # of more elements: as many as explain this share of the variance
_KNOTS = (2, 4, 8, MOST_KNOTS)
_FOLDS, _FOLD_STEPS = 4, 20  # of the check of a linear model
_JUDGING_DRAWS = 64
_REFITS = 10  # steps of L-BFGS
_SMALLEST_SCALE = 1e-6  # of an element; below, it is constant
_MOVES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # from the linear start to the end of the second stage
_FEWEST_ERRORS = 20
_LARGEST_SPREAD = 3.0
_MOST_MEMBERS = 1000
_LEAST_GAIN = 0.05  # of the squared error, by the other rows of a group


class Fitted(NamedTuple):
    """A model and what held-out groups said of it.

    Attributes:
        vae: The model.
        moved: From its linear start (0) to the end of training (1).
        spread: The factor of its standard deviations.
    """

    vae: FGPVAE
    moved: float
    spread: float


class Verdict(NamedTuple):
    """What held-out values say of a model.

    Attributes:
        spread: The factor of standard deviations that makes 90 % of values fall into 90 % intervals, 1 to 3.
        crps: With this factor, of each element, (K,); NaN for elements that were not held out.
    """

    spread: float
    crps: Tensor


# the linear start


def num_channels(train: GroupedDataset, channels: Any) -> int:
    """Channels: as many as asked for, or as explain 99 % of the variance."""
    if channels != "auto":
        return int(channels)
    members = train.members
    size = members.y.shape[-1]
    spectrum = principal_components(members.y.double(), members.y_mask, min(size, MOST_CHANNELS))[2]
    share = spectrum.cumsum(0) / spectrum.sum()
    return min(int((share < _EXPLAINED).sum()) + 1, size, _MOST_COMPONENTS)


def as_numbers(columns: Sequence[Column], data: GroupedDataset) -> GroupedDataset:
    """The elements of y as standardised numbers, counts on a logarithmic scale. Gaussian columns stay as they are.

    So one Gaussian process for each element can judge a choice that concerns all columns.
    """
    members = data.members
    y = members.y.double().clone()
    seen = torch.ones_like(y, dtype=torch.bool) if members.y_mask is None else members.y_mask
    start = 0
    for column in columns:
        own = slice(start, start := start + column.num_elements)
        if not isinstance(column, Gaussian):
            raw = y[:, own].log1p() if column.logged else y[:, own]
            number = seen[:, own].sum(0).clamp_min(1)
            centered = torch.where(seen[:, own], raw - (raw * seen[:, own]).sum(0) / number, 0.0)
            y[:, own] = centered / (centered.square().sum(0) / number).sqrt().clamp_min(_SMALLEST_SCALE)
    return GroupedDataset.from_members(members._replace(y=y))


def num_knots(
    columns: Sequence[Column], features: Sequence[Feature], first_level: int, train: GroupedDataset, curve: bool
) -> int:
    """Knots of the mean over each number: the number with the largest evidence, less Schwarz's penalty.

    Many groups can afford the most knots.
    """
    if len(train) > MANY_GROUPS or not any(feature.is_number for feature in features):
        return MOST_KNOTS
    data = as_numbers(columns, train)
    found = {}
    for knots in _KNOTS:
        evidence = float(column_evidence(data, features, first_level, knots, curve).sum())
        found[knots] = evidence - 0.5 * data.y_shape[0] * knots * math.log(len(train))
    return max(_KNOTS, key=lambda knots: found[knots])


# the second stage


def train_networks(
    vae: FGPVAE, data: GroupedDataset, max_steps: int, seed: int, progress: bool, **options: Any
) -> FitResult:
    """Train by Adam under a cosine, on the CPU, without files."""
    return fit(
        vae, data, epochs=None, max_steps=max_steps, batch_size=max(4, min(20, len(data) // 4)), lr_schedule="cosine",
        seed=seed, folder=None, progress=progress, accelerator="cpu", devices=1, **options,
    )  # fmt: skip


def second_stage(
    vae: FGPVAE, train: GroupedDataset, held_out: int, calibrate: bool, max_steps: int, seed: int, progress: bool,
    **options: Any,
) -> Fitted:  # fmt: skip
    """Train networks and prior, then go from the linear start so far that held-out members are predicted best.

    Args:
        vae: A linear model of all groups.
        train: The groups.
        held_out: Number of groups that judge.
        calibrate: Whether the spread may differ from 1.
        max_steps: Of training.
        seed: Of the held-out groups and of training.
        progress: Whether to show a progress bar.
        **options: Of training.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    others, chosen = train.subset(order[held_out:].sort().values), train.subset(order[:held_out].sort().values)
    known = known_members(chosen, seed)
    if not _all_observed(others) or not bool(known.any()) or bool(known.all()):
        return Fitted(vae, 0.0, 1.0)
    judges = HeldOut.of(chosen.select(known), chosen.select(~known).only_observed())
    moved = copy.deepcopy(vae)
    moved.refine(others, _REFITS)  # the start has seen the groups that judge
    start = copy.deepcopy(moved.state_dict())
    try:
        train_networks(moved, others, max_steps, seed, progress, **options)
    except NonFiniteError as error:
        check.warn(
            f"fit: expected finite networks, got none ({error}) The model stays linear. Try fewer columns, or a "
            "look at those with a few extreme values."
        )
        moved.load_state_dict(start)
    end = copy.deepcopy(moved.state_dict())
    verdicts = []
    for share in _MOVES:
        moved.load_state_dict(between(moved, start, end, share))
        verdicts.append(verdict(moved, *errors_at(moved, judges, seed), calibrate))
    crps = torch.stack([found.crps for found in verdicts])
    best = int((crps / crps[0]).nanmean(-1).argmin())
    if best == 0:
        return Fitted(vae, 0.0, verdicts[0].spread)
    moved.load_state_dict(between(moved, start, end, _MOVES[best]))
    return Fitted(moved, _MOVES[best], verdicts[best].spread)


def between(vae: FGPVAE, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A state whose parameters are on the straight line from one state to another. Buffers are those of the end."""
    names = {name for name, _ in vae.named_parameters()}
    return {name: torch.lerp(start[name], own, share) if name in names else own for name, own in end.items()}


def warn_of_equal_groups(vae: FGPVAE, train: GroupedDataset, seed: int) -> None:
    """Warn if half of the rows of a group do not help to predict the other half, in any element of y."""
    data = train.subset(torch.linspace(0, len(train) - 1, min(len(train), MANY_GROUPS)).long())
    known = known_members(data, seed)
    if bool(known.all()):
        return
    context, targets = data.select(known), data.select(~known)
    members = context.members
    hidden = members._replace(y_mask=torch.zeros_like(members.y, dtype=torch.bool))
    squares = [
        errors_at(vae, HeldOut.of(own, targets), seed)[0].square().nanmean(0)
        for own in (context, GroupedDataset.from_members(hidden))
    ]
    gain = 1 - squares[0] / squares[1]
    if len(train) >= FEWEST_GROUPS and targets.num_members >= _FEWEST_ERRORS and not bool((gain > _LEAST_GAIN).any()):
        check.warn(
            "df: expected rows of a group that help to predict its other rows, got rows that explain less than "
            f"{_LEAST_GAIN:.0%} of their variance. Forecasts hardly depend on the group. Try another group column, "
            "other columns of x, or more rows for each group."
        )


# held-out groups


@torch.no_grad()
def by_folds(vae: FGPVAE, train: GroupedDataset, seed: int) -> Verdict:
    """Hold groups out in turn. A linear model of the others predicts the second half of each from the first."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    folds, found = min(_FOLDS, len(train)), []
    for fold in range(folds if folds > 1 else 0):
        mine = torch.arange(len(order)) % folds == fold
        rest, chosen = (train.subset(order[of].sort().values) for of in (~mine, mine))
        known = known_members(chosen, seed, share=1)
        if not _all_observed(rest) or bool(known.all()):
            continue
        model = copy.deepcopy(vae)
        with torch.enable_grad():
            model.refine(rest, _FOLD_STEPS, thin=True)
        found.append(errors_at(model, HeldOut.of(chosen.select(known), chosen.select(~known)), seed))
    if not found:
        return Verdict(1.0, torch.full(train.y_shape, torch.nan, dtype=torch.float64))
    error, deviation = (torch.cat(parts) for parts in zip(*found, strict=True))
    return verdict(vae, error, deviation, calibrate=True)


def verdict(vae: FGPVAE, error: Tensor, deviation: Tensor, calibrate: bool) -> Verdict:
    """The spread that held-out values need, and their CRPS, of Gaussians with these means and standard deviations."""
    places, spread = gaussian_elements(vae), 1.0
    if calibrate and places:
        standardized = (error / deviation)[:, places]
        spread = spread_of(standardized[~standardized.isnan()])
        deviation = deviation.clone()
        deviation[:, places] *= spread
    return Verdict(spread, gaussian_crps(error, deviation).nanmean(0))


def spread_of(standardized: Tensor) -> float:
    """The factor of standard deviations by which 90 % of standardized errors fall into 90 % intervals."""
    if len(standardized) < _FEWEST_ERRORS:
        return 1.0
    return float((standardized.abs().quantile(0.9) / 1.6449).clamp(1.0, _LARGEST_SPREAD))


@torch.no_grad()
def errors_at(vae: FGPVAE, held_out: HeldOut, seed: int) -> tuple[Tensor, Tensor]:
    """Errors and standard deviations of the elements of N held-out members, (N, K). An error without y is NaN."""
    batch = held_out[range(len(held_out))]
    with evaluation(vae, seed):
        z = vae.predict(batch.x_new, batch.context).rsample((_JUDGING_DRAWS,), marginals=True)
        output = vae.decode(z, batch.x_new)
    assert isinstance(vae.likelihood, ColumnLikelihood)
    mean, variance = vae.likelihood.moments(output)
    error = batch.y_new - mean
    if batch.observed is not None:
        error = torch.where(batch.observed, error, torch.nan)
    return error.flatten(0, 1), variance.clamp_min(1e-24).sqrt().flatten(0, 1)


def known_members(data: GroupedDataset, seed: int, share: int = 2) -> Tensor:  # shape: (N,)
    """True for members to condition on: the first half of some groups, a random half of the others.

    Groups of one member are known, so that they are left out of targets.

    Args:
        data: Groups.
        seed: Of the random halves.
        share: The first half of every so many groups; 1 for all.
    """
    group, later = data.features().group, data.random_places(torch.Generator().manual_seed(seed))
    place = torch.where(group % share == 0, data.ordered_places(), later)
    return place < (data.group_sizes[group] / 2).ceil()


def shortened(data: GroupedDataset, seed: int) -> GroupedDataset:
    """At most 1,000 random members of each group: factors of groups need their dense covariance."""
    places = data.random_places(torch.Generator().manual_seed(seed))
    return data if int(data.group_sizes.max()) <= _MOST_MEMBERS else data.select(places < _MOST_MEMBERS)


def gaussian_elements(vae: FGPVAE) -> list[int]:
    """The places of Gaussian elements in y."""
    likelihood = vae.likelihood
    assert isinstance(likelihood, ColumnLikelihood)
    pairs = zip(likelihood.parts, likelihood.y_slices, strict=True)
    return [own.start for part, own in pairs if isinstance(part, GaussianElements)]


def _all_observed(data: GroupedDataset) -> bool:
    mask = data.members.y_mask
    return mask is None or bool(mask.any(0).all())
