"""The parts of an objective, as a model computes them on a batch."""

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """Sums over each group of a batch. Objectives weigh them.

    Attributes:
        log_likelihood: E_q[log p(Y_p | Z_p)] over the observed elements, nats, (G,): a Monte Carlo mean.
        kl_local: KL(q || p) of the channels that vary within a group, nats, (G,).
        kl_global: KL(q || p) of the channels with one value per group, nats, (G,).
        squared_error: E_q || y - E[y | z] ||^2 over the observed elements, units of y squared, (G,).
        num_elements: Observed elements of y, (G,).
        num_members: Members with an observed element, (G,).
        log_hyperprior: Log density of the kernels' hyperparameters under their priors, nats, scalar, once for the
            whole data set.
        num_dataset_groups: Groups of the whole data set.
        num_dataset_members: Members of the whole data set.
        kl_features: KL(q || p) of unknown auxiliary features, nats, (G,); None if the model infers none.
        log_supervision: log q of known features, nats, (G,): maximized, but not part of the bound; None for none.
        kl_effects: KL(q || p) of effects that all groups share, nats, scalar, once for the whole data set; None for
            none.
        num_batches: Batches that make up the data set. None unless the sizes of groups decide who is together.

    Examples:
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]))
        >>> data = GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2])
        >>> terms = model.terms(data[[0, 1]])
        >>> terms.kl_global.shape, terms.kl_local, terms.num_elements, terms.scale  # 2 of 3 groups
        (torch.Size([2]), tensor([0., 0.], dtype=torch.float64), tensor([10., 10.]), 1.5)
    """

    log_likelihood: Tensor
    kl_local: Tensor
    kl_global: Tensor
    squared_error: Tensor
    num_elements: Tensor
    num_members: Tensor
    log_hyperprior: Tensor
    num_dataset_groups: int
    num_dataset_members: int
    kl_features: Tensor | None = None
    log_supervision: Tensor | None = None
    kl_effects: Tensor | None = None
    num_batches: float | None = None

    @property
    def kl(self) -> Tensor:
        """KL(q || p) of latents and unknown features, nats, (G,)."""
        kl = self.kl_local + self.kl_global
        return kl if self.kl_features is None else kl + self.kl_features

    @property
    def scale(self) -> float:
        """What makes a sum over the batch unbiased for the data set.

        It is N/G, the groups of the data set per group of the batch, if the batch is random whatever its number of
        groups. Batches whose numbers of groups depend on the groups count equally: it is `num_batches` then.
        """
        return self.num_dataset_groups / self.log_likelihood.shape[0] if self.num_batches is None else self.num_batches

    @property
    def mse(self) -> Tensor:
        """Mean squared error of an observed element, units of y squared, scalar."""
        return self.squared_error.sum() / self.num_elements.sum().clamp_min(1)
