"""Data drawn from the model itself: intervals must cover as often as they say.

Truths are drawn by NumPy from the dense covariance, not by the library. One member of each of 600 groups is counted, so
counts are binomial; the tolerance is 4 standard errors, sqrt(c (1 - c) / 600) each.
"""

import math

import numpy as np
import pytest
import torch
from prior_cases import CASES

GROUPS, MEMBERS = 600, 4
QUANTILE = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722}


@pytest.fixture(scope="module", params=["paper", "means", "many_blocks"])
def drawn(request):
    case = CASES[request.param]()
    rng = np.random.default_rng(11)
    x = 3 * rng.random((GROUPS, MEMBERS + 1, case.features))
    truth = np.empty((GROUPS, MEMBERS + 1, case.channels))
    for g in range(GROUPS):
        rows = case.dense.rows(x[g : g + 1])
        values, vectors = np.linalg.eigh(case.dense.covariance(rows, rows))
        z = vectors @ (np.sqrt(values.clip(0)) * rng.standard_normal(len(rows)))
        truth[g] = (case.dense.prior_mean(rows) + z).reshape(MEMBERS + 1, case.channels)
    variance = 0.05 * 40 ** rng.random((GROUPS, MEMBERS, case.channels))
    mean = truth[:, :MEMBERS] + np.sqrt(variance) * rng.standard_normal(variance.shape)
    mask = np.arange(MEMBERS) < rng.integers(1, MEMBERS + 1, (GROUPS, 1))
    x, truth, mean, variance, mask = (torch.from_numpy(t) for t in (x, truth, mean, variance, mask))
    with torch.no_grad():
        posterior = case.prior.posterior(x[:, :MEMBERS], mean, variance, mask)
        predicted = posterior.predict(x[:, MEMBERS:])
        samples = posterior.rsample_paths(x[:, MEMBERS:], (99,))
    return {
        "observed member": (truth[:, 0], posterior.mean[:, 0], posterior.variance[:, 0], samples.members[:, :, 0]),
        "last, often masked member": (
            truth[:, 3],
            posterior.mean[:, 3],
            posterior.variance[:, 3],
            samples.members[:, :, 3],
        ),
        "new member": (truth[:, 4], predicted.mean[:, 0], predicted.variance[:, 0], samples.new[:, :, 0]),
    }


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_posterior_intervals_cover_as_often_as_they_say(drawn, coverage):
    tolerance = 4 * math.sqrt(coverage * (1 - coverage) / GROUPS)
    for place, (truth, mean, variance, _) in drawn.items():
        inside = ((truth - mean).abs() <= QUANTILE[coverage] * variance.sqrt()).double().mean(0)
        assert ((inside - coverage).abs() <= tolerance).all(), (place, inside.tolist())


def test_ranks_of_the_truth_among_joint_samples_are_uniform(drawn):
    """Simulation-based calibration: with 99 samples ranks are uniform: mean 49.5, variance (100^2 - 1) / 12."""
    for place, (truth, _, _, samples) in drawn.items():
        rank = (samples < truth).double().sum(0)
        error = 4 * math.sqrt((100**2 - 1) / 12 / GROUPS)
        assert ((rank.mean(0) - 49.5).abs() <= error).all(), place
        # the share of ranks in the outer fifth, 20 of 100
        outer = ((rank < 10) | (rank >= 90)).double().mean(0)
        assert ((outer - 0.2).abs() <= 4 * math.sqrt(0.16 / GROUPS)).all(), place
