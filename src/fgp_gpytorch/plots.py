"""Figures of a trained model and of a training run. Each function returns a Matplotlib figure and shows nothing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.models import GroupedVAE


def image_rows(
    rows: Sequence[tuple[str, Tensor]],
    columns: Sequence[str] | None = None,
    title: str = "",
    marked: Sequence[tuple[int, int]] = (),
) -> Figure:
    """Rows of images, each with a label.

    Args:
        rows: Labels and images in [0, 1], each (n, H, W) or (n, 1, H, W), grey (1 is ink), or (n, 3, H, W), RGB. Images
            of NaN are left blank.
        columns: Headings.
        title: Of the figure.
        marked: (row, column) of images to frame.

    Raises:
        ArgumentError: If images are not numeric, or an argument has another type.
        DataError: If images are complex.
        ShapeError: If there are no rows, or images have another shape.

    Examples:
        >>> digits = rotated_mnist()
        >>> degrees = [f"{angle:.0f}" for angle in digits.angles.rad2deg()]
        >>> figure = image_rows([("three", digits.truth([0])[0])], columns=degrees)
        >>> len(figure.axes)
        16
        >>> figure.savefig("three.png")
    """
    hint = 'Try [("truth", images)].'
    listed = list(check.instance(rows, "rows", (list, tuple), hint))
    for pair in listed:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ArgumentError(f"rows: expected pairs of a label and images, got {type(pair).__name__}. {hint}")
    rows = [(label, check.as_tensor(images, f"rows, images for {label!r}")) for label, images in listed]
    if not any(len(images) for _, images in rows if images.dim()):
        raise ShapeError(f"rows: expected at least one row of images, got none. {hint}")
    for label, images in rows:
        if images.is_complex():
            raise DataError(f"rows: expected real numbers, got {images.dtype} for {label!r}. Try images.real.")
        if images.dim() != 3 and not (images.dim() == 4 and images.shape[1] in (1, 3)):
            raise ShapeError(
                f"rows: expected images (n, H, W), (n, 1, H, W) or (n, 3, H, W), got {tuple(images.shape)} for "
                f"{label!r}. Try one row for each group."
            )
    count = max(len(images) for _, images in rows)
    if columns is not None:
        hint = f"Try {[str(c) for c in range(count)]}."
        if len(check.instance(columns, "columns", (list, tuple), hint)) != count:
            expected = f"{count} headings, one for each image of a row"
            raise ShapeError(f"columns: expected {expected}, got {len(columns)}. {hint}")
    check.instance(title, "title", str, 'Try "".')
    for pair in check.instance(marked, "marked", (list, tuple), "Try [(0, 1)]."):
        check.instance(pair, "marked", tuple, "Try [(0, 1)], pairs of a row and a column.")
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(0.62 * count + 1.5, 0.66 * len(rows) + 0.7), layout=layout)
    grid = np.asarray(figure.subplots(len(rows), count, squeeze=False))
    for r, (label, images) in enumerate(rows):
        for c in range(count):
            axes: Axes = grid[r, c]
            axes.set_xticks([])
            axes.set_yticks([])
            if c >= len(images) or bool(torch.isnan(images[c]).all()):
                axes.axis("off")
            else:
                image = images[c].movedim(0, -1).clamp(0, 1) if images[c].shape[:-2] == (3,) else images[c].squeeze(0)
                axes.imshow(image.detach().cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
            color, width = ("tab:red", 2.0) if (r, c) in marked else ("0.8", 0.5)
            for spine in axes.spines.values():
                spine.set(edgecolor=color, linewidth=width)
            if r == 0 and columns is not None:
                axes.set_title(columns[c], fontsize=7, pad=2)
            if c == 0:
                axes.axis("on")
                axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def latent_paths(model: GroupedVAE, context: GroupedBatch | GroupedDataset, x: Tensor, x_label: str = "x") -> Figure:
    """Latent channels of one group against its auxiliary feature: posterior mean and two standard deviations.

    The figure has a panel for each local channel, and one for the values of all global channels. The dots are the
    encoder's pseudo-observations at the context's members, where they are inside the panel.

    Args:
        model: A trained model with one auxiliary feature.
        context: One group.
        x: Values of the feature, (Q*,).
        x_label: Name and unit of the feature.

    Raises:
        ArgumentError: If `x` is not numeric, or the model is none of this package, or is conditioned on data.
        DataError: If `x` is empty or not finite.
        GroupError: If the context has several groups.
        ShapeError: If the context has several features.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(2)])
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), prior)
        >>> data = GroupedDataset(torch.rand(6, 5), torch.linspace(0, 3, 6), group=[0, 0, 0, 1, 1, 1])
        >>> figure = latent_paths(model, data[[0]], torch.linspace(0, 3, 50), x_label="years")
        >>> len(figure.axes)  # two local channels, and one panel of global ones
        3
    """
    check.instance(model, "model", GroupedVAE, "Try model.model of one that is conditioned on data.")
    x = check.finite(check.as_reals(x, "x").flatten(), "x")
    if not len(x):
        raise DataError("x: expected values of the feature, got none. Try torch.linspace(0, 1, 50).")
    check.instance(context, "context", (GroupedBatch, GroupedDataset), "Try data[0].")
    batch = context[:] if isinstance(context, GroupedDataset) else context
    if batch.num_groups != 1:
        raise GroupError(f"context: expected one group, got {batch.num_groups}. Try data[0].")
    if batch.x.shape[-1] != 1:
        raise ShapeError(
            f"context: expected one feature x, got {batch.x.shape[-1]}. Try model.predict and a figure of it."
        )
    with evaluation(model):
        posterior = model.infer(context)
        prediction = posterior.predict(x.to(posterior.x.device).reshape(1, -1, 1))
        mean, deviation = prediction.mean[0].cpu(), prediction.variance[0].sqrt().cpu()
        pseudo = model.encode(context)
        observed = slice(None) if pseudo.mask is None else pseudo.mask[0].cpu()
        encoded, variance = pseudo.mean[0].cpu()[observed], pseudo.variance[0].cpu()[observed]
    is_global = model.prior.is_global
    local, shared = ((~is_global).nonzero().flatten().tolist(), is_global.nonzero().flatten().tolist())
    panels = len(local) + bool(shared)
    columns = min(4, panels)
    figure = Figure(figsize=(3 * columns, 2 * math.ceil(panels / columns)), layout="constrained")
    grid = np.asarray(figure.subplots(math.ceil(panels / columns), columns, squeeze=False)).ravel()
    for axes, c in zip(grid, local, strict=False):
        _band(axes, x.cpu(), mean[:, c], deviation[:, c])
        axes.errorbar(
            posterior.x[0, :, 0].cpu()[observed].numpy(), encoded[:, c].numpy(), yerr=2 * variance[:, c].sqrt().numpy(),
            fmt="o", ms=3, lw=0.8, color="tab:orange", zorder=3,
        )  # fmt: skip
        low, high = (mean[:, c] - 3 * deviation[:, c]).min(), (mean[:, c] + 3 * deviation[:, c]).max()
        axes.set_ylim(float(low) - 0.3, float(high) + 0.3)
        axes.set_title(f"local channel {c}", fontsize=9)
        axes.set_xlabel(x_label, fontsize=8)
    if shared:
        axes = grid[len(local)]
        value, error = mean[0, shared].numpy(), 2 * deviation[0, shared].numpy()
        axes.errorbar(range(len(shared)), value, yerr=error, fmt="o", ms=4, capsize=3)
        drawn = not model.prior.couples_groups  # coupled priors depend on the other groups
        if drawn:
            prior_mean, prior_deviation = (part.cpu() for part in _prior_marginals(model, posterior.x))
            for position, c in enumerate(shared):
                low, high = prior_mean[c] - 2 * prior_deviation[c], prior_mean[c] + 2 * prior_deviation[c]
                axes.fill_between([position - 0.4, position + 0.4], float(low), float(high), color="0.92", zorder=0)
        axes.set_xticks(range(len(shared)), [str(c) for c in shared])
        axes.set_title(f"global channels{' (grey: prior, 2 sd)' * drawn}", fontsize=9)
        axes.set_xlabel("channel", fontsize=8)
    for axes in grid[panels:]:
        axes.axis("off")
    return figure


def training_curves(histories: Sequence[pd.DataFrame] | pd.DataFrame, kappa: float | None = None) -> Figure:
    """Training error, KL and multiplier against the epoch, one line for each run.

    Args:
        histories: The `history` of each run's `FitResult`, or of one.
        kappa: GECO's target, drawn into the first panel.

    Raises:
        ArgumentError: If `histories` are no tables, or `kappa` is no positive number.
        DataError: If there is no history, or one lacks a column.

    Examples:
        >>> history = pd.DataFrame({"epoch": [1, 2], "mse": [0.3, 0.1], "kl_local": 2.0, "kl_global": 1.0})
        >>> history["multiplier"] = 1.0
        >>> figure = training_curves([history, history.assign(mse=0.2)], kappa=0.02)  # two runs
        >>> [axes.get_title() for axes in figure.axes]
        ['training MSE per element', 'KL, nats per group', 'multiplier']
    """
    histories = [histories] if isinstance(histories, pd.DataFrame) else histories
    hint = "Try fit(...).history."
    for history in check.instance(histories, "histories", (list, tuple), hint):
        needed = {"epoch", "mse", "kl_local", "kl_global", "multiplier"}
        if absent := needed - set(check.instance(history, "histories", pd.DataFrame, hint).columns):
            raise DataError(f"histories: expected the columns of a FitResult, got no {sorted(absent)}. {hint}")
    if not histories:
        raise DataError(f"histories: expected at least one, got none. {hint}")
    if kappa is not None:
        kappa = check.positive(kappa, "kappa", hint="Try 0.02.")
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    error, divergence, weight = figure.subplots(1, 3)
    for history in histories:
        error.plot(history["epoch"], history["mse"], lw=1)
        divergence.plot(history["epoch"], history["kl_local"], lw=1, color="tab:blue", label="local")
        divergence.plot(history["epoch"], history["kl_global"], lw=1, color="tab:green", label="global")
        weight.plot(history["epoch"], history["multiplier"], lw=1)
    error.set(title="training MSE per element", xlabel="epoch", yscale="log")
    if kappa is not None:
        error.axhline(kappa, color="0.5", ls="--", lw=0.8, label="kappa")
        error.legend(fontsize=8)
    divergence.set(title="KL, nats per group", xlabel="epoch")
    handles, labels = divergence.get_legend_handles_labels()
    divergence.legend(handles[:2], labels[:2], fontsize=8)
    weight.set(title="multiplier", xlabel="epoch", yscale="log")
    return figure


@torch.no_grad()
def _prior_marginals(model: GroupedVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Prior mean and standard deviation of each channel at the group's first member, (L,)."""
    marginal: Any = model.prior(x[:1, :1])
    return marginal.mean[0, 0], marginal.variance[0, 0].sqrt()


def _band(axes: Axes, x: Tensor, mean: Tensor, deviation: Tensor) -> None:
    axes.plot(x.numpy(), mean.numpy(), lw=1.2)
    axes.fill_between(x.numpy(), (mean - 2 * deviation).numpy(), (mean + 2 * deviation).numpy(), alpha=0.25)
