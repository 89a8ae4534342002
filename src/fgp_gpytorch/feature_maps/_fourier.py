"""Fourier series of periodic covariances: K = Phi Phi'."""

import torch
from torch import Tensor


def fourier_coefficients(values: Tensor, harmonics: int) -> Tensor:
    """c_0 ... c_H of k(t) = sum_n c_n cos(2 pi n t / period).

    Args:
        values: k at evenly spaced points of one period, (*k, N). Aliases of harmonic n start at N - H.
        harmonics: H.

    Returns:
        (*k, H + 1).
    """
    spectrum = torch.fft.rfft(values).real[..., : harmonics + 1] / values.shape[-1]
    weights = torch.full_like(spectrum[..., :1].detach(), 2.0).expand(spectrum.shape).clone()
    weights[..., 0] = 1.0
    return weights * spectrum


def fourier_features(coefficients: Tensor, angle: Tensor) -> Tensor:
    """Phi with Phi Phi' = K.

    Args:
        coefficients: c_0 ... c_H, at least 0, (*k, 1, H + 1).
        angle: 2 pi x / period, broadcastable to (*b, *k, Q, 1).

    Returns:
        (*b, *k, Q, 1 + 2 H): the constant, the cosines, the sines.
    """
    # a vanished harmonic is rounded to a tiny coefficient: its square root would have an unbounded gradient
    noise = torch.finfo(coefficients.dtype).eps * coefficients.detach().amax(-1, keepdim=True)
    kept = coefficients > noise
    roots = torch.where(kept, torch.where(kept, coefficients, 1.0).sqrt(), 0.0)
    angle = angle * torch.arange(coefficients.shape[-1], dtype=roots.dtype, device=roots.device)
    return torch.cat([roots * angle.cos(), roots[..., 1:] * angle[..., 1:].sin()], dim=-1)
