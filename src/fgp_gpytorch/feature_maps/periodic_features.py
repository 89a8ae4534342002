"""A periodic kernel as a Fourier series: K = Phi Phi' with a few columns."""

import math

import gpytorch
import torch
from gpytorch.kernels import Kernel, PeriodicKernel
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.feature_maps._fourier import fourier_coefficients, fourier_features
from fgp_gpytorch.gaussian import check_finite, rounding_tolerance
from fgp_gpytorch.kernels import kernel_matrix
from fgp_gpytorch.saving import Configurable


class PeriodicFeatures(Configurable, gpytorch.Module):
    r"""Features Phi(x) with Phi(x) Phi(x')' = k(x - x') for a stationary periodic kernel on one feature.

        k(t) = sum_{n=0}^H c_n cos(2 pi n t / period),   c_n >= 0
        Phi(x) = [ sqrt(c_0), sqrt(c_n) cos(2 pi n x / period), sqrt(c_n) sin(2 pi n x / period) for n = 1 ... H ]

    Every call computes the coefficients by FFT from the kernel's values on a grid, with gradients, so the kernel's
    hyperparameters can be learned. The truncated kernel is a valid kernel, and `missing_variance` is its error. For the
    paper's kernel the c_n fall faster than exponentially (c_n = 2 exp(-1/r) I_n(1/r), r GPyTorch's lengthscale): the
    error of 12 harmonics is 1e-10 for lengthscales above 0.5, and 1e-7 at 0.25.

    Args:
        kernel: A stationary GPyTorch kernel on one feature with this period: `PeriodicKernel` (scaled or not), or a
            sum or product of such. Phi gets the leading dimensions of its `batch_shape`.
        period: Period of the kernel, in units of x. It does not follow the kernel, so keep the kernel's own period
            fixed (`raw_period_length` without gradient).
        harmonics: H. Phi has 1 + 2 H columns.

    Raises:
        ArgumentError: If `kernel` is not a kernel, or a number is out of range.
        DataError: In use, if the kernel does not repeat after `period`.

    Examples:
        >>> kernel = gpytorch.kernels.PeriodicKernel()
        >>> kernel.period_length = 2 * math.pi
        >>> kernel.raw_period_length.requires_grad_(False)
        >>> PeriodicFeatures(kernel)(torch.rand(5, 1)).shape
        torch.Size([5, 25])
    """

    def __init__(self, kernel: Kernel, period: float = 2 * math.pi, harmonics: int = 12) -> None:
        super().__init__()
        self.kernel = check.instance(kernel, "kernel", Kernel, "Try gpytorch.kernels.PeriodicKernel().")
        self.period = check.positive(period, "period", hint="Try 2 * math.pi.")
        self.harmonics = check.count(harmonics, "harmonics", hint="Try 12.")

    @property
    def num_features(self) -> int:
        """M = 1 + 2 H, the columns of Phi."""
        return 1 + 2 * self.harmonics

    def coefficients(self) -> Tensor:
        """c_0 ... c_H >= 0 in units of the kernel, (*k, H + 1) for a kernel of batch shape k.

        Raises:
            DataError: If the kernel does not repeat after `period`, or has a negative coefficient beyond rounding.
        """
        # aliases of harmonic n start at (points - H), three times beyond the truncation
        points = max(64, 4 * self.harmonics)
        steps = torch.fft.fftfreq(points, dtype=self._dtype, device=self._device)  # in [-1/2, 1/2)
        coefficients = fourier_coefficients(self._at(steps * self._exact_period()), self.harmonics)
        self._check(coefficients.detach())
        return coefficients.clamp_min(0.0)

    def missing_variance(self) -> Tensor:
        """k(0) - sum_n c_n, (*k,): the largest error of the truncation at any x.

        Raises:
            DataError: If the kernel does not repeat after `period`.
        """
        zero = torch.zeros(1, dtype=self._dtype, device=self._device)
        return self._at(zero).squeeze(-1) - self.coefficients().sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Phi at x.

        Args:
            x: One feature, (*b, N, 1).

        Returns:
            (*b, N, M), or (*b, *k, N, M) for a kernel of batch shape k.

        Raises:
            ShapeError: If x has another number of features.
            DataError: If the kernel does not repeat after `period`.
        """
        check.shape(x, "x", ("...", "N", 1), "It takes one feature. Try NystromFeatures for more.")
        coefficients = self.coefficients().unsqueeze(-2)  # (*k, 1, H + 1)
        for _ in range(coefficients.dim() - 2):
            x = x.unsqueeze(-3)
        return fourier_features(coefficients, (2 * math.pi / self._exact_period()) * x.to(coefficients.dtype))

    @property
    def _dtype(self) -> torch.dtype:
        parameter = next(self.kernel.parameters(), None)
        return torch.float64 if parameter is None else parameter.dtype

    @property
    def _device(self) -> torch.device | None:
        parameter = next(self.kernel.parameters(), None)
        return None if parameter is None else parameter.device

    def _at(self, distance: Tensor) -> Tensor:
        """k(distance) for distances (T,): (*k, T)."""
        return kernel_matrix(self.kernel, distance.unsqueeze(-1), torch.zeros_like(distance[:1, None])).squeeze(-1)

    def _exact_period(self) -> float:
        """The kernel's own rounding of the period. GPyTorch's setters round numbers to float32."""
        for part in self.kernel.modules():
            if isinstance(part, PeriodicKernel):
                own = float(part.period_length.detach().double().mean())
                if abs(own / self.period - 1) < 1e-6:
                    return own
        return self.period

    @torch.no_grad()
    def _check(self, coefficients: Tensor) -> None:
        shifts = torch.tensor([0.0, 0.3, 1.0, 1.3, -0.3], dtype=self._dtype, device=self._device) * self.period
        zero, part, one, beyond, mirrored = self._at(shifts).unbind(-1)
        error = torch.stack([one - zero, beyond - part, mirrored - part]).abs().amax()
        lowest, highest = coefficients.amin(), coefficients.abs().amax()
        # one transfer for all checks
        error, scale, lowest, highest = torch.stack([error, zero.abs().amax(), lowest, highest]).tolist()
        if not math.isfinite(highest):
            check_finite(coefficients)
        if error > 1e-4 * scale:
            raise DataError(
                f"kernel: expected k(t) = k(-t) = k(t + period) for period = {self.period:.6g}, got values that differ "
                f"by {error:.2g}. Try kernel.period_length = period before (GPyTorch starts it at 0.69), or "
                "period= the kernel's own; if it moved in training, kernel.raw_period_length.requires_grad_(False)."
            )
        if lowest < -rounding_tolerance(coefficients.dtype) * highest:
            raise DataError(
                f"kernel: expected a positive semi-definite covariance, got one with Fourier coefficients from "
                f"{lowest:.3g} to {highest:.3g}. Try a sum or a product of GPyTorch's kernels."
            )


def angle_kernel() -> PeriodicKernel:
    """The paper's kernel of an angle in radians, in float64: r = 1 and learned, the period of 2 pi fixed.

    Examples:
        >>> kernel = angle_kernel()
        >>> kernel(torch.tensor([0.0, math.pi, 2 * math.pi], dtype=torch.float64)).to_dense()[0].detach()
        tensor([1.0000, 0.1353, 1.0000], dtype=torch.float64)
    """
    kernel = PeriodicKernel().double()
    # as tensors: GPyTorch rounds numbers to float32
    kernel.initialize(
        period_length=torch.tensor(2 * math.pi, dtype=torch.float64),
        lengthscale=torch.tensor(1.0, dtype=torch.float64),
    )
    kernel.raw_period_length.requires_grad_(False)
    return kernel
