"""The conditional VAE of the context: networks that take x, and codes that a group's context decides.

`CVAE of the context` has one code for each group. The other form has local channels with a Matern kernel beside it. No
setting is chosen by data: all tables have the same ones.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from gpytorch.kernels import MaternKernel

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question
from benchmarks.systems import decode
from fgp_gpytorch import (
    CVAE,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

STEPS, BATCH, RATE, NOISE, DRAWS = 600, 20, 5e-3, 0.1, 64


def fit_cvae(question: Question, seed: int, local: bool, steps: int = STEPS) -> Callable[[], Belief]:
    """Train a conditional VAE; return a function that predicts the target."""
    model = trained(question, seed, local, steps)

    def predict() -> Belief:
        return cvae_belief(question, model, seed)

    return predict


def trained(question: Question, seed: int, local: bool, steps: int = STEPS) -> CVAE:
    """Train on standardised rows, for contexts of any size."""
    table = question.table
    torch.manual_seed(seed)
    channels = min(8, 2 * len(table.y))
    blocks: list = [GlobalChannels(channels)]
    if local:
        blocks.append(LocalChannels(channels, MaternKernel(nu=1.5, batch_shape=torch.Size([channels]))))
    prior = FactorizedGPPrior(blocks)
    encoder = MLPEncoder([len(table.y)], prior.num_channels, num_features=len(table.x))
    decoder = MLPDecoder(prior.num_channels, [len(table.y)], num_features=len(table.x))
    noise = DiagonalGaussianLikelihood([len(table.y)], variance=NOISE)
    model = CVAE(encoder, decoder, prior, likelihood=noise, member_dropout=(0.0, 1.0))
    data = grouped(question, question.train)
    fit(
        model, data, epochs=max(1, round(steps * BATCH / len(data))), batch_size=BATCH, learning_rate=RATE,
        lr_schedule="cosine", seed=seed, folder=None, progress=False, accelerator="cpu", devices=1,
    )  # fmt: skip
    return model


def grouped(question: Question, rows: pd.DataFrame) -> GroupedDataset:
    """Return rows in training standard deviations."""
    table = question.table
    rows = rows.copy()
    rows[table.y] = (rows[table.y] - question.mean) / question.scale
    rows[table.x] = (rows[table.x] - question.train[table.x].mean()) / question.train[table.x].std()
    return GroupedDataset.from_dataframe(rows, y=table.y, x=table.x, group=table.group)


def cvae_belief(question: Question, model: CVAE, seed: int) -> Belief:
    """Predict the target by draws of the codes given the context. The mean is that of the draws."""
    table = question.table
    context = grouped(question, question.context)
    labels = list(context.labels)
    position = (
        question.target[table.group].map({label: n for n, label in enumerate(labels)}).to_numpy(dtype=int, copy=True)
    )
    place = question.target.groupby(table.group).cumcount().to_numpy(copy=True)
    x = (question.target[table.x] - question.train[table.x].mean()) / question.train[table.x].std()
    x_new = torch.zeros(len(labels), int(place.max()) + 1, len(table.x))
    x_new[position, place] = torch.tensor(x.to_numpy(copy=True), dtype=torch.float32)
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        z = model.predict(x_new, context[:]).rsample((DRAWS,))
        draws = decode(model, z, x_new)[:, position, place].double().numpy()
        variance = model.likelihood.variance.double().numpy()
    scale, center = question.scale.to_numpy(), question.mean.to_numpy()
    draws = center + scale * draws
    return Belief(draws.mean(0), draws=draws, draw_sd=scale * np.sqrt(variance))


def codes(question: Question, model: CVAE, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the global channels of each group of rows: the posterior mean of its code."""
    data = grouped(question, rows)
    model.eval()
    with torch.no_grad():
        mean = model.infer(data[:]).mean[:, 0, : model.prior.blocks[0].num_channels]
    return pd.DataFrame(mean.numpy(), index=list(data.labels))
