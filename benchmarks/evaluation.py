"""What a squared error does not show: calibration, small contexts, and the content of the latent channels."""

import math

import torch

from benchmarks.systems import ask, couples_groups, decode, held_out
from fgp_gpytorch import CVAE, FGPVAE
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.datasets import RotatedMNIST
from fgp_gpytorch.metrics import (
    disentanglement,
    held_out_calibration,
    held_out_mse,
    mse_by_context_size,
    swap_errors,
)
from fgp_gpytorch.prior import FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels

SIZES = (1, 2, 4, 8, 11, 15)


def evaluate(model: FGPVAE, data: RotatedMNIST, all_views: RotatedMNIST) -> dict[str, float | None]:
    """Return all figures of one model that are defined for it.

    Args:
        model: A trained system.
        data: Its training data, and the held-out views.
        all_views: The same digits with all 15 views of each as context.
    """
    figures: dict[str, float | None] = {}
    asked = ask(model, data.train, data.test, data.extrapolation)
    larger = ask(model, data.train, None, all_views.extrapolation)
    if not couples_groups(model):
        # A model that is conditioned on all training members has no small context.
        larger = larger._replace(test=(model, all_views.test))
    for part in ("test", "extrapolation"):
        if getattr(asked, part) is not None:
            calibration = held_out_calibration(*getattr(asked, part))
            figures |= {f"{part} {name}": value for name, value in calibration._asdict().items()}
        if getattr(larger, part) is not None:
            sizes = mse_by_context_size(*getattr(larger, part), SIZES)
            figures |= {f"{part} MSE from {size} views": value for size, value in sizes.items()}
    if not shares_nothing(model):
        known = ask(model, data.train, held_out(data.train, data.train), None).test
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


def errors(model: FGPVAE, data: RotatedMNIST, seed: int) -> dict[str, float]:
    """Return the errors at the held-out angle: of the mean of z, of one draw of z, of the mean of 64 decoded draws."""
    asked, found = ask(model, data.train, data.test, data.extrapolation), {}
    for name in ("test", "extrapolation"):
        part = getattr(asked, name)
        if part is not None:
            torch.manual_seed(seed)
            found[f"{name}_mse"] = held_out_mse(*part)
            found[f"{name}_mse_sample"] = held_out_mse(*part, sample=True)
            found[f"{name}_mse_mean"] = held_out_mse(*part, sample=True, num_samples=64)
    return found


def mse_of_mean_code(model: CVAE, views: HeldOut) -> float:
    """Return the error at the new angle of the decoded average of the posterior means of a digit's images.

    The authors' later program predicts so with a CVAE, from draws instead of means (`predict_CVAE` of
    ratschlab/SVGP-VAE).
    """
    context = views.context[:]
    there = context.mask.unsqueeze(-1)
    with evaluation_mode(model), torch.no_grad():
        codes = model.infer(context).mean
        mean_code = (codes * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        decoded = decode(model, mean_code, views.x_new)
    return float((decoded - views.y_new).double().square().mean())


def shares_nothing(model: FGPVAE) -> bool:
    """Whether the members of a group share no latent variable."""
    prior = model.prior
    return isinstance(prior, FactorizedGPPrior) and all(isinstance(b, IndependentChannels) for b in prior.blocks)


def has_both_kinds(model: FGPVAE) -> bool:
    """Whether the model has local and global latents, which can be swapped."""
    if model.prior.couples_groups:
        return bool(model.prior.is_global.any())
    kinds = {type(block) for block in model.prior.blocks}
    return {LocalChannels, GlobalChannels} <= kinds
