"""Errors of predictions that need no learning, beside which a model's error has to be read.

    python benchmarks/reference_rows.py [--views 11|shuffled] [--seed 0] [--json rows.json]

Mean squared error per pixel (ink 1, paper 0) at the held-out angle of 157.5 degrees, lower is better. The mean image
and the views are those that a model gets; "rotated" knows besides that the images turn, which no model is told.
"""

import argparse
import json
from pathlib import Path

from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.datasets.reference_rows import reference_rows
from harness import header

LABELS = {
    "mean_image": "mean training image, all angles",
    "mean_image_at_nearest_angles": "mean training image at the nearest angles",
    "nearest_view": "nearest view of the same digit",
    "neighbouring_views": "average of the two neighbouring views",
    "rotated_nearest_view": "oracle: nearest view, rotated",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", default="11", help="views kept of each digit, 1 to 15, or 'shuffled' (default 11)")
    parser.add_argument("--seed", type=int, default=0, help="which views are kept (default 0)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    options = parser.parse_args()
    if options.views != "shuffled" and not options.views.isdecimal():
        parser.error("--views: expected 1 to 15, or shuffled")
    data = rotated_mnist(views="shuffled" if options.views == "shuffled" else int(options.views), seed=options.seed)
    header(f"rotated MNIST, views {options.views}, MSE per pixel, lower is better", options.seed)
    parts = {"test": data.test, "extrapolation": data.extrapolation}
    rows = {name: reference_rows(data.train, part)._asdict() for name, part in parts.items()}
    print(f"{'':44}{'test':>10}{'extrapolation':>15}")
    for key, label in LABELS.items():
        print(f"{label:44}{rows['test'][key]:10.5f}{rows['extrapolation'][key]:15.5f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"views": options.views, "seed": options.seed, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
