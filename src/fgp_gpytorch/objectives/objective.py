"""Base class of the objectives."""

import inspect
import math
from abc import abstractmethod
from typing import Any

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.models import GroupedVAE, Terms
from fgp_gpytorch.saving import Configurable


class Objective(pyro.infer.ELBO, Configurable):
    """A loss for `pyro.infer.SVI` and for `fit`, computed from a model's analytic terms.

    All losses are for the whole data set. A batch is scaled by `num_dataset_groups / num_groups`, which makes its
    gradient unbiased. The log density of the hyperparameters enters once.

    Args:
        num_particles: Draws of z for the expected log likelihood.

    Raises:
        ArgumentError: If `num_particles` is below 1.

    Examples:
        >>> class FreeNats(Objective):
        ...     def loss_of(self, terms):  # the first 3 nats of every group cost nothing
        ...         return terms.scale * (terms.kl.clamp_min(3.0) - terms.log_likelihood).sum()
        ...     def report(self, terms):
        ...         return ELBO().report(terms)
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]))
        >>> data = GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2])
        >>> result = fit(model, data, objective=FreeNats(), epochs=20)
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=check.count(num_particles, "num_particles"))

    @abstractmethod
    def loss_of(self, terms: Terms) -> Tensor:
        """The loss of a batch, scaled to the data set: a scalar with gradients. Training lowers it."""

    @abstractmethod
    def report(self, terms: Terms) -> dict[str, tuple[Tensor, Tensor]]:
        """The parts of a batch as sums and counts. `fit` adds them up over an epoch, and divides.

        `log_likelihood` and the KL are nats over the groups with an observation, `mse` is in units of y squared over
        the observed elements. The `multiplier` has a count of 1.
        """

    def update(self, terms: Terms) -> None:
        """Update the objective's own state after a training step. This one has none."""

    def settings(self) -> dict[str, float | str | None]:
        """The constructor's arguments that are numbers, words or None. `fit` compares them on resuming."""
        signature = inspect.signature(type(self)).parameters.items()
        given = {name: self.constructor_arguments.get(name, parameter.default) for name, parameter in signature}
        known = {k: float(v) if isinstance(v, int | float) else v for k, v in given.items()}
        return {k: v for k, v in known.items() if isinstance(v, float | str | None)}

    def state_dict(self) -> dict[str, Any]:
        """The objective's own state, which is saved with the model's. This one has none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""

    def reset(self) -> None:
        """Restore the state that the constructor made. `fit` does so, unless it resumes a run."""
        if self.state_dict():
            self.load_state_dict(type(self)(**self.constructor_arguments).state_dict())

    def terms(self, model: Any, guide: Any, batch: GroupedBatch) -> Terms:
        """The analytic parts of a pair on a batch.

        Args:
            model: `m.model`, or m itself.
            guide: `m.guide` of the same m, or m itself.
            batch: Groups of a data set.

        Raises:
            DataError: If the two do not belong to one model of this package.
        """
        return self._owner(model, guide).terms(batch, self.num_particles)

    def differentiable_loss(self, model: Any, guide: Any, batch: GroupedBatch) -> Tensor:
        """The loss as a scalar with gradients."""
        return self.loss_of(self.terms(model, guide, batch))

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, batch: GroupedBatch) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The loss as a number, without a change of state."""
        return self.differentiable_loss(model, guide, batch).item()

    def loss_and_grads(self, model: Any, guide: Any, batch: GroupedBatch) -> float:
        """The loss as a number. It adds gradients to the parameters' `.grad` and updates the objective's state."""
        self._owner(model, guide).register_parameters()
        terms = self.terms(model, guide, batch)
        loss = self.loss_of(terms)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        self.update(terms)
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """One draw of the pair, for Pyro's own methods of an ELBO."""
        return get_importance_trace("flat", math.inf, model, guide, args, kwargs)

    def _owner(self, model: Any, guide: Any) -> GroupedVAE:
        owner = getattr(model, "__self__", model)
        if getattr(guide, "__self__", guide) is not owner or not isinstance(owner, GroupedVAE):
            raise DataError(
                f"expected model and guide of one GroupedVAE, got {_describe(model)} and {_describe(guide)}. Try "
                "SVI(m.model, m.guide, optimizer, loss=ELBO()); for another pair, pyro.infer.TraceMeanField_ELBO()."
            )
        return owner


def sums_and_counts(terms: Terms) -> dict[str, tuple[Tensor, Tensor]]:
    """The parts that every objective reports, without gradients. Groups without an observation do not count."""
    elements = terms.num_elements.sum()
    per_group = {name: getattr(terms, name) for name in ("log_likelihood", "kl_local", "kl_global")}
    optional = {"kl_features": terms.kl_features, "log_supervision": terms.log_supervision}
    per_group.update({name: value for name, value in optional.items() if value is not None})
    groups = (terms.num_elements > 0).sum()
    sums = {name: (value.detach().sum(), groups) for name, value in per_group.items()}
    if terms.kl_effects is not None:  # once per data set
        sums["kl_effects"] = terms.kl_effects.detach(), torch.ones_like(terms.kl_effects)
    return {**sums, "mse": (terms.squared_error.detach().sum(), elements)}


def _describe(part: Any) -> str:
    owner = getattr(part, "__self__", None)
    if owner is not None:
        return f"{type(owner).__name__}.{part.__name__} at {hex(id(owner))}"
    return getattr(part, "__qualname__", type(part).__name__)
