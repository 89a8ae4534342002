"""Base class of the models whose groups are independent."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import PseudoObservations, check_features, device_of, features_of
from fgp_gpytorch.models._streaming import filled, new_group_parts, part_of, parts_of
from fgp_gpytorch.models.grouped_vae import GroupedVAE
from fgp_gpytorch.models.linear_start import linear_start, refine
from fgp_gpytorch.prior import ChannelBlock, FactorizedGPPrior, GroupDistribution, LatentPosterior, Posterior


class FactorizedVAE(GroupedVAE[FactorizedGPPrior]):
    """Base class of the models with a `FactorizedGPPrior`. Minibatches of groups give unbiased gradients.

    The Pyro pair samples the whitened variables "u_0", "u_1", ... of the prior's blocks. "z" is a deterministic site,
    because it has no density where a covariance is singular, as in every global channel. The weights of shared effects
    are the site "effects", (L, M), outside the plate of the groups.

    Attributes:
        effects_seen: The digest of the labels of the training data, recorded by the training steps and saved, if the
            prior has shared effects. Groups of other data sets update q(w) when they are conditioned on.
        group_distribution: The distribution that `sample_groups` draws from; None before `fit_groups`.

    Examples:
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]))
        >>> data = GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2])
        >>> fitted = model.fit_groups(data)
        >>> model.sample_groups(torch.rand(2, 3, 1)).shape  # two new groups of three members
        torch.Size([2, 3, 5])
    """

    prior_kind = FactorizedGPPrior
    group_distribution: GroupDistribution | None

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
        self.register_module("group_distribution", None)

    def initialize(
        self, data: GroupedDataset, iterations: int = 40, rotation: Literal["components", "columns"] = "components"
    ) -> float:
        """Start as a linear Gaussian-process model of the data. The networks are `LinearEncoder` and `LinearDecoder`.

        Loadings are principal components (missing entries are imputed), scores give the means and variances of the
        kernels, and x their lengthscales. The observation variance is what the components leave. Then L-BFGS maximizes
        the ELBO over everything but the residual networks, which are zero. q(w) of shared effects is exact given the
        rest, in turn with L-BFGS. `fit` trains all from there.

        If the data set is thinned to fewer than 50 members a channel, the loadings stay principal components.

        Args:
            data: Training groups. Large data sets are thinned to evenly spaced groups. Of a large group, evenly spaced
                members and a run of neighbours are kept.
            iterations: Of L-BFGS, first over kernels and noise, then over all; 0 for none.
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
            thin: Whether a large data set is thinned further than in `initialize`, which is faster.

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

    def begin_training(self) -> None:
        """Discard the fitted distribution of groups: it is of the parameters before training."""
        self.group_distribution = None

    def training_posterior(self, batch: GroupedBatch, pseudo: PseudoObservations | None = None) -> Posterior:
        """q of a training step, which discards the fitted distribution of groups in training mode."""
        if self.training and torch.is_grad_enabled():
            self.group_distribution = None
        return super().training_posterior(batch, pseudo)

    @torch.no_grad()
    def fit_groups(
        self,
        data: GroupedDataset | GroupedBatch,
        bandwidth: float = 1.0,
        num_points: int = 20,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> GroupDistribution:
        """Fit the distribution from which `sample_groups` draws, to the posteriors of known groups.

        The prior is what a model regularizes towards, and not where its groups lie. `GroupDistribution` has the
        formulas. The result is kept in `group_distribution`, and saved and loaded with the model. Training discards it.
        Fit it again after any other change of the parameters.

        Args:
            data: Groups, such as the training data.
            bandwidth: h in (0, 1]. 1 gives one Gaussian with the mean and covariance of the groups' posteriors. A
                smaller one, such as 0.5, gives a mixture with a component near each group. Its mean and covariance are
                the same, and its draws lie closer to known groups. It keeps a vector of every group.
            num_points: The most values of x at which a local channel represents a group. They are chosen from `data`.
            batch_size: As in `generate`.
            progress: As in `generate`.

        Returns:
            The distribution.

        Raises:
            ArgumentError: If `data` is no data set or batch, or a number is out of range.
            DataError, ShapeError: As in `infer`, or if there are fewer than two groups.
        """
        check.instance(data, "data", (GroupedDataset, GroupedBatch), "Try GroupedDataset(y, x, group).")
        bandwidth = check.positive(bandwidth, "bandwidth", hint="Try 1.0 for one Gaussian, 0.5 for a mixture.")
        if bandwidth > 1:
            raise ArgumentError(f"bandwidth: expected at most 1, got {bandwidth:g}. Try 1.0, which is one Gaussian.")
        num_points = check.count(num_points, "num_points")
        parts, device = parts_of(data, False, batch_size, progress), device_of(self)
        x = data.x[data.mask] if isinstance(data, GroupedBatch) else data.features().x
        x = x[x.isfinite().all(-1)].to(device=device, dtype=self.prior.dtype)  # an unknown angle is NaN
        with evaluation_mode(self):
            posteriors = (self.infer(part_of(data, part, device)) for part in parts)
            fitted = GroupDistribution.fit(self.prior, posteriors, x, bandwidth, num_points)
        self.group_distribution = fitted
        return fitted

    def sample_groups(
        self, x_new: Tensor, sample_shape: Sequence[int] = (), batch_size: int | None = None, progress: bool = False
    ) -> Tensor:
        """Draw new groups from the distribution that `fit_groups` fitted; `generate` draws them from the prior.

        Groups are independent. So a loop over a few at a time draws any number of them in bounded memory.

        Args:
            x_new: Auxiliary features of the new groups, (G, Q*, D).
            sample_shape: Leading shape s of the draws.
            batch_size: As in `generate`.
            progress: As in `generate`.

        Returns:
            E[y | z] of coherent draws of z, (*s, G, Q*, *y_shape).

        Raises:
            ArgumentError: If `x_new` is not numeric, or `sample_shape` is not a sequence of integers.
            ShapeError: If `x_new` or the output of the decoder has the wrong shape.
            DataError: If no distribution was fitted, a value is not finite, or a dtype is not floating.
        """
        if self.group_distribution is None:
            raise DataError(
                "sample_groups: expected a model after fit_groups(data), got one without a fitted distribution of "
                "groups. Try model.fit_groups(train), again after training, or generate(x_new), which draws from the "
                "prior."
            )
        x_new = check.as_reals(x_new, "x_new", like=next(self.parameters(), None))
        check.shape(x_new, "x_new", ("G", "Q*", "D"), "Try x_new.unsqueeze(0) for one group.")
        check_features(x_new, "x_new", self)
        check.finite(x_new, "x_new")
        shape = check.as_sample_shape(sample_shape)
        parts = new_group_parts(x_new, shape.numel(), False, batch_size, progress)
        return filled(self._sampled_groups(x_new, shape, parts), x_new.shape[0], x_new.shape[1], shape)

    @torch.no_grad()
    def _sampled_groups(
        self, x_new: Tensor, sample_shape: torch.Size, parts: Iterator[slice]
    ) -> Iterator[tuple[slice, Tensor]]:
        assert self.group_distribution is not None
        for part in parts:
            z = self.group_distribution.sample(self.prior, x_new[part], sample_shape)
            yield part, self.likelihood.mean(self.decode(z, x_new[part]))

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
