"""Base class of the priors that couple groups."""

from abc import ABC, abstractmethod

from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior
from fgp_gpytorch.coupled.group_inputs import GroupInputs
from fgp_gpytorch.prior import LatentPrior


class CoupledPrior(LatentPrior, ABC):
    """A prior over all groups at once. It identifies every group by a vector, which may be learned or computed.

    The vectors are arguments: the prior has no table of groups.
    """

    couples_groups = True

    @abstractmethod
    def condition(self, inputs: GroupInputs, scale: float = 1.0) -> CoupledPosterior:
        """Condition on the pseudo-observations of some groups.

        Args:
            inputs: The groups.
            scale: How often each member counts for the variables that all groups share. P / G of a minibatch of G of
                the P groups estimates the posterior of all groups.

        Returns:
            The posterior of these groups.
        """
