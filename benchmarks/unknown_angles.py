"""Angles that were not observed, inferred (the paper's Appendix C): how much is lost, and how well are they found?

    python benchmarks/unknown_angles.py [--known 1 0.5 0.1 0.02 0] [--epochs 300] [--jobs 2]
    python benchmarks/unknown_angles.py --quick    # two epochs of everything, into runs/unknown_angles_quick

Of the 3960 training images of the main experiment the angles of a random part are kept and the rest is hidden. The
FGP-VAE at its best settings learns with an angle encoder beside it; tested are the held-out angle of training digits,
given views whose hidden angles the model infers, and of digits never seen, of none of whose views the angle is given.
With no angle known the circle may come out turned or mirrored: it is brought to the true one by the turn and the
reflection that fit the training images best, which uses their true angles for that and for nothing else.
"""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness
from fgp_gpytorch import GroupedDataset, LatentAngleFGPVAE
from fgp_gpytorch.datasets import HeldOutViews, rotated_mnist
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import PaperFeatures
from systems import fgp_vae, train
from table1 import FGP_VAE_BEST

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "unknown_angles"
EPOCHS = 300
SUPERVISION = 100.0  # set once: the order of a tenth of the images, as Kingma et al. (2014) have it


def hidden(data: GroupedDataset, known: float, seed: int) -> GroupedDataset:
    """The data with a random part of the angles known, group by group as before."""
    rows = data.flat()
    order = torch.rand(len(rows.x), generator=torch.Generator().manual_seed(seed)).argsort()
    x_mask = torch.zeros(len(rows.x), dtype=torch.bool)
    x_mask[order[: round(known * len(rows.x))]] = True
    return GroupedDataset(rows.y, rows.x, data.labels[rows.group.numpy()], x_mask=x_mask)


def on_circle(difference: Tensor) -> Tensor:
    """An angle as the nearest one of -pi to pi."""
    return (difference + math.pi).remainder(2 * math.pi) - math.pi


def alignment(guess: Tensor, truth: Tensor) -> tuple[float, float]:
    """The sign s and turn t for which s * guess + t is nearest to the truth on the circle."""
    best = (0.0, 1.0, 0.0)
    for sign in (1.0, -1.0):
        z = torch.exp(1j * (truth - sign * guess)).mean()
        best = max(best, (abs(z).item(), sign, torch.angle(z).item()))
    return best[1], best[2]


def run(known: float, seed: int, epochs: int) -> dict[str, Any]:
    recipe = dataclasses.replace(FGP_VAE_BEST, epochs=epochs)
    data = rotated_mnist()
    train_data = hidden(data.train, known, seed)
    torch.manual_seed(seed)
    base = fgp_vae(recipe, len(train_data))
    model = LatentAngleFGPVAE(
        base.encoder, base.decoder, base.prior, PaperFeatures(2), base.likelihood, base.member_dropout,
        supervision=SUPERVISION,
    )  # fmt: skip
    training = train(model, recipe, train_data, seed)
    truth = data.train.flat().x[:, 0]
    with torch.no_grad():
        guess = model.infer_angles(train_data)
        batch = train_data[:]
        found = guess.mean[batch.mask]
        unseen = data.extrapolation.context[:]
        found_unseen = model.infer_angles(unseen).mean[unseen.mask]
    sign, turn = alignment(found, truth) if known == 0 else (1.0, 0.0)

    def error(inferred: Tensor, right: Tensor) -> float:
        return math.degrees(on_circle(sign * inferred + turn - right).abs().mean().item())

    def part(views: HeldOutViews, context: GroupedDataset) -> HeldOutViews:
        """The view to predict in the model's own turn and reflection, from contexts with hidden angles."""
        return dataclasses.replace(views, context=context, x_new=(sign * (views.x_new - turn)).remainder(2 * math.pi))

    is_hidden = train_data.flat().x[:, 0].isnan()
    return {
        "known": known, "seed": seed, "recipe": dataclasses.asdict(recipe),
        "test_mse": held_out_mse(model, part(data.test, train_data.subset(range(len(data.test.context))))),
        "extrapolation_mse": held_out_mse(model, part(data.extrapolation, hidden(data.extrapolation.context, 0.0, 0))),
        "extrapolation_mse_of_known": held_out_mse(model, data.extrapolation) if known > 0 else None,
        "hidden_degrees": error(found[is_hidden], truth[is_hidden]) if bool(is_hidden.any()) else None,
        "unseen_degrees": error(found_unseen, unseen.x[unseen.mask][:, 0]),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch,
        "date": time.strftime("%Y-%m-%d"), "commit": harness.commit(),
    }  # fmt: skip


def main() -> int:
    return harness.records_main(
        __file__, __doc__, "known", [1.0, 0.5, 0.1, 0.02, 0.0], EPOCHS, RECORDS, quick=5, run=run,
        file_of=lambda known: f"known_{known:g}",
        say=lambda r: f"known {r['known']:g}, seed {r['seed']}: test MSE {r['test_mse']:.4f}, extrapolation "
        f"{r['extrapolation_mse']:.4f}, unseen angles off by {r['unseen_degrees']:.1f} degrees",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
