"""Base class of the priors that couple groups."""

from abc import ABC, abstractmethod

from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior
from fgp_gpytorch.coupled.group_inputs import GroupInputs
from fgp_gpytorch.prior import LatentPrior


class CoupledPrior(LatentPrior, ABC):
    """A prior over all groups at once. It takes a vector of every group as an argument, learned or computed.

    Examples:
        >>> priors = [ProductPrior(4), InducingPrior(4, num_factors=2), FactorizedGPPrior([GlobalChannels(4)])]
        >>> [isinstance(prior, CoupledPrior) for prior in priors], [prior.couples_groups for prior in priors]
        ([True, True, False], [True, True, False])
    """

    couples_groups = True

    @abstractmethod
    def condition(self, inputs: GroupInputs, scale: float = 1.0) -> CoupledPosterior:
        """Condition on the pseudo-observations of some groups.

        Args:
            inputs: The groups.
            scale: How often each member counts for the variables that all groups share. For a minibatch of G of the P
                groups, P / G estimates the posterior of all groups.

        Returns:
            The posterior of these groups.
        """
