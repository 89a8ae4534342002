"""What every model says of latents at new members."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Prediction(Protocol):
    """A posterior at new members, such as `prior.LatentPrediction`."""

    @property
    def mean(self) -> Tensor:
        """Marginal means, (G, Q*, L)."""
        ...

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (G, Q*, L)."""
        ...

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Joint draws, (*sample_shape, G, Q*, L)."""
        ...
