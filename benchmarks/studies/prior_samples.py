"""Draws of new digits, judged by numbers: are they threes, the same three at every angle, and no training three?

A small convolutional network learns the digits 0-9 at all 16 angles from the training instances (0-359 of each digit).
It then classifies draws of a model: from the prior, and from distributions that `fit_groups` fitted to the training
threes (one Gaussian, and a mixture of bandwidth 0.5). Beside them stand real threes that neither the model nor the
network has seen, and these threes as the model generates them from 11 views.

Angle consistency: the view of a draw at one angle is rotated to every other angle and compared with the draw's own
view there, MSE per pixel. Real digits give the ideal (0 from the upright view, so a tilted one is used as well). Two
different digits give the worst case.

Memory: the MSE per pixel over all angles between a digit and the nearest training three. Draws that repeat training
threes would be much nearer to them than real threes are, or than generated ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.records import Key, Plan, Record
from benchmarks.studies import presets, table1
from benchmarks.study import Study
from benchmarks.systems import load
from fgp_gpytorch import FGPVAE
from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.datasets.rotated_mnist import rotate_images
from fgp_gpytorch.metrics import nearest_group_mse

JUDGED = [
    ("published", "FGP-VAE"),
    ("best", "FGP-VAE"),
    ("best", "FGP-VAE, any context"),
    ("best", "FGP-VAE, coregionalized"),
    ("best", "FGP-VAE, coregionalized, any context"),
    ("preset", "larger"),
    ("preset", "any_context"),
]
BANDWIDTHS = {"gaussian": 1.0, "mixture": 0.5}  # of the fitted distributions
DIGIT, SAMPLES, EPOCHS = 3, 200, 8  # epochs of the classifier
NUM_TRAINING = 360  # instances of each digit


def make_classifier() -> nn.Sequential:
    """Return a network of 6,138 parameters from (n, 1, 28, 28) to 10 logits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ELU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ELU(),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


def train_classifier(images: Tensor, digit: Tensor, epochs: int, seed: int = 0, batch_size: int = 128) -> nn.Sequential:
    """Fit the classifier by Adam with a one-cycle learning rate.

    Args:
        images: (n, 1, 28, 28).
        digit: (n,), int64.
        epochs: Passes over the images.
        seed: Of the start and the order.
        batch_size: Images at a time.

    Returns:
        The classifier, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = make_classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)
        steps = epochs * -(-len(images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(classifier(images[rows]), digit[rows]).backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


@torch.no_grad()
def recognised(classifier: nn.Module, views: Tensor, digit: Tensor | int) -> Tensor:
    """Return the fraction of views that the classifier takes for their digit, at each angle.

    Args:
        classifier: Network from images to logits.
        views: (n, A, 1, 28, 28).
        digit: The digit of each of the n, or of all.

    Returns:
        (A,), 0 to 1.
    """
    named = torch.stack([classifier(angle).argmax(-1) for angle in views.unbind(1)], dim=1)
    expected = torch.as_tensor(digit).reshape(-1, 1)
    return (named == expected).double().mean(0)


def angle_consistency(views: Tensor, degrees: np.ndarray, reference: int, others: Tensor | None = None) -> Tensor:
    """Return the mean squared error between the view at one angle, rotated to each angle, and the view there.

    Args:
        views: Trajectories, (n, A, 1, 28, 28).
        degrees: Their angles, (A,).
        reference: Index of the angle that is rotated to the others.
        others: Trajectories that give the rotated view; None = `views`.

    Returns:
        Per pixel, (A,). Lower is better. Ink that leaves the picture when it is rotated counts as error.
    """
    source = (views if others is None else others)[:, reference, 0].double().numpy()
    errors = []
    for index, angle in enumerate(degrees - degrees[reference]):
        turned = torch.from_numpy(rotate_images(source, float(angle)))
        errors.append((turned - views[:, index, 0].double()).square().mean())
    return torch.stack(errors)


def judge(classifier: nn.Module, views: Tensor, degrees: np.ndarray, digit: int) -> dict[str, Tensor]:
    """Return every number for each angle, (A,)."""
    return {
        "recognised": recognised(classifier, views, digit),
        "from_upright_mse": angle_consistency(views, degrees, 0),
        "from_tilted_mse": angle_consistency(views, degrees, 1),
        "two_digits_mse": angle_consistency(views, degrees, 0, views.roll(1, 0)),
    }


def summarize(columns: dict[str, Tensor]) -> dict[str, float]:
    """Return means over angles, without the angle that is compared with itself."""
    skipped = {"from_upright_mse": 0, "from_tilted_mse": 1}
    means = {}
    for name, column in columns.items():
        kept = [index for index in range(len(column)) if index != skipped.get(name)]
        means[name] = float(column[kept].mean())
    return means


def digit_views(data: RotatedMNIST, training: bool) -> tuple[Tensor, Tensor]:
    """Return all 16 views of the training instances, or of the others, (n, 16, 1, 28, 28), and their digits, (n,)."""
    label = torch.arange(len(data.images))
    per_digit = len(label) // len(data.digits)
    label = label[(label % per_digit < NUM_TRAINING) == training]
    return data.truth(label), torch.tensor(data.digits)[label // per_digit]


def weights(plan: Plan, block: str, system: str) -> Path:
    """The file of a model that `table1.py` or `presets.py` has saved."""
    return presets.weights(plan, system) if block == "preset" else table1.weights(plan, block, system)


def keys(plan: Plan) -> list[Key]:
    """The models that are saved."""
    rows = JUDGED[1:2] if plan.quick else JUDGED
    return [
        {"block": block, "system": system, "seed": 0} for block, system in rows if weights(plan, block, system).exists()
    ]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    samples, epochs = (20, 1) if plan.quick else (SAMPLES, EPOCHS)
    model = load(weights(plan, key["block"], key["system"]))
    data = rotated_mnist(digits=(DIGIT, 5) if plan.quick else range(10), views=1)  # truth() makes all other views
    degrees = np.rad2deg(data.angles.numpy())
    images, digit = digit_views(data, training=True)
    labels = digit.repeat_interleave(images.shape[1])
    classifier = train_classifier(images.flatten(0, 1), labels, epochs, key["seed"])
    known = images[digit == DIGIT]
    del images
    unseen, unseen_digit = digit_views(data, training=False)
    threes = rotated_mnist(DIGIT)
    sources = {
        **draws(model, threes, samples, key["seed"]),
        "context": model.generate(data.angles.reshape(1, -1, 1).expand(40, -1, -1), threes.extrapolation.context),
        "real": unseen[unseen_digit == DIGIT],
    }
    results = {name: judge(classifier, views, degrees, DIGIT) for name, views in sources.items()}
    means = {name: summarize(columns) for name, columns in results.items()}
    for name, views in sources.items():
        distance = nearest_group_mse(views, known)
        means[name] |= {"nearest_mse": float(distance.mean()), "smallest_nearest_mse": float(distance.min())}
    return {"samples": samples, "bandwidths": BANDWIDTHS}, {
        "classifier_accuracy": float(recognised(classifier, unseen, unseen_digit).mean()),
        "degrees": degrees.tolist(),
        "mean": means,
        "per_angle": {n: {key: column.tolist() for key, column in c.items()} for n, c in results.items()},
    }


def draws(model: FGPVAE, threes: RotatedMNIST, samples: int, seed: int) -> dict[str, Tensor]:
    """Return draws at all angles from the prior and from the fitted distributions, (samples, 16, 1, 28, 28) each."""
    x = threes.angles.reshape(1, -1, 1).expand(samples, -1, -1)
    torch.manual_seed(seed)
    found = {"prior": model.generate(x)}
    for name, bandwidth in BANDWIDTHS.items():
        model.fit_groups(threes.train, bandwidth)
        torch.manual_seed(seed)
        found[name] = model.sample_groups(x)
    return found


def say(record: Record) -> str:
    shares = ", ".join(f"{record['mean'][name]['recognised']:.2f} ({name})" for name in ("prior", *BANDWIDTHS))
    return f"{record.key['system']}, {record.key['block']}: draws taken for a three {shares}"


STUDY = Study(
    "prior_samples",
    "Draws of new digits",
    "A small classifier names 200 draws of each model at all angles. Draws are from the prior, from one Gaussian that "
    "`fit_groups` fitted to the training threes, or from a mixture of bandwidth 0.5. The view of a draw at one angle "
    "is also turned to the other angles and compared with the draw's own views there.",
    keys, run, say,
)  # fmt: skip
