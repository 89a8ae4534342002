"""A KL that couples all groups, expanded into a sum over members, after Casale et al. (2018, Section 3.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled.group_inputs import GroupInputs, checked_inputs
from fgp_gpytorch.coupled.product_prior import MeanFieldPosterior, ProductPrior
from fgp_gpytorch.errors import GroupError


class KLExpansion(NamedTuple):
    """The KL of all groups at some parameters, and its gradient there.

    Attributes:
        kl: At these parameters, nats, a scalar.
        inputs: All P groups, in the order of the data set.
        towards_vectors: d KL / d group vectors, (P, m).
        towards_mean: d KL / d mu, (P, Q, L), 0 where nothing was observed.
        towards_variance: d KL / d sigma^2, (P, Q, L).
        hyperparameters: The prior's learned parameters, in their order.
        towards_hyperparameters: d KL / d hyperparameters.

    Examples:
        >>> prior = ProductPrior(1, features=LinearFeatures())
        >>> x, mean, variance = torch.rand(3, 2, 1), torch.rand(3, 2, 1), torch.ones(3, 2, 1)
        >>> inputs = GroupInputs.of(torch.eye(3), x, mean, variance, None, prior.dtype)
        >>> expansion = expand_kl(prior, inputs)
        >>> shares = expansion.separable_kl(prior.condition(inputs), group_index=torch.arange(3))
        >>> shares.shape, torch.allclose(shares.sum(), expansion.kl)
        (torch.Size([3]), True)
    """

    kl: Tensor
    inputs: GroupInputs
    towards_vectors: Tensor
    towards_mean: Tensor
    towards_variance: Tensor
    hyperparameters: tuple[Tensor, ...]
    towards_hyperparameters: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "KLExpansion":
        """The expansion on a device."""
        return KLExpansion(
            self.kl.to(device), self.inputs.to(device), self.towards_vectors.to(device), self.towards_mean.to(device),
            self.towards_variance.to(device), tuple(value.to(device) for value in self.hyperparameters),
            tuple(value.to(device) for value in self.towards_hyperparameters),
        )  # fmt: skip

    def separable_kl(self, posterior: MeanFieldPosterior, group_index: Tensor) -> Tensor:
        r"""Each group's share of an approximate KL. Their sum has the KL's value and gradient at the expansion.

        With h_i = (K + alpha I)^-1_ii, which follows from d KL / d sigma_i^2 = 1/2 (h_i - 1 / sigma_i^2), a member adds

            d KL / d mu_i (mu_i - mu_i0) + 1/2 h_i (mu_i - mu_i0)^2
            + 1/2 [ h_i (sigma_i^2 - sigma_i0^2) - log(sigma_i^2 / sigma_i0^2) ]

        This is exact when a single member moves, and bounded below; the linear form of Casale et al. is not.
        Interactions between members are dropped. Group vectors and hyperparameters enter to first order.

        Args:
            posterior: q of some groups, their members in the data set's order.
            group_index: Positions of these groups in the data set, (G,), int64.

        Returns:
            Nats, (G,). For a random sample of G of P groups, P / G times their sum is unbiased.

        Raises:
            GroupError: If the members or the learned hyperparameters differ from those of the expansion.
        """
        learned = _learned(posterior.prior)
        self._check(posterior.inputs, group_index, learned)
        now, then = posterior.inputs, self.inputs
        select = (group_index, slice(0, now.x.shape[1]))
        variance = then.variance[select]
        h = 2 * self.towards_variance[select] + 1 / variance  # shape: (G, Q, L)
        step = now.mean - then.mean[select]
        change = self.towards_mean[select] * step + 0.5 * h * step.square()
        change = change + 0.5 * (h * (now.variance - variance) - (now.variance / variance).log())
        shares = torch.where(now.mask.unsqueeze(-1), change, 0.0).sum((-2, -1))
        shares = shares + (self.towards_vectors[group_index] * (now.vectors - then.vectors[group_index])).sum(-1)
        shared = self.kl
        for value, before, towards in zip(learned, self.hyperparameters, self.towards_hyperparameters, strict=True):
            shared = shared + (towards * (value - before)).sum()
        return shares + shared / len(then.x)

    def _check(self, now: GroupInputs, group_index: Tensor, learned: Sequence[Tensor]) -> None:
        then, size = self.inputs, now.x.shape[1]
        same = int(group_index.max()) < len(then.x) and size <= then.x.shape[1]
        if same:
            mask = then.mask[group_index]
            same = torch.equal(mask[:, :size], now.mask) and not bool(mask[:, size:].any())
            same = same and torch.equal(then.x[group_index, :size][now.mask], now.x[now.mask])
        if not same or len(learned) != len(self.hyperparameters):
            raise GroupError(
                f"batch: expected groups of the {len(then.x)} that the summary was made of, with all their members, "
                "and the same learned hyperparameters, got others. Try model.summary = model.summarize(data) of this "
                "data set, or model.summary = None."
            )


def expand_kl(prior: ProductPrior, inputs: GroupInputs) -> KLExpansion:
    """Compute the KL of all groups and its gradient.

    Args:
        prior: The prior.
        inputs: All groups, in the order of the data set.

    Returns:
        The expansion, detached from the graph.

    Raises:
        ArgumentError: If an argument has another type.

    Examples:
        >>> prior = ProductPrior(1, features=LinearFeatures())
        >>> x, mean, variance = torch.ones(3, 2, 1), torch.zeros(3, 2, 1), torch.ones(3, 2, 1)
        >>> inputs = GroupInputs.of(torch.eye(3), x, mean, variance, None, prior.dtype)
        >>> expansion = expand_kl(prior, inputs)
        >>> torch.allclose(expansion.kl, prior.condition(inputs).kl.sum()), expansion.towards_mean.abs().max()
        (True, tensor(0., dtype=torch.float64))
    """
    check.instance(prior, "prior", ProductPrior, "Try model.prior of a GPVAE.")
    checked_inputs(inputs)
    vectors, mean, variance = (v.detach().requires_grad_() for v in (inputs.vectors, inputs.mean, inputs.variance))
    here = inputs._replace(vectors=vectors, mean=mean, variance=variance)
    learned = _learned(prior)
    with torch.enable_grad():
        kl = prior.condition(here).kl_channels.sum()
        gradients = torch.autograd.grad(kl, [vectors, mean, variance, *learned])
    towards_vectors, towards_mean, towards_variance, *towards = gradients
    then = tuple(parameter.detach().clone() for parameter in learned)
    here = GroupInputs(*(value.detach() for value in here))
    return KLExpansion(kl.detach(), here, towards_vectors, towards_mean, towards_variance, then, tuple(towards))


def _learned(prior: ProductPrior) -> list[Tensor]:
    return [parameter for parameter in prior.parameters() if parameter.requires_grad]
