"""A model conditioned on more members than the context contains."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled import CoupledPosterior, CoupledPrior, GroupInputs
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, same_labels
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import checked_batch, checked_source, checked_targets, device_of, whole_batch
from fgp_gpytorch.models._streaming import filled, generated_parts, parts_of
from fgp_gpytorch.models.grouped_vae import GroupedVAE
from fgp_gpytorch.prior import LatentPrior, Prediction


class ConditionedVAE(nn.Module):
    """A copy of a model in evaluation mode, conditioned on a data set. Made by `CoupledVAE.condition_on`.

    Args:
        model: A copy of the model, which this one keeps.
        batch: The groups to condition on.
        labels_digest: Digest of the training data's labels; None if it is unknown.
        new_groups: True adds the members of a context of other groups. False takes a context of known groups, which
            their `group_index` identifies.
        learned_vectors: From a batch of training groups to their learned vectors; None with a representation.

    Examples:
        >>> train = GroupedDataset(torch.rand(8, 5), torch.rand(8), group=[0, 0, 1, 1, 2, 2, 3, 3])
        >>> model = GPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), 4, num_groups=len(train))
        >>> conditioned = model.condition_on(train)
        >>> conditioned.generate(torch.rand(2, 6, 1), context=train[[1, 3]]).shape  # groups 1 and 3 at six new x
        torch.Size([2, 6, 5])
    """

    def __init__(
        self,
        model: GroupedVAE,
        batch: GroupedBatch,
        labels_digest: int | None,
        new_groups: bool,
        learned_vectors: Callable[[GroupedBatch], Tensor] | None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.new_groups, self.learned_vectors, self.group_index = new_groups, learned_vectors, batch.group_index
        self.num_groups = batch.num_dataset_groups
        self.labels_digest = labels_digest if batch.labels_digest is None else batch.labels_digest
        posterior = self.model.infer(batch)
        assert isinstance(posterior, CoupledPosterior)
        self.posterior = posterior
        self.train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert the model. The posterior follows it to another device."""
        super()._apply(fn, recurse)
        device, prior = device_of(self.model), self.model.prior
        if device not in (None, self.group_index.device):
            assert isinstance(prior, CoupledPrior)
            self.group_index = self.group_index.to(device)
            with torch.no_grad():
                self.posterior = prior.condition(self.posterior.inputs.to(device))
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the model."""
        return self.model.likelihood

    @property
    def prior(self) -> LatentPrior:
        """The prior of the model."""
        return self.model.prior

    def decode(self, z: Tensor, x: Tensor, y_shape: Sequence[int] | None = None) -> Tensor:
        """See `decode` of the model."""
        return self.model.decode(z, x, y_shape)

    @torch.no_grad()
    def predict(self, x_new: Tensor, context: GroupedBatch | GroupedDataset) -> Prediction:
        """The latents' posterior at new members.

        With new groups, z* is conditioned on the data set and on all groups of the context, jointly: these groups
        inform each other. With seen groups, only the `group_index` of the context is read.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups. (Q*, D) is the same for all
                groups. One row for each group is (G, 1, D), because (G, D) means G rows for all groups.
            context: New groups, or groups of the data set.

        Returns:
            `mean` and `variance` (G, Q*, L), and `rsample`.

        Raises:
            ArgumentError: If an argument has another type.
            GroupError: If the number of groups differs, or a context of seen groups contains others.
            ShapeError: If `x_new`, or the x of new groups, has other features than the data set.
            DataError: If a value is not finite or a dtype is not floating.
        """
        batch, features = whole_batch(context, "context", self.model), self.posterior.x.shape[-1]
        if not self.new_groups:
            inputs = self._inputs_of(checked_batch(batch, "context", self.model))
            x_new = checked_targets(x_new, batch, features)
            return self.posterior.predict_groups(inputs, x_new.to(self.posterior.x.dtype))
        x_new = checked_targets(x_new, batch, features)
        check.shape(batch.x, "context.x", ("G", "Q", features), "The data set has so many features.")
        other = self.model.infer(batch)
        assert isinstance(other, CoupledPosterior)
        posterior = self.posterior.join(other)
        groups = torch.arange(batch.num_groups, device=batch.device) + len(self.group_index)
        return posterior.predict_groups(posterior.inputs.select(groups), x_new.to(posterior.x.dtype))

    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset,
        sample_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Generate observations at new auxiliary features, conditioned as in `predict`.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups. (Q*, D) is the same for all
                groups. One row for each group is (G, 1, D), because (G, D) means G rows for all groups.
            context: As in `predict`.
            sample_shape: None decodes the mean of z. A shape decodes joint draws of z.
            batch_size: As in `GroupedVAE.generate`. New groups inform each other, and draws are joint over groups. So
                only means at seen groups come some groups at a time.
            progress: Whether to show a progress bar.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            ArgumentError: If an argument has another type, or `sample_shape` is not a sequence of integers or None. If
                `batch_size` is below 1, or would split groups that depend on each other.
            GroupError, ShapeError, DataError: As in `predict`.
        """
        x_new, shape, parts = self._to_generate(x_new, context, sample_shape, batch_size, progress)
        return filled(parts, x_new.shape[0], x_new.shape[1], shape or ())

    def generate_batches(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset,
        sample_shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the observations of `generate`, some groups at a time, as `GroupedVAE.generate_batches` does.

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
        shape = None if sample_shape is None else check.as_sample_shape(sample_shape)
        source, device = checked_source(context, "context", self.model), device_of(self.model)
        like = source.x if isinstance(source, GroupedBatch) else source.members.x[:1].to(device)
        x_new = check.as_reals(x_new, "x_new", like=like)
        x_new = checked_targets(x_new, source, self.posterior.x.shape[-1], device)
        couples = self.new_groups or shape is not None
        draws = 1 if shape is None else shape.numel()
        parts = parts_of(source, couples, batch_size, progress, draws * x_new.shape[1])
        return x_new, shape, generated_parts(self, x_new, source, shape, parts, device)

    def _inputs_of(self, batch: GroupedBatch) -> GroupInputs:
        """The members of the batch's groups that were conditioned on.

        A group that was not conditioned on has none. It is predicted from its learned vector alone.
        """
        batch = self.model.prepare(batch)
        same = batch.group_index.unsqueeze(-1) == self.group_index
        found = same.any(-1)
        inputs = self.posterior.inputs.select(same.int().argmax(-1))
        if batch.num_dataset_groups == self.num_groups:
            check_labels(batch, self.labels_digest)
            if bool(found.all()):
                return inputs
        if self.learned_vectors is not None:
            mask = inputs.mask & found.unsqueeze(-1)
            return inputs._replace(vectors=self.learned_vectors(batch), mask=mask)
        raise GroupError(
            f"context: expected some of the {len(self.group_index)} groups that were conditioned on, of a data set "
            f"of {self.num_groups}, got groups {batch.group_index.tolist()[:5]} of a data set of "
            f"{batch.num_dataset_groups}. Try data.align(train) for members of these groups, and "
            "condition_on(train, context='new') for groups never trained on."
        )


def check_labels(batch: GroupedBatch, labels_digest: int | None) -> None:
    """Require that the batch's data set has these labels. An unknown digest (None) passes.

    Raises:
        GroupError: If the labels differ.
    """
    if not same_labels(labels_digest, batch.labels_digest):
        raise GroupError(
            "batch: expected groups of the data set that the model was trained or conditioned on, got a batch of "
            f"{batch.num_dataset_groups} groups with other labels. Try rows.align(train) with labels of one type "
            "(1 is not '1'), model.forget_groups() to train on other groups, or FGPVAE for new groups."
        )


def check_known_groups(batch: GroupedBatch, num_groups: int) -> None:
    """Require a batch of a data set of `num_groups` groups.

    Raises:
        GroupError: If its data set has another number of groups.
    """
    if batch.num_dataset_groups != num_groups:
        raise GroupError(
            f"batch: expected groups of the data set of {num_groups} groups whose vectors the model has, got a "
            f"batch of a data set of {batch.num_dataset_groups}. If these are some of them, try context.align(train). "
            "New groups need another model, such as FGPVAE."
        )
