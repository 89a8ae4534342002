"""Angles that were not observed, inferred (the paper's Appendix C).

Of the 3960 training images the angles of a random part are kept, and the others are hidden. The FGP-VAE at its best
settings learns an angle encoder. It is tested at the held-out angle of training digits, with hidden angles inferred,
and on digits never seen, with all angles inferred. If no angle is known, the circle may come out turned or mirrored.
The turn and the reflection that fit the training images best bring it to the true one.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import Key, Plan, Record
from benchmarks.studies.table1 import FGP_VAE_BEST
from benchmarks.study import Study
from benchmarks.systems import fgp_vae, image_features, train
from fgp_gpytorch import GroupedDataset, LatentAngleFGPVAE
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.metrics import held_out_mse

EPOCHS = 300
KNOWN = (1.0, 0.5, 0.1, 0.02, 0.0)
SUPERVISION = 100.0  # not tuned; the order of a tenth of the images, as in Kingma et al. (2014)


def hidden(data: GroupedDataset, known: float, seed: int) -> GroupedDataset:
    """Return the data with a random part of the angles known. The groups stay the same."""
    rows = data.flat()
    order = torch.rand(len(rows.x), generator=torch.Generator().manual_seed(seed)).argsort()
    x_mask = torch.zeros(len(rows.x), dtype=torch.bool)
    x_mask[order[: round(known * len(rows.x))]] = True
    return GroupedDataset(rows.y, rows.x, data.labels[rows.group.numpy()], x_mask=x_mask)


def on_circle(difference: Tensor) -> Tensor:
    """Return an angle in -pi to pi."""
    return (difference + math.pi).remainder(2 * math.pi) - math.pi


def alignment(guess: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the sign s and turn t that bring s * guess + t nearest to the truth on the circle."""
    best = (0.0, 1.0, 0.0)
    for sign in (1.0, -1.0):
        z = torch.exp(1j * (truth - sign * guess)).mean()
        best = max(best, (abs(z).item(), sign, torch.angle(z).item()))
    return best[1], best[2]


def keys(plan: Plan) -> list[Key]:
    return [
        {"known": known, "seed": seed}
        for seed in range(plan.seeds or 1)
        for known in ((0.5, 0.0) if plan.quick else KNOWN)
    ]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    known, seed = key["known"], key["seed"]
    recipe = dataclasses.replace(FGP_VAE_BEST, epochs=2 if plan.quick else EPOCHS)
    data = rotated_mnist()
    train_data = hidden(data.train, known, seed)
    torch.manual_seed(seed)
    base = fgp_vae(recipe, len(train_data))
    model = LatentAngleFGPVAE(
        base.encoder, base.decoder, base.prior, image_features(2), base.likelihood, base.member_dropout,
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

    def part(views: HeldOut, context: GroupedDataset) -> HeldOut:
        """Views to predict in the model's own turn and reflection, from contexts with hidden angles."""
        return dataclasses.replace(views, context=context, x_new=(sign * (views.x_new - turn)).remainder(2 * math.pi))

    is_hidden = train_data.flat().x[:, 0].isnan()
    return dataclasses.asdict(recipe), {
        "test_mse": held_out_mse(model, part(data.test, train_data.subset(range(len(data.test.context))))),
        "extrapolation_mse": held_out_mse(model, part(data.extrapolation, hidden(data.extrapolation.context, 0.0, 0))),
        "extrapolation_mse_of_known": held_out_mse(model, data.extrapolation) if known > 0 else None,
        "hidden_degrees": error(found[is_hidden], truth[is_hidden]) if bool(is_hidden.any()) else None,
        "unseen_degrees": error(found_unseen, unseen.x[unseen.mask][:, 0]),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch,
    }


def say(record: Record) -> str:
    errors = f"test MSE {record['test_mse']:.4f}, extrapolation {record['extrapolation_mse']:.4f}"
    return f"known {record.key['known']:g}: {errors}, unseen angles off by {record['unseen_degrees']:.1f} degrees"


STUDY = Study(
    "unknown_angles",
    "Angles that were not observed",
    "A random part of the training angles is known, and `LatentAngleFGPVAE` infers the others (300 epochs, settings of "
    "`best`). An angle is off by 90 degrees on average by chance.",
    keys, run, say,
)  # fmt: skip
