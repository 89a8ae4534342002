"""Gaussian observations with one variance for all elements."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods.likelihood import Likelihood

_MOMENTUM = 0.1  # of the running variance: ten steps, or short and full-batch runs end with that of their start


class GaussianLikelihood(Likelihood):
    r"""p(y | z) = N(y | mu(z), variance I) (paper, Section 3).

    Args:
        mode: "optimal" takes the variance that maximizes the likelihood of each training batch, its mean squared
            error (Rybkin, Daniilidis and Levine 2021, "Simple and effective VAE training with calibrated decoders");
            no schedule, no weight to tune. "learned" makes it a parameter. "fixed" leaves it as given.
        variance: The fixed variance, or the start of the learned one; in units of y squared. In "optimal" mode it is
            only what a model that was never trained generates with.

    Attributes:
        variance: The variance in use, a scalar. In "optimal" mode a running mean over about ten training batches:
            the batch's own enters only its log likelihood, and only in training mode; without gradients nothing moves.

    Raises:
        DataError: If the mode is unknown or the variance is not positive and finite.
    """

    _variance: Tensor
    _num_updates: Tensor

    def __init__(self, mode: Literal["optimal", "learned", "fixed"] = "optimal", variance: float = 1.0) -> None:
        super().__init__()
        if mode not in ("optimal", "learned", "fixed"):
            raise DataError(f'mode: expected "optimal", "learned" or "fixed", got {mode!r}. Try "optimal".')
        if not (0 < variance < math.inf):
            raise DataError(f"variance: expected a positive finite number, got {variance}. Try 1.0.")
        self.mode = mode
        if mode == "learned":
            self.log_variance = torch.nn.Parameter(torch.tensor(math.log(variance)))
        else:
            self.register_buffer("_variance", torch.tensor(float(variance)))
        if mode == "optimal":
            self.register_buffer("_num_updates", torch.tensor(0))

    @property
    def variance(self) -> Tensor:
        """Observation variance, a scalar, in units of y squared."""
        return self.log_variance.exp() if self.mode == "learned" else self._variance

    def distribution(self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None) -> dist.Normal:
        """Normal with the decoder's mean."""
        variance = self.variance.to(output.dtype)
        if self.mode == "optimal" and self.training and y is not None:
            squared_error = (output.detach() - y).square()
            variance = self._best_variance(squared_error, observed)
        return dist.Normal(output, variance.sqrt(), validate_args=False)

    def mean(self, output: Tensor) -> Tensor:
        """The decoder's output itself."""
        return output

    def log_prob_of_squared_error(self, squared_error: Tensor, num_elements: Tensor) -> Tensor:
        """log p(y | z) = -1/2 (num_elements log 2 pi variance + squared_error / variance), nats.

        The sum of squares is all that a Gaussian asks of an image; objectives, which report it anyway, pay once.

        Args:
            squared_error: Summed over observed elements, any shape.
            num_elements: How many they are, broadcastable to it.

        Returns:
            The shape of `squared_error`.
        """
        variance = self.variance.to(squared_error.dtype)
        if self.mode == "optimal" and self.training:
            total = num_elements.expand(squared_error.shape).sum()
            variance = self._update(squared_error.detach().sum() / total.clamp_min(1))
        return -0.5 * (num_elements * (2 * math.pi * variance).log() + squared_error / variance)

    def _best_variance(self, squared_error: Tensor, observed: Tensor | None) -> Tensor:
        if observed is None:
            return self._update(squared_error.mean())
        observed = observed.expand(squared_error.shape)
        total = torch.where(observed, squared_error, 0.0).sum()
        return self._update(total / observed.sum().clamp_min(1))

    def _update(self, batch_variance: Tensor) -> Tensor:
        batch_variance = batch_variance.clamp_min(torch.finfo(batch_variance.dtype).tiny)
        if torch.is_grad_enabled():  # somebody trains, and does not just look
            with torch.no_grad():
                momentum = torch.where(self._num_updates == 0, 1.0, _MOMENTUM)
                self._variance.lerp_(batch_variance.to(self._variance.dtype), momentum.to(self._variance.dtype))
                self._num_updates += 1
        return batch_variance
