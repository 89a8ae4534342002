"""Table 1 of the paper: every system trained on the same data by the same loop, one record a run.

    python benchmarks/table1.py                    # all that is missing in docs/results/table1
    python benchmarks/table1.py --list             # what there is, and what is missing
    python benchmarks/table1.py --only VAE --seeds 1
    python benchmarks/table1.py --quick            # two epochs of everything, into runs/table1_quick

Two blocks: "published" gives each system its own paper's settings, "best" the settings that validation chose for it
(benchmarks/choose_settings.py). Every run has a process of its own, so that its peak memory is its own, and a record
that is never made twice: a run that was cut is simply started again.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpytorch
import lightning
import torch
from torch import nn

import harness
from fgp_gpytorch import (
    CVAE,
    ELBO,
    FGPVAE,
    GECO,
    VAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    IndependentChannels,
    LocalChannels,
    fit,
)
from fgp_gpytorch.data import align_held_out
from fgp_gpytorch.datasets import RotatedMNIST, rotated_mnist
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse
from fgp_gpytorch.models import GPVAE, SVGPVAE
from fgp_gpytorch.nets import FourierFeatures, PaperDecoder, PaperEncoder

CHANNELS = 16  # L of Table A.1
RECORDS = Path(__file__).parent.parent / "docs" / "results" / "table1"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a system is trained."""

    epochs: int = 1000
    learning_rate: float = 1e-3
    cosine: bool = False
    beta: float = 1.0
    kappa: float | None = None
    member_dropout: float = 0.0
    num_local: int = 8
    learn_lengthscale: bool = False


PLAIN = Recipe()  # optimal decoder variance, Adam 1e-3
TUNED = Recipe(learning_rate=1e-2, cosine=True, beta=0.4)
RECIPES: dict[str, dict[str, Recipe]] = {
    "VAE": {"published": PLAIN, "best": TUNED},
    "CVAE": {"published": PLAIN, "best": TUNED},
    "CVAE of the context": {"best": TUNED},
    "GP-VAE": {"published": PLAIN, "best": TUNED},
    "SVGP-VAE": {"published": PLAIN, "best": TUNED},
    "FGP-VAE": {
        "published": Recipe(kappa=0.020),
        "best": dataclasses.replace(TUNED, member_dropout=2 / 11, num_local=12, learn_lengthscale=True),
    },
}
PROTOCOLS = {"equal": 11, "ragged": "shuffled"}


def likelihood(recipe: Recipe) -> GaussianLikelihood:
    return GaussianLikelihood("optimal") if recipe.kappa is None else GaussianLikelihood("fixed", recipe.kappa)


def vae(recipe: Recipe, groups: int) -> nn.Module:
    return VAE(PaperEncoder(CHANNELS), PaperDecoder(CHANNELS), CHANNELS, likelihood(recipe))


def cvae(recipe: Recipe, groups: int) -> nn.Module:
    return conditional(FactorizedGPPrior([IndependentChannels(CHANNELS)]), recipe)


def cvae_of_context(recipe: Recipe, groups: int) -> nn.Module:
    return conditional(FactorizedGPPrior([GlobalChannels(CHANNELS)]), recipe)


def conditional(prior: FactorizedGPPrior, recipe: Recipe) -> CVAE:
    encoder, decoder = PaperEncoder(CHANNELS, num_features=2), PaperDecoder(CHANNELS, num_features=2)
    return CVAE(encoder, decoder, prior, FourierFeatures(), likelihood(recipe), recipe.member_dropout)


def gp_vae(recipe: Recipe, groups: int) -> nn.Module:
    return GPVAE(
        PaperEncoder(CHANNELS), PaperDecoder(CHANNELS), CHANNELS, num_groups=groups, likelihood=likelihood(recipe)
    )


def svgp_vae(recipe: Recipe, groups: int) -> nn.Module:
    return SVGPVAE(
        PaperEncoder(CHANNELS), PaperDecoder(CHANNELS), CHANNELS, num_groups=groups, likelihood=likelihood(recipe)
    )


def fgp_vae(recipe: Recipe, groups: int) -> nn.Module:
    kernel = gpytorch.kernels.PeriodicKernel(
        batch_shape=torch.Size([recipe.num_local] if recipe.learn_lengthscale else [])
    )
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 1.0
    kernel.raw_period_length.requires_grad_(False)
    kernel.raw_lengthscale.requires_grad_(recipe.learn_lengthscale)
    prior = FactorizedGPPrior([LocalChannels(recipe.num_local, kernel), GlobalChannels(CHANNELS - recipe.num_local)])
    return FGPVAE(PaperEncoder(CHANNELS), PaperDecoder(CHANNELS), prior, likelihood(recipe), recipe.member_dropout)


BUILD: dict[str, Callable[[Recipe, int], nn.Module]] = {
    "VAE": vae, "CVAE": cvae, "CVAE of the context": cvae_of_context, "GP-VAE": gp_vae,
    "SVGP-VAE": svgp_vae, "FGP-VAE": fgp_vae,
}  # fmt: skip


class Summarize(lightning.Callback):
    """Gives a `GPVAE` its exact linear form of the KL at the start of every epoch, as Casale et al. did."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Summarize."""
        model: Any = pl_module.model
        model.summary = model.summarize(self.data)


class Watch(lightning.Callback):
    """The test error every so many epochs, which the paper's best epoch is chosen by; its time is not counted."""

    def __init__(self, data: RotatedMNIST, every: int) -> None:
        self.data, self.every = data, every
        self.errors: list[tuple[int, float]] = []
        self.seconds = 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, with the clock stopped."""
        if (trainer.current_epoch + 1) % self.every == 0:
            started = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                model, test, _ = views_of(pl_module.model, self.data)
                self.errors.append((trainer.current_epoch + 1, held_out_mse(model, test)))
            self.seconds += time.perf_counter() - started


def views_of(model: Any, data: RotatedMNIST) -> tuple[Any, Any, Any | None]:
    """What generates the test's views, and the held-out views; None for the extrapolation that a system cannot do."""
    if isinstance(model, (GPVAE, SVGPVAE)):
        return model.given(data.train), align_held_out(data.test, data.train), None
    return model, data.test, data.extrapolation


def run(system: str, block: str, protocol: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """Train and test one system with one seed."""
    recipe = RECIPES[system][block]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    data = rotated_mnist(views=PROTOCOLS[protocol])
    torch.manual_seed(seed)
    model = BUILD[system](recipe, len(data.train))
    watch = Watch(data, every=10)
    callbacks: list[lightning.Callback] = [watch]
    if isinstance(model, (GPVAE, SVGPVAE)):
        model.initialize_objects(data.train)
    if isinstance(model, GPVAE):
        callbacks.append(Summarize(data.train))
    training = fit(
        model, data.train, objective=ELBO(recipe.beta) if recipe.kappa is None else GECO(recipe.kappa),
        epochs=recipe.epochs, batch_size=20, learning_rate=recipe.learning_rate,
        lr_schedule="cosine" if recipe.cosine else None, seed=seed, folder=None, progress=False, callbacks=callbacks,
        accelerator="cpu", devices=1,
    )  # fmt: skip
    if training.interrupted:
        raise KeyboardInterrupt
    torch.manual_seed(seed)
    generator, test, extrapolation = views_of(model, data)
    figures = {"test_mse": held_out_mse(generator, test), "test_mse_sample": held_out_mse(generator, test, sample=True)}
    if extrapolation is not None:
        figures["extrapolation_mse"] = held_out_mse(generator, extrapolation)
        figures["extrapolation_mse_sample"] = held_out_mse(generator, extrapolation, sample=True)
        calibration = held_out_calibration(model, test)
        figures |= {f"calibration_{name}": value for name, value in calibration._asdict().items()}
    return {
        "system": system, "block": block, "protocol": protocol, "seed": seed, "recipe": dataclasses.asdict(recipe),
        **figures,
        "best_epoch_test_mse": min((error for _, error in watch.errors), default=None),
        "training_mse": float(training.history["mse"].iloc[-1]),
        "seconds_per_epoch": training.seconds_per_epoch - watch.seconds / recipe.epochs,
        "curve": watch.errors,
        "peak_memory_gb": harness.peak_memory_gb(),
        "threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d"), "commit": harness.commit(),
        "versions": {name: version(name) for name in ("torch", "gpytorch", "lightning")},
    }  # fmt: skip


def all_runs(options: argparse.Namespace) -> list[tuple[str, str, str, int]]:
    return [
        (system, block, protocol, seed)
        for protocol in options.protocols
        for system, blocks in RECIPES.items()
        for block in blocks
        for seed in range(options.seeds)
        if system in options.only and block in options.blocks
    ]


def path_of(folder: Path, system: str, block: str, protocol: str, seed: int) -> Path:
    return folder / f"{protocol}_{block}_{system.lower().replace(' ', '_').replace('-', '_')}_{seed}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="systems")
    add("--blocks", nargs="+", choices=("published", "best"), default=["published", "best"])
    add(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        default=list(PROTOCOLS),
        help="equal: 11 of 15 views; ragged: 75 %%",
    )
    add("--seeds", type=int, default=5)
    add("--epochs", type=int, help="instead of the recipe's; the records then need another folder")
    add("--out", type=Path, default=RECORDS, help="folder of the records")
    add("--quick", action="store_true", help="two epochs and one seed of everything, into runs/table1_quick")
    add("--list", action="store_true", help="say what is there and what is missing")
    add("--one", nargs=4, metavar=("SYSTEM", "BLOCK", "PROTOCOL", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds, options.out = 2, 1, Path("runs/table1_quick")
    elif options.epochs is not None and options.out == RECORDS:
        parser.error("--epochs: the records of whole runs are in this folder; give --out")
    if options.one:
        system, block, protocol, seed = (*options.one[:3], int(options.one[3]))
        record = run(system, block, protocol, seed, options.epochs)
        path_of(options.out, system, block, protocol, seed).write_text(json.dumps(record) + "\n")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    for each in all_runs(options):
        path = path_of(options.out, *each)
        name = ", ".join(map(str, each))
        if options.list or path.exists():
            print(f"{name}: {'there' if path.exists() else 'missing'}", flush=True)
            continue
        words = [sys.executable, "-W", "ignore", __file__, "--one", *map(str, each), "--out", str(options.out)]
        words += [] if options.epochs is None else ["--epochs", str(options.epochs)]
        started = time.perf_counter()
        subprocess.run(words, check=True)
        record = json.loads(path.read_text())
        print(f"{name}: test MSE {record['test_mse']:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
