"""The statistician's model of one column: a line for everybody, and each group's deviation from it.

    y_gi = beta' z_i + b_g' z_i + noise,   z = (1, x),   b_g ~ N(0, D)         Laird and Ware 1982

`statsmodels` fits beta, D and the noise by restricted maximum likelihood. A new group's b has the Gaussian posterior
given its context.
"""

import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.league.scores import Belief
from benchmarks.league.tasks import Question

Parameters = tuple[np.ndarray, np.ndarray, float]  # beta (2,), D (2, 2), noise variance


def fit_mixed_model(question: Question, seed: int) -> Callable[[], Belief]:
    """Fit a mixed model to each column; return a function that predicts the target."""
    parameters = [fitted(question, name) for name in question.table.y]

    def predict() -> Belief:
        columns = [predicted(question, name, known) for name, known in zip(question.table.y, parameters, strict=True)]
        mean, sd = np.stack(columns, axis=-1)
        return Belief(mean, sd)

    return predict


def design_matrix(question: Question, x: np.ndarray) -> np.ndarray:
    """Return rows z = (1, standardised x)."""
    name = question.table.x[0]
    return np.stack([np.ones(len(x)), (x - question.train[name].mean()) / question.train[name].std()], axis=-1)


def fitted(question: Question, name: str) -> Parameters:
    """Return beta, D and the variance of the noise of one column, in training standard deviations."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    rows = question.train.dropna(subset=name)
    z = design_matrix(question, rows[question.table.x[0]].to_numpy())
    y = ((rows[name] - question.mean[name]) / question.scale[name]).to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a D on the boundary is a result, not a fault
        result = MixedLM(y, z, groups=rows[question.table.group].to_numpy(), exog_re=z).fit(method=["lbfgs", "powell"])
    return np.asarray(result.fe_params), np.asarray(result.cov_re), float(result.scale)


def predicted(question: Question, name: str, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of one column at the rows of the target, in the table's units."""
    beta, spread, noise = parameters
    center, scale, table = question.mean[name], question.scale[name], question.table
    z_new = design_matrix(question, question.target[table.x[0]].to_numpy())
    mean, variance = z_new @ beta, np.einsum("ni,ij,nj->n", z_new, spread, z_new) + noise
    known = dict(iter(question.context.dropna(subset=name).groupby(table.group)))
    for label, positions in question.target.groupby(table.group).indices.items():
        if label in known:
            z = design_matrix(question, known[label][table.x[0]].to_numpy())
            y = (known[label][name].to_numpy() - center) / scale
            gain = np.linalg.solve(z @ spread @ z.T + noise * np.eye(len(z)), z @ spread).T  # D Z' V^-1
            own = z_new[positions]
            mean[positions] += own @ gain @ (y - z @ beta)
            variance[positions] -= np.einsum("ni,ij,nj->n", own, gain @ z @ spread, own)
    return center + scale * mean, scale * np.sqrt(variance)
