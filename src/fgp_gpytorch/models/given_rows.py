"""A model conditioned on more rows than the context shows."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.data.grouped_batch import same_labels
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import check_sample_shape, check_targets, checked_batch, whole_batch
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.prediction import Prediction


class KnowsGroups(Protocol):
    """A posterior of all groups, such as `MeanFieldPosterior`."""

    x: Tensor

    def predict_groups(self, group_index: Tensor, x_new: Tensor) -> Prediction:
        """Predict at new members x_new (G, Q*, D) of the groups at positions (G,)."""
        ...


class GivenRows(nn.Module):
    """A model conditioned on the rows of a data set, made by its `given`: the context only names groups.

    Args:
        model: The model, whose decoder and likelihood are used.
        posterior: q(Z) of all rows to condition on.
        num_groups: P.
        labels_digest: Of the data set whose groups they are, if it is known.
    """

    def __init__(
        self, model: FGPVAE, posterior: KnowsGroups, num_groups: int, labels_digest: int | None = None
    ) -> None:
        super().__init__()
        self.train(model.training)
        self.labels_digest = labels_digest
        self.model, self.posterior, self.num_groups = model, posterior, num_groups

    @property
    def likelihood(self) -> Likelihood:
        """The model's."""
        return self.model.likelihood

    @property
    def prior(self) -> Any:
        """The model's."""
        return self.model.prior

    @torch.no_grad()
    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset,
        sample_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """As the model's `generate`, conditioned on what `predict` conditions on.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: As in `predict`.
            sample_shape: None decodes the mean of z; a shape decodes joint draws of z.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            GroupError: If the context's groups are not known, or x_new has not one row for each group.
            ShapeError: If x_new has not the features of the rows of `given`.
            DataError: If a value is not finite, a dtype is not floating, or `sample_shape` is no sequence of integers.
        """
        check_sample_shape(sample_shape)
        batch = whole_batch(context, "context")
        prediction = self.predict(x_new, batch)
        z = prediction.mean if sample_shape is None else prediction.rsample(sample_shape)
        return self.model._mean_of(z, x_new, batch.y.shape[2:])

    def predict(self, x_new: Tensor, context: GroupedBatch | GroupedDataset) -> Prediction:
        """The latents at new members, conditioned on the rows of `given` and on none of the context's.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: Groups of the training data; only their `group_index` is read.

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            GroupError: If the context is not of the data set of P groups, or x_new has not one row for each group.
            ShapeError: If x_new has not the features of the rows of `given`.
            DataError: If a value is not finite or a dtype is not floating.
        """
        batch = checked_batch(context, "context")
        check_known_groups(batch, self.num_groups)
        check_labels(batch, self.labels_digest)
        check_targets(x_new, batch, given=self.posterior.x)
        return self.posterior.predict_groups(batch.group_index, x_new)

    def _decode(self, z: Tensor, x: Tensor) -> Tensor:
        return self.model._decode(z, x)


def check_labels(batch: GroupedBatch, labels_digest: int | None) -> None:
    """Require a batch of a data set with these labels, if both are known.

    Raises:
        GroupError: If it has others.
    """
    if not same_labels(labels_digest, batch.labels_digest):
        raise GroupError(
            "batch: expected groups of the data set that the model was trained on or given, got a batch of "
            f"{batch.num_dataset_groups} groups with other labels. Try rows.align(train), whose labels must "
            "be of one kind (1 is not '1'), model.forget_groups() to train it on others, or for new groups FGPVAE."
        )


def check_known_groups(batch: GroupedBatch, num_groups: int) -> None:
    """Require a batch of the data set whose groups have object vectors.

    Raises:
        GroupError: If it counts other groups.
    """
    if batch.num_dataset_groups != num_groups:
        raise GroupError(
            f"batch: expected groups of the data set of {num_groups} groups whose object vectors the model has, got a "
            f"batch of a data set of {batch.num_dataset_groups}. If these are some of them, try "
            "context.align(train); new groups need another model, such as FGPVAE."
        )
    if not 0 <= int(batch.group_index.min()) <= int(batch.group_index.max()) < num_groups:
        raise GroupError(
            f"group_index: expected positions from 0 to {num_groups - 1}, got {int(batch.group_index.min())} to "
            f"{int(batch.group_index.max())}. Try the positions of the groups in the training data."
        )
