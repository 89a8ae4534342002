"""What the models share that know a group by its object vector."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import checked_batch
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.given_rows import GivenRows, check_known_groups
from fgp_gpytorch.prior import FactorizedGPPrior, IndependentChannels, ObjectRoot


class CoupledPrior(Protocol):
    """A prior over all groups at once, each known by an object vector."""

    num_channels: int

    @property
    def objects(self) -> ObjectRoot:
        """The object vectors."""
        ...


class KnownGroupsVAE(FGPVAE):
    """Base of `GPVAE` and `CorrelatedFGPVAE`: one object vector per training group, and a prior that couples them.

    `batch.group_index` says which vectors the groups of a batch have, so it must be the position in the training data
    (`AlignedDataset` sees to that for other rows of the same groups).

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        prior: The prior.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        member_dropout: As in `FGPVAE`.

    Raises:
        ShapeError: If an argument is not a module of its kind.
        DataError: If `member_dropout` is outside [0, 1).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: CoupledPrior,
        likelihood: Likelihood | None = None,
        member_dropout: float = 0.0,
    ) -> None:
        # the base checks and names the parts; its prior only stands in until the coupled one is there
        factorized = FactorizedGPPrior([IndependentChannels(prior.num_channels)])
        super().__init__(encoder, decoder, factorized, likelihood, member_dropout)
        self.prior = prior  # pyright: ignore[reportIncompatibleVariableOverride, reportAttributeAccessIssue]
        self.num_groups = prior.objects.num_groups

    @property
    def objects(self) -> ObjectRoot:
        """The object vectors, one per training group."""
        return self.prior.objects  # pyright: ignore[reportReturnType]

    def initialize_objects(self, dataset: GroupedDataset, center: bool = True) -> None:
        """Start the object vectors from a PCA of the groups' mean observations (Casale et al. 2018).

        Args:
            dataset: The training data.
            center: Whether to subtract the mean over groups before; without it the first factor is what all share.

        Raises:
            GroupError: If the data set has not P groups.
            DataError: If it has too few groups or elements for m components.
        """
        batch = self._check_groups(dataset[:], whole=True)
        observed = batch.observed.to(batch.y.dtype)
        total, count = (batch.y * observed).sum(1), observed.sum(1)
        means = (total / count.clamp_min(1)).flatten(1).double()
        if center:
            means = means - means.mean(0)
        factors = self.objects.num_factors
        if factors > min(means.shape):
            raise DataError(
                f"num_factors: expected at most {min(means.shape)} components of {tuple(means.shape)} mean "
                f"observations, got {factors}. Try a smaller num_factors, or leave the random start."
            )
        left, values, _ = torch.linalg.svd(means, full_matrices=False)
        scores = left[:, :factors] * values[:factors]
        self.objects.set_vectors(scores / scores.square().sum(-1).mean().sqrt())

    @torch.no_grad()
    def generate(
        self,
        x_new: Tensor,
        context: GroupedBatch | GroupedDataset | None = None,
        sample_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """Generate observations at new views of known groups, conditioned on the context's rows alone.

        `given(data)` conditions on more groups than those asked for.

        Args:
            x_new: Auxiliary features, (G, Q*, D), in the order of the context's groups.
            context: Groups of the training data.
            sample_shape: None decodes the mean of z; a shape decodes joint draws of z.

        Returns:
            E[y | z], (*sample_shape, G, Q*, *y_shape).

        Raises:
            GroupError: If there is no context (a new group has no object vector), the context is not of the data set
                of P groups, or x_new has not one row of members for each of its groups.
            ShapeError: If x_new or the encoder's output has the wrong shape.
            DataError: If a value is not finite or a dtype is not floating.
        """
        if context is None:
            raise GroupError(
                "context: expected groups of the training data, got none. A new group has no object vector under this "
                "prior; try FGPVAE, whose generate(x_new) draws new groups."
            )
        return super().generate(x_new, context, sample_shape)

    @torch.no_grad()
    def given(self, dataset: GroupedDataset) -> GivenRows:
        """The model conditioned on all rows of a data set, whatever context `generate` is then asked for.

        Args:
            dataset: Groups of the training data, usually all of them.

        Returns:
            An object with `generate`, for the parameters as they are now; `metrics.held_out_mse` takes it.

        Raises:
            GroupError: If the data set is not of P groups.
        """
        training = self.training
        self.eval()
        posterior = self.infer(checked_batch(dataset, "dataset"))
        self.train(training)
        return GivenRows(self, posterior, self.num_groups)  # pyright: ignore[reportArgumentType]

    def _check_groups(self, batch: GroupedBatch, whole: bool = False) -> GroupedBatch:
        check_known_groups(batch, self.num_groups)
        if whole and not (batch.num_groups == len(batch.group_index.unique()) == self.num_groups):
            raise GroupError(
                f"batch: expected all {self.num_groups} groups once, got {batch.num_groups}: this prior couples all "
                f"groups. Try batch_size=len(data){self._minibatch_hint}."
            )
        return batch

    _minibatch_hint = ""
