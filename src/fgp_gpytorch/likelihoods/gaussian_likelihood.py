"""Gaussian observations with one variance for all elements."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._shards import sum_over_processes
from fgp_gpytorch.likelihoods.likelihood import Likelihood, Score

_MOMENTUM = 0.1  # weight of a new batch in the running variance: short runs, too, end near their last batches


class GaussianLikelihood(Likelihood):
    r"""p(y | z) = N(y | mu(z), variance I) (paper, Section 3).

    Args:
        mode: "optimal" takes the maximum-likelihood variance of each training batch, its mean squared error (Rybkin,
            Daniilidis and Levine 2021, "Simple and effective VAE training with calibrated decoders"). It needs no
            schedule and no weight. "learned" makes the variance a parameter. "fixed" does not change it.
        variance: The fixed variance, or the variance before training, in units of y squared.

    Attributes:
        variance: The variance in use, a scalar. In "optimal" mode it is a running mean over about ten training
            batches, updated only with gradients enabled. In training mode a batch's log likelihood uses the batch's
            own variance.

    Raises:
        ArgumentError: If the mode is unknown or the variance is not positive and finite.

    Examples:
        >>> likelihood = GaussianLikelihood("fixed", variance=0.5)
        >>> y, output = torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 1)
        >>> likelihood.log_prob(output, y), likelihood.squared_error(output, y)
        (tensor([[-0.5724, -1.5724]]), (tensor([1.]), tensor([2.])))
        >>> GaussianLikelihood("optimal").distribution(output, y).variance[0, :, 0]  # the mean squared error
        tensor([0.5000, 0.5000])
    """

    _variance: Tensor
    _num_updates: Tensor

    def __init__(self, mode: Literal["optimal", "learned", "fixed"] = "optimal", variance: float = 1.0) -> None:
        super().__init__()
        self.mode = check.choice(mode, "mode", ("optimal", "learned", "fixed"))
        variance = check.positive(variance, "variance", hint="Try 1.0.")
        if mode == "learned":
            self.log_variance = torch.nn.Parameter(torch.tensor(math.log(variance)))
        else:
            self.register_buffer("_variance", torch.tensor(variance))
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
            variance = self._fitted(*self.squared_error(output.detach(), y, observed))
        return dist.Normal(output, variance.sqrt(), validate_args=False)

    def mean(self, output: Tensor) -> Tensor:
        """The decoder's output itself."""
        return output

    def constant_variance(self) -> Tensor:
        """The variance, a scalar."""
        return self.variance

    @torch.no_grad()
    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the variance to the mean residual variance, if it is known. A fixed variance stays."""
        if residual_variance is None or self.mode == "fixed":
            return
        if self.mode == "learned":
            self.log_variance.copy_(residual_variance.mean().log())
        else:
            self._variance.copy_(residual_variance.mean())

    def score(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Score:
        """Log probability and squared error of each group, in one pass.

            log p(y | z) = -1/2 (num_elements log 2 pi variance + squared_error / variance)

        A subclass with another `distribution` gets the general form.
        """
        if type(self).distribution is not GaussianLikelihood.distribution:
            return super().score(output, y, observed)
        squared_error, num_elements = self.squared_error(output, y, observed)
        variance = self.variance.to(squared_error.dtype)
        if self.mode == "optimal" and self.training:
            variance = self._fitted(squared_error.detach(), num_elements)
        log_prob = -0.5 * (num_elements * (2 * math.pi * variance).log() + squared_error / variance)
        return Score(log_prob, squared_error, num_elements)

    def _fitted(self, squared_error: Tensor, num_elements: Tensor) -> Tensor:
        """The batch's maximum-likelihood variance, a scalar; the running mean moves towards it.

        A batch without observations moves nothing, and its variance is the running mean.
        """
        sums = torch.stack([squared_error.sum(), num_elements.expand(squared_error.shape).sum()])
        total_error, total = sum_over_processes(sums)
        some = total > 0  # a tensor: no synchronisation
        fitted = (total_error / total.clamp_min(1)).clamp_min(torch.finfo(squared_error.dtype).tiny)
        fitted = torch.where(some, fitted, self._variance.to(fitted.dtype))
        if torch.is_grad_enabled():  # a training step, not an evaluation
            with torch.no_grad():
                momentum = torch.where(some, torch.where(self._num_updates == 0, 1.0, _MOMENTUM), 0.0)
                self._variance.lerp_(fitted.to(self._variance.dtype), momentum.to(self._variance.dtype))
                self._num_updates += some
        return fitted
