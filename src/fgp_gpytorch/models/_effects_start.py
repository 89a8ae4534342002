"""Shared effects of a linear start, in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.models._batches import PseudoObservations

_SWEEPS = 50  # of expectation maximization for the scales
_SMALLEST_SCALE = 1e-3


def set_effects(model: Any, data: GroupedDataset) -> None:
    """Set q(w) and the scales of shared effects, given the kernels, the means and the pseudo-observations.

    The evidence of the pseudo-observations is quadratic in the effects beta = s w of a channel:

        log p(mu | beta) = c + g' beta - 1/2 beta' H beta

    So q(beta) = N(P^-1 g, P^-1) for P = H + diag(1 / s^2) is exact. Expectation maximization sets the scale s of each
    effect. The slopes of the evidence at 0 and at unit vectors are g and H, for any method of inference.

    Args:
        model: An `FGPVAE` whose prior has shared effects.
        data: Groups.
    """
    effects = model.prior.effects
    with torch.no_grad():
        effects.scale = 1.0
        pseudo = [model.encode(batch.to(dtype=torch.float64)) for batch in data.batches(device=effects.mean.device)]
    gradient, curvature = quadratic(lambda beta: slope(model, pseudo, beta), effects.mean, channel_sets(model))
    with torch.no_grad():
        mean, covariance, scale = best_scales(gradient, curvature, effects.sizes)
        effects.scale = scale.mT
        own = scale[:, owners(effects.sizes)]  # (L, M)
        effects.mean.copy_(mean / own)
        effects.root = torch.linalg.cholesky(covariance / (own.unsqueeze(-1) * own.unsqueeze(-2)))


def best_scales(gradient: Tensor, curvature: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (L, M) and covariance (L, M, M) of q(beta), and the scale of each effect, (L, E)."""
    owner = owners(sizes)
    member = torch.nn.functional.one_hot(owner).to(gradient)  # (M, E)

    def given(scale: Tensor) -> tuple[Tensor, Tensor]:
        precision = curvature + torch.diag_embed(scale[:, owner].reciprocal().square())
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return (covariance @ gradient.unsqueeze(-1)).squeeze(-1), covariance

    scale = torch.ones(len(gradient), len(sizes)).to(gradient)
    for _ in range(_SWEEPS):
        mean, covariance = given(scale)
        second = mean.square() + covariance.diagonal(dim1=-2, dim2=-1)
        scale = (second @ member / member.sum(0)).sqrt().clamp_min(_SMALLEST_SCALE)
    return *given(scale), scale


def owners(sizes: Sequence[int]) -> Tensor:
    """The effect of each of the M features."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def quadratic(
    slope_at: Callable[[Tensor], Tensor], weights: Tensor, sets: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The slope (L, M) at 0 of a function that is quadratic in weights (L, M), and its curvature (L, M, M), negated.

    Args:
        slope_at: The slope at some weights.
        weights: Of the shape, dtype and device.
        sets: Channels of one set do not interact. Curvature between channels is left out.
    """
    zero = torch.zeros_like(weights)
    gradient, curvature = slope_at(zero), weights.new_zeros(*weights.shape, weights.shape[-1])
    for channels in sets:
        for column in range(weights.shape[-1]):
            unit = zero.clone()
            unit[channels, column] = 1.0
            curvature[channels, :, column] = (gradient - slope_at(unit))[channels]
    return gradient, 0.5 * (curvature + curvature.mT)


def slope(model: Any, pseudo: Sequence[PseudoObservations], weights: Tensor) -> Tensor:
    """The slope of the log evidence of all groups in the weights, (L, M)."""
    total = torch.zeros_like(weights)
    for part in pseudo:
        own = weights.clone().requires_grad_()
        blocks = model.prior.condition(*part, weights=own).blocks
        evidence = torch.stack([block.log_evidence().sum() for block in blocks]).sum()
        total += torch.autograd.grad(evidence, own)[0]
    return total


def channel_sets(model: Any) -> list[list[int]]:
    """All channels at once if they are independent, else one by one."""
    channels = list(range(model.prior.num_channels))
    coupled = any(block.couples_channels for block in model.prior.blocks)
    return [[channel] for channel in channels] if coupled else [channels]
