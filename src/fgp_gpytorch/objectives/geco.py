"""Generalized ELBO with constrained optimization."""

import math
from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.likelihoods import GaussianLikelihood, Likelihood
from fgp_gpytorch.models import Terms
from fgp_gpytorch.objectives.objective import Objective, sums_and_counts


class GECO(Objective):
    r"""Minimize the KL subject to a mean squared error of kappa (Rezende and Viola 2018; paper, Appendix A).

    For N observed members of the data set and C = mse - kappa the Lagrangian is KL + lambda N C. Its multiplier follows
    the moving average of C in log space, within bounds:

        average <- decay average + (1 - decay) C
        log lambda <- clamp(log lambda + rate average, log minimum, log maximum)

    The loss is the Lagrangian over (1 + kappa lambda). For large lambda it tends to N C / kappa + KL / (kappa lambda),
    so its gradient per member stays of order one.

    The default upper bound is K / (2 kappa) for members of K elements, the weight of the per-element error under a
    Gaussian likelihood of variance kappa. At the bound GECO equals the ELBO with the variance fixed at kappa. The
    authors' program has no bound. If the constraint cannot be satisfied, its lambda exceeds 1e19 within 100 epochs, and
    the KL has no effect.

    Args:
        kappa: Target of the mean squared error of one element of y, units of y squared (paper: 0.020).
        rate: Step of log lambda for an average violation of 1 (the authors' program: 1).
        decay: Weight of the past in the moving average (the authors' program: 0.99).
        initial_multiplier: lambda at the start, nats for a per-element error of 1 in one member.
        minimum_multiplier: Lower bound of lambda.
        maximum_multiplier: Upper bound of lambda; None for K / (2 kappa).
        num_particles: Draws of z for the expectation.

    Raises:
        ArgumentError: If a number is not positive and finite, `decay` is outside [0, 1), or the initial multiplier is
            outside its bounds.

    Examples:
        >>> likelihood = GaussianLikelihood("fixed", 0.02)
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]), likelihood)
        >>> objective = GECO(kappa=0.02)
        >>> data = GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2])
        >>> result = fit(model, data, objective=objective, epochs=20)
        >>> float(objective.multiplier) > 1  # it rises while the error is above kappa
        True
    """

    def __init__(
        self,
        kappa: float,
        rate: float = 1.0,
        decay: float = 0.99,
        initial_multiplier: float = 1.0,
        minimum_multiplier: float = 1e-6,
        maximum_multiplier: float | None = None,
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_particles)
        self.kappa = check.positive(kappa, "kappa", hint="Try 0.02.")
        self.rate = check.positive(rate, "rate", hint="Try 1.0.")
        self.decay = check.positive(decay, "decay", zero=True, below=1, hint="Try 0.99.")
        self.minimum_multiplier = check.positive(minimum_multiplier, "minimum_multiplier", hint="Try 1e-6.")
        if maximum_multiplier is not None:
            hint = "Try None for K / (2 kappa)."
            maximum_multiplier = check.positive(maximum_multiplier, "maximum_multiplier", hint=hint)
        self.maximum_multiplier = maximum_multiplier
        initial_multiplier = check.positive(initial_multiplier, "initial_multiplier", hint="Try 1.0.")
        if not self.minimum_multiplier <= initial_multiplier <= (maximum_multiplier or math.inf):
            raise ArgumentError(
                "expected minimum_multiplier <= initial_multiplier <= maximum_multiplier, got "
                f"{minimum_multiplier}, {initial_multiplier}, {maximum_multiplier}. Try None for the default maximum."
            )
        self._log_multiplier = torch.tensor(math.log(initial_multiplier), dtype=torch.float64)
        self._average = torch.tensor(math.nan, dtype=torch.float64)  # NaN: no step yet

    def terms(self, model: Any, guide: Any, batch: GroupedBatch) -> Terms:
        """Return the analytic parts of a pair on a batch.

        Args:
            model: `m.model`, or m itself.
            guide: `m.guide` of the same m, or m itself.
            batch: Groups of a data set.

        Raises:
            DataError: If the two do not belong to one model of this package. Also if the likelihood is not a
                `GaussianLikelihood`, or has a variance to learn: GECO's loss contains the squared error alone, no
                log likelihood.
        """
        likelihood = getattr(getattr(model, "__self__", model), "likelihood", None)
        parameters = likelihood.named_parameters() if isinstance(likelihood, Likelihood) else ()
        learned = [name for name, parameter in parameters if parameter.requires_grad]
        if learned:
            raise DataError(
                f"likelihood: expected one without a learned variance for GECO, got {type(likelihood).__name__} whose "
                f'{", ".join(learned)} would never move. Try GaussianLikelihood("optimal"), or ELBO().'
            )
        if isinstance(likelihood, Likelihood) and not isinstance(likelihood, GaussianLikelihood):
            raise DataError(
                "likelihood: expected a GaussianLikelihood for GECO, whose loss contains the squared error alone, got "
                f'{type(likelihood).__name__}. Try ELBO(), or GaussianLikelihood("optimal").'
            )
        return super().terms(model, guide, batch)

    @property
    def multiplier(self) -> float:
        """lambda."""
        return self._log_multiplier.exp().item()

    def loss_of(self, terms: Terms) -> Tensor:
        """Return (KL + lambda N (mse - kappa) - log p(hyperparameters)) / (1 + kappa lambda), for the data set."""
        multiplier = self._log_multiplier.to(terms.kl_local.device).exp()
        kl = terms.scale * terms.kl.sum()
        if terms.log_supervision is not None:
            kl = kl - terms.scale * terms.log_supervision.sum()
        if terms.kl_effects is not None:
            kl = kl + terms.kl_effects
        members = terms.scale * terms.num_members.sum()
        lagrangian = kl + multiplier * members * (terms.mse - self.kappa) - terms.log_hyperprior
        return lagrangian / (1 + self.kappa * multiplier)

    @torch.no_grad()
    def update(self, terms: Terms) -> None:
        """Update the moving average of the constraint, and the multiplier, unless nothing was observed."""
        constraint = terms.mse.double() - self.kappa
        some = terms.num_elements.sum() > 0
        average, before = self._average.to(constraint.device), self._log_multiplier.to(constraint.device)
        moved = torch.where(average.isnan(), constraint, torch.lerp(constraint, average, self.decay))
        self._average = torch.where(some, moved, average)
        maximum = self.maximum_multiplier
        if maximum is None:
            elements = terms.num_elements.sum() / terms.num_members.sum().clamp_min(1)  # K
            bound = (elements.double() / (2 * self.kappa)).log()
        else:
            bound = torch.tensor(math.log(maximum), dtype=torch.float64, device=constraint.device)
        moved = torch.minimum(before + self.rate * self._average, bound).clamp_min(math.log(self.minimum_multiplier))
        self._log_multiplier = torch.where(some, moved, before)

    def report(self, terms: Terms) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the parts. `multiplier` is lambda."""
        multiplier = self._log_multiplier.to(terms.kl_local.device).exp()
        return {**sums_and_counts(terms), "multiplier": (multiplier, torch.ones_like(multiplier))}

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier and the moving average."""
        return {"log_multiplier": self._log_multiplier.clone(), "average": self._average.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._log_multiplier, self._average = state["log_multiplier"].clone(), state["average"].clone()
