"""The correlated prior at object vectors that come with the data (paper, Appendix C)."""

from torch import Tensor

from fgp_gpytorch.prior.correlated_gp_prior import CorrelatedGPPrior, CorrelatedPosterior
from fgp_gpytorch.prior.prior_at import PriorAt


class CorrelatedGPPriorAt(PriorAt):
    """A `CorrelatedGPPrior` of `GivenObjects` at the vectors of some groups, which are counted from 0 here."""

    _posterior = CorrelatedPosterior

    def __init__(self, prior: CorrelatedGPPrior, vectors: Tensor) -> None:
        super().__init__(prior, vectors)
        self.local = prior.local
        self.num_global_channels, self.num_channels = prior.num_global_channels, prior.num_channels
