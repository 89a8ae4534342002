"""A model with a representation network, conditioned on more rows than the context shows."""

from typing import Any, Protocol

import torch
from torch import Tensor

from fgp_gpytorch._shapes import check_shape
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.models._batches import check_targets, checked_batch
from fgp_gpytorch.models.given_rows import GivenRows, check_labels
from fgp_gpytorch.models.prediction import Prediction


class AmortizedPosterior(Protocol):
    """q(Z) of groups at object vectors of their own, such as `MeanFieldPosterior`."""

    group_index: Tensor
    x: Tensor

    def predict_groups(self, group_index: Tensor, x_new: Tensor) -> Prediction:
        """Predict at new members x_new (G, Q*, D) of the groups at positions (G,)."""
        ...


class GivenAmortizedRows(GivenRows):
    """A model conditioned on the rows of a data set, made by its `given`.

    Args:
        model: The model.
        rows: The groups conditioned on.
        posterior: Their q(Z), as the model's `infer` gives it.
        new_groups: True takes a context for other groups and adds its rows; False for groups of `rows`, known by
            their `group_index`.
    """

    def __init__(self, model: Any, rows: GroupedBatch, posterior: AmortizedPosterior, new_groups: bool) -> None:
        super().__init__(model, posterior, rows.num_dataset_groups, rows.labels_digest)
        self.model: Any = model
        self.posterior: AmortizedPosterior = posterior
        self.new_groups = new_groups
        self.group_index = rows.group_index

    @torch.no_grad()
    def predict(self, x_new: Tensor, context: GroupedBatch | GroupedDataset) -> Prediction:
        """The latents at new members, conditioned on the rows of `given` and, of new groups, on those of the context.

        With new groups z* ~ p(z* | rows of `given`, rows of all groups of this context), jointly: two groups asked for
        together know of each other.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: New groups, whose images give their object vectors; or groups of `given`, only whose `group_index`
                is read.

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            GroupError: If x_new has not one row for each group, or a context of seen groups has others.
            ShapeError: If x_new, or the x of new groups, has not the features of the rows of `given`.
            DataError: If a value is not finite or a dtype is not floating.
        """
        batch = checked_batch(context, "context")
        check_targets(x_new, batch, given=self.posterior.x)
        if self.new_groups:
            check_shape(batch.x, "context.x", ("G", "Q", self.posterior.x.shape[-1]), "As the rows of `given` have.")
            posterior = self.model._join(self.posterior, self.model.infer(batch))
            positions = torch.arange(batch.num_groups, device=x_new.device) + len(self.posterior.group_index)
        else:
            posterior, positions = self.posterior, self._positions(batch)
        return posterior.predict_groups(positions, x_new)

    def _positions(self, batch: GroupedBatch) -> Tensor:  # shape: (G,)
        same = batch.group_index.unsqueeze(-1) == self.group_index
        if batch.num_dataset_groups == self.num_groups:
            check_labels(batch, self.labels_digest)
        if batch.num_dataset_groups != self.num_groups or not bool(same.any(-1).all()):
            raise GroupError(
                f"context: expected some of the {len(self.group_index)} groups that were given, of a data set of "
                f"{self.num_groups}, got groups {batch.group_index.tolist()[:5]} of a data set of "
                f"{batch.num_dataset_groups}. Try context.align(train) for rows of these groups, and "
                "given(train, context='new') for groups never trained on."
            )
        return same.int().argmax(-1)
