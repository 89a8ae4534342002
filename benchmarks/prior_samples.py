"""Prior samples of a model judged by numbers: are they threes, and the same three at every angle?

    python examples/rotated_mnist.py                      # a model to judge
    python benchmarks/prior_samples.py runs/rotated_mnist/short/seed_0/model.pt [--samples 200] [--json result.json]

A small convolutional network learns to tell the digits 0-9 apart at all 16 angles, from the training instances (0-359
of each digit); how good a judge it is, is printed for the instances 360-399. It then says what fraction of the model's
prior samples it takes for a three at each angle, beside that fraction for real threes that neither the model nor it has
seen, and for those as the model generates them from 11 views. (For a model of another digit: --digit.)

Angle consistency: a sampled trajectory's view at one angle is rotated to every other angle and compared with the
trajectory's own view there, MSE per pixel, lower is better. Real digits are the same number for the ideal (rotated from
the upright view it is 0 by construction, so a tilted one is used as well); two different digits, for the worst.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.datasets.rotated_mnist import rotate_images
from harness import header
from systems import load

NUM_TRAINING = 360  # instances of each digit


def make_classifier() -> nn.Sequential:
    """A network of 6,138 parameters from (n, 1, 28, 28) to 10 logits."""
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
    """Fraction of views that the classifier takes for their digit, at each angle.

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
    """Mean squared error between the view at one angle, rotated to each angle, and the view there. Lower is better.

    Args:
        views: Trajectories, (n, A, 1, 28, 28).
        degrees: Their angles, (A,).
        reference: Index of the angle that is rotated to the others.
        others: Trajectories to take the rotated view from, in the place of `views` themselves.

    Returns:
        Per pixel, (A,); what leaves the picture when it is rotated counts as error.
    """
    source = (views if others is None else others)[:, reference, 0].double().numpy()
    errors = []
    for index, angle in enumerate(degrees - degrees[reference]):
        turned = torch.from_numpy(rotate_images(source, float(angle)))
        errors.append((turned - views[:, index, 0].double()).square().mean())
    return torch.stack(errors)


def judge(classifier: nn.Module, views: Tensor, degrees: np.ndarray, digit: int) -> dict[str, Tensor]:
    """Every number for each angle, (A,)."""
    return {
        "recognised": recognised(classifier, views, digit),
        "from_upright_mse": angle_consistency(views, degrees, 0),
        "from_tilted_mse": angle_consistency(views, degrees, 1),
        "two_digits_mse": angle_consistency(views, degrees, 0, views.roll(1, 0)),
    }


def summarize(columns: dict[str, Tensor]) -> dict[str, float]:
    """Means over angles, without the angle that is compared with itself."""
    skipped = {"from_upright_mse": 0, "from_tilted_mse": 1}
    means = {}
    for name, column in columns.items():
        kept = [index for index in range(len(column)) if index != skipped.get(name)]
        means[name] = float(column[kept].mean())
    return means


def digit_views(data: RotatedMNIST, training: bool) -> tuple[Tensor, Tensor]:
    """All 16 views of the training instances, or of the others, (n, 16, 1, 28, 28), and their digits, (n,)."""
    label = torch.arange(len(data.images))
    per_digit = len(label) // len(data.digits)
    label = label[(label % per_digit < NUM_TRAINING) == training]
    return data.truth(label), torch.tensor(data.digits)[label // per_digit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a file written by model.save, such as .../seed_0/model.pt")
    parser.add_argument("--digit", type=int, default=3, help="the digit that the model was trained on (default 3)")
    parser.add_argument("--samples", type=int, default=200, help="digits drawn from the prior (default 200)")
    parser.add_argument("--epochs", type=int, default=8, help="of the classifier (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier and of the prior samples (default 0)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    options = parser.parse_args()
    if options.samples < 2:
        parser.error("--samples: expected at least 2")
    header("prior samples of a model of rotated digits", options.seed)
    model = load(options.model)

    data = rotated_mnist(digits=range(10), views=1)  # the views of the classifier are all views, by truth()
    degrees = np.rad2deg(data.angles.numpy())
    images, digit = digit_views(data, training=True)
    started = time.perf_counter()
    classifier = train_classifier(
        images.flatten(0, 1), digit.repeat_interleave(images.shape[1]), options.epochs, options.seed
    )
    seconds = time.perf_counter() - started
    del images
    unseen, unseen_digit = digit_views(data, training=False)
    accuracy = float(recognised(classifier, unseen, unseen_digit).mean())
    number = sum(p.numel() for p in classifier.parameters())
    print(f"classifier: {number} parameters, {seconds:.0f} s, accuracy on unseen digits 0-9 {accuracy:.4f}")

    real = unseen[unseen_digit == options.digit]
    every_angle = data.angles.reshape(1, -1, 1)
    torch.manual_seed(options.seed)
    sources = {
        "prior": model.generate(every_angle.expand(options.samples, -1, -1)),
        "context": model.generate(
            every_angle.expand(len(real), -1, -1), rotated_mnist(options.digit).extrapolation.context
        ),
        "real": real,
    }
    results = {name: judge(classifier, views, degrees, options.digit) for name, views in sources.items()}
    print(
        f"\nprior: {options.samples} samples; context: {len(real)} unseen digits, generated from 11 views; real: they"
    )
    print(f"named: fraction taken for a {options.digit}, higher is better")
    print(f"from 0, from {degrees[1]:g}: MSE per pixel of the view at that angle, rotated, lower is better; means are")
    print("without the angle compared with itself; two: the same from another one's upright view")
    print(f"{'':8}" + "".join(f"{name:^36}" for name in sources))
    print(f"{'degrees':>8}" + f"{'named':>9}{'from 0':>9}{f'from {degrees[1]:g}':>10}{'two':>8}" * len(sources))
    for index, angle in enumerate(degrees):
        row = [column[index] for columns in results.values() for column in columns.values()]
        print(f"{angle:8.1f}" + "".join(f"{float(value):9.4f}" for value in row))
    means = {name: summarize(columns) for name, columns in results.items()}
    print(f"{'mean':>8}" + "".join(f"{value:9.4f}" for mean in means.values() for value in mean.values()))
    if options.json is not None:
        per_angle = {n: {key: column.tolist() for key, column in c.items()} for n, c in results.items()}
        record = {"classifier_accuracy": accuracy, "degrees": degrees.tolist(), "samples": options.samples}
        record |= {"mean": means, "per_angle": per_angle}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
