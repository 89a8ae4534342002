"""The evidence lower bound."""

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.models import Terms
from fgp_gpytorch.objectives.objective import Objective, sums_and_counts


class ELBO(Objective):
    r"""The negative ELBO with the analytic KL (paper, Section 3 and Appendix B).

        loss = - N/G sum_p { E_q[log p(Y_p | Z_p)] - beta KL(q(Z_p) || p(Z_p)) } - log p(hyperparameters)

    in nats, for N groups of the data set and G of the batch. With shared effects beta KL(q(w) || p(w)) is added, once.

    Args:
        beta: Weight of the KL: 1 for the ELBO, other weights for the beta-VAE (a looser bound above 1, none below 1).
        num_particles: Draws of z for the expectation.

    Raises:
        ArgumentError: If `beta` is negative or not finite, or `num_particles` below 1.

    Examples:
        >>> model = FGPVAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), FactorizedGPPrior([GlobalChannels(4)]))
        >>> batch = GroupedBatch.from_tensors(y=torch.rand(2, 3, 5), x=torch.rand(2, 3, 1))
        >>> terms = model.terms(batch)
        >>> torch.allclose(ELBO(beta=0.5).loss_of(terms), (0.5 * terms.kl - terms.log_likelihood).sum())  # nats
        True
        >>> svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), loss=ELBO())
    """

    def __init__(self, beta: float = 1.0, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.beta = check.positive(beta, "beta", zero=True, hint="Try 1.0, which is the ELBO.")

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative ELBO of a batch, scaled to the data set, nats."""
        per_group = self.beta * terms.kl - terms.log_likelihood
        if terms.log_supervision is not None:
            per_group = per_group - terms.log_supervision
        loss = terms.scale * per_group.sum() - terms.log_hyperprior
        return loss if terms.kl_effects is None else loss + self.beta * terms.kl_effects

    def report(self, terms: Terms) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the parts. `multiplier` is 1 / beta: the weight of the likelihood if the KL has weight 1."""
        multiplier = torch.as_tensor(1 / self.beta if self.beta else float("inf"), dtype=torch.float64)
        multiplier = multiplier.to(terms.kl_local.device)
        return {**sums_and_counts(terms), "multiplier": (multiplier, torch.ones_like(multiplier))}
