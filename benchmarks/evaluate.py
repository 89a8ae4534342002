"""What a squared error does not show: calibration, contexts of few images, and what the channels know.

    python benchmarks/evaluate.py runs/rotated_mnist/best [--json docs/results/evaluation_best.json]

Takes the models that `examples/rotated_mnist.py` left in its folder, one for each seed, and trains nothing. The same
figures of every other system are in the records of `benchmarks/table1.py`.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from fgp_gpytorch.models.known_groups_vae import KnownGroupsVAE

import harness
from fgp_gpytorch import CVAE, FGPVAE
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import HeldOutMembers
from fgp_gpytorch.datasets import HeldOutViews, RotatedMNIST, rotated_mnist
from fgp_gpytorch.metrics import (
    disentanglement,
    held_out_calibration,
    held_out_mse,
    mse_by_context_size,
    swap_errors,
)
from fgp_gpytorch.prior import FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels
from systems import ask

SIZES = (1, 2, 4, 8, 11, 15)


def evaluate(model: FGPVAE, data: RotatedMNIST, all_views: RotatedMNIST) -> dict[str, float | None]:
    """All figures of one model that are defined for it.

    Args:
        model: A trained system.
        data: What it was trained on, and its held-out views.
        all_views: The same digits with all 15 views of each as context.
    """
    figures: dict[str, float | None] = {}
    asked = ask(model, data.train, data.test, data.extrapolation)
    larger = ask(model, data.train, None, all_views.extrapolation)
    if not isinstance(model, KnownGroupsVAE):
        # conditioned on all that was trained on, a context of few images is no such thing
        larger = larger._replace(test=(model, all_views.test))
    for part in ("test", "extrapolation"):
        if getattr(asked, part) is not None:
            calibration = held_out_calibration(*getattr(asked, part))
            figures |= {f"{part} {name}": value for name, value in calibration._asdict().items()}
        if getattr(larger, part) is not None:
            sizes = mse_by_context_size(*getattr(larger, part), SIZES)
            figures |= {f"{part} MSE from {size} views": value for size, value in sizes.items()}
    if not shares_nothing(model):
        known = ask(model, data.train, HeldOutMembers.of(data.train, data.train), None).test
        assert known is not None
        figures["training MSE"] = held_out_mse(*known)
    elif isinstance(model, CVAE):
        for part, views in (("test", data.test), ("extrapolation", data.extrapolation)):
            figures[f"{part} MSE of the mean code"] = mse_of_mean_code(model, views)
    for name, alone in (("disentanglement", False), ("disentanglement alone", True)):
        read = disentanglement(model, data.train, period=2 * math.pi, alone=alone)
        figures |= {f"{name} {key}": value for key, value in read._asdict().items()}
    if has_both_kinds(model) and asked.test is not None:
        figures |= {f"swap {name}": value for name, value in swap_errors(*asked.test)._asdict().items()}
    return figures


def mse_of_mean_code(model: CVAE, views: HeldOutViews) -> float:
    """Error at the new angle of the decoded average of the posterior means of a digit's images.

    The later program of the paper's authors predicts so with a CVAE, by draws in place of means (`predict_CVAE` of
    ratschlab/SVGP-VAE).
    """
    context = views.context[:]
    there = context.mask.unsqueeze(-1)
    with evaluation_mode(model), torch.no_grad():
        codes = model.infer(context).mean
        mean_code = (codes * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        decoded = model.likelihood.mean(model._decode(mean_code, views.x_new))
    return float((decoded - views.y_new).double().square().mean())


def shares_nothing(model: FGPVAE) -> bool:
    """Whether nothing is shared between the members of a group."""
    prior = model.prior
    return isinstance(prior, FactorizedGPPrior) and all(isinstance(b, IndependentChannels) for b in prior.blocks)


def has_both_kinds(model: FGPVAE) -> bool:
    """Whether there are local and global latents to swap."""
    if not isinstance(model.prior, FactorizedGPPrior):
        return hasattr(model.prior, "num_global_channels")
    kinds = {type(block) for block in model.prior.blocks}
    return {LocalChannels, GlobalChannels} <= kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the example's --out")
    parser.add_argument("--json", type=Path, help="write the figures of every model to this file as well")
    options = parser.parse_args()
    paths = sorted(options.folder.glob("seed_*/model.pt"))
    if not paths:
        parser.error(f"no seed_*/model.pt in {options.folder}: run examples/rotated_mnist.py first")
    data, all_views = rotated_mnist(), rotated_mnist(views=15)
    harness.header(f"evaluation of {len(paths)} models of rotated digits")
    runs: list[dict[str, Any]] = []
    for path in paths:
        runs.append(evaluate(FGPVAE.load(path), data, all_views))
        print(f"{path.parent.name} done", flush=True)
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name:40} {statistics.mean(values):9.4f}{deviation}" if values else f"{name:40} {'n/a':>9}")
    if options.json is not None:
        record = {"models": [path.parent.name for path in paths], "commit": harness.commit(), "runs": runs}
        options.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
