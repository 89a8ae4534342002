"""A form of a coupled KL whose object vectors a network gives: still a sum over groups."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.models.kl_summary import KLSummary
from fgp_gpytorch.prior import MeanFieldPosterior, ObjectViewPrior
from fgp_gpytorch.prior.given_objects import ObjectViewPriorAt


class AmortizedKLSummary(NamedTuple):
    """As `KLSummary`, with the object vectors beside mu and sigma^2: the KL knows the network through them alone.

    Attributes:
        rows: The KL, its gradient towards rows and hyperparameters.
        vectors: Object vectors of all groups, (P, m), groups in the data set's order.
        towards_vectors: d KL / d vectors, (P, m).
    """

    rows: KLSummary
    vectors: Tensor
    towards_vectors: Tensor

    def separable_kl(self, posterior: MeanFieldPosterior, prior: ObjectViewPrior) -> Tensor:
        """As `KLSummary.separable_kl`, of first order in the object vectors: shares whose sum is the form.

        Args:
            posterior: q of some groups at their object vectors, their members in the data set's order.
            prior: The prior whose KL this is.

        Returns:
            Nats, (G,); times (groups of the data set / G), an unbiased estimate from a sample of groups.
        """
        located = _located(posterior)
        index = located.group_index
        values = posterior.x, posterior.raw_mean, posterior.raw_variance, posterior.observed
        rows = self.rows.separable_kl(MeanFieldPosterior(prior, index, *values), prior)  # which knows whether it fits
        return rows + (self.towards_vectors[index] * (located.vectors - self.vectors[index])).sum(-1)


def summarize_amortized_kl(prior: ObjectViewPrior, parts: Sequence[MeanFieldPosterior]) -> AmortizedKLSummary:
    """Take the KL and its gradient.

    Args:
        prior: The prior.
        parts: q of all groups at their object vectors, each group in one part.

    Returns:
        The summary, without a graph.

    Raises:
        GroupError: If a group is missing or there twice.
    """
    located = [_located(part) for part in parts]
    index = torch.cat([each.group_index for each in located])
    order = index.argsort()
    groups = located[0].num_dataset_groups
    if not torch.equal(index[order], torch.arange(groups, device=order.device)):
        raise GroupError(f"dataset: expected all {groups} groups once, got {len(order)}. Try the whole training data.")
    posterior = MeanFieldPosterior.cat(parts)
    sources = torch.cat([each.vectors for each in located]), posterior.raw_mean, posterior.raw_variance
    vectors, mean, variance = (value[order].detach().requires_grad_() for value in sources)
    learned = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        at = ObjectViewPriorAt(prior, vectors, index[order], groups)
        whole = at.condition(at.group_index, posterior.x[order], mean, variance, posterior.observed[order])
        kl = whole.kl_channels.sum()
        towards = torch.autograd.grad(kl, [vectors, mean, variance, *learned])
    then = tuple(parameter.detach().clone() for parameter in learned)
    where = posterior.x[order], posterior.observed[order]
    rows = KLSummary(
        kl.detach(), mean.detach(), variance.detach(), towards[1], towards[2], *where, then, tuple(towards[3:])
    )
    return AmortizedKLSummary(rows, vectors.detach(), towards[0])


def _located(posterior: MeanFieldPosterior) -> ObjectViewPriorAt:
    prior = posterior._prior
    assert isinstance(prior, ObjectViewPriorAt), "made by GPVAE with a representation"
    return prior
