"""What each choice of the FGP-VAE changes: one choice at a time from Appendix A.

The base has GECO with kappa = 0.020, J = 8, r = 1 fixed, period 2 pi and marginal samples. It runs for 300 epochs, not
1000. No setting was chosen by these runs, which use the test set.
"""

import dataclasses
import math
from typing import Any

import torch

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.systems import Recipe, fgp_vae, train
from fgp_gpytorch import FGPVAE, GroupedBatch
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.models import PseudoObservations
from fgp_gpytorch.prior import KLTerms, LatentPosterior

EPOCHS, QUICK = 300, 3  # so many choices in the quick form
PAPER = Recipe(kappa=0.020)


class SharedQuadraticTerm(FGPVAE):
    """The authors' program: every group has the sum of mu^2 / sigma^2 over the batch in its global channels."""

    def split_kl(self, posterior: LatentPosterior, batch: GroupedBatch) -> KLTerms:
        """The KL with the authors' quadratic term."""
        local, shared = super().split_kl(posterior, batch)
        for part in posterior.blocks:
            if part.block.is_global:
                own = (part.precision * part.residual.square()).sum((-2, -1))  # shape: (G,)
                shared = shared + 0.5 * (own.sum() - own)
        return KLTerms(local, shared)


class JointSamples(FGPVAE):
    """Draws z jointly over the members of a group. The ELBO needs only marginals."""

    def condition(self, batch: GroupedBatch, pseudo: PseudoObservations) -> LatentPosterior:
        """The posterior, whose draws of the marginals are joint draws."""
        posterior = super().condition(batch, pseudo)
        posterior.rsample_marginals = posterior.rsample_jointly
        return posterior


# name: changes of the recipe, and of the model
CHOICES: dict[str, tuple[dict[str, Any], type[FGPVAE]]] = {
    "as the paper": ({}, FGPVAE),
    "period pi, as printed": ({"period": math.pi}, FGPVAE),
    "shared quadratic term, as in the authors' program": ({}, SharedQuadraticTerm),
    "joint samples": ({}, JointSamples),
    "ELBO in place of GECO": ({"kappa": None}, FGPVAE),
    "learned r": ({"learn_lengthscale": True}, FGPVAE),
    "member dropout 2/11": ({"member_dropout": 2 / 11}, FGPVAE),
    "learning rate 0.01, cosine": ({"learning_rate": 1e-2, "cosine": True}, FGPVAE),
    **{f"J = {j}": ({"num_local": j}, FGPVAE) for j in (1, 2, 4, 6, 10, 12, 14, 15)},
}


def keys(plan: Plan) -> list[Key]:
    names = list(CHOICES)[:QUICK] if plan.quick else CHOICES
    return [{"choice": name, "seed": seed} for seed in range(plan.seeds or 1) for name in names]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    changes, kind = CHOICES[key["choice"]]
    recipe = dataclasses.replace(PAPER, epochs=2 if plan.quick else EPOCHS, **changes)
    data = rotated_mnist()
    torch.manual_seed(key["seed"])
    base = fgp_vae(recipe, len(data.train))
    model = kind(base.encoder, base.decoder, base.prior, base.likelihood, base.member_dropout)
    training = train(model, recipe, data.train, key["seed"])
    return dataclasses.asdict(recipe), {
        "test_mse": held_out_mse(model, data.test), "extrapolation_mse": held_out_mse(model, data.extrapolation),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "kl": float(training.history[["kl_local", "kl_global"]].iloc[-1].sum()),
        "seconds_per_epoch": training.seconds_per_epoch,
    }  # fmt: skip


def say(record: Record) -> str:
    return f"{record.key['choice']}: test MSE {record['test_mse']:.4f}, extrapolation {record['extrapolation_mse']:.4f}"


STUDY = Study(
    "ablations",
    "Ablations",
    "Each row changes one choice of Appendix A and trains for 300 epochs. The base has not converged there, so compare "
    "within the table.",
    keys, run, say,
)  # fmt: skip
