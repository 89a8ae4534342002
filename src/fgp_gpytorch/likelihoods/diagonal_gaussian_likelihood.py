"""Gaussian observations with a variance for each element."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.likelihoods.likelihood import Likelihood


class DiagonalGaussianLikelihood(Likelihood):
    r"""p(y | z) = N(y | mu(z), diag(variance)), a learned variance for each element of y.

    Use it for tables with columns of different noise. Under the single variance of `GaussianLikelihood` the noisiest
    column sets the weight of all others. The ELBO learns the variances. `GECO` raises an error.

    Args:
        y_shape: Shape of one observation.
        variance: The start of all variances, in units of y squared. The default is a tenth of the variance of a
            standardised column. From a start at 1, which the mean of y reaches alone, training can leave the latents
            unused for good.

    Raises:
        ArgumentError: If the variance is not positive and finite, or `y_shape` not a sequence of sizes.
        ShapeError: In use, if observations have another shape.

    Examples:
        >>> likelihood = DiagonalGaussianLikelihood([2], variance=1.0)
        >>> likelihood.log_variance.data = torch.tensor([1.0, 100.0]).log()
        >>> error = torch.tensor([[[0.0, 0.0]], [[0.0, 10.0]], [[10.0, 0.0]]])  # none, noisy element, other one
        >>> likelihood.log_prob(error, torch.zeros(3, 1, 2)).detach().T
        tensor([[ -4.1405,  -4.6405, -54.1405]])
    """

    def __init__(self, y_shape: Sequence[int], variance: float = 0.1) -> None:
        super().__init__()
        variance = check.positive(variance, "variance", hint="Try 0.1.")
        sizes: Sequence[int] = check.instance(y_shape, "y_shape", (tuple, list), "Try data.y_shape.")
        self.y_shape = tuple(check.count(size, "y_shape") for size in sizes)
        self.log_variance = torch.nn.Parameter(torch.full(self.y_shape, math.log(variance)))

    @property
    def variance(self) -> Tensor:
        """Observation variances, (*y_shape), in units of y squared."""
        return self.log_variance.exp()

    def distribution(self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None) -> dist.Normal:
        """Normal with the decoder's mean."""
        own = output.shape[output.dim() - len(self.y_shape) :]
        if tuple(own) != self.y_shape:
            raise ShapeError(
                f"y_shape: expected observations of shape {self.y_shape}, got {tuple(own)} in {tuple(output.shape)}. "
                "Try DiagonalGaussianLikelihood(data.y_shape)."
            )
        scale = (0.5 * self.log_variance).exp().to(output.dtype)
        return dist.Normal(output, scale.expand(output.shape), validate_args=False)

    def mean(self, output: Tensor) -> Tensor:
        """The decoder's output itself."""
        return output

    def constant_variance(self) -> Tensor:
        """The variances, (*y_shape)."""
        return self.variance

    @torch.no_grad()
    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the variances to the residual variances, if they are known."""
        if residual_variance is not None:
            self.log_variance.copy_(residual_variance.log())
