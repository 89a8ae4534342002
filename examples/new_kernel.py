"""Another kernel for another data set: patients by visit.

Every patient has 4 to 15 visits at irregular days. A visit has five laboratory values, and a tenth of them are missing.
The kernel is a Matern with one lengthscale per channel. The encoder takes a mask of the missing values, and the
likelihood has one noise variance per value. The model forecasts the last visit of new patients from their earlier ones.
"""

import argparse

import gpytorch
import numpy as np
import pandas as pd
import torch

from fgp_gpytorch import (
    FGPVAE,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedDataset,
    HeldOut,
    LocalChannels,
    fit,
)
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

LABS = ["sodium", "potassium", "creatinine", "glucose", "albumin"]


def visits(num_patients: int, seed: int) -> pd.DataFrame:
    """Simulate records from two hidden courses that vary over months, and one constant of the patient."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(3, len(LABS)))
    tables = []
    for patient in range(num_patients):
        count = generator.integers(4, 16)
        day = np.sort(generator.uniform(0, 360, count))
        covariance = np.exp(-np.abs(day[:, None] - day) / 120) + 1e-9 * np.eye(count)
        course = np.linalg.cholesky(covariance) @ generator.normal(size=(count, 2))
        hidden = np.concatenate([course, np.full((count, 1), generator.normal())], axis=1)
        values = np.tanh(hidden @ mixing) + 0.1 * generator.normal(size=(count, len(LABS)))
        values[generator.random(values.shape) < 0.1] = np.nan
        tables.append(pd.DataFrame(values, columns=LABS).assign(patient=f"P{patient:04}", month=day / 30))
    return pd.concat(tables, ignore_index=True)


def main(epochs: int) -> float:
    torch.manual_seed(0)
    train = GroupedDataset.from_dataframe(visits(300, seed=1), y=LABS, x="month", group="patient")

    local = 4
    kernel = gpytorch.kernels.MaternKernel(
        nu=1.5, batch_shape=torch.Size([local]), lengthscale_prior=gpytorch.priors.LogNormalPrior(1.0, 1.0)
    )
    prior = FactorizedGPPrior([LocalChannels(local, kernel), GlobalChannels(2)])
    encoder, decoder = MLPEncoder([len(LABS)], 6, takes_observed=True), MLPDecoder(6, [len(LABS)])
    model = FGPVAE(encoder, decoder, prior, DiagonalGaussianLikelihood([len(LABS)]), member_dropout=0.2)
    fit(model, train, epochs=epochs, learning_rate=5e-3, lr_schedule="cosine", seed=0, folder=None, progress=False)

    # forecast the last visit of new patients from all visits before it
    new = GroupedDataset.from_dataframe(visits(100, seed=2), y=LABS, x="month", group="patient")
    held_out = HeldOut.last(new)
    error = held_out_mse(model, held_out)
    spread = held_out.y_new[held_out.y_new_mask].var().item()
    lengthscales = ", ".join(f"{value:.1f}" for value in kernel.lengthscale.flatten().tolist())
    print(f"last visits of new patients: mean squared error {error:.3f}, variance of the values {spread:.3f}")
    print(f"learned lengthscales of the {local} local channels, months: {lengthscales}")
    return error / spread


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    main(parser.parse_args().epochs)
