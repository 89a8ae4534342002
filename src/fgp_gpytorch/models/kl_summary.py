"""A form of a KL that couples all rows which is a sum over rows, after Casale et al. (2018, Section 3.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.prior import MeanFieldPosterior, ObjectViewPrior


class KLSummary(NamedTuple):
    """A KL of all rows at some parameters, and its gradient there.

    Attributes:
        kl: At these parameters, nats, a scalar.
        mean: mu of every row, (P, Q, L), groups in the data set's order.
        variance: sigma^2, (P, Q, L).
        towards_mean: d KL / d mu, (P, Q, L), 0 where nothing was observed.
        towards_variance: d KL / d sigma^2, (P, Q, L).
        x: Auxiliary features, (P, Q, D).
        observed: Rows that were there, (P, Q).
        hyperparameters: Values of the prior's learned parameters, in their order.
        towards_hyperparameters: d KL / d hyperparameters.
    """

    kl: Tensor
    mean: Tensor
    variance: Tensor
    towards_mean: Tensor
    towards_variance: Tensor
    x: Tensor
    observed: Tensor
    hyperparameters: tuple[Tensor, ...]
    towards_hyperparameters: tuple[Tensor, ...]

    def separable_kl(self, posterior: MeanFieldPosterior, prior: ObjectViewPrior) -> Tensor:
        r"""Shares of a form of the KL around the summary: their sum over all groups is the form, its gradient the KL's.

        With h_i = (K + alpha I)^-1_ii, which d KL / d sigma_i^2 = 1/2 (h_i - 1 / sigma_i^2) tells, a row adds

            d KL / d mu_i (mu_i - mu_i0) + 1/2 h_i (mu_i - mu_i0)^2
            + 1/2 [ h_i (sigma_i^2 - sigma_i0^2) - log(sigma_i^2 / sigma_i0^2) ]

        which is exact where one row moves alone, and has a bottom, where Casale et al.'s linear form has none. Of
        several rows it leaves out how they move together, of the hyperparameters all but the first order.

        Args:
            posterior: q of some groups, their members in the data set's order.
            prior: The prior whose KL this is.

        Returns:
            Nats, (G,); times (groups of the data set / G), an unbiased estimate from a sample of groups.

        Raises:
            GroupError: If these are not rows that the summary was made of, or other hyperparameters are learned now.
        """
        self._check(posterior, prior)
        size = posterior.x.shape[-2]
        select = (posterior.group_index, slice(0, size))
        observed = posterior.observed.unsqueeze(-1)
        variance = self.variance[select]
        curvature = 2 * self.towards_variance[select] + 1 / variance  # h, (G, Q, L)
        step = posterior.raw_mean - self.mean[select]
        change = self.towards_mean[select] * step + 0.5 * curvature * step.square()
        growth = posterior.raw_variance / variance
        change = change + 0.5 * (curvature * (posterior.raw_variance - variance) - growth.log())
        shared = self.kl
        triples = zip(_learned(prior), self.hyperparameters, self.towards_hyperparameters, strict=True)
        for now, then, towards in triples:
            shared = shared + (towards * (now - then)).sum()
        return torch.where(observed, change, 0.0).sum((-2, -1)) + shared / len(self.mean)

    def _check(self, posterior: MeanFieldPosterior, prior: ObjectViewPrior) -> None:
        index, size = posterior.group_index, posterior.x.shape[-2]
        same = int(index.max()) < len(self.mean) and size <= self.mean.shape[1]
        if same:
            observed, there = self.observed[index], posterior.observed
            same = torch.equal(observed[:, :size], there) and not bool(observed[:, size:].any())
            same = same and torch.equal(self.x[index, :size][there], posterior.x[there])
        if not same or len(_learned(prior)) != len(self.hyperparameters):
            raise GroupError(
                f"batch: expected groups of the {len(self.mean)} that the summary was made of, with all their rows, "
                "and the same learned hyperparameters, got others. Try model.summary = model.summarize(data) of this "
                "data set, or model.summary = None."
            )


def summarize_kl(prior: ObjectViewPrior, parts: Sequence[MeanFieldPosterior]) -> KLSummary:
    """Take the KL and its gradient.

    Args:
        prior: The prior.
        parts: q of all groups, each group in one part.

    Returns:
        The summary, without a graph.

    Raises:
        GroupError: If a group is missing or there twice.
    """
    posterior = MeanFieldPosterior.cat(parts)
    order = posterior.group_index.argsort()
    groups = prior.root.objects.num_groups
    if not torch.equal(posterior.group_index[order], torch.arange(groups, device=order.device)):
        raise GroupError(
            f"dataset: expected all {groups} groups once, got {len(order)}. Try the data set the model was made for."
        )
    mean = posterior.raw_mean[order].detach().requires_grad_()
    variance = posterior.raw_variance[order].detach().requires_grad_()
    learned = _learned(prior)
    with torch.enable_grad():
        whole = prior.condition(
            posterior.group_index[order], posterior.x[order], mean, variance, posterior.observed[order]
        )
        kl = whole.kl_channels.sum()
        gradients = torch.autograd.grad(kl, [mean, variance, *learned])
    return KLSummary(
        kl.detach(),
        mean.detach(),
        variance.detach(),
        gradients[0],
        gradients[1],
        posterior.x[order],
        posterior.observed[order],
        tuple(parameter.detach().clone() for parameter in learned),
        tuple(gradients[2:]),
    )


def _learned(prior: ObjectViewPrior) -> list[Tensor]:
    return [parameter for parameter in prior.parameters() if parameter.requires_grad]
