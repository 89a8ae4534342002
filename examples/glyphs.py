"""Images with two features: letters by the weight and the width of the type, 17 styles from 3.

Every letter is a group, and its members are 20 styles of Roboto Flex (OFL 1.1). Some letters, with all their accents,
are held out. The font is an npm package, downloaded once; it needs npm and `pip install fonttools brotli pillow`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import gpytorch
import pandas as pd
import torch

from fgp_gpytorch import (
    FGPVAE,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedDataset,
    HeldOut,
    LocalChannels,
    fit,
)
from fgp_gpytorch.means import AdditiveMean, PiecewiseLinearMean
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder
from fgp_gpytorch.plots import image_rows

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks is a package of the repository
from benchmarks.league import sources, tasks

LOCAL, GLOBAL = 16, 32


def grouped(rows: pd.DataFrame) -> GroupedDataset:
    """Images in [0, 1] by letter. Weight and width are scaled to [-1, 1]."""
    pixels = torch.tensor(rows.filter(regex=r"^p\d{4}$").to_numpy(), dtype=torch.float32)
    style = torch.tensor(rows[["weight", "width"]].to_numpy())
    x = (style - torch.tensor([550.0, 88.0])) / torch.tensor([450.0, 63.0])
    return GroupedDataset(pixels.reshape(-1, 1, 28, 28), x, rows["glyph"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/glyphs"), help="folder of the picture and the model")
    parser.add_argument("--epochs", type=int, default=100, help="of training, 3 minutes on one core")
    parser.add_argument("--short", action="store_true", help="plain letters only, and few epochs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    table = sources.glyphs()
    rows, new = table.rows, tasks.fold_of_rows(table) == 0
    if options.short:
        rows, new = rows[rows["glyph"].str.isascii()], new[rows["glyph"].str.isascii()]
    given = pd.MultiIndex.from_frame(rows[table.x]).isin(tasks.GIVEN_STYLES)
    train, context, target = (grouped(rows[which]) for which in (~new, new & given, new & ~given))

    torch.manual_seed(0)
    shape = torch.Size([LOCAL])
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2, batch_shape=shape)
    mean = AdditiveMean([PiecewiseLinearMean(train.features().x[:, axis].unique(), shape, axis) for axis in (0, 1)])
    prior = FactorizedGPPrior([LocalChannels(LOCAL, kernel, mean), GlobalChannels(GLOBAL)])
    encoder = ConvEncoder(LOCAL + GLOBAL, widths=(16, 32), hidden=(128,), padding=1)
    decoder = ConvDecoder(LOCAL + GLOBAL, widths=(32, 16), hidden=(128,), transposed=True)
    model = FGPVAE(encoder, decoder, prior, member_dropout=(0, 0.9))
    fit(
        model, train, epochs=20 if options.short else options.epochs, learning_rate=2e-3, lr_schedule="cosine", seed=0,
        folder=None, progress=False, accelerator="cpu", devices=1,
    )  # fmt: skip
    model.save(options.out / "model.pt")

    split = HeldOut.of(context, target)
    error, batch = held_out_mse(model, split), split[list(range(len(split)))]
    nearest = torch.cdist(batch.x_new, batch.context.x.to(batch.x_new)).argmin(-1)
    repeated = batch.context.y.gather(1, nearest[..., None, None, None].expand_as(batch.y_new))
    plain = (repeated - batch.y_new).square().mean().item()
    print(f"17 styles of {len(split)} new letters from 3: squared error of a pixel {error:.4f}")
    print(f"the image of the nearest given style instead: {plain:.4f}")

    shown = split[list(range(0, len(split), max(1, len(split) // 6)))[:6]]
    made = model.generate(shown.x_new, context=shown.context).detach()
    pictures = []
    for known, drawn, true in zip(shown.context.y, made, shown.y_new, strict=True):
        pictures += [("model", torch.cat([known, drawn])), ("true", torch.cat([known, true]))]
    framed = [(row, column) for row in range(len(pictures)) for column in range(3)]
    image_rows(pictures, title="three styles given (red), 17 made", marked=framed).savefig(options.out / "glyphs.png")
    return int(error >= plain and not options.short)


if __name__ == "__main__":
    raise SystemExit(main())
