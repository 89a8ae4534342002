"""The figures of the pages, from the records and the kept models. Nothing is trained.

python -m benchmarks.figures
"""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from benchmarks.evaluation import SIZES, has_both_kinds
from benchmarks.records import HERE, Plan, Record
from benchmarks.studies import presets, table1
from benchmarks.systems import BUILD, ask, decode, load
from benchmarks.tables import label, systems_of
from fgp_gpytorch import FGPVAE, GroupedBatch
from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.plots import image_rows, latent_paths

COLORS = 64  # of a picture's palette


@torch.no_grad()
def all_angles(
    models: dict[tuple[str, str], FGPVAE], data: RotatedMNIST, part: str, positions: Sequence[int]
) -> Figure:
    """Draw the same digits by all systems, with the truth above (Figure 1(a) and Figure D.1)."""
    x = data.angles.reshape(1, -1, 1).expand(len(positions), -1, -1)
    views = getattr(data, part)
    truth = data.truth(views.labels[list(positions)])
    generated: dict[str, Tensor] = {}
    for (block, name), model in models.items():
        asked = getattr(ask(model, data.train, data.test, data.extrapolation), part)
        if asked is not None:
            generator, held_out = asked
            generated[label(name, block)] = generator.generate(x, held_out.context[list(positions)])
    rows, marked = [], []
    for place, position in enumerate(positions):
        seen = torch.isin(data.angles, views.context[[position]].x[0, :, 0])
        rows.append(("truth", truth[place]))
        marked += [(len(rows) - 1, int(column)) for column in (~seen).nonzero()[:, 0]]
        rows += [(textwrap.fill(row, 20), images[place]) for row, images in generated.items()]
    what = "Digits of the training set" if part == "test" else "Digits never seen in training"
    return image_rows(rows, degrees_of(data), f"{what}; red: angles that were not given", marked)


@torch.no_grad()
def swaps(model: FGPVAE, data: RotatedMNIST, positions: Sequence[int]) -> Figure:
    """Draw local latents of the row's digit with global latents of the column's."""
    generator, views = ask(model, data.train, data.test, None).test  # pyright: ignore
    index = list(positions)
    prediction = generator.predict(views.x_new[index], views.context[index]).mean[:, 0]  # shape: (n, L)
    shared = generator.prior.is_global
    count = len(index)
    z = torch.where(shared, prediction.expand(count, count, -1), prediction.unsqueeze(1).expand(count, count, -1))
    images = decode(generator, z, views.x_new[index].expand(-1, count, -1))
    blank = torch.full_like(images[:1, 0], math.nan)
    rows = [("global latents of", torch.cat([blank, views.y_new[index, 0]]))]
    rows += [(f"local of digit {r + 1}", torch.cat([views.y_new[index[r]], images[r]])) for r in range(count)]
    heads = ["truth", *(f"digit {c + 1}" for c in range(count))]
    return image_rows(rows, heads, "Local latents of the row's digit, global latents of the column's")


@torch.no_grad()
def one_example(model: FGPVAE, data: RotatedMNIST, positions: Sequence[int], draws: int, seed: int = 0) -> Figure:
    """Draw digits never seen, at all angles from a single image, and new digits of the fitted distribution."""
    x = data.angles.reshape(1, -1, 1)
    rows, marked = [], []
    for position in positions:
        context = data.extrapolation.context[[position]]
        alone = GroupedBatch.from_tensors(context.y[:, :1], context.x[:, :1])
        given = torch.isin(data.angles, alone.x[0, :, 0])
        rows.append(("truth", data.truth(data.extrapolation.labels[[position]])[0]))
        marked += [(len(rows) - 1, int(column)) for column in given.nonzero()[:, 0]]
        rows.append(("from one image", model.generate(x, alone)[0]))
    model.fit_groups(data.train)
    torch.manual_seed(seed)
    invented = model.sample_groups(x.expand(draws, -1, -1))
    rows += [(f"drawn {number + 1}", images) for number, images in enumerate(invented)]
    return image_rows(
        rows,
        degrees_of(data),
        "Digits never seen, from a single image (red), and new digits that the model draws",
        marked,
    )


def scaling_figure(records: list[Record]) -> Figure:
    """Draw error and time per epoch against the size of the data (Figure 1(b))."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    error, seconds = figure.subplots(1, 2)
    records = sorted(records, key=lambda r: r["images"])
    images = np.array([r["images"] for r in records])
    tested = [r for r in records if r["test_mse"] is not None]
    for epochs in sorted({r.settings["budget"]["epochs"] for r in tested}, reverse=True):
        part = [r for r in tested if r.settings["budget"]["epochs"] == epochs]
        label = f"{epochs} epoch{'s' * (epochs > 1)}"
        error.plot([r["images"] for r in part], [r["test_mse"] for r in part], "o-", label=label)
    error.set(title="test MSE per pixel", xlabel="training images", xscale="log", ylim=(0, 0.04))
    error.legend(fontsize=8)
    seconds.plot(images, [r["seconds_per_epoch"] for r in records], "o", label="measured")
    line = records[0]["seconds_per_epoch"] / images[0] * images
    seconds.plot(images, line, color="0.5", lw=1, ls="--", label="proportional to the smallest")
    seconds.set(title="seconds per epoch", xlabel="training images", xscale="log", yscale="log")
    seconds.legend(fontsize=8)
    return figure


def context_figure(plan: Plan) -> Figure:
    """Draw the error against the number of images in the context, of seen and of unseen digits."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = dict(zip(("test", "extrapolation"), figure.subplots(1, 2, sharey=True), strict=True))
    palette = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    palette = palette[:14] + palette[16:]  # without the greys: the reference is grey
    colors = dict(zip(BUILD, palette[::2] + palette[1::2], strict=False))
    for block, name, runs in systems_of(plan):
        for part, axis in axes.items():
            values = [[run["evaluation"].get(f"{part} MSE from {size} views") for size in SIZES] for run in runs]
            if values and values[0][0] is not None:
                line = "o-" if block == "best" else "o:"
                axis.plot(
                    SIZES, np.mean(values, axis=0), line, color=colors[name], ms=3, lw=1, label=label(name, block)
                )
    for part, axis in axes.items():
        for record in plan.read("reference"):
            mean = record[part]["mean_image_at_nearest_angles"]
            axis.axhline(mean, color="0.5", ls="--", lw=1, label="mean image, nearest angles")
        title = "seen digits" if part == "test" else "unseen digits"
        axis.set(title=f"{title}: test MSE per pixel", xlabel="images in the context", xticks=SIZES, ylim=(0, 0.13))
    figure.legend(*axes["extrapolation"].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


@torch.no_grad()
def unseen_digits(model: FGPVAE, data: RotatedMNIST, positions: Sequence[int]) -> Figure:
    """Draw digits never seen, the truth and the model's answer from 11 views."""
    title = "Digits never seen in training, through all angles (red: angles that were not given)"
    rows, marked = [], []
    for position in positions:
        context = data.extrapolation.context[[position]]
        seen = torch.isin(data.angles, context.x[0, :, 0])
        rows.append(("truth", data.truth(data.extrapolation.labels[[position]])[0]))
        rows.append(("model", model.generate(data.angles.reshape(1, -1, 1), context)[0]))
        marked += [(len(rows) - 1, int(column)) for column in (~seen).nonzero()[:, 0]]
    return image_rows(rows, degrees_of(data), title, marked)


def degrees_of(data: RotatedMNIST) -> list[str]:
    """The angles as headings."""
    return [f"{math.degrees(angle):g}°" for angle in data.angles]


def figures(plan: Plan) -> dict[str, Figure]:
    """Draw every figure for which there are records or models."""
    data, models = rotated_mnist(), table1.models(plan)
    found = {"context_sizes": context_figure(plan)}
    if records := plan.read("scaling"):
        found["scaling"] = scaling_figure(records)
    if models:
        found["systems_test"] = all_angles(models, data, "test", (20, 200))
        found["systems_unseen"] = all_angles(models, data, "extrapolation", (3, 30))
    if (path := presets.weights(plan, "any_context")).exists():
        found["one_example"] = one_example(load(path), data, (0, 8, 16), 5)
    if model := models.get(("best", "FGP-VAE")):
        found["unseen_digits"] = unseen_digits(model, data, range(0, 40, 8))
        fine = torch.linspace(0, 2 * math.pi, 181, dtype=torch.float64)
        found["latents"] = latent_paths(model, data.test.context[[0]], fine, "angle (radians)")
        if has_both_kinds(model):
            found["swap_best"] = swaps(model, data, (0, 50, 100, 150, 200))
    return found


def draw(plan: Plan) -> None:
    """Write the figures to docs/images, or to the plan's own folder, with a small palette."""
    folder = (HERE.parent if plan.folder == HERE else plan.folder) / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(plan).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=80 if name.startswith("systems") else 100)
        picture = Image.open(buffer).convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE)
        picture.save(folder / f"{name}.png", optimize=True)
        print(f"wrote {folder / name}.png")


if __name__ == "__main__":
    draw(Plan())
