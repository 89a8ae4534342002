"""Base class of all models."""

import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, NonFiniteError, ShapeError
from fgp_gpytorch.likelihoods import GaussianLikelihood, Likelihood, possible_values
from fgp_gpytorch.models._batches import (
    PseudoObservations,
    cast_for,
    check_features,
    checked_batch,
    checked_source,
    checked_targets,
    device_of,
    features_of,
    is_full,
    no_rows,
    observed_members,
    padded_features,
    scatter,
    whole_batch,
)
from fgp_gpytorch.models._element_dropout import drop_elements
from fgp_gpytorch.models._in_dtype import InDtype
from fgp_gpytorch.models._member_dropout import check_dropout, drop_members
from fgp_gpytorch.models._parameter_store import register
from fgp_gpytorch.models._streaming import (
    UNKNOWN_ELEMENTS,
    filled,
    generated_parts,
    joined_chunks,
    members_at_once,
    new_group_parts,
    part_of,
    parts_of,
)
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.prior import KLTerms, LatentPrior, Posterior, Prediction, check_variance
from fgp_gpytorch.saving import Configurable, load_model, save_model

Prior = TypeVar("Prior", bound=LatentPrior)


class GroupedVAE(Configurable, nn.Module, ABC, Generic[Prior]):
    r"""A variational autoencoder on grouped data: encoder, prior over latents, decoder, likelihood.

    The encoder gives pseudo-observations N(z | mu, sigma^2) of every member. The prior conditions on them, and the
    decoder maps latents to the parameter of the likelihood. A subclass fills in the hooks:

    | hook | result | default |
    | --- | --- | --- |
    | `encode_members(y, x, observed)` | members (N, *y_shape) to mu and sigma^2 | the encoder of y |
    | `decode_members(z, x)` | z (*s, G, Q, L) to (*s, G, Q, *y_shape) | the decoder of z |
    | `condition(batch, pseudo)` | the posterior of `infer` | abstract |
    | `condition_step(batch, pseudo)` | the posterior of a training step | `condition` |
    | `draw_latents(batch, plate)` | Pyro sites of the prior; returns z | abstract |
    | `draw_posterior(batch, plate)` | Pyro sites of q | abstract |
    | `prepare(batch)`, `prepare_step(batch)` | the batch to condition or train on | the batch itself |

    `model.model` and `model.guide` are an ordinary Pyro pair. The objectives of this package compute the same ELBO from
    `terms`, with the analytic KL and samples of the marginals.

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L). It takes members
            with an observed element, in one batch dimension. Other elements have the value of `gap_value`, usually 0.
            If its attribute `takes_observed` is True, it also takes `observed=`, a boolean of the shape of y, or None
            for all (see `nets.MLPEncoder`).
        decoder: Module from (*batch, L) to (*batch, *y_shape), or to the outputs that the likelihood takes.
        prior: The prior over the L channels.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        member_dropout: Fraction in [0, 1) of each group's pseudo-observations that q leaves out in a training step, so
            that the model learns to predict unseen members. Every member is still reconstructed, and one is always
            kept. The ELBO is still a bound. The paper uses 0. A pair (low, high) draws a fraction for each group and
            step, uniformly: (0, 1) trains for contexts of any size.
        element_dropout: Fraction of each group's observed elements of y that the encoder does not get in a training
            step, so that the model learns to predict missing elements. The forms are those of `member_dropout`. The
            loss keeps all elements, and one is always shown. Members without a shown element are left out of q. The
            ELBO is still a bound: it is one for every q(Z), and the hidden elements change q alone. Elements of one
            block of `likelihood.element_blocks`, such as a one-hot category, are hidden together. Needs an encoder that
            takes `observed`. Other networks of y, such as a representation, get all elements.

    Attributes:
        num_features: D of the training data, recorded by the first training step and saved; None before it. Other
            numbers of features are refused.

    Raises:
        ArgumentError: If an argument has another type, or a dropout is out of range. If there is element dropout, and
            the encoder does not take `observed`.

    Examples:
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)])).eval()
        >>> batch = GroupedBatch.from_tensors(y=torch.rand(2, 3, 5), x=torch.rand(2, 3, 1))
        >>> model.infer(batch).mean.shape, model.reconstruct(batch).shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 5]))
        >>> model.generate(torch.rand(2, 7, 1), context=batch).shape  # the same groups at seven new x
        torch.Size([2, 7, 5])
        >>> trace = pyro.poutine.trace(model.model).get_trace(batch)  # the Pyro pair is model.model and model.guide
    """

    encoder: nn.Module
    decoder: nn.Module
    prior: Prior
    likelihood: Likelihood
    prior_kind: type[LatentPrior] = LatentPrior  # the type of the constructor's prior

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__()
        hint = f"Try {type(self).__name__}(encoder, decoder, prior, likelihood)."
        self.encoder = check.instance(encoder, "encoder", nn.Module, hint)
        self.decoder = check.instance(decoder, "decoder", nn.Module, hint)
        check.instance(prior, "prior", self.prior_kind, hint)
        self.prior = prior
        likelihood = GaussianLikelihood() if likelihood is None else likelihood
        self.likelihood = check.instance(likelihood, "likelihood", Likelihood, hint)
        self.member_dropout = check_dropout(member_dropout)
        self.element_dropout = check_dropout(element_dropout, "element_dropout")
        if self.element_dropout != 0 and not getattr(encoder, "takes_observed", False):
            raise ArgumentError(
                "element_dropout: expected an encoder that takes the mask of observed elements, got "
                f"{type(encoder).__name__}, to which a hidden element would look like a 0. Try "
                "MLPEncoder(..., takes_observed=True), or element_dropout=0."
            )
        self.num_features: int | None = None

    # networks

    def encode(self, batch: GroupedBatch | GroupedDataset) -> PseudoObservations:
        """The encoder's pseudo-observations of every member.

        Args:
            batch: Groups.

        Returns:
            x, mean, variance and mask.

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            ShapeError: If the encoder's output is not two tensors of L channels.
            DataError: If the encoder's variance is negative, or a feature is unknown.
            NonFiniteError: If its variance is infinite.
        """
        batch = whole_batch(batch, "batch", self)
        # other members would cost time, and enter the statistics of a batch norm
        there = observed_members(batch)
        full = bool(there.all())
        y = batch.y if batch.y_mask is None else self.without_gaps(batch, self.encoder)
        taken = (y, batch.x) if batch.y_mask is None else (y, batch.x, batch.observed)
        rows, features, *elements = (v.flatten(0, 1) if full else v[there] for v in taken)
        if len(rows):
            encoded = self._encoded(rows, features, elements[0] if elements else None)
        else:
            encoded = (no_rows(self.encoder, self.prior.num_channels, batch.device),) * 2
        expected = (len(rows), self.prior.num_channels)
        got = [_shape_of(part) for part in encoded] if isinstance(encoded, tuple) else type(encoded).__name__
        if got != [expected, expected]:
            raise ShapeError(
                f"encoder: expected a mean and a variance of shape (batch, L) = {expected}, got {got}. "
                f"The prior has {self.prior.num_channels} channels. Try an encoder of as many outputs."
            )
        mean, variance = encoded
        wrong = (variance < 0) | variance.isinf()  # one that underflows to 0 gives a loss that is not finite
        if bool(wrong.any()):
            least, hint = variance[wrong].min().item(), "Try an encoder that ends in exp or softplus"
            if least < 0:
                raise DataError(f"encoder: expected positive variances, got {least:g}. {hint}.")
            message = f"encoder: expected finite variances, got inf. {hint}, scaled data, or a smaller learning rate."
            raise NonFiniteError(message, term="posterior")
        if full:
            mean, variance = (part.unflatten(0, batch.mask.shape) for part in (mean, variance))
        else:
            mean, variance = scatter(mean, there, 0.0), scatter(variance, there, 1.0)
        mask = None if full and batch.y_mask is None else there
        return PseudoObservations(features_of(batch, full), mean, variance, mask)

    def _encoded(self, y: Tensor, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """`encode_members`, of some members at a time where no result depends on it."""
        size = members_at_once(self.encoder, y, y.shape[1:].numel())
        if size is None or len(y) <= size:
            return self.encode_members(y, x, observed)
        chunks = zip(
            y.split(size), x.split(size), [None] * len(y) if observed is None else observed.split(size), strict=False
        )
        encoded = [self.encode_members(*chunk) for chunk in chunks]
        expected = [(len(part), self.prior.num_channels) for part in y.split(size) for _ in range(2)]
        got = [_shape_of(part) for pair in encoded for part in (pair if isinstance(pair, tuple) else (pair,))]
        if got != expected:  # the whole says what is wrong
            return self.encode_members(y, x, observed)
        mean, variance = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        return mean, variance

    def encode_members(self, y: Tensor, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (N, L) of members y (N, *y_shape) at x (N, D). This encoder takes y alone.

        Args:
            y: Observations, with the value of `gap_value` where an element was not observed.
            x: Auxiliary features.
            observed: True where an element was observed, the shape of y; None for everywhere.
        """
        return self.encoder(cast_for(self.encoder, y), **self.observed_for_encoder(observed))

    def without_gaps(self, batch: GroupedBatch, network: nn.Module) -> Tensor:
        """y with a value that the network can take where nothing was observed, (G, Q, *y_shape).

        It is the network's attribute `gap_value`, or the likelihood's `gap_value`.

        Args:
            batch: Groups.
            network: The module that takes y.
        """
        value = getattr(network, "gap_value", None)
        value = self.likelihood.gap_value(batch.y) if value is None else value
        return batch.y if value == 0 else torch.where(batch.observed, batch.y, value)

    def observed_for_encoder(self, observed: Tensor | None) -> dict[str, Tensor | None]:
        """The keyword `observed` for an encoder that takes it, else nothing."""
        return {"observed": observed} if getattr(self.encoder, "takes_observed", False) else {}

    def decode(self, z: Tensor, x: Tensor, y_shape: Sequence[int] | None = None) -> Tensor:
        """The likelihood's parameter at latents.

        Args:
            z: Latents, (*s, G, Q, L).
            x: Auxiliary features, (G, Q, D).
            y_shape: Expected shape of one observation; None accepts any.

        Returns:
            (*s, G, Q, *y_shape), or (*s, G, Q, *output_shape) of a likelihood that takes another number of outputs.

        Raises:
            ArgumentError: If `z` is not a tensor, or `x` not numeric.
            ShapeError: If the decoder's output has another shape. Nothing is broadcast against y.
        """
        if not isinstance(z, Tensor):
            check.instance(z, "z", Tensor, "Try torch.as_tensor(z).")
        x = check.as_reals(x, "x", like=z)
        output = self._decoded(z, x, y_shape)
        front, own = tuple(z.shape[:-1]), None if y_shape is None else self.likelihood.output_shape(y_shape)
        fits = isinstance(output, Tensor) and output.shape[: len(front)] == front
        if not fits or own not in (None, output.shape[len(front) :]):
            expected = (*front, "*y_shape") if own is None else (*front, *own)
            wanted = "*y_shape" if own is None or own == tuple(y_shape or ()) else ", ".join(map(str, own))
            raise ShapeError(
                f"decoder: expected the shape {expected} from z {tuple(z.shape)}, got {_shape_of(output)}. "
                f"Try a decoder that maps (*batch, L) to (*batch, {wanted})."
            )
        return output

    def _decoded(self, z: Tensor, x: Tensor, y_shape: Sequence[int] | None) -> Tensor:
        """`decode_members`, of some members at a time where no result depends on it."""
        size = members_at_once(self.decoder, z, UNKNOWN_ELEMENTS if y_shape is None else math.prod(y_shape))
        members = z.shape[:-1].numel()
        if size is None or members <= size or x.dim() != 3 or x.shape[:-1] != z.shape[-3:-1]:
            return self.decode_members(z, x)
        rows, features = z.flatten(0, -2), x.flatten(0, 1)

        def network(start: int, stop: int) -> Tensor | None:
            own = torch.arange(start, stop, device=x.device) % len(features)
            output = self.decode_members(rows[start:stop].unsqueeze(0), features[own].unsqueeze(0))
            return output[0] if isinstance(output, Tensor) and output.shape[:2] == (1, stop - start) else None

        joined = joined_chunks(network, members, size)
        return self.decode_members(z, x) if joined is None else joined.unflatten(0, z.shape[:-1])

    def decode_observed(self, z: Tensor, x: Tensor, y_shape: Sequence[int], there: Tensor | None) -> Tensor:
        """The likelihood's parameter at latents of observed members. Others would enter the statistics of a batch norm.

        If some members are left out, the decoder gets the rest as one group. If all are, it runs in evaluation mode.

        Args:
            z: Latents, (*s, G, Q, L).
            x: Auxiliary features, (G, Q, D).
            y_shape: Expected shape of one observation.
            there: True for the members to decode, (G, Q); None for all.

        Returns:
            As `decode`, with the output of the first observed member, without gradient, in the place of others.

        Raises:
            ShapeError: As in `decode`.
        """
        if there is None:
            return self.decode(z, x, y_shape)
        rows = there.flatten().nonzero()[:, 0]
        if len(rows) == there.numel():
            return self.decode(z, x, y_shape)
        if not len(rows):
            with evaluation_mode(self):
                return self.decode(z, x, y_shape)
        dim = z.dim() - 3
        one_group = z.flatten(dim, dim + 1).index_select(dim, rows).unsqueeze(dim)
        output = self.decode(one_group, x.flatten(0, 1)[rows].unsqueeze(0), y_shape).squeeze(dim)
        first = output.detach().narrow(dim, 0, 1)
        first = first.expand(*z.shape[:dim], there.numel(), *output.shape[dim + 1 :])
        return first.index_copy(dim, rows, output).unflatten(dim, there.shape)

    def decode_members(self, z: Tensor, x: Tensor) -> Tensor:
        """The likelihood's parameter at z (*s, G, Q, L) and x (G, Q, D). This decoder takes z alone."""
        return self.decoder(cast_for(self.decoder, z))

    # hooks of the prior

    @abstractmethod
    def condition(self, batch: GroupedBatch, pseudo: PseudoObservations) -> Posterior:
        """The posterior of a batch, every member counted once."""

    def condition_step(self, batch: GroupedBatch, pseudo: PseudoObservations) -> Posterior:
        """The posterior of a training step."""
        return self.condition(batch, pseudo)

    def training_posterior(self, batch: GroupedBatch, pseudo: PseudoObservations | None = None) -> Posterior:
        """q of a training step. Training mode applies member dropout.

        Args:
            batch: Groups of a data set.
            pseudo: The encoder's pseudo-observations of `shown(batch)`; None computes them.
        """
        pseudo = self.encode(self.shown(batch)) if pseudo is None else pseudo
        if self.training and torch.is_grad_enabled() and self.num_features is None:
            self.num_features = batch.x.shape[-1]
        if self.training and self.member_dropout != 0:
            mask = batch.mask if pseudo.mask is None else pseudo.mask
            pseudo = pseudo._replace(mask=drop_members(mask, self.member_dropout))
        return self.condition_step(batch, pseudo)

    def shown(self, batch: GroupedBatch) -> GroupedBatch:
        """The batch as the encoder gets it in a training step. Training mode applies element dropout."""
        if not self.training or self.element_dropout == 0:
            return batch
        blocks = getattr(self.likelihood, "element_blocks", None)
        shown = drop_elements(batch.observed, self.element_dropout, blocks)
        return dataclasses.replace(batch, y=batch.y.masked_fill(~shown, 0.0), y_mask=shown)

    def begin_training(self) -> None:
        """Called by `fit` before it looks at the model. A subclass discards what training makes obsolete."""

    def split_kl(self, posterior: Any, batch: GroupedBatch) -> KLTerms:
        """The KL of local and of global channels, nats, each (G,)."""
        return posterior.kl_terms

    def prepare(self, batch: GroupedBatch) -> GroupedBatch:
        """The batch to condition on. A subclass raises a `GroupError` for groups that it cannot take."""
        return batch

    def prepare_step(self, batch: GroupedBatch) -> GroupedBatch:
        """The batch to train on. A subclass raises a `GroupError` for groups that it cannot take."""
        return self.prepare(batch)

    # Pyro

    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program.

        Args:
            batch: Groups of a data set. The plate "groups" has the size of the data set, which scales a minibatch.
            observe: False draws the site "y" instead of conditioning on `batch.y`.

        Returns:
            y, observed or drawn, (G, Q, *y_shape).

        Raises:
            ArgumentError, ShapeError, DataError, GroupError: As in `terms`.
        """
        batch = self.prepare_step(whole_batch(batch, "batch", self))
        self.register_parameters()
        plate = self.plate(batch)
        z = self.draw_latents(batch, plate)
        return self.draw_observations(z, batch, plate, observe)

    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """The approximate posterior q(Z | Y, X) as a Pyro program.

        Args:
            batch: The same as the model's.
            observe: No effect: Pyro passes the model's arguments.

        Raises:
            ArgumentError, ShapeError, DataError, GroupError: As in `terms`.
        """
        batch = self.prepare_step(whole_batch(batch, "batch", self))
        self.register_parameters()
        self.draw_posterior(batch, self.plate(batch))

    @abstractmethod
    def draw_latents(self, batch: GroupedBatch, plate: pyro.plate) -> Tensor:
        """The prior's sites of `model`. Returns z, (*s, G, Q, L)."""

    @abstractmethod
    def draw_posterior(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The sites of `guide`."""

    def plate(self, batch: GroupedBatch) -> pyro.plate:
        """The plate of the batch's groups."""
        return pyro.plate("groups", batch.num_dataset_groups, subsample=batch.group_index, dim=-1)

    def draw_observations(self, z: Tensor, batch: GroupedBatch, plate: pyro.plate, observe: bool) -> Tensor:
        """The sites "log_hyperprior", "z" (deterministic, (*s, G, Q, L)) and "y" of a Pyro program. Returns y."""
        if next(self.prior.named_priors(), None) is not None:
            pyro.factor("log_hyperprior", self.prior.log_hyperprior())
        with plate:
            fixed = InDtype(dist.Delta(z, event_dim=2).mask(False), self.prior.dtype)
            z = pyro.sample("z", fixed, obs=z, infer={"_deterministic": True})  # pyro.deterministic, in this dtype
            there = observed_members(batch) if observe else None
            output, filled = self.decode_observed(z, features_of(batch), batch.y.shape[2:], there), None
            if observe:
                output, filled = self.likelihood.without_gaps(output, batch.y, batch.observed)
            distribution = self.likelihood.distribution(output, filled, batch.observed)
            elements = distribution.mask(batch.observed).to_event(batch.y.dim() - 1)
            elements = InDtype(elements, self.prior.dtype)
            if filled is None:
                return pyro.sample("y", elements)
            pyro.sample("y", elements, obs=possible_values(distribution, batch.y, filled, batch.observed))
            return batch.y

    def register_parameters(self) -> None:
        """Register the parameters with Pyro, so that `pyro.infer.SVI` optimizes them.

        `pyro.get_param_store().save` and `.load` keep them under the name of the class. Values that were loaded go into
        the model here, at its next run. Buffers and options are not in the store; `save` keeps these too.

        Raises:
            CheckpointError: If parameters of another model were loaded into the store.
        """
        register(self)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a pickle or a copy, without the weak references that Pyro attaches to parameters."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return self.__dict__.copy()

    # objectives

    def terms(self, batch: GroupedBatch | GroupedDataset, num_particles: int = 1) -> Terms:
        """The parts of the ELBO (paper, Section 3, last equation, in its KL form) for every group of a batch.

            sum_q E_q[log p(y_q | z_q)] - KL(q(Z_p) || p(Z_p))

        The likelihood factorizes over members, so z is drawn from the marginals of q. The KL is analytic.

        Args:
            batch: Groups of a data set.
            num_particles: Draws of z for the expectation.

        Returns:
            Sums per group, (G,).

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            ShapeError: If the encoder's or the decoder's output has the wrong shape.
            DataError: If the encoder's variance is not positive, or y lies outside the likelihood's range.
            GroupError: If the model cannot be trained on these groups.
        """
        num_particles = check.count(num_particles, "num_particles")
        batch = self.prepare_step(whole_batch(batch, "batch", self))
        shown = self.shown(batch)
        pseudo = self.encode(shown)
        posterior = self.training_posterior(batch, pseudo)
        z = posterior.rsample_marginals(torch.Size([num_particles] if num_particles > 1 else []))
        there = pseudo.mask if shown is batch else observed_members(batch)  # of the loss
        output = self.decode_observed(z, pseudo.x, batch.y.shape[2:], there)
        observed = None if there is None else batch.observed
        score = self.likelihood.score(output, batch.y, observed)
        kl = self.split_kl(posterior, batch)
        return Terms(
            log_likelihood=score.log_prob.reshape(-1, batch.num_groups).mean(0),
            kl_local=kl.kl_local,
            kl_global=kl.kl_global,
            squared_error=score.squared_error.reshape(-1, batch.num_groups).mean(0),
            num_elements=score.num_elements,
            num_members=(batch.mask if there is None else there).sum(-1),
            log_hyperprior=self.prior.log_hyperprior(),
            num_dataset_groups=batch.num_dataset_groups,
            num_dataset_members=batch.num_dataset_members,
            kl_effects=self.prior.kl_effects(),
        )

    # inference and generation

    def infer(self, batch: GroupedBatch | GroupedDataset) -> Posterior:
        """q(Z | Y, X) of the batch's groups given all their members, without member dropout.

        Args:
            batch: Groups to condition on.

        Returns:
            The posterior over (G, Q, L).

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            ShapeError: If the encoder's output is not two tensors of L channels.
            DataError: If the batch is empty, a value is not finite, or a variance is not positive.
            GroupError: If the model cannot take these groups.
        """
        batch = self.prepare(checked_batch(batch, "batch", self))
        pseudo = self.encode(batch)
        observed = None if pseudo.mask is None else pseudo.mask.unsqueeze(-1)
        check.finite(pseudo.mean, "mean", observed)
        check.finite(pseudo.variance, "variance", observed)
        check_variance(pseudo.variance, observed)
        return self.condition(batch, pseudo)

    def predict(self, x_new: Tensor, context: GroupedBatch | GroupedDataset) -> Prediction:
        """The latents' posterior at new members of the context's groups, which `generate` decodes.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups. (Q*, D) is the same for all
                groups. One row for each group is (G, 1, D), because (G, D) means G rows for all groups.
            context: Groups to condition on.

        Returns:
            `mean` and `variance` (G, Q*, L), and `rsample`.

        Raises:
            ArgumentError: If an argument has another type.
            GroupError: If the number of groups differs, or the model cannot take the context's groups.
            ShapeError: If x_new or the encoder's output has the wrong shape.
            DataError: If a value is not finite or a dtype is not floating.
        """
        context = whole_batch(context, "context", self)
        x_new = checked_targets(x_new, context, context.x.shape[-1])
        posterior = self.infer(context)
        return posterior.predict_checked(x_new.to(posterior.x.dtype))

    def reconstruct(
        self, batch: GroupedBatch | GroupedDataset, batch_size: int | None = None, progress: bool = False
    ) -> Tensor:
        """E[y | z] at the posterior mean of z: one decoded observation for each member.

        Args:
            batch: Groups to condition on.
            batch_size: As in `generate`.
            progress: As in `generate`.

        Returns:
            (G, Q, *y_shape), 0 at padded members.

        Raises:
            ArgumentError, DataError, GroupError: As in `infer`, or as in `generate` for the last two arguments.
            ShapeError: If the encoder's or the decoder's output has the wrong shape.
        """
        parts = self.reconstruct_batches(batch, batch_size, progress)  # checks the batch
        members = batch.num_members if isinstance(batch, GroupedBatch) else int(batch.group_sizes.max())
        return filled(parts, batch.num_groups, members)

    def reconstruct_batches(
        self, batch: GroupedBatch | GroupedDataset, batch_size: int | None = None, progress: bool = False
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the observations of `reconstruct`, some groups at a time, as `generate_batches` does.

        Args:
            batch: Groups to condition on.
            batch_size: As in `generate`.
            progress: As in `generate`.

        Returns:
            The positions of some groups, and their observations (g, q, *y_shape) for the q members of the largest.

        Raises:
            ArgumentError, DataError, GroupError, ShapeError: As in `reconstruct`.
        """
        source = checked_source(batch, "batch", self)
        return self._reconstructed(source, parts_of(source, self.prior.couples_groups, batch_size, progress))

    @torch.no_grad()
    def _reconstructed(
        self, source: GroupedBatch | GroupedDataset, parts: Iterator[slice]
    ) -> Iterator[tuple[slice, Tensor]]:
        for part in parts:
            batch = whole_batch(part_of(source, part, device_of(self)), "batch", self)
            z, there = self.infer(batch).mean, None if is_full(batch) else batch.mask
            y = self.likelihood.mean(self.decode_observed(z, padded_features(batch), batch.y.shape[2:], there))
            yield part, y if there is None else torch.where(there.reshape(*there.shape, *[1] * (y.dim() - 2)), y, 0.0)

    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset | None = None,
        sample_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Generate observations at new auxiliary features, for the context's groups or for new groups.

        A data set is worked through some groups at a time. So memory holds the result, and little beside it.
        `generate_batches` does not hold the result either.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups. (Q*, D) is the same for all
                groups. One row for each group is (G, 1, D), because (G, D) means G rows for all groups.
            context: Groups to condition on. None draws new groups from the prior p(z), if the model can.
                `FactorizedVAE.sample_groups` draws them from the distribution of known groups instead.
            sample_shape: With a context, None decodes the posterior mean of z. A shape decodes joint draws of z,
                coherent across the members of a group. Without a context z is always drawn.
            batch_size: The most groups at a time. None takes as many of a data set as have about a million elements of
                y, padding included, and a `GroupedBatch` as it is. The result is the same up to rounding. Draws have
                the same distribution, but are others. Groups that depend on each other are always one batch: those of
                a prior that couples them, and new groups under shared effects.
            progress: Whether to show a progress bar.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            ArgumentError: If an argument has another type, or `sample_shape` is not a sequence of integers or None. If
                `batch_size` is below 1, or would split groups that depend on each other.
            GroupError: As in `predict`, or if the model cannot draw new groups.
            ShapeError: If x_new or the output of a network has the wrong shape.
            DataError: If a value is not finite or a dtype is not floating.
        """
        x_new, shape, parts = self._to_generate(x_new, context, sample_shape, batch_size, progress)
        return filled(parts, x_new.shape[0], x_new.shape[1], shape or ())

    def generate_batches(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset | None = None,
        sample_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the observations of `generate`, some groups at a time, so that not all are in memory.

            for groups, images in model.generate_batches(x_new, context=data):
                file[groups] = images.numpy()  # a memory-mapped array, zarr, HDF5

        Args:
            x_new: As in `generate`.
            context: As in `generate`.
            sample_shape: As in `generate`.
            batch_size: As in `generate`.
            progress: As in `generate`.

        Returns:
            The positions of some groups, and their observations, (*sample_shape, g, Q*, *y_shape).

        Raises:
            ArgumentError, GroupError, ShapeError, DataError: As in `generate`.
        """
        return self._to_generate(x_new, context, sample_shape, batch_size, progress)[2]

    def _to_generate(
        self, x_new: Any, context: Any, sample_shape: Any, batch_size: int | None, progress: bool
    ) -> tuple[Tensor, torch.Size | None, Iterator[tuple[slice, Tensor]]]:
        """Checked features and shape of draws of `generate`, and its parts."""
        shape = None if sample_shape is None else check.as_sample_shape(sample_shape)
        x_new = check.as_reals(x_new, "x_new", like=next(self.parameters(), None))
        draws = 1 if shape is None else shape.numel()
        if context is None:
            check_features(x_new, "x_new", self)
            check.shape(x_new, "x_new", ("G", "Q*", "D"), "Try x_new.unsqueeze(0) for one group.")
            parts = new_group_parts(x_new, draws, self.prior.kl_effects() is not None, batch_size, progress)
            return x_new, shape, self._sampled(x_new, shape or torch.Size(), parts)
        source = checked_source(context, "context", self)
        features = source.x.shape[-1] if isinstance(source, GroupedBatch) else source.num_features
        x_new = checked_targets(x_new, source, features, device_of(self))
        parts = parts_of(source, self.prior.couples_groups, batch_size, progress, draws * x_new.shape[1])
        return x_new, shape, generated_parts(self, x_new, source, shape, parts, device_of(self))

    @torch.no_grad()
    def _sampled(
        self, x_new: Tensor, sample_shape: torch.Size, parts: Iterator[slice]
    ) -> Iterator[tuple[slice, Tensor]]:
        for part in parts:
            z = self.sample_prior(x_new[part], sample_shape)
            yield part, self.likelihood.mean(self.decode(z, x_new[part]))

    @abstractmethod
    def sample_prior(self, x: Tensor, sample_shape: Sequence[int]) -> Tensor:
        """Latents of new groups at x (G, Q, D): (*s, G, Q, L)."""

    def save(self, path: str | Path) -> None:
        """Write the configuration and the parameters to a file. Reading it executes no code.

        Args:
            path: The file.

        Raises:
            ArgumentError: If the path is not a string or a path.
            CheckpointError: If a part cannot be described (for instance a network that is not `Configurable`). The
                message names the part.
            MissingFileError: If the folder does not exist.
        """
        save_model(self, check.instance(path, "path", (str, os.PathLike), "Try 'model.pt'."))

    @classmethod
    def load(cls, path: str | Path, **parts: nn.Module) -> Self:
        """Rebuild a saved model, or the model inside a training checkpoint of `fit`.

        Args:
            path: A file written by `save`, or a checkpoint of `fit`.
            **parts: `encoder=`, `decoder=`, `prior=`, `likelihood=` or another part of the model, in place of the
                saved description.

        Returns:
            The model on the CPU, in evaluation mode.

        Raises:
            ArgumentError: If the path is not a string or a path, or a part has another type.
            MissingFileError: If there is no such file.
            CheckpointError: If the file is not a checkpoint of this class, or does not fit the parts.
        """
        return load_model(cls, check.instance(path, "path", (str, os.PathLike), "Try 'model.pt'."), parts)


def _shape_of(value: Any) -> Any:
    """The shape of a tensor, the type of anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
