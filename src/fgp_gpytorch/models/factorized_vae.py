"""Base class of the models whose groups are independent."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import PseudoObservations, features_of
from fgp_gpytorch.models.grouped_vae import GroupedVAE
from fgp_gpytorch.models.linear_start import linear_start, refine
from fgp_gpytorch.prior import ChannelBlock, FactorizedGPPrior, LatentPosterior


class FactorizedVAE(GroupedVAE[FactorizedGPPrior]):
    """Base class of the models with a `FactorizedGPPrior`. Minibatches of groups give unbiased gradients.

    The Pyro pair samples the whitened variables "u_0", "u_1", ... of the prior's blocks. "z" is a deterministic site,
    because it has no density where a covariance is singular, as in every global channel. The weights of shared effects
    are the site "effects", (L, M), outside the plate of the groups.

    Attributes:
        effects_seen: The digest of the labels of the training data, recorded by the training steps and saved, if the
            prior has shared effects. Groups of other data sets update q(w) when they are conditioned on.
    """

    prior_kind = FactorizedGPPrior

    @abstractmethod
    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: FactorizedGPPrior,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, element_dropout)
        self.effects_seen: int | None = None

    def initialize(
        self, data: GroupedDataset, iterations: int = 100, rotation: Literal["components", "columns"] = "components"
    ) -> float:
        """Start as a linear Gaussian-process model of the data. The networks are `LinearEncoder` and `LinearDecoder`.

        Loadings are principal components (missing entries are imputed), scores give the means and variances of the
        kernels, and x their lengthscales. The observation variance is what the components leave. Then L-BFGS maximizes
        the ELBO over everything but the residual networks, which are zero. `fit` trains all from there.

        Args:
            data: Training groups. Large data sets are thinned to evenly spaced groups and members.
            iterations: Of L-BFGS; 0 for none.
            rotation: "components" starts with principal components, "columns" with one channel for each element of y.

        Returns:
            The ELBO, nats an observed element.

        Raises:
            ArgumentError: If the networks are others, `data` is no data set, or an option is unknown.
        """
        check.instance(data, "data", GroupedDataset, "Try GroupedDataset(y, x, group).")
        return linear_start(self, data, iterations, rotation)

    def refine(self, data: GroupedDataset, iterations: int = 20, thin: bool = False) -> float:
        """Maximize the ELBO of a linear model further by L-BFGS, from where it stands. Returns it, nats an element.

        Args:
            data: Training groups.
            iterations: Of L-BFGS.
            thin: Whether a large data set is thinned as in `initialize`, which is faster.

        Raises:
            ArgumentError: If `data` is no data set, or `iterations` no integer of at least 0.
        """
        check.instance(data, "data", GroupedDataset, "Try GroupedDataset(y, x, group).")
        return refine(self, data, check.count(iterations, "iterations", least=0), thin)

    def condition(self, batch: GroupedBatch, pseudo: PseudoObservations) -> LatentPosterior:
        """The exact GP posterior of the pseudo-observations."""
        seen = self.effects_seen is not None and batch.labels_digest == self.effects_seen
        return self.prior.condition(*pseudo, seen=seen)

    def condition_step(self, batch: GroupedBatch, pseudo: PseudoObservations) -> LatentPosterior:
        """The posterior given one draw of the shared effects, which is the site "effects" of the guide."""
        if self.prior.effects is None:
            return self.condition(batch, pseudo)
        if self.training and torch.is_grad_enabled():
            self.effects_seen = batch.labels_digest
        weights = pyro.sample("effects", self.prior.effects.distribution())
        return self.prior.condition(*pseudo, weights=weights)

    def draw_latents(self, batch: GroupedBatch, plate: pyro.plate) -> Tensor:
        """The sites "effects" and "u_0", "u_1", ... of the prior. Returns z, (*s, G, Q, L)."""
        x = features_of(batch).to(self.prior.dtype)
        effects, parts = self.prior.effects, []
        shift = None
        if effects is not None:
            shift = effects.values(x, pyro.sample("effects", effects.prior_distribution()))
        with plate:
            for index, block in enumerate(self.prior.blocks):
                root = block.covariance_root(x)
                u = pyro.sample(f"u_{index}", standard_normal(block, root))  # shape: (*s, G, J, M)
                parts.append(block.prior_mean(x) + (root @ u.unsqueeze(-1)).squeeze(-1))
        z = torch.cat(parts, dim=-2)
        return (z if shift is None else z + shift).mT

    def draw_posterior(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The sites "effects" of q(w), and "u_0", "u_1", ... of the exact GP posterior given w."""
        posterior = self.training_posterior(batch)
        assert isinstance(posterior, LatentPosterior)
        with plate:
            for index, distribution in enumerate(posterior.whitened_distributions()):
                pyro.sample(f"u_{index}", distribution)

    def sample_prior(self, x: Tensor, sample_shape: Sequence[int]) -> Tensor:
        """Latents of new groups at x (G, Q, D): (*s, G, Q, L)."""
        check.shape(x, "x_new", ("G", "Q*", "D"), "Try x_new.unsqueeze(0) for one group.")
        check.finite(x, "x_new")
        return self.prior.sample(x, sample_shape)


def standard_normal(block: ChannelBlock, root: Tensor) -> dist.TorchDistribution:
    """p(u) of a block's whitened variables: batch (*b, G), event (J, M), or (1, M) for channels that share them."""
    shape = (*root.shape[:-3], block.num_whitened, root.shape[-1])
    mean = torch.zeros(shape, dtype=root.dtype, device=root.device)
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    return dist.MultivariateNormal(mean, scale_tril=identity, validate_args=False).to_event(1)
