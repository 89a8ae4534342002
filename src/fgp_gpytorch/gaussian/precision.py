"""From pseudo-variances and a mask to precisions."""

import math

import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError


def masked_precision(variance: Tensor, mask: Tensor | None) -> Tensor:
    """R^2 = mask / sigma^2.

    Args:
        variance: Pseudo-variances sigma^2, (*b, Q). Values at masked members have no effect.
        mask: Boolean, broadcastable to `variance`, True where a member is observed; None observes all.

    Returns:
        Precisions, (*b, Q), 0 for a missing member.
    """
    if mask is None:
        return variance.reciprocal()
    # the mask acts before the reciprocal too: a masked NaN or 0 would make the gradient NaN
    return torch.where(mask, torch.where(mask, variance, 1.0).reciprocal(), 0.0)


def root_precision(precision: Tensor) -> Tensor:
    """R, with a zero gradient where R = 0. The square root's own gradient is infinite there and would become NaN."""
    observed = precision > 0
    return torch.where(observed, torch.where(observed, precision, 1.0).sqrt(), 0.0)


def factorize(b: Tensor, covariance: Tensor) -> Tensor:
    """C with B = I + R K R = C C'. It exists for every covariance K.

    Args:
        b: B, (*b, Q, Q).
        covariance: K, (*b, Q, Q), for the message.

    Returns:
        (*b, Q, Q).

    Raises:
        DataError: If K has a negative eigenvalue beyond rounding.
        torch.linalg.LinAlgError: If B is not finite, or so large that rounding removes the identity.
    """
    try:
        return torch.linalg.cholesky(b)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        if bool(torch.isfinite(b).all()):
            check_covariance(torch.linalg.eigvalsh(covariance.detach()))
        raise


def check_covariance(eigenvalues: Tensor) -> None:
    """Require eigenvalues (*b, Q), ascending, of a covariance: none is negative beyond rounding.

    The tolerance is eps**0.25 of the largest eigenvalue. Kernels of far-apart inputs lose up to three quarters of
    their digits.

    Raises:
        DataError: If an eigenvalue is below minus the tolerance.
    """
    if not eigenvalues.numel():
        return
    lowest, highest = eigenvalues[..., 0], eigenvalues[..., -1]
    bad = lowest < -(torch.finfo(eigenvalues.dtype).eps ** 0.25) * highest.abs()
    if not bool(bad.any()):
        return
    lowest, highest = (float(e.flatten()[int((lowest / highest.abs()).argmin())]) for e in (lowest, highest))
    raise DataError(
        f"kernel: expected a positive semi-definite covariance, got one with eigenvalues from {lowest:.3g} to "
        f"{highest:.3g}. Try a sum or a product of GPyTorch's kernels."
    )


def log_normalizer(precision: Tensor) -> Tensor:
    """Sum of log 2 pi sigma^2 over the observed members, nats, (*b,), from R^2 (*b, Q)."""
    observed = precision > 0
    terms = math.log(2 * math.pi) - torch.where(observed, precision, 1.0).log()
    return torch.where(observed, terms, 0.0).sum(-1)


def log_plus_inverse(t: Tensor) -> Tensor:
    """log b + 1/b - 1 for b = exp(t) >= 1, without cancellation near b = 1."""
    return t + torch.expm1(-t)
