"""Errors of predictions without learning, beside which a model's error has to be read."""

from typing import Any

from benchmarks.datasets import reference_rows
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from fgp_gpytorch.datasets import rotated_mnist

LABELS = {
    "mean_image": "mean training image, all angles",
    "mean_image_at_nearest_angles": "mean training image at the nearest angles",
    "nearest_view": "nearest view of the same digit",
    "neighbouring_views": "average of the two neighbouring views",
    "rotated_nearest_view": "oracle: nearest view, rotated",
}


def keys(plan: Plan) -> list[Key]:
    return [{"views": "11", "seed": 0}]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    data = rotated_mnist(views=int(key["views"]), seed=key["seed"])
    parts = {"test": data.test, "extrapolation": data.extrapolation}
    return {}, {name: reference_rows(data.train, part)._asdict() for name, part in parts.items()}


def say(record: Record) -> str:
    return ", ".join(f"{label} {record['test'][name]:.4f}" for name, label in LABELS.items())


STUDY = Study(
    "reference",
    "Predictions without learning",
    "Errors at the held-out angle of predictions that learn nothing. The oracle rotates an image, which no model can.",
    keys, run, say,
)  # fmt: skip
