"""The factorized Gaussian-process variational autoencoder of the paper."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from fgp_gpytorch._shapes import check_floating, check_shape
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.likelihoods import GaussianLikelihood, Likelihood
from fgp_gpytorch.models._batches import (
    cast_for,
    check_sample_shape,
    check_targets,
    checked_batch,
    features_of,
    is_full,
    scatter,
    standard_normal,
    whole_batch,
)
from fgp_gpytorch.models.member_dropout import check_dropout, drop_members
from fgp_gpytorch.models.prediction import Prediction
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.prior import ChannelBlock, FactorizedGPPrior, GlobalChannels, LatentPosterior
from fgp_gpytorch.saving import Configurable, load_model, save_model

_instances = itertools.count()


class FGPVAE(Configurable, PyroModule):
    r"""A VAE whose latent channels have a factorized Gaussian-process prior over each group (paper, Section 3).

    Generative process, for each group p and its members q with auxiliary features x_q:

        Z_p ~ FactorizedGPPrior(X_p)            latent paths, one Gaussian process per channel
        y_q ~ likelihood(decoder(z_q))          independent over members

    The guide replaces the likelihood by the encoder's pseudo-observations and conditions exactly:

        q(Z_p | Y_p, X_p) ~ prod_q N(z_q | encoder(y_q)) p(Z_p | X_p)

    | symbol | meaning | where |
    | --- | --- | --- |
    | mu_phi, sigma_phi^2 | pseudo-observations | `encoder(y)`: mean and variance, (*batch, L) |
    | mu_psi | generative network | `decoder(z)`: the likelihood's parameter, (*batch, *y_shape) |
    | p_theta(Z given X) | prior | `prior`, a `FactorizedGPPrior` |
    | sigma_y^2 | observation variance | `likelihood.variance` |

    `model.model` and `model.guide` are an ordinary Pyro pair; objectives of this package compute the same ELBO from
    `terms`, with the analytic KL and marginal samples alone. In Pyro's traces the latent sites are the whitened
    variables `u_0`, `u_1`, ... of the blocks (z itself has no density where a covariance is singular, as in every
    global channel), and `z` is a deterministic site.

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L). It sees only
            members that are there, in one batch dimension, with 0 for an element that was not observed. One with an
            attribute `takes_observed` that is True is told which are there: `observed=`, a boolean of the shape of y,
            or None for all (`nets.MLPEncoder(..., takes_observed=True)`).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        prior: The prior over the L channels.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        member_dropout: Fraction of each group's pseudo-observations left out of q in a training step, while every
            member is still reconstructed: a coarser q, still a valid ELBO, and practice for unseen members. At least
            one is kept. 0 is the paper. A pair (low, high) draws each group's fraction uniformly between the two, anew
            in every step: (0, 1) trains for contexts of any size, down to a single member.

    Raises:
        ShapeError: If an argument is not a module of its kind.
        DataError: If `member_dropout` is outside [0, 1), or is no pair with 0 <= low <= high <= 1.

    Example:
        >>> model = FGPVAE(ConvEncoder(16), ConvDecoder(16), prior)
        >>> fit(model, data.train, epochs=100)
        >>> images = model.generate(x_new, context=data.test.context)
    """

    encoder: nn.Module
    decoder: nn.Module
    prior: FactorizedGPPrior
    likelihood: Likelihood
    _prior_kind: type[nn.Module] = FactorizedGPPrior  # what the constructor takes

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: FactorizedGPPrior,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        # a name of its own: Pyro's global parameter store would make two models of one name share parameters
        PyroModule.__init__(self, f"fgpvae_{next(_instances)}")
        likelihood = GaussianLikelihood() if likelihood is None else likelihood
        kinds = nn.Module, nn.Module, self._prior_kind, Likelihood
        expected = dict(zip(("encoder", "decoder", "prior", "likelihood"), kinds, strict=True))
        given = {"encoder": encoder, "decoder": decoder, "prior": prior, "likelihood": likelihood}
        for name, kind in expected.items():
            if not isinstance(given[name], kind):
                raise ShapeError(
                    f"{name}: expected a {kind.__name__}, got {type(given[name]).__name__}. "
                    "Try FGPVAE(encoder, decoder, prior, likelihood)."
                )
        self.encoder, self.decoder, self.prior, self.likelihood = encoder, decoder, prior, likelihood
        self.member_dropout = check_dropout(member_dropout)

    def __getattr__(self, name: str) -> Any:
        """As Pyro's, which announces a part's parameters when it is used, without its warning of the fixed ones.

        Hyperparameters may be fixed: that is no mistake to warn of in every step.
        """
        context = self.__dict__.get("_pyro_context")
        if context is None or not context.active:
            return super().__getattr__(name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was not registered in the param store because requires_grad=False")
            return super().__getattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy, by `copy.deepcopy` or from a pickle, a name of its own in Pyro's parameter store."""
        super().__setstate__(state)
        object.__setattr__(self, "_pyro_name", f"fgpvae_{next(_instances)}")

    # Pyro

    @pyro_method
    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program.

        Args:
            batch: Groups of a dataset; the plate "groups" has the dataset's number of groups as its size, so that a
                minibatch is scaled to it.
            observe: False draws the site "y" instead of conditioning on `batch.y`.

        Returns:
            y, observed or drawn, (G, Q, *y_shape).
        """
        batch = whole_batch(batch, "batch")
        return self._draw_model(batch, self._plate(batch), observe)

    def _draw_model(self, batch: GroupedBatch, plate: pyro.plate, observe: bool) -> Tensor:
        """The sites of `model` in a plate of the batch's groups."""
        x = features_of(batch).to(self.prior.dtype)
        if next(self.prior.named_priors(), None) is not None:
            pyro.factor("log_hyperprior", self.prior.log_hyperprior())
        with plate:
            parts = []
            for index, block in enumerate(self._blocks()):
                root = block.covariance_root(x)
                u = pyro.sample(f"u_{index}", standard_normal(block, root))  # shape: (*s, G, J, M)
                part = block.prior_mean(x) + (root @ u.unsqueeze(-1)).squeeze(-1)
                parts.append(part)
            return self._observe(torch.cat(parts, dim=-2).mT, batch, observe)

    @pyro_method
    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """The approximate posterior q(Z | Y, X) as a Pyro program: the exact GP posterior of the pseudo-observations.

        Args:
            batch: The same as the model's.
            observe: As the model's; it changes nothing here.
        """
        batch = whole_batch(batch, "batch")
        self._draw_guide(batch, self._plate(batch))

    def _draw_guide(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The sites of `guide` in a plate of the batch's groups."""
        posterior = self._infer(batch)
        with plate:
            for index, distribution in enumerate(posterior.whitened_distributions()):
                pyro.sample(f"u_{index}", distribution)

    @pyro_method
    def register_parameters(self) -> None:
        """Announce all parameters to Pyro, as running the pair would: `pyro.infer.SVI` learns what it must step."""
        for name in ("encoder", "decoder", "prior", "likelihood"):
            getattr(self, name)

    # objectives

    def terms(self, batch: GroupedBatch, num_particles: int = 1) -> Terms:
        """The parts of the ELBO (paper, Section 3, last equation, in its KL form) for every group of a batch.

            sum_q E_q[log p(y_q | z_q)] - KL(q(Z_p) || p(Z_p))

        The likelihood factorizes over members, so z is drawn from the marginals of q; the KL is analytic.

        Args:
            batch: Groups of a dataset.
            num_particles: Draws of z for the expectation.

        Returns:
            Sums per group, (G,).

        Raises:
            ShapeError: If the encoder's or the decoder's output has the wrong shape.
            DataError: If the encoder's variance is not positive, or the likelihood cannot have made y.
        """
        batch = whole_batch(batch, "batch")
        posterior = self._infer(batch)
        z = posterior.rsample((num_particles,) if num_particles > 1 else (), marginals=True)
        output = self._output(z, batch.x, batch.y.shape[2:])
        observed = None if batch.y_mask is None and is_full(batch) else batch.observed
        squared_error = (self.likelihood.mean(output) - batch.y).square()
        if observed is not None:
            squared_error = torch.where(observed, squared_error, 0.0)
            num_elements = observed.flatten(1).sum(-1).to(squared_error.dtype)
        else:
            num_elements = squared_error.new_full((batch.num_groups,), batch.y[0].numel())
        # shape: (s, G)
        squared_error = squared_error.flatten(output.dim() - batch.y.dim() + 1).sum(-1).reshape(-1, batch.num_groups)
        if type(self.likelihood) is GaussianLikelihood:  # a subclass may have another distribution
            log_likelihood = self.likelihood.log_prob_of_squared_error(squared_error, num_elements)
        else:
            log_likelihood = self.likelihood.log_prob(output, batch.y, observed).sum(-1).reshape(-1, batch.num_groups)
        kl_local, kl_global = self._split_kl(posterior)
        return Terms(
            log_likelihood=log_likelihood.mean(0),
            kl_local=kl_local,
            kl_global=kl_global,
            squared_error=squared_error.mean(0),
            num_elements=num_elements,
            num_members=batch.mask.sum(-1),
            log_hyperprior=self.prior.log_hyperprior(),
            num_dataset_groups=batch.num_dataset_groups,
            num_dataset_members=batch.num_dataset_members,
        )

    # what users ask

    def infer(self, batch: GroupedBatch | GroupedDataset) -> LatentPosterior:
        """q(Z | Y, X) of each group of the batch, whether or not it was in the training data.

        Args:
            batch: Groups to condition on; all their members, in training mode too.

        Returns:
            The posterior over (G, Q, L).

        Raises:
            ShapeError: If the encoder's output is not two tensors of L channels.
            DataError: If the batch is empty or not a GroupedBatch, or a value is not finite.
        """
        batch = checked_batch(batch, "batch")
        return self.prior.posterior(*self._pseudo_observations(batch))

    def predict(self, x_new: Tensor, context: GroupedBatch | GroupedDataset) -> Prediction:
        """The latents' posterior at new members of the context's groups: what `generate` decodes.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: Groups to condition on, seen in training or not.

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            GroupError: If x_new has not one row of members for each group of the context.
            ShapeError: If x_new or the encoder's output has the wrong shape.
            DataError: If a value is not finite or a dtype is not floating.
        """
        context = checked_batch(context, "context")
        check_targets(x_new, context)
        return self.infer(context).predict(x_new)

    @torch.no_grad()
    def reconstruct(self, batch: GroupedBatch | GroupedDataset) -> Tensor:
        """E[y | z] at the posterior mean of z: one decoded observation for each member.

        Args:
            batch: Groups to condition on.

        Returns:
            (G, Q, *y_shape); what stands at padded members means nothing.

        Raises:
            ShapeError: If the encoder's output is not two tensors of L channels.
            DataError: If the batch is empty or not a GroupedBatch, or a value is not finite.
        """
        batch = checked_batch(batch, "batch")
        return self._mean_of(self.infer(batch).mean, batch.x, batch.y.shape[2:])

    @torch.no_grad()
    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset | None = None,
        sample_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """Generate observations at new auxiliary features, of known groups or of new ones.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: Groups to condition on, seen in training or not. None draws new groups from the prior.
            sample_shape: With a context, None decodes the posterior mean of z; a shape decodes joint draws of z,
                coherent across the members of a group. Without a context z is always drawn.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            GroupError: If x_new has not one row of members for each group of the context.
            ShapeError: If x_new or the encoder's output has the wrong shape.
            DataError: If a value is not finite, a dtype is not floating, or `sample_shape` is no sequence of integers.
        """
        check_sample_shape(sample_shape)
        if context is None:
            check_floating(x_new, "x_new")
            check_shape(x_new, "x_new", ("G", "Q*", "D"), "One group is x_new.unsqueeze(0).")
            return self._mean_of(self.prior.sample(x_new, sample_shape or ()), x_new, None)
        context = whole_batch(context, "context")
        prediction = self.predict(x_new, context)
        z = prediction.mean if sample_shape is None else prediction.rsample(sample_shape)
        return self._mean_of(z, x_new, context.y.shape[2:])

    def save(self, path: str | Path) -> None:
        """Write the configuration and the parameters to a file that executes nothing when it is read.

        Args:
            path: The file.

        Raises:
            CheckpointError: If a part cannot be described (say a network that is not `Configurable`); the message
                says which, and what to try.
        """
        save_model(self, path)

    @classmethod
    def load(cls, path: str | Path, **parts: nn.Module) -> "FGPVAE":
        """Rebuild a saved model, or the model inside a training checkpoint of `fit`.

        Args:
            path: A file written by `save`, or a checkpoint of `fit`.
            **parts: `encoder=`, `decoder=`, `prior=` or `likelihood=` to use instead of the described one, for
                networks that `save` could not describe.

        Returns:
            The model on the CPU, in evaluation mode.

        Raises:
            MissingFileError: If there is no such file.
            CheckpointError: If the file is no checkpoint of this class, or does not fit the parts.
        """
        return load_model(cls, path, parts)

    # inside

    def _blocks(self) -> list[ChannelBlock]:
        return list(self.prior.blocks)  # pyright: ignore[reportReturnType]

    def _plate(self, batch: GroupedBatch) -> pyro.plate:
        return pyro.plate("groups", batch.num_dataset_groups, subsample=batch.group_index, dim=-1)

    def _observe(self, z: Tensor, batch: GroupedBatch, observe: bool) -> Tensor:
        """The sites "z" (*s, G, Q, L), deterministic, and "y" of a Pyro program, inside the plate of its groups."""
        z = pyro.deterministic("z", z, event_dim=2)
        output = self._output(z, batch.x, batch.y.shape[2:])
        target = batch.y if observe else None
        elements = self.likelihood.distribution(output, target, batch.observed)
        elements = elements.mask(batch.observed).to_event(batch.y.dim() - 1)
        return pyro.sample("y", elements, obs=target)

    def _infer(self, batch: GroupedBatch) -> LatentPosterior:
        x, mean, variance, mask = self._pseudo_observations(batch)
        return self.prior.condition(x, mean, variance, self._practice(mask, batch))

    def _practice(self, mask: Tensor | None, batch: GroupedBatch) -> Tensor | None:
        """Whom q conditions on: in training mode without the members that are dropped; None for all."""
        if not self.training or self.member_dropout == 0:
            return mask
        return drop_members(batch.mask if mask is None else mask, self.member_dropout)

    def _pseudo_observations(self, batch: GroupedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        full = is_full(batch)
        # only members that are there: padding would cost time, and enter the statistics of a batch norm
        told = (batch.y, batch.x) if batch.y_mask is None else (batch.y, batch.x, batch.observed)
        rows, features, *elements = (v.flatten(0, 1) if full else v[batch.mask] for v in told)
        encoded = self._encode(rows, features, elements[0] if elements else None)
        expected = (len(rows), self.prior.num_channels)
        if not isinstance(encoded, tuple) or [tuple(part.shape) for part in encoded] != [expected, expected]:
            got = [tuple(p.shape) for p in encoded] if isinstance(encoded, tuple) else type(encoded).__name__
            raise ShapeError(
                f"encoder: expected a mean and a variance of shape (batch, L) = {expected}, got {got}. "
                f"The prior has {self.prior.num_channels} channels."
            )
        mean, variance = encoded
        if bool((variance < 0).any()):  # one that underflows to 0 gives a loss that is not finite
            raise DataError(
                f"encoder: expected positive variances, got {variance.min().item():g}. "
                "Try an encoder that ends in exp or softplus."
            )
        mask = None if full else batch.mask
        if batch.y_mask is not None:
            # a member of whom nothing was observed has nothing to say about z
            mask = batch.mask & batch.y_mask.reshape(*batch.mask.shape, -1).any(-1)
        if full:
            mean, variance = (part.unflatten(0, batch.mask.shape) for part in (mean, variance))
        else:
            mean, variance = scatter(mean, batch.mask, 0.0), scatter(variance, batch.mask, 1.0)
        return features_of(batch), mean, variance, mask

    def _encode(self, y: Tensor, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pseudo-observations of rows y, of which elements were observed, both (N, *y_shape).

        This model's encoder does not look at x (N, D).
        """
        return self.encoder(cast_for(self.encoder, y), **self._told(observed))

    def _told(self, observed: Tensor | None) -> dict[str, Tensor | None]:
        """What an encoder gets beside the observations: which of their elements are there, if it takes it."""
        return {"observed": observed} if getattr(self.encoder, "takes_observed", False) else {}

    def _decode(self, z: Tensor, x: Tensor) -> Tensor:
        """The likelihood's parameter at z (*s, G, Q, L); this model's decoder does not look at x (G, Q, D)."""
        return self.decoder(cast_for(self.decoder, z))

    def _output(self, z: Tensor, x: Tensor, y_shape: torch.Size | None) -> Tensor:
        """`_decode`, which must give (*s, G, Q, *y_shape): nothing is broadcast against y."""
        output = self._decode(z, x)
        front = tuple(z.shape[:-1])
        if output.shape[: len(front)] != front or y_shape not in (None, output.shape[len(front) :]):
            expected = (*front, "*y_shape") if y_shape is None else (*front, *y_shape)
            raise ShapeError(
                f"decoder: expected the shape {expected} from z {tuple(z.shape)}, got {tuple(output.shape)}. "
                "Try a decoder that maps (*batch, L) to (*batch, *y_shape)."
            )
        return output

    def _mean_of(self, z: Tensor, x: Tensor, y_shape: torch.Size | None) -> Tensor:
        return self.likelihood.mean(self._output(z, x, y_shape))

    def _split_kl(self, posterior: LatentPosterior) -> tuple[Tensor, Tensor]:
        local, shared = torch.zeros_like(posterior.x[..., 0, 0]), torch.zeros_like(posterior.x[..., 0, 0])
        for block, kl in zip(self._blocks(), posterior.kl_blocks, strict=True):
            if isinstance(block, GlobalChannels):
                shared = shared + kl
            else:
                local = local + kl
        return local, shared
