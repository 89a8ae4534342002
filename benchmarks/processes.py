"""One training run in one or several processes. `benchmarks.studies.processes` compares the runs.

python -m benchmarks.processes CASE --processes 2 --folder FOLDER --out FILE
"""

import argparse
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch

from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    VAE,
    BernoulliLikelihood,
    CoregionalizedChannels,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LatentAngleFGPVAE,
    LocalChannels,
    fit,
)
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.feature_maps import LinearFeatures, NystromFeatures, PeriodicFeatures
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures

GROUPS, GLOBAL_BATCH, EPOCHS, ELEMENTS, CHANNELS = 21, 4, 3, 5, 3  # the last minibatch has one group


@dataclasses.dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        likelihood: Makes the likelihood.
        objective: Makes the objective.
        model: Makes the model of a likelihood, and of the options of all models.
        options: More options of the model.
        fit: More options of `fit`.
        gaps: Whether elements, members and a whole group were not observed.
        held_out: Whether to validate on held-out members instead of other groups.
        binary: Whether y is 0 or 1.
        unknown_x: Whether some features are unknown.
    """

    likelihood: Callable[[], Any] = GaussianLikelihood
    objective: Callable[[], Any] = ELBO
    model: Callable[..., Any] = FGPVAE
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    gaps: bool = False
    held_out: bool = False
    binary: bool = False
    unknown_x: bool = False


def prior() -> FactorizedGPPrior:
    """Two local channels and a global one, with a hyperparameter prior."""
    kernel = gpytorch.kernels.PeriodicKernel(lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    return FactorizedGPPrior([LocalChannels(CHANNELS - 1, kernel), GlobalChannels(1)])


def circular() -> gpytorch.kernels.PeriodicKernel:
    """A kernel that keeps the period of an angle."""
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length = 2 * torch.pi
    kernel.raw_period_length.requires_grad_(False)
    return kernel


def _coregionalized(encoder: Any, decoder: Any, _: Any, **options: Any) -> FGPVAE:
    block = CoregionalizedChannels(CHANNELS, 2, PeriodicFeatures(circular()))
    return FGPVAE(encoder, decoder, FactorizedGPPrior([block]), **options)


def _shared_effects(encoder: Any, decoder: Any, plain: FactorizedGPPrior, **options: Any) -> FGPVAE:
    effects = [LinearFeatures(), NystromFeatures(gpytorch.kernels.RBFKernel(), torch.linspace(0, 6, 4))]
    return FGPVAE(encoder, decoder, FactorizedGPPrior(list(plain.blocks), effects=effects), **options)


def _latent_angle(encoder: Any, decoder: Any, _: Any, **options: Any) -> LatentAngleFGPVAE:
    circle = FactorizedGPPrior([LocalChannels(CHANNELS - 1, circular()), GlobalChannels(1)])
    return LatentAngleFGPVAE(encoder, decoder, circle, MLPFeatures([ELEMENTS], 2, hidden=[8]), **options)


def _vae(encoder: Any, decoder: Any, _: Any, **options: Any) -> VAE:
    return VAE(encoder, decoder, CHANNELS, **options)


CASES = {
    "fixed variance": Case(lambda: GaussianLikelihood("fixed", 0.1)),
    "maximum-likelihood variance": Case(),
    "learned variance": Case(lambda: GaussianLikelihood("learned")),
    "a variance for each element": Case(lambda: DiagonalGaussianLikelihood([ELEMENTS])),
    "Bernoulli": Case(BernoulliLikelihood, binary=True),
    "GECO": Case(objective=lambda: GECO(0.05)),
    "gaps and a group without observations": Case(gaps=True),
    "GECO with gaps": Case(objective=lambda: GECO(0.05), gaps=True),
    "held-out members": Case(held_out=True),
    "member dropout": Case(options={"member_dropout": (0.0, 0.8)}),
    "three draws of z": Case(objective=lambda: ELBO(num_particles=3)),
    "clipped gradients": Case(fit={"gradient_clip": 0.01}),
    "two batches a step": Case(fit={"accumulate_grad_batches": 2}),
    "coregionalized channels": Case(model=_coregionalized),
    "shared effects": Case(model=_shared_effects, options={"member_dropout": (0.0, 0.8)}),
    "unknown angles": Case(model=_latent_angle, unknown_x=True),
    "VAE": Case(model=_vae),
}


def run(case: Case, processes: int, folder: Path, epochs: int = EPOCHS, resume: bool = False) -> dict[str, Any]:
    """Train, and return the parameters, the history and the objective's state."""
    torch.manual_seed(1)
    encoder, decoder = MLPEncoder([ELEMENTS], CHANNELS, hidden=[8]), MLPDecoder(CHANNELS, [ELEMENTS], hidden=[8])
    model = case.model(encoder, decoder, prior(), likelihood=case.likelihood(), **case.options).double()
    train, validation = make_data(GROUPS, case, 0), make_data(7, case, 1)
    objective = case.objective()
    result = fit(
        model, train, validation=HeldOut.last(validation, 1) if case.held_out else validation, objective=objective,
        epochs=epochs, batch_size=GLOBAL_BATCH // processes, learning_rate=1e-2, seed=3, folder=folder, resume=resume,
        progress=False, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", **case.fit,
    )  # fmt: skip
    history = result.history.drop(columns="epoch")
    return {
        "parameters": {name: value.clone() for name, value in model.state_dict().items()},
        "history": {name: torch.tensor(history[name].tolist(), dtype=torch.float64) for name in history},
        "objective": objective.state_dict(),
        "rank": result.trainer.global_rank,
    }


def make_data(groups: int, case: Case, seed: int) -> GroupedDataset:
    """Ragged groups of 2 to 7 members."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 8, (groups,), generator=generator)
    group = torch.repeat_interleave(torch.arange(groups), sizes)
    x = 2 * torch.pi * torch.rand(len(group), generator=generator, dtype=torch.float64)
    level = torch.randn(groups, ELEMENTS, generator=generator, dtype=torch.float64)[group]
    y = level + x.sin().unsqueeze(-1) + 0.1 * torch.randn(level.shape, generator=generator, dtype=torch.float64)
    y = (y > 0).to(y.dtype) if case.binary else y
    x_mask = torch.rand(len(x), generator=generator) < 0.5 if case.unknown_x else None
    if not case.gaps:
        return GroupedDataset(y, x, group, x_mask=x_mask)
    observed = torch.rand(y.shape, generator=generator) < 0.7
    observed[group == 2] = False
    observed[::9] = False
    return GroupedDataset(y, x, group, observed, x_mask)


def train_here(case: str, processes: int, folder: Path, epochs: int) -> dict[str, Any]:
    """Train a case on one thread, with checkpoints in the folder. It goes on if the folder has a run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(CASES[case], processes, folder, epochs, resume=(folder / "last.ckpt").exists())
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoints: resumed if it has one")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    result = train_here(arguments.case, arguments.processes, arguments.folder, arguments.epochs)
    if result.pop("rank") == 0:
        torch.save(result, arguments.out)


if __name__ == "__main__":
    main()
