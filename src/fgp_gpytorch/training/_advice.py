"""Warnings of runs that are likely to be worthless. Each names the cause and the cure."""

import math
from collections.abc import Iterator

import pandas as pd
import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation, generators_restored
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.likelihoods import DiagonalGaussianLikelihood, GaussianLikelihood
from fgp_gpytorch.models import CVAE, GroupedVAE
from fgp_gpytorch.nets import MLP
from fgp_gpytorch.objectives import ELBO
from fgp_gpytorch.prior import ChannelBlock, LatentPosterior
from fgp_gpytorch.training.settings import RunSettings

_GROUPS = 64  # of the training data that are looked at
_VALUES = 2**22  # elements of y in them; one group may have more
_LARGEST_SCALE = 20.0  # root mean square that networks take as it is
_LARGEST_COUNT = 1000.0  # root mean square under a likelihood of counts or others, which may have a scale of its own
_LEAST_KL = 0.1  # nats a group
_FEW_STEPS = 500
_LEAST_EPOCHS = 20  # fewer do not tell a trend from noise
_APART, _TOGETHER = 10.0, 0.01  # distances in lengthscales


# columns


def warn_of_raw_units(model: GroupedVAE, train: GroupedDataset) -> None:
    """Warn of columns of y or x in raw units: networks start near 0, so training may leave the latents unused."""
    gaussian = type(model.likelihood) in (GaussianLikelihood, DiagonalGaussianLikelihood)
    with generators_restored():  # a lazy data set may draw numbers
        batch = _first_groups(train)
    count = batch.observed.sum((0, 1)).clamp_min(1)
    scale = (batch.y.double().square().masked_fill(~batch.observed, 0.0).sum((0, 1)) / count).sqrt()
    found = _large_columns(scale, _LARGEST_SCALE if gaussian else _LARGEST_COUNT)
    if found:
        cure = "(y - y.mean(0)) / y.std(0), or grey levels in [0, 1]" if gaussian else "smaller units, or an encoder "
        cure = cure if gaussian else cure + "that takes logarithms"
        check.warn(
            f"y: expected columns of a scale near 1, got a root mean square of {found}. Networks start near 0, so "
            f"training may end at the mean of y. Try {cure}.",
        )
    if isinstance(model, CVAE) and isinstance(model.features, nn.Identity | nn.Linear | MLP):
        found = _large_columns(_features(train)[0].square().nanmean(0).sqrt(), _LARGEST_SCALE)
        if found:
            check.warn(
                f"x: expected features of a scale near 1 for networks, got a root mean square of {found}. Try "
                "(x - x.mean(0)) / x.std(0), or features=FourierFeatures() for an angle.",
            )


def _first_groups(train: GroupedDataset) -> GroupedBatch:
    """At most 64 groups, and few large ones: a lazy data set need not fit in memory."""
    sizes = train.group_sizes[:_GROUPS].cummax(0).values * train.y_shape.numel()
    small = sizes * torch.arange(1, len(sizes) + 1, device=sizes.device) <= _VALUES
    return train[range(max(1, int(small.sum())))]


def _large_columns(scale: Tensor, limit: float) -> str:
    """The columns whose scale (*shape) is above a limit, largest first; at most three of them."""
    places = (scale.nan_to_num(0.0) > limit).nonzero().tolist()
    places.sort(key=lambda place: -float(scale[tuple(place)]))
    words = [f"{float(scale[tuple(p)]):.3g}" + (f" in column {', '.join(map(str, p))}" if p else "") for p in places]
    return " and ".join(words[:3]) + (f" (and in {len(words) - 3} more)" if len(words) > 3 else "")


def _features(train: GroupedDataset) -> tuple[Tensor, Tensor]:
    """x (N, D) in float64 and the group of each member (N,), of the first groups."""
    x, group = train.features()
    some = group < _GROUPS
    return x[some].double(), group[some]


# lengthscales


def warn_of_lengthscales(model: GroupedVAE, train: GroupedDataset) -> None:
    """Warn of kernels of the prior under which the members of a group are independent, or all equal.

    A kernel of several lengthscales counts if all its channels are so. A kernel on the result of a network, or inside a
    kernel of another library, is not looked at.
    """
    members = None
    for kernel, dims in _kernels(model.prior):
        members = _members_of_groups(train) if members is None else members
        advice = _advice_of(kernel, [group[:, dims] for group in members]) if members else None
        if advice is not None:
            check.warn(advice)


def _kernels(prior: nn.Module) -> Iterator[tuple[Kernel, list[int] | slice]]:
    """The kernels on x below a prior, and the features that each takes."""
    for block in prior.modules():
        if isinstance(block, ChannelBlock):
            for kernel in _outermost(block):
                yield from _parts(kernel, slice(None))


def _outermost(module: nn.Module) -> Iterator[Kernel]:
    for child in module.children():
        if isinstance(child, Kernel):
            yield child
        else:
            yield from _outermost(child)


def _parts(
    kernel: Kernel, dims: list[int] | slice, selected: bool = False
) -> Iterator[tuple[Kernel, list[int] | slice]]:
    own = kernel.active_dims
    if isinstance(own, Tensor) and not selected:  # positions among the features of the kernel around it
        dims = own.tolist() if isinstance(dims, slice) else [dims[i] for i in own.tolist()]
    if isinstance(kernel, ScaleKernel):
        yield from _parts(kernel.base_kernel, dims, selected=True)  # it has the active_dims of its kernel
    elif isinstance(kernel, AdditiveKernel | ProductKernel):
        for part in kernel.kernels:
            assert isinstance(part, Kernel)
            yield from _parts(part, dims)
    else:
        yield kernel, dims


def _members_of_groups(train: GroupedDataset) -> list[Tensor]:
    """x (Q, D) of the known members of some groups, those that have several."""
    x, group = _features(train)
    known = ~x.isnan().any(-1)
    x, group = x[known], group[known]
    return [own for own in (x[group == g] for g in group.unique()[:16]) if len(own) > 1]


def _advice_of(kernel: Kernel, members: list[Tensor]) -> str | None:
    name = type(kernel).__name__
    period = getattr(kernel, "period_length", None)
    if isinstance(period, Tensor):
        raw = getattr(kernel, "raw_period_length", period)
        neighbours, _ = _distances(members, torch.ones(1, dtype=torch.double))
        largest = float(period.detach().max())
        if raw.requires_grad and neighbours > _APART * largest:
            return (
                f"prior: expected a period of {name} above the distance of neighbouring members, which is "
                f"{neighbours:.3g}, got {largest:.3g}. Members have random phases, and its gradient finds no period. "
                f"Try kernel.period_length = the period in units of x, or x / {neighbours:.2g}."
            )
        return None
    if not kernel.has_lengthscale or kernel.lengthscale is None:
        return None
    scales = kernel.lengthscale.detach().double().cpu().flatten(0, -2)  # shape: (J, 1 or D)
    if scales.shape[-1] not in (1, members[0].shape[-1]):
        return None  # of inputs that are no columns of x
    neighbours, _ = _distances(members, scales.amax(0))
    _, spread = _distances(members, scales.amin(0))
    plain = _distances(members, torch.ones(1, dtype=torch.double))
    if neighbours > _APART:
        return (
            f"prior: expected a lengthscale of {name} near the distance of neighbouring members, which is "
            f"{plain[0]:.3g}, got {float(scales.max()):.3g}. All members are independent, and training will not change "
            f"that. Try x / {plain[0]:.2g}, or kernel.lengthscale = {3 * plain[0]:.2g}."
        )
    if 0 < spread < _TOGETHER:
        return (
            f"prior: expected a lengthscale of {name} near the spread of x in a group, which is {plain[1]:.3g}, got "
            f"{float(scales.min()):.3g}. All members of a group are equal, as in a global channel. Try x / "
            f"{plain[1]:.2g}, or kernel.lengthscale = {plain[1] / 3:.2g}."
        )
    return None


def _distances(members: list[Tensor], scales: Tensor) -> tuple[float, float]:
    """Distance of a member to the nearest one elsewhere, and the extent of a group: medians, in lengthscales.

    Both are 0 if the members of each group lie at one place.
    """
    nearest, farthest = [], []
    for x in members:
        rows = x[:: max(1, len(x) // 64)].cpu() / scales
        # not by matrix products, which lose the digits of dates in seconds
        apart = torch.cdist(rows, x.cpu() / scales, compute_mode="donot_use_mm_for_euclid_dist")
        some = (apart > 0).any(-1)
        nearest.append(apart.masked_fill(apart == 0, math.inf).amin(-1)[some])
        farthest.append(apart.max())
    if not sum(len(part) for part in nearest):
        return 0.0, 0.0
    return float(torch.cat(nearest).median()), float(torch.stack(farthest).median())


# after training


def kl_of_channels(model: GroupedVAE, train: GroupedDataset) -> Tensor | None:
    """Mean KL of each channel over some training groups, nats a group, (L,); None if the prior couples groups."""
    if model.prior.couples_groups or not train.num_elements:
        return None
    with evaluation(model, seed=0) as device:
        posterior = model.infer(_first_groups(train).to(device))
        return posterior.kl_channels.mean(0).cpu() if isinstance(posterior, LatentPosterior) else None


def warn_of_unused_channels(model: GroupedVAE, history: pd.DataFrame, kl: Tensor | None, restored: int | None) -> None:
    """Warn if no channel carries information, or only global ones.

    Args:
        model: The trained model.
        history: Of the run. It has the KL of a model whose prior couples groups.
        kl: `kl_of_channels`.
        restored: The epoch that was restored, None for the last one.
    """
    channels = model.prior.num_channels
    if kl is None:
        if restored == 0:
            return
        row = history.iloc[-1 if restored is None else restored - 1]
        unused = torch.full((channels,), bool(row.kl_local + row.kl_global < _LEAST_KL))
    else:
        unused = kl < _LEAST_KL
    local = ~model.prior.is_global
    takes_x = isinstance(model, CVAE)
    if bool(unused.all()):
        which, effect = f"all {channels} channels" if channels > 1 else "the only channel", "y is predicted by its mean"
        effect += " at each x" if takes_x else ""
    elif bool(local.any()) and bool(unused[local].all()) and not takes_x:
        which, effect = f"all {int(local.sum())} local channels", "x has no effect on the predictions of a group"
    else:
        return
    cure = "kl_warmup_steps=, more steps, standardised columns of y, or a lengthscale near the spacing of x"
    if isinstance(model.likelihood, DiagonalGaussianLikelihood):
        cure = f"DiagonalGaussianLikelihood(y_shape, variance=0.01), {cure}"
    check.warn(
        f"channels: expected some that carry information, got {which} with a KL below {_LEAST_KL} nats a group: "
        f"{effect}. Try {cure}.",
    )


def warn_of_few_steps(settings: RunSettings, history: pd.DataFrame, steps: int, best_epoch: int | None) -> None:
    """Warn if a run ended after few steps that `epochs` counted, while its loss was still falling.

    Args:
        settings: Of the run.
        history: Of the run.
        steps: Steps of the optimizer, including those before a resume.
        best_epoch: The best epoch by validation. None without validation data.
    """
    objective = settings.objective
    stopped_early = settings.epochs is None or len(history) < settings.epochs
    if steps >= _FEW_STEPS or settings.max_steps is not None or stopped_early or not isinstance(objective, ELBO):
        return
    loss = objective.beta * (history.kl_local + history.kl_global) - history.log_likelihood
    if settings.kl_warmup_steps is not None:  # before, it is another loss
        loss = loss[math.ceil(settings.kl_warmup_steps * len(history) / steps) :]
    window = len(loss) // 10
    if len(loss) < _LEAST_EPOCHS or (best_epoch is not None and best_epoch <= len(history) - window):
        return
    last, before = loss[-window:], loss[-2 * window : -window]
    error = math.sqrt((last.var() + before.var()) / window)
    if before.mean() - last.mean() > 3 * error > 0:
        check.warn(
            f"epochs: expected at least {_FEW_STEPS} steps or a loss that has settled, got {steps} steps in "
            f"{len(history)} epochs, and a loss that still falls. Try epochs={_enough(len(history), steps)}, "
            "max_steps=, or a smaller batch_size.",
        )


def _enough(epochs: int, steps: int) -> int:
    """Epochs of twice the few steps, to two digits."""
    return int(float(f"{2 * _FEW_STEPS * epochs / max(steps, 1):.1e}"))
