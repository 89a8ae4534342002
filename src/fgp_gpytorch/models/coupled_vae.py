"""Base class of VAEs whose prior identifies every group by a vector."""

import copy
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled import CoupledPosterior, CoupledPrior, GroupInputs, GroupVectors, unit_length
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError, NonFiniteError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import PseudoObservations, cast_for, checked_batch, observed_members, whole_batch
from fgp_gpytorch.models.conditioned_vae import ConditionedVAE, check_known_groups, check_labels
from fgp_gpytorch.models.grouped_vae import GroupedVAE

Coupled = TypeVar("Coupled", bound=CoupledPrior)


class CoupledVAE(GroupedVAE[Coupled], Generic[Coupled]):
    """Base class of VAEs whose prior identifies every group by a vector and couples the groups.

    The vectors have one of two sources:

    - `GroupVectors`: one learned vector per training group. `batch.group_index` must be the position in the training
      data. `data.align(train)` sets it for other members of these groups. New groups raise a `GroupError`.
    - A representation network: it computes the vector of a group from the group's observations (paper, Appendix C). New
      groups have vectors too. The vectors depend on y, so the ELBO bounds log p(Y | D) at D = d(Y), not log p(Y).

    What each call conditions on, with a representation network:

    | call | vectors of | z* given the members of |
    | --- | --- | --- |
    | `terms`, `model`, `guide`, `infer(batch)` | the batch | the batch |
    | `generate(x_new, context)` | the context | the context, all its groups jointly |
    | `condition_on(train).generate(x_new, context)` | train, context | train and the context, as groups of their own |
    | `condition_on(train, context="seen").generate(...)` | train | train; the context selects its groups |

    In the third call, groups that train contains would count twice. Use the fourth call for these.

    Args:
        encoder, decoder, likelihood, member_dropout, element_dropout: As in `GroupedVAE`.
        prior: The prior over the L channels.
        num_groups: P, groups of the training data; None with a representation.
        num_factors: m, the length of a group vector.
        normalize: Whether vectors are scaled to unit length (Casale et al. 2018). Then Sigma = D D' is a correlation.
        representation: Module from y (G, Q, *y_shape) and a mask (G, Q) to group vectors (G, m), such as
            `nets.RepresentationNetwork`; None for one learned vector per training group.

    Raises:
        ArgumentError: If an argument has another type, or a number is out of range.
        GroupError: If there are both a number of groups and a representation, or neither.

    Examples:
        >>> model = GPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), 4, num_groups=3, num_factors=2)
        >>> data = GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2])
        >>> isinstance(model, CoupledVAE), model.vectors_of(data[[2, 0]]).shape
        (True, torch.Size([2, 2]))
    """

    prior_kind = CoupledPrior
    minibatch_hint = ""
    start_hint = "Try to train it as it is."

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Coupled,
        num_groups: int | None,
        num_factors: int,
        normalize: bool,
        representation: nn.Module | None,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, element_dropout)
        if representation is not None:
            check.instance(representation, "representation", nn.Module, "Try nets.RepresentationNetwork(r, f).")
        if (num_groups is None) == (representation is None):
            need = "the groups of the training data, got None. Try len(data)."
            if representation is not None:
                need = f"None with a representation, which computes all vectors, got {num_groups}. Try to leave it out."
            raise GroupError(f"num_groups: expected {need}")
        if num_groups is not None:
            num_groups = check.count(num_groups, "num_groups", hint="Try len(data).")
        self.num_groups, self.num_factors = num_groups, check.count(num_factors, "num_factors", hint="Try 8.")
        self.normalize, self.representation = normalize, representation
        self.group_vectors = None if num_groups is None else GroupVectors(num_groups, self.num_factors)
        self._labels_digest: int | None = None  # of the training data's labels

    # group vectors

    def vectors_of(self, batch: GroupedBatch | GroupedDataset) -> Tensor:
        """The group vectors of a batch before normalisation, learned or computed from its observations.

        Args:
            batch: Groups of the training data; any groups with a representation.

        Returns:
            (G, m), float64.

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            GroupError: If a group has no vector.
            ShapeError: If the representation returns another shape.
            DataError: If the batch is empty, or a value is not finite.
        """
        return self._raw_vectors(self.prepare(checked_batch(batch, "batch", self)))

    def used_vectors(self, batch: GroupedBatch) -> Tensor:
        """The group vectors of a checked batch as the prior takes them, (G, m)."""
        vectors = self._raw_vectors(batch)
        return unit_length(vectors) if self.normalize else vectors

    def _raw_vectors(self, batch: GroupedBatch) -> Tensor:
        if self.group_vectors is not None:
            return self.group_vectors(batch.group_index)
        assert self.representation is not None
        observed = observed_members(batch)
        complete = batch.y_mask is None and bool(observed.all())
        y = batch.y if complete else self.without_gaps(batch, self.representation)
        vectors = self.representation(cast_for(self.representation, y), observed)
        if not isinstance(vectors, Tensor) or len(vectors) != batch.num_groups:
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ShapeError(
                f"representation: expected (G, m) = {(batch.num_groups, self.num_factors)}, got {got}. "
                "Try RepresentationNetwork(r, f)."
            )
        hint = "Try a representation network with m outputs, or num_factors=m."
        check.shape(vectors, "representation", ("G", self.num_factors), hint)
        if self.training and torch.is_grad_enabled() and not bool(vectors.isfinite().all()):
            raise NonFiniteError(
                f"representation: expected finite group vectors, got NaN or infinity in the batch of groups "
                f"{batch.group_index.tolist()}. Try a smaller learning rate, or scaled data.",
                term="representation", groups=batch.group_index.tolist(),
            )  # fmt: skip
        return check.finite(vectors, "representation").to(self.prior.dtype)

    def initialize_vectors(self, dataset: GroupedDataset, center: bool = True) -> None:
        """Start the group vectors from a PCA of the groups' mean observations (Casale et al. 2018).

        Args:
            dataset: The training data.
            center: Whether to subtract the mean over groups first. Otherwise it dominates the first factor.

        Raises:
            ArgumentError: If the data set is not a GroupedDataset or a GroupedBatch.
            GroupError: If the data set does not have P groups, or a representation network computes the vectors.
            DataError: If there are too few groups or elements for m components, or all means are equal.
        """
        if self.group_vectors is None:
            raise GroupError(
                "initialize_vectors: expected a model with one learned vector per group, got one whose representation "
                f"network computes them. {self.start_hint}"
            )
        batch = self._check_groups(whole_batch(dataset, "dataset", self), whole=True, labels=False)
        observed = batch.observed.to(batch.y.dtype)
        total, count = (batch.y * observed).sum(1).flatten(1).double(), observed.sum(1).flatten(1).double()
        means = total / count  # NaN without observations: replaced by the mean over groups
        means = torch.where(count > 0, means, means.nanmean(0)).nan_to_num()
        seen = (count > 0).any(-1)
        means = means[seen]
        if center:
            means = means - means.mean(0)
        factors = self.group_vectors.num_factors
        if factors > min(means.shape):
            raise DataError(
                f"num_factors: expected at most {min(means.shape)} components of {tuple(means.shape)} mean "
                f"observations, got {factors}. Try a smaller num_factors, or leave the random start."
            )
        if not bool(means.any()):
            raise DataError(
                "dataset: expected groups with different mean observations, got equal ones. "
                "Try to leave the random start, or center=False."
            )
        left, values, _ = torch.linalg.svd(means, full_matrices=False)
        scores = left[:, :factors] * values[:factors]
        vectors = self.group_vectors.vectors.detach().clone()  # a group without observations keeps its vector
        vectors[seen] = scores / scores.square().sum(-1).mean().sqrt()
        self.group_vectors.set_vectors(vectors)
        self._labels_digest = batch.labels_digest

    def forget_groups(self) -> None:
        """Allow training on other groups. The vectors stay as they are; `initialize_vectors` replaces them."""
        self._labels_digest = None

    # hooks

    def inputs_of(self, batch: GroupedBatch, pseudo: PseudoObservations) -> GroupInputs:
        """The prior's inputs of a checked batch."""
        return GroupInputs.of(self.used_vectors(batch), *pseudo, dtype=self.prior.dtype)

    def condition(self, batch: GroupedBatch, pseudo: PseudoObservations) -> CoupledPosterior:
        """The posterior of the batch's groups together, every member counted once."""
        return self.prior.condition(self.inputs_of(batch, pseudo))

    def condition_step(self, batch: GroupedBatch, pseudo: PseudoObservations) -> CoupledPosterior:
        """The posterior of a training step: members of G of P groups count P / G times for shared variables."""
        scale = batch.num_dataset_groups / batch.num_groups
        return self.prior.condition(self.inputs_of(batch, pseudo), scale)

    def prepare(self, batch: GroupedBatch) -> GroupedBatch:
        """Return the batch, or raise a `GroupError` if its groups have no vectors."""
        return self._check_groups(batch)

    def prepare_step(self, batch: GroupedBatch) -> GroupedBatch:
        """Check as `prepare` does. The first training step records the labels of the data set."""
        self._check_groups(batch)
        if self.group_vectors is not None and self.training and torch.is_grad_enabled() and self._labels_digest is None:
            self._labels_digest = batch.labels_digest
        return batch

    def sample_prior(self, x: Tensor, sample_shape: Sequence[int]) -> Tensor:
        """Raise an error: a new group has no vector.

        Raises:
            GroupError: Always.
        """
        need = "groups of the training data, got none. A new group has no group vector under this prior. Try"
        if self.representation is not None:
            need = "groups whose observations give their group vectors, got none. Try at least one member of each, or"
        raise GroupError(f"context: expected {need} FGPVAE, whose generate(x_new) draws new groups.")

    # conditioning on more than the context

    @torch.no_grad()
    def condition_on(self, dataset: GroupedDataset, context: Literal["new", "seen"] | None = None) -> ConditionedVAE:
        """The model conditioned on all members of a data set, for any later context of `generate`.

        Args:
            dataset: Groups of the training data, usually all of them; with a representation any groups.
            context: The groups in the context of `generate`. "seen": groups of `dataset`, identified by `group_index`;
                their members are not read again. "new": other groups, added to those of `dataset`; this needs a
                representation. None: "new" with a representation, else "seen".

        Returns:
            A copy of the model as it is now, in evaluation mode, with `generate` and `predict`.

        Raises:
            ArgumentError: If `context` is another word, or `dataset` has another type.
            GroupError: If the data set does not have P groups, or `context` is "new" without a representation.
            DataError: If a value is not finite.
        """
        check.choice(context, "context", ("new", "seen", None), "Try 'new' for unseen groups.")
        if self.representation is None and context == "new":
            raise GroupError(
                "context: expected 'seen' for a model with one group vector per training group, got 'new'. "
                f"Try {type(self).__name__}(..., representation=RepresentationNetwork(...)), or FGPVAE."
            )
        new_groups = self.representation is not None and context != "seen"
        batch = checked_batch(dataset, "dataset", self)
        if len(batch.group_index.unique()) < batch.num_groups:
            raise GroupError("dataset: expected every group once, got repetitions. Try data.subset(groups).")
        kept = copy.deepcopy(self)
        learned_vectors = None if kept.group_vectors is None else kept.used_vectors
        return ConditionedVAE(kept, batch, self._labels_digest, new_groups, learned_vectors)

    # inside

    def _check_groups(self, batch: GroupedBatch, whole: bool = False, labels: bool = True) -> GroupedBatch:
        other = {str(p.dtype) for p in self.prior.parameters()} - {str(self.prior.dtype)}
        if other:
            raise DataError(
                f"prior: expected its parameters in {self.prior.dtype}, in which it was made, got {', '.join(other)}. "
                "Try to convert the networks only: model.encoder.float(), model.decoder.float()."
            )
        if self.group_vectors is not None:
            check_known_groups(batch, self.group_vectors.num_groups)
            if labels:
                check_labels(batch, self._labels_digest)
        groups = batch.num_dataset_groups
        if whole and not (batch.num_groups == len(batch.group_index.unique()) == groups):
            raise GroupError(
                f"batch: expected all {groups} groups once, got {batch.num_groups}: this prior couples all "
                f"groups. Try batch_size=len(data){self.minibatch_hint}."
            )
        return batch

    # saved like a buffer, but not one: averages of weights would average it

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._labels_digest is not None:
            destination[f"{prefix}_labels_digest"] = torch.tensor(self._labels_digest)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        digest = state_dict.pop(f"{prefix}_labels_digest", None)
        self._labels_digest = None if digest is None else int(digest)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
