"""The models of the paper's evaluation: how each is built, trained, loaded and conditioned on the training data.

Systems differ in their `Recipe`. Networks (Table A.1), loader, optimizer and number of epochs are the same for all.
Other files of this package call the library's less common names through this file.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gpytorch
import lightning
import torch
from torch import Tensor

import fgp_gpytorch
from examples.rotated_mnist import PRESETS, Preset, build, objective_of
from fgp_gpytorch import (
    CVAE,
    ELBO,
    FGPVAE,
    GECO,
    GPVAE,
    SVGPVAE,
    VAE,
    CoregionalizedChannels,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    IndependentChannels,
    LocalChannels,
    fit,
)
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.feature_maps import PeriodicFeatures
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import (
    ConvDecoder,
    ConvEncoder,
    ConvFeatures,
    FourierFeatures,
    MLPFeatures,
    RepresentationNetwork,
)
from fgp_gpytorch.training import FitResult

CHANNELS = 16  # L of Table A.1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a system is trained. A system ignores the values that do not concern it."""

    epochs: int = 1000
    batch_size: int = 20
    learning_rate: float = 1e-3
    cosine: bool = False
    beta: float = 1.0  # weight of the KL in the ELBO
    kappa: float | None = None  # GECO's target, None for the ELBO with the optimal decoder variance
    member_dropout: float | tuple[float, float] = 0.0
    num_local: int = 8  # J
    learn_lengthscale: bool = False
    period: float = 2 * math.pi
    num_factors: int = 8  # m, length of a group vector, or R of the coregionalized channels
    num_inducing: int = 64  # M


def encoder(num_features: int = 0) -> ConvEncoder:
    """The encoder of Table A.1."""
    return ConvEncoder(CHANNELS, num_features=num_features)


def decoder(num_features: int = 0) -> ConvDecoder:
    """The decoder of Table A.1."""
    return ConvDecoder(CHANNELS, num_features=num_features)


def image_features(num_features: int) -> ConvFeatures:
    """The encoder of Table A.1 with other outputs."""
    return ConvFeatures(num_features)


def likelihood(recipe: Recipe) -> GaussianLikelihood:
    return GaussianLikelihood("optimal") if recipe.kappa is None else GaussianLikelihood("fixed", recipe.kappa)


def vae(recipe: Recipe, groups: int) -> VAE:
    return VAE(encoder(), decoder(), CHANNELS, likelihood(recipe))


def cvae(recipe: Recipe, groups: int) -> CVAE:
    return conditional(FactorizedGPPrior([IndependentChannels(CHANNELS)]), recipe)


def cvae_of_context(recipe: Recipe, groups: int) -> CVAE:
    return conditional(FactorizedGPPrior([GlobalChannels(CHANNELS)]), recipe)


def conditional(prior: FactorizedGPPrior, recipe: Recipe) -> CVAE:
    return CVAE(encoder(2), decoder(2), prior, FourierFeatures(), likelihood(recipe), recipe.member_dropout)


def gp_vae(recipe: Recipe, groups: int) -> GPVAE:
    return GPVAE(
        encoder(), decoder(), CHANNELS, num_groups=groups, num_factors=recipe.num_factors,
        likelihood=likelihood(recipe),
    )  # fmt: skip


def gp_vae_of_images(recipe: Recipe, groups: int) -> GPVAE:
    return GPVAE(
        encoder(), decoder(), CHANNELS, num_factors=recipe.num_factors,
        likelihood=likelihood(recipe), representation=representation(recipe),
    )  # fmt: skip


def representation(recipe: Recipe) -> RepresentationNetwork:
    """Group vectors from images: the mean of their convolutional features, then a small perceptron (Appendix C)."""
    return RepresentationNetwork(image_features(16), MLPFeatures([16], recipe.num_factors), "mean")


def svgp_vae(recipe: Recipe, groups: int) -> SVGPVAE:
    return SVGPVAE(
        encoder(), decoder(), CHANNELS, num_groups=groups, num_factors=recipe.num_factors,
        num_inducing=recipe.num_inducing, likelihood=likelihood(recipe),
    )  # fmt: skip


def svgp_vae_of_images(recipe: Recipe, groups: int) -> SVGPVAE:
    return SVGPVAE(
        encoder(), decoder(), CHANNELS, num_factors=recipe.num_factors,
        num_inducing=recipe.num_inducing, likelihood=likelihood(recipe), representation=representation(recipe),
    )  # fmt: skip


def fgp_vae(recipe: Recipe, groups: int) -> FGPVAE:
    prior = FactorizedGPPrior([local_channels(recipe), GlobalChannels(CHANNELS - recipe.num_local)])
    return FGPVAE(encoder(), decoder(), prior, likelihood(recipe), recipe.member_dropout)


def inducing_fgp_vae(recipe: Recipe, groups: int) -> FGPVAE:
    """The FGP-VAE with inducing points inside the groups: evenly spaced angles at the start, learned."""
    kernel = periodic(recipe, [recipe.num_local] if recipe.learn_lengthscale else [])
    points = recipe.period * torch.arange(recipe.num_inducing) / recipe.num_inducing
    local = LocalChannels(recipe.num_local, kernel, inference="inducing", inducing_points=points)
    prior = FactorizedGPPrior([local, GlobalChannels(CHANNELS - recipe.num_local)])
    return FGPVAE(encoder(), decoder(), prior, likelihood(recipe), recipe.member_dropout)


def fgp_vae_of_any_context(recipe: Recipe, groups: int) -> FGPVAE:
    """Each channel learns its mean over the angle and its variance."""
    assert recipe.period == 2 * math.pi
    changed = {name: getattr(recipe, name) for name in ("num_local", "member_dropout", "learn_lengthscale", "kappa")}
    return build(dataclasses.replace(PRESETS["best"], learn_prior=True, **changed))


def correlated_fgp_vae(recipe: Recipe, groups: int, learn_vectors: bool = True) -> CorrelatedFGPVAE:
    return CorrelatedFGPVAE(
        encoder(), decoder(), [local_channels(recipe)], CHANNELS - recipe.num_local,
        num_groups=groups, num_factors=recipe.num_factors, learn_vectors=learn_vectors, likelihood=likelihood(recipe),
        member_dropout=recipe.member_dropout,
    )  # fmt: skip


def correlated_fgp_vae_of_images(recipe: Recipe, groups: int) -> CorrelatedFGPVAE:
    return CorrelatedFGPVAE(
        encoder(), decoder(), [local_channels(recipe)], CHANNELS - recipe.num_local,
        num_factors=recipe.num_factors, likelihood=likelihood(recipe), member_dropout=recipe.member_dropout,
        representation=representation(recipe),
    )  # fmt: skip


def pca_correlated_fgp_vae(recipe: Recipe, groups: int) -> CorrelatedFGPVAE:
    return correlated_fgp_vae(recipe, groups, learn_vectors=False)


def coregionalized_fgp_vae(recipe: Recipe, groups: int) -> FGPVAE:
    """All channels share factors of their digit. Each has a mean over the angle."""
    root = PeriodicFeatures(periodic(recipe), recipe.period)
    mean = FourierMean(4, recipe.period, batch_shape=torch.Size([CHANNELS]))
    prior = FactorizedGPPrior([CoregionalizedChannels(CHANNELS, recipe.num_factors, root, mean)])
    return FGPVAE(encoder(), decoder(), prior, likelihood(recipe), recipe.member_dropout)


def local_channels(recipe: Recipe) -> LocalChannels:
    """The paper's kernel, with a lengthscale for each channel if it is learned."""
    return LocalChannels(recipe.num_local, periodic(recipe, [recipe.num_local] if recipe.learn_lengthscale else []))


def periodic(recipe: Recipe, batch_shape: Sequence[int] = ()) -> gpytorch.kernels.PeriodicKernel:
    """The paper's kernel: amplitude 1, r = 1 at the start."""
    kernel = gpytorch.kernels.PeriodicKernel(batch_shape=torch.Size(batch_shape))
    kernel.period_length, kernel.lengthscale = recipe.period, 1.0
    kernel.raw_period_length.requires_grad_(False)
    kernel.raw_lengthscale.requires_grad_(recipe.learn_lengthscale)
    return kernel


BUILD: dict[str, Callable[[Recipe, int], FGPVAE]] = {
    "VAE": vae,
    "CVAE": cvae,
    "CVAE of the context": cvae_of_context,
    "CVAE of the context, any context": cvae_of_context,
    "GP-VAE": gp_vae,
    "GP-VAE, representation network": gp_vae_of_images,
    "SVGP-VAE": svgp_vae,
    "SVGP-VAE, representation network": svgp_vae_of_images,
    "FGP-VAE": fgp_vae,
    "FGP-VAE, any context": fgp_vae_of_any_context,
    "FGP-VAE, inducing points": inducing_fgp_vae,
    "FGP-VAE, coregionalized": coregionalized_fgp_vae,
    "FGP-VAE, coregionalized, any context": coregionalized_fgp_vae,
    "FGP-VAE, correlated by PCA": pca_correlated_fgp_vae,
    "FGP-VAE, correlated, learned": correlated_fgp_vae,
    "FGP-VAE, correlated, representation network": correlated_fgp_vae_of_images,
}


class Summarize(lightning.Callback):
    """Computes the exact linear form of a `GPVAE`'s KL at the start of every epoch, as Casale et al. do."""

    def __init__(self, data: GroupedDataset) -> None:
        self.data = data

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Summarize."""
        model: Any = pl_module.model
        model.summary = model.summarize(self.data)


class Watch(lightning.Callback):
    """Measures the test error every few epochs. The paper takes the best of them. This time is not counted."""

    def __init__(self, train: GroupedDataset, test: Any, every: int) -> None:
        self.train, self.test, self.every = train, test, every
        self.errors: list[tuple[int, float]] = []
        self.seconds = 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, with the clock stopped."""
        if (trainer.current_epoch + 1) % self.every == 0:
            started = time.perf_counter()
            model: Any = pl_module.model
            with torch.random.fork_rng(devices=[]):
                asked = ask(model, self.train, self.test, None).test
                assert asked is not None
                self.errors.append((trainer.current_epoch + 1, held_out_mse(*asked)))
            self.seconds += time.perf_counter() - started


def load(path: Path) -> FGPVAE:
    """Return a saved system of any class."""
    kind = torch.load(path, map_location="cpu", weights_only=True)["class"]
    return getattr(fgp_gpytorch, kind).load(path)


class Asked(NamedTuple):
    """A generator and its held-out views, for seen groups, and for new groups if the system accepts them."""

    test: tuple[Any, Any] | None
    extrapolation: tuple[Any, Any] | None


def ask(model: FGPVAE, train: GroupedDataset, test: Any | None, extrapolation: Any | None) -> Asked:
    """Condition a model whose prior couples groups on all training members. Other models stay as they are.

    Args:
        model: A trained system.
        train: The training data.
        test: Held-out views of training groups, or None.
        extrapolation: Held-out views of other groups, or None.
    """
    if not couples_groups(model):
        return Asked(*(None if views is None else (model, views) for views in (test, extrapolation)))
    seen = unseen = None
    if test is not None:
        seen = (model.condition_on(train, context="seen"), test.align(train))
    if extrapolation is not None and model.representation is not None:
        unseen = (model.condition_on(train, context="new"), extrapolation)
    return Asked(seen, unseen)


def held_out(context: GroupedDataset, targets: GroupedDataset) -> HeldOut:
    """Pair each group's context with the members to predict."""
    return HeldOut.of(context, targets)


def decode(model: FGPVAE, z: Tensor, x: Tensor) -> Tensor:
    """Return the decoded mean of latents z at x."""
    return model.likelihood.mean(model.decode(z, x))


def couples_groups(model: FGPVAE) -> bool:
    """Whether the prior couples groups through a vector of each."""
    return model.prior.couples_groups


def train_system(
    system: str, recipe: Recipe, data: GroupedDataset, seed: int, callbacks: Sequence[lightning.Callback] = ()
) -> tuple[FGPVAE, FitResult]:
    """Build and train a system with one seed.

    Raises:
        KeyboardInterrupt: If ctrl-C stopped it.
    """
    torch.manual_seed(seed)
    model = BUILD[system](recipe, len(data))
    return model, train(model, recipe, data, seed, callbacks)


def train(
    model: FGPVAE, recipe: Recipe, data: GroupedDataset, seed: int, callbacks: Sequence[lightning.Callback] = ()
) -> FitResult:
    """Train a model as all systems are trained.

    Raises:
        KeyboardInterrupt: If ctrl-C stopped it.
    """
    callbacks = list(callbacks)
    if couples_groups(model) and model.representation is None:
        model.initialize_vectors(data)
    elif isinstance(model, SVGPVAE):
        model.initialize_inducing(data)
    if isinstance(model, GPVAE):
        callbacks.append(Summarize(data))
    result = fit(
        model, data, objective=ELBO(recipe.beta) if recipe.kappa is None else GECO(recipe.kappa),
        epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
        lr_schedule="cosine" if recipe.cosine else None, seed=seed, folder=None, progress=False, callbacks=callbacks,
        accelerator="cpu", devices=1,
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    if isinstance(model, GPVAE):
        model.summary = None
    return result


def train_preset(preset: Preset, data: GroupedDataset, seed: int) -> tuple[FGPVAE, FitResult]:
    """Build and train the example's model at a preset.

    Raises:
        KeyboardInterrupt: If ctrl-C stopped it.
    """
    torch.manual_seed(seed)
    model = build(preset)
    result = fit(
        model, data, objective=objective_of(preset), epochs=preset.epochs, batch_size=preset.batch_size,
        learning_rate=preset.learning_rate, lr_schedule=preset.lr_schedule, seed=seed, folder=None, progress=False,
        accelerator="cpu",
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    return model, result
