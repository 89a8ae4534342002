"""What the models share that know a group by its object vector."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from fgp_gpytorch._shapes import check_finite
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import cast_for, checked_batch, observed_members, whole_batch
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.given_amortized_rows import GivenAmortizedRows
from fgp_gpytorch.models.given_rows import GivenRows, check_known_groups, check_labels
from fgp_gpytorch.prior import ObjectRoot
from fgp_gpytorch.prior.given_objects import GivenObjects
from fgp_gpytorch.prior.prior_at import join_conditioned


class CoupledPrior(Protocol):
    """A prior over all groups at once, each known by an object vector."""

    num_channels: int

    @property
    def objects(self) -> ObjectRoot:
        """The object vectors."""
        ...


class KnownGroupsVAE(FGPVAE):
    """Base of `GPVAE`, `SVGPVAE` and `CorrelatedFGPVAE`: an object vector for each group, a prior that couples them.

    `batch.group_index` says which vectors the groups of a batch have, so it must be the position in the training data
    (`rows.align(train)` sees to that for other rows of the same groups).

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        prior: The prior.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        member_dropout: As in `FGPVAE`.
        representation: Module that gives the object vectors of a batch's groups from their own images, (G, Q, *y_shape)
            and a mask (G, Q) to (G, m); None for one learned vector per training group.

    Raises:
        ShapeError: If an argument is not a module of its kind.
        DataError: If `member_dropout` is out of range.
    """

    prior: Any  # a CoupledPrior
    _prior_kind = nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: CoupledPrior,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        representation: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout)  # pyright: ignore[reportArgumentType]
        self.num_groups = prior.objects.num_groups
        self.representation = representation
        self._labels_digest: int | None = None  # of the data set that was trained on

    @pyro_method
    def register_parameters(self) -> None:
        """As `FGPVAE`'s, with those of the representation network."""
        super().register_parameters()
        getattr(self, "representation")  # noqa: B009 - looking is what announces them

    @property
    def objects(self) -> ObjectRoot:
        """The object vectors, one per training group."""
        return self.prior.objects  # pyright: ignore[reportReturnType]

    def object_vectors(self, batch: GroupedBatch | GroupedDataset) -> Tensor:
        """The object vectors of a batch's groups, before they are normalised: learned, or of the batch's own images.

        Args:
            batch: Groups of the training data; any groups with a representation.

        Returns:
            (G, m), float64.

        Raises:
            GroupError: If a group has no object vector.
            ShapeError: If the representation gives another shape.
            DataError: If the batch is empty or not a GroupedBatch, or a value is not finite.
        """
        known = self._check_groups(checked_batch(batch, "batch"))
        if self.representation is None:
            return self.objects.vectors[known.group_index]
        return self._locate(known)[0].vectors

    def infer(self, batch: GroupedBatch | GroupedDataset) -> Any:
        """q(Z) of the batch's groups, conditioned on this batch alone, each row counted once.

        Args:
            batch: Groups of the training data; any groups with a representation.

        Returns:
            The posterior over (G, Q, L): what the prior's `condition` gives.

        Raises:
            GroupError: If the batch is not of the data set of P groups.
            ShapeError: If the encoder's output is not two tensors of L channels.
            DataError: If the batch is empty or not a GroupedBatch, or a value is not finite.
        """
        known = self._check_groups(checked_batch(batch, "batch"))
        prior, positions = self._locate(known)
        return prior.condition(positions, *self._pseudo_observations(known))

    def initialize_objects(self, dataset: GroupedDataset, center: bool = True) -> None:
        """Start the object vectors from a PCA of the groups' mean observations (Casale et al. 2018).

        Args:
            dataset: The training data.
            center: Whether to subtract the mean over groups before; without it the first factor is what all share.

        Raises:
            GroupError: If the data set has not P groups, or a representation network gives the vectors.
            DataError: If it has too few groups or elements for m components.
        """
        if self.representation is not None:
            raise GroupError(
                "initialize_objects: expected a model with one object vector per group, got one whose representation "
                f"network gives them. {self._start_hint}"
            )
        batch = self._check_groups(whole_batch(dataset, "dataset"), whole=True, labels=False)
        observed = batch.observed.to(batch.y.dtype)
        total, count = ((batch.y * observed).sum(1).flatten(1).double(), observed.sum(1).flatten(1).double())
        means = total / count  # NaN where a group has none of an element, which then gets the mean over groups
        means = torch.where(count > 0, means, means.nanmean(0)).nan_to_num()
        if center:
            means = means - means.mean(0)
        factors = self.objects.num_factors
        if factors > min(means.shape):
            raise DataError(
                f"num_factors: expected at most {min(means.shape)} components of {tuple(means.shape)} mean "
                f"observations, got {factors}. Try a smaller num_factors, or leave the random start."
            )
        if not bool(means.any()):
            raise DataError(
                "dataset: expected groups with different mean observations, got none that differ. "
                "Try to leave the random start, or center=False."
            )
        left, values, _ = torch.linalg.svd(means, full_matrices=False)
        scores = left[:, :factors] * values[:factors]
        self.objects.set_vectors(scores / scores.square().sum(-1).mean().sqrt())
        self._labels_digest = batch.labels_digest

    @torch.no_grad()
    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset | None = None,
        sample_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """Generate observations at new views, conditioned on the context's rows alone, all its groups jointly.

        `given(data)` conditions on more groups than those asked for.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: Groups of the training data; with a representation any groups.
            sample_shape: None decodes the mean of z; a shape decodes joint draws of z.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            GroupError: If there is no context (a new group has no object vector), x_new has not one row of members
                for each of its groups, or, without a representation, it is not of the data set of P groups.
            ShapeError: If x_new or the encoder's output has the wrong shape.
            DataError: If a value is not finite or a dtype is not floating.
        """
        if context is None and self.representation is not None:
            raise GroupError(
                "context: expected groups whose images give their object vectors, got none. Try at least one image of "
                "each group, or FGPVAE, whose generate(x_new) draws new groups."
            )
        if context is None:
            raise GroupError(
                "context: expected groups of the training data, got none. A new group has no object vector under this "
                "prior; try FGPVAE, whose generate(x_new) draws new groups."
            )
        return super().generate(x_new, context, sample_shape)

    @torch.no_grad()
    def given(
        self, dataset: GroupedDataset, context: Literal["new", "seen"] | None = None
    ) -> GivenRows | GivenAmortizedRows:
        """The model conditioned on all rows of a data set, whatever context `generate` is then asked for.

        Args:
            dataset: Groups of the training data, usually all of them; with a representation any groups.
            context: What `generate` takes its context for. "seen": groups of `dataset`, known by `group_index`; no row
                of the context is read. "new": other groups, whose vectors and rows are added to those of `dataset`,
                which needs a representation. None for "new" with a representation, "seen" without.

        Returns:
            An object with `generate` and `predict` for a copy of the model as it is now, in evaluation mode;
            `metrics.held_out_mse` takes it.

        Raises:
            GroupError: If the data set is not of P groups, or new groups are asked of a model without representation.
            DataError: If `context` is neither "new" nor "seen".
        """
        if context not in (None, "new", "seen"):
            raise DataError(f"context: expected 'new', 'seen' or None, got {context!r}. Try 'new' for unseen groups.")
        if self.representation is None and context == "new":
            raise GroupError(
                "context: expected 'seen' for a model with one object vector per training group, got 'new'. "
                f"Try {type(self).__name__}(..., representation=RepresentationNetwork(...)), or FGPVAE."
            )
        frozen = copy.deepcopy(self).eval().requires_grad_(False)
        batch = checked_batch(dataset, "dataset")
        posterior: Any = frozen.infer(batch)
        if self.representation is None:
            digest = self._labels_digest if batch.labels_digest is None else batch.labels_digest
            return GivenRows(frozen, posterior, self.num_groups, digest)
        return GivenAmortizedRows(frozen, batch, posterior, new_groups=context != "seen")

    def forget_groups(self) -> None:
        """Let the model be trained on other groups: whose object vectors it has is known from its first training step.

        The vectors stay as they are; `initialize_objects` starts them anew, and forgets as well.
        """
        self._labels_digest = None

    def _check_groups(self, batch: GroupedBatch, whole: bool = False, labels: bool = True) -> GroupedBatch:
        other = {str(p.dtype) for p in self.prior.parameters()} - {str(self.prior.dtype)}
        if other:
            raise DataError(
                f"prior: expected its parameters in {self.prior.dtype}, in which it was made, got {', '.join(other)}. "
                "Try to convert the networks only: model.encoder.float(), model.decoder.float()."
            )
        if self.representation is None:
            check_known_groups(batch, self.num_groups)
            if labels:
                check_labels(batch, self._labels_digest)
        groups = batch.num_dataset_groups
        if whole and not (batch.num_groups == len(batch.group_index.unique()) == groups):
            raise GroupError(
                f"batch: expected all {groups} groups once, got {batch.num_groups}: this prior couples all "
                f"groups. Try batch_size=len(data){self._minibatch_hint}."
            )
        return batch

    def _meet_groups(self, batch: GroupedBatch) -> None:
        """Check the groups of a step, and remember in training whose vectors are learned."""
        self._check_groups(batch)
        if self.representation is None and self.training and torch.is_grad_enabled() and self._labels_digest is None:
            self._labels_digest = batch.labels_digest

    # no buffer, although it is saved as one: averages of weights would average it

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._labels_digest is not None:
            destination[f"{prefix}_labels_digest"] = torch.tensor(self._labels_digest)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        digest = state_dict.pop(f"{prefix}_labels_digest", None)  # files from before there was one have none
        self._labels_digest = None if digest is None else int(digest)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _locate(self, batch: GroupedBatch) -> tuple[Any, Tensor]:
        """A prior that knows the batch's groups, and their positions (G,) in it."""
        if self.representation is None:
            return self.prior, batch.group_index
        vectors = self.representation(cast_for(self.representation, batch.y), observed_members(batch))
        if not isinstance(vectors, Tensor) or vectors.shape[:1] != batch.group_index.shape:
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ShapeError(
                f"representation: expected (G, m) = {(batch.num_groups, self.objects.num_factors)}, got {got}. "
                "Try RepresentationNetwork(r, f)."
            )
        check_finite(vectors, "representation")
        return self._prior_at(vectors, batch), torch.arange(batch.num_groups, device=vectors.device)

    def _prior_at(self, vectors: Tensor, batch: GroupedBatch) -> Any:
        """The prior at the given object vectors of a batch's groups."""
        raise NotImplementedError

    def _join(self, first: Any, second: Any) -> Any:
        """The posterior of the groups of two posteriors together, those of the second counted on."""
        return join_conditioned(first, second)

    _minibatch_hint = ""
    _start_hint = "Try to train it as it is."


def objects_for(
    num_groups: int | None, num_factors: int, normalize: bool, representation: nn.Module | None
) -> ObjectRoot | GivenObjects:
    """Where object vectors come from."""
    if representation is None:
        if num_groups is None:
            raise GroupError("num_groups: expected the groups of the training data, got None. Try len(data).")
        return ObjectRoot(num_groups, num_factors, normalize)
    if not isinstance(representation, nn.Module):
        raise ShapeError(
            f"representation: expected a torch Module, got {type(representation).__name__}. "
            "Try nets.RepresentationNetwork(r, f)."
        )
    if num_groups is not None:
        raise GroupError(
            f"num_groups: expected None with a representation, which gives every group its vector, got {num_groups}. "
            "Try to leave num_groups out."
        )
    return GivenObjects(num_factors, normalize)
