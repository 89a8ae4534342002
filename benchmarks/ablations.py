"""What each choice of the FGP-VAE changes: one run a choice, everything else as the paper has it.

    python benchmarks/ablations.py [--seeds 1] [--epochs 300] [--jobs 2]
    python benchmarks/ablations.py --quick         # two epochs of the first six, into runs/ablations_quick

The base is Appendix A (GECO with kappa = 0.020, J = 8, r = 1 fixed, period 2 pi, marginal samples), for 300 epochs and
not 1000. These runs decide nothing: they are looked at on the test set. A record a run, none is made twice.
"""

import dataclasses
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import harness
from fgp_gpytorch import FGPVAE, GlobalChannels, GroupedBatch
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.prior import LatentPosterior
from systems import Recipe, fgp_vae, train

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "ablations"
EPOCHS = 300
PAPER = Recipe(kappa=0.020)


class SharedQuadraticTerm(FGPVAE):
    """The authors' program: sum mu^2 / sigma^2 of the global channels is taken over the batch, for every group."""

    def _split_kl(self, posterior: LatentPosterior) -> tuple[Tensor, Tensor]:
        local, shared = super()._split_kl(posterior)
        for block, part in zip(self._blocks(), posterior.blocks, strict=True):
            if isinstance(block, GlobalChannels):
                own = (part.precision * part.residual.square()).sum((-2, -1))  # shape: (G,)
                shared = shared + 0.5 * (own.sum() - own)
        return local, shared


class JointSamples(FGPVAE):
    """z drawn jointly over the members of a group, where the ELBO needs marginals alone."""

    def _infer(self, batch: GroupedBatch) -> LatentPosterior:
        posterior = super()._infer(batch)
        joint = posterior.rsample
        posterior.rsample = lambda sample_shape=(), marginals=False: joint(sample_shape)
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


def run(name: str, seed: int, epochs: int) -> dict[str, Any]:
    changes, kind = CHOICES[name]
    recipe = dataclasses.replace(PAPER, epochs=epochs, **changes)
    data = rotated_mnist()
    torch.manual_seed(seed)
    base = fgp_vae(recipe, len(data.train))
    model = kind(base.encoder, base.decoder, base.prior, base.likelihood, base.member_dropout)
    training = train(model, recipe, data.train, seed)
    return {
        "choice": name, "seed": seed, "recipe": dataclasses.asdict(recipe),
        "test_mse": held_out_mse(model, data.test), "extrapolation_mse": held_out_mse(model, data.extrapolation),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "kl": float(training.history[["kl_local", "kl_global"]].iloc[-1].sum()),
        "seconds_per_epoch": training.seconds_per_epoch,
        "date": time.strftime("%Y-%m-%d"), "commit": harness.commit(),
    }  # fmt: skip


def main() -> int:
    return harness.records_main(
        __file__, __doc__, "only", list(CHOICES), EPOCHS, RECORDS, quick=6, run=run,
        file_of=lambda name: re.sub("[^a-z0-9]+", "_", name.lower()).strip("_"),
        say=lambda r: f"{r['choice']}, seed {r['seed']}: test MSE {r['test_mse']:.4f}, "
        f"extrapolation {r['extrapolation_mse']:.4f}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
