"""The figures of docs/results.md that compare systems, from the records and the models kept beside them.

    python benchmarks/figures.py [--out docs/images]

It trains nothing. What has no record yet is left out and named.
"""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

import table1
from evaluate import SIZES, has_both_kinds
from fgp_gpytorch import FGPVAE, GroupedBatch
from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.metrics._evaluation import global_channels
from fgp_gpytorch.plots import image_rows
from paper_tables import label
from systems import BUILD, ask, load

RESULTS = Path(__file__).parent.parent / "docs" / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
# the systems of Figure 1(a), from the paper's to the rest, and the block that each is taken from
SHOWN = [(name, block) for block in ("published", "best") for name in BUILD]


def models(folder: Path) -> dict[tuple[str, str], FGPVAE]:
    """Seed 0 of every system on equal views that has one."""
    found = {}
    for name, block in SHOWN:
        path = table1.path_of(folder, name, block, "equal", 0).with_suffix(".pt")
        if path.exists():
            found[name, block] = load(path)
        elif block == "best" or name in table1.PUBLISHED:
            print(f"no model of {name}, {block}", file=sys.stderr)
    return found


@torch.no_grad()
def all_angles(known: dict[tuple[str, str], FGPVAE], data: RotatedMNIST, part: str, positions: Sequence[int]) -> Figure:
    """The same digits by all systems, truth above them (Figure 1(a) and Figure D.1)."""
    degrees = [f"{math.degrees(angle):g}°" for angle in data.angles]
    x = data.angles.reshape(1, -1, 1).expand(len(positions), -1, -1)
    views = getattr(data, part)
    truth = data.truth(views.instance[list(positions)])
    generated: dict[str, Tensor] = {}
    for (name, block), model in known.items():
        asked = getattr(ask(model, data.train, data.test, data.extrapolation), part)
        if asked is not None:
            generator, held_out = asked
            generated[label(name, block)] = generator.generate(x, held_out.context[list(positions)])
    rows, marked = [], []
    for place, position in enumerate(positions):
        seen = torch.isin(data.angles, views.context[[position]].x[0, :, 0])
        rows.append(("truth", truth[place]))
        marked += [(len(rows) - 1, int(column)) for column in (~seen).nonzero()[:, 0]]
        rows += [(textwrap.fill(row, 22), images[place]) for row, images in generated.items()]
    what = "Digits of the training set" if part == "test" else "Digits never seen in training"
    return image_rows(rows, degrees, f"{what}; red: angles that were not given", marked)


@torch.no_grad()
def swaps(model: FGPVAE, data: RotatedMNIST, positions: Sequence[int]) -> Figure:
    """Local latents of the row's digit with global latents of the column's, at the held-out angle."""
    generator, views = ask(model, data.train, data.test, None).test  # pyright: ignore
    index = list(positions)
    prediction = generator.predict(views.x_new[index], views.context[index]).mean[:, 0]  # shape: (n, L)
    shared = global_channels(generator)
    count = len(index)
    z = torch.where(shared, prediction.expand(count, count, -1), prediction.unsqueeze(1).expand(count, count, -1))
    images = generator.likelihood.mean(generator._decode(z, views.x_new[index].expand(-1, count, -1)))
    blank = torch.full_like(images[:1, 0], math.nan)
    rows = [("global latents of", torch.cat([blank, views.y_new[index, 0]]))]
    rows += [(f"local of digit {r + 1}", torch.cat([views.y_new[index[r]], images[r]])) for r in range(count)]
    heads = ["truth", *(f"digit {c + 1}" for c in range(count))]
    return image_rows(rows, heads, "Local latents of the row's digit, global latents of the column's")


@torch.no_grad()
def one_example(model: FGPVAE, data: RotatedMNIST, positions: Sequence[int], draws: int, seed: int = 0) -> Figure:
    """Digits never seen, at all angles from a single image, and digits drawn from the prior."""
    degrees = [f"{math.degrees(angle):g}°" for angle in data.angles]
    x = data.angles.reshape(1, -1, 1)
    rows, marked = [], []
    for position in positions:
        context = data.extrapolation.context[[position]]
        alone = GroupedBatch.from_tensors(context.y[:, :1], context.x[:, :1])
        given = torch.isin(data.angles, alone.x[0, :, 0])
        rows.append(("truth", data.truth(data.extrapolation.instance[[position]])[0]))
        marked += [(len(rows) - 1, int(column)) for column in given.nonzero()[:, 0]]
        rows.append(("from one image", model.generate(x, alone)[0]))
    torch.manual_seed(seed)
    invented = model.generate(x.expand(draws, -1, -1))
    rows += [(f"drawn {number + 1}", images) for number, images in enumerate(invented)]
    return image_rows(rows, degrees, "Digits never seen, from a single image (red), and digits of the prior", marked)


def scaling_figure(records: list[dict[str, Any]]) -> Figure:
    """Error and time per epoch against the size of the data (Figure 1(b))."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    error, seconds = figure.subplots(1, 2)
    records = sorted(records, key=lambda r: r["images"])
    images = np.array([r["images"] for r in records])
    tested = [r for r in records if r["test_mse"] is not None]
    for epochs in sorted({r["budget"]["epochs"] for r in tested}, reverse=True):
        part = [r for r in tested if r["budget"]["epochs"] == epochs]
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


def context_figure(folder: Path) -> Figure:
    """Error against the number of images in the context, of seen and of unseen digits."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = dict(zip(("test", "extrapolation"), figure.subplots(1, 2, sharey=True), strict=True))
    records = table1.read(folder)
    palette = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    palette = palette[:14] + palette[16:]  # without the greys, which are the reference's
    colors = dict(zip(BUILD, palette[::2] + palette[1::2], strict=False))
    for name, block in SHOWN:
        runs = records.get(("equal", block, name), [])
        for part, axis in axes.items():
            values = [[run["evaluation"].get(f"{part} MSE from {size} views") for size in SIZES] for run in runs]
            if values and values[0][0] is not None:
                line = "o-" if block == "best" else "o:"
                axis.plot(
                    SIZES, np.mean(values, axis=0), line, color=colors[name], ms=3, lw=1, label=label(name, block)
                )
    rows = json.loads((RESULTS / "reference_rows.json").read_text())
    for part, axis in axes.items():
        axis.axhline(
            rows[part]["mean_image_at_nearest_angles"], color="0.5", ls="--", lw=1, label="mean image, nearest angles"
        )
        title = "seen digits" if part == "test" else "unseen digits"
        axis.set(title=f"{title}: test MSE per pixel", xlabel="images in the context", xticks=SIZES, ylim=(0, 0.13))
    figure.legend(*axes["extrapolation"].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=table1.RECORDS, help="folder of table1.py's records")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = rotated_mnist()
    known = models(options.records)
    figures: dict[str, Figure] = {"context_sizes": context_figure(options.records)}
    if known:
        figures["systems_test"] = all_angles(known, data, "test", (20, 200))
        figures["systems_unseen"] = all_angles(known, data, "extrapolation", (3, 30))
    for (name, block), model in known.items():
        if name == "FGP-VAE, coregionalized, any context":
            figures["one_example"] = one_example(model, data, (0, 8, 16), 5)
        if name == "FGP-VAE" and has_both_kinds(model):
            figures[f"swap_{block}"] = swaps(model, data, (0, 50, 100, 150, 200))
    scaling = [json.loads(path.read_text()) for path in sorted((RESULTS / "scaling").glob("*.json"))]
    if scaling:
        figures["scaling"] = scaling_figure(scaling)
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=110)
        print(f"wrote {options.out / name}.png")


if __name__ == "__main__":
    main()
