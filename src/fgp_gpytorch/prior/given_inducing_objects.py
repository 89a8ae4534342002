"""The sparse prior at object vectors that come with the data (paper, Appendix C)."""

from torch import Tensor

from fgp_gpytorch.prior.inducing_posterior import InducingPosterior
from fgp_gpytorch.prior.prior_at import PriorAt


class InducingPriorAt(PriorAt):
    """An `InducingPrior` of `GivenObjects` at the vectors of some groups, which are counted from 0 here."""

    _posterior = InducingPosterior

    def features(self, group_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `InducingPrior.features`, positions being those of the vectors."""
        return self.prior.features_at(self.objects.forward(group_index), x)
