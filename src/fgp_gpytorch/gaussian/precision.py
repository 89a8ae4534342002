"""From pseudo-variances and a mask to precisions."""

import math

import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError, NonFiniteError


def masked_precision(variance: Tensor, mask: Tensor | None) -> Tensor:
    """R^2 = mask / sigma^2.

    Args:
        variance: Pseudo-variances sigma^2, (*b, Q). Values at masked members have no effect.
        mask: Boolean, broadcastable to `variance`, True where a member is observed; None observes all.

    Returns:
        Precisions, (*b, Q), 0 for a missing member.

    Examples:
        >>> masked_precision(torch.tensor([0.5, 0.0, 2.0]), torch.tensor([True, False, True]))
        tensor([2.0000, 0.0000, 0.5000])
    """
    if mask is None:
        return variance.reciprocal()
    # the mask acts before the reciprocal too: a masked NaN or 0 would make the gradient NaN
    return torch.where(mask, torch.where(mask, variance, 1.0).reciprocal(), 0.0)


def root_precision(precision: Tensor) -> Tensor:
    """R, with a zero gradient where R = 0. The square root's own gradient is infinite there and would become NaN.

    Examples:
        >>> precision = torch.tensor([4.0, 0.0], requires_grad=True)
        >>> root_precision(precision).sum().backward()
        >>> precision.grad
        tensor([0.2500, 0.0000])
    """
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
        DataError: If K is not symmetric, or has a negative eigenvalue beyond rounding.
        NonFiniteError: If K or B is not finite, or B is so large that rounding removes the identity.
    """
    try:
        return torch.linalg.cholesky(b)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        require_covariance(covariance)
        raise too_precise(b.diagonal(dim1=-2, dim2=-1)) from error


def too_precise(ratio: Tensor) -> NonFiniteError:
    """The error of a B = I + R K R that cannot be factorized, although K is a covariance.

    Args:
        ratio: Prior variances divided by pseudo-variances, R^2 K_qq, any shape. Where they are not finite, the error's
            term is "posterior", else "kernel".
    """
    largest = float(ratio.detach().amax())
    if not math.isfinite(largest):
        return NonFiniteError(
            f"posterior: expected a finite ratio of prior variance and pseudo-variance, got {largest:g}. Try larger "
            "pseudo-variances, or an encoder whose variance is finite and not 0.",
            term="posterior",
        )
    return NonFiniteError(
        f"kernel: expected prior variances that {ratio.dtype} can add to the pseudo-variances, got prior variances up "
        f"to {largest:.3g} times as large. Try scaled x, a smaller outputscale, or larger pseudo-variances.",
        term="kernel",
    )


def require_covariance(covariance: Tensor) -> None:
    """Require covariances K, (*b, Q, Q), up to rounding. It takes their eigenvalues: call it where doubt exists.

    Raises:
        DataError: If one is not symmetric, or has a negative eigenvalue beyond rounding.
        NonFiniteError: If one is not finite.

    Examples:
        >>> require_covariance(torch.ones(2, 2))  # singular covariances are covariances
        >>> require_covariance(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.DataError: kernel: expected a positive semi-definite covariance, got one ...
    """
    covariance = covariance.detach()
    check_finite(covariance)
    check_covariance(torch.linalg.eigvalsh(covariance), covariance)


def check_finite(matrix: Tensor, name: str = "kernel") -> None:
    """Require finite entries of a kernel's matrix, or of features.

    Raises:
        NonFiniteError: If one is NaN or infinite.

    Examples:
        >>> check_finite(torch.eye(2))
        >>> check_finite(torch.tensor([[1.0, math.nan]]), "features")
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.NonFiniteError: features: expected finite values, got 1 NaN or infinite...
    """
    wrong = int((~torch.isfinite(matrix)).sum())
    if wrong:
        raise NonFiniteError(
            f"{name}: expected finite values, got {wrong} NaN or infinite entries of {matrix.numel()}. Try to look at "
            "its parameters (a lengthscale or a scale that is NaN, 0 or infinite) and at x.",
            term=name,
        )


def check_covariance(eigenvalues: Tensor, covariance: Tensor) -> None:
    """Require the eigenvalues of a covariance: none is negative beyond rounding.

    The tolerance is eps**0.25 of the largest eigenvalue. Kernels of far-apart inputs lose up to three quarters of
    their digits.

    Args:
        eigenvalues: (*b, Q), ascending.
        covariance: K, (*b, Q, Q). It must be symmetric up to the same tolerance: eigenvalues are those of its lower
            half.

    Raises:
        DataError: If K is not symmetric, or an eigenvalue is below minus the tolerance.
        NonFiniteError: If K is not finite.
    """
    if not eigenvalues.numel():
        return
    covariance = covariance.detach()
    lowest, highest = eigenvalues[..., 0], eigenvalues[..., -1]
    tolerance = rounding_tolerance(eigenvalues.dtype) * torch.maximum(lowest.abs(), highest.abs())
    skew = (covariance - covariance.mT).abs().amax((-2, -1))
    # written so that NaN fails
    if bool(((lowest >= -tolerance) & (skew <= tolerance)).all()):
        return
    check_finite(covariance)
    worst = int((skew - tolerance).argmax())
    if bool(skew.flatten()[worst] > tolerance.flatten()[worst]):
        raise DataError(
            f"kernel: expected a symmetric covariance, got k(x, x') and k(x', x) that differ by up to "
            f"{float(skew.flatten()[worst]):.3g}. Try a kernel that depends on x - x' or on products of both."
        )
    worst = int((lowest / highest.abs()).argmin())
    lowest, highest = (float(e.flatten()[worst]) for e in (lowest, highest))
    raise DataError(
        f"kernel: expected a positive semi-definite covariance, got one with eigenvalues from {lowest:.3g} to "
        f"{highest:.3g}. Try a sum or a product of GPyTorch's kernels."
    )


def rounding_tolerance(dtype: torch.dtype) -> float:
    """eps**0.25, the relative error that a kernel's matrix may have: far-apart inputs cost three quarters of digits.

    Examples:
        >>> f"{rounding_tolerance(torch.float32):.3f}", f"{rounding_tolerance(torch.float64):.5f}"
        ('0.019', '0.00012')
    """
    return torch.finfo(dtype).eps ** 0.25


def check_residual_variance(variance: Tensor, covariance: Tensor, cross: Tensor, own: Tensor) -> None:
    """Require k** - || ... ||^2 >= 0 up to rounding at new points, before a clamp hides what is below 0.

    If a variance is negative beyond rounding, the joint covariance of the old points and that new one decides. It is
    the matrix that joint draws factorize. So a covariance that only lost digits is accepted.

    Args:
        variance: The variance before the clamp, (*b, N).
        covariance: Prior covariance of the old points, (*b, Q, Q).
        cross: Prior covariance of old and new points, (*b, Q, N).
        own: Prior variance of the new points, (*b, N).

    Raises:
        DataError: If the joint covariance is not symmetric, or has a negative eigenvalue beyond rounding.
        NonFiniteError: If it is not finite.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> check_residual_variance(torch.tensor([-1e-9]), covariance=one, cross=one, own=torch.ones(1))  # rounding
        >>> check_residual_variance(torch.tensor([-3.0]), covariance=one, cross=2 * one, own=torch.ones(1))
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.DataError: kernel: expected a positive semi-definite covariance, got one ...
    """
    with torch.no_grad():
        tolerance = rounding_tolerance(variance.dtype) * own.abs()
        fine = variance >= -tolerance
        skew = (covariance - covariance.mT).abs()
        symmetric = skew <= rounding_tolerance(skew.dtype) * covariance.abs().amax() if skew.numel() else skew == 0
        if bool(fine.all() & symmetric.all()):
            return
        require_covariance(covariance)
        wrong = (~fine).nonzero(as_tuple=True)
        size = covariance.shape[-1]
        column = cross.expand(*fine.shape[:-1], size, -1).mT[wrong].unsqueeze(-1)  # shape: (W, Q, 1)
        corner = own.expand(fine.shape)[wrong][:, None, None]
        among = covariance.unsqueeze(-3).expand(*fine.shape, size, size)[wrong]
        require_covariance(torch.cat([torch.cat([among, column], -1), torch.cat([column.mT, corner], -1)], -2))


def log_normalizer(precision: Tensor) -> Tensor:
    """Sum of log 2 pi sigma^2 over the observed members, nats, (*b,), from R^2 (*b, Q)."""
    observed = precision > 0
    terms = math.log(2 * math.pi) - torch.where(observed, precision, 1.0).log()
    return torch.where(observed, terms, 0.0).sum(-1)


def log_plus_inverse(t: Tensor) -> Tensor:
    """log b + 1/b - 1 for b = exp(t) >= 1, without cancellation near b = 1."""
    return t + torch.expm1(-t)
