"""The study of coverage: its data, its best mean-field q against a dense covariance, and what it finds."""

import math

import pytest
import torch

from benchmarks.records import Plan
from benchmarks.studies import coverage
from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior
from fgp_gpytorch.coupled import GroupInputs, ProductPrior, unit_length

RARE = 4.5  # standard errors: all tests of this file together err less than once in a thousand seeds


@pytest.mark.parametrize("prior", coverage.PRIORS)
def test_intervals_of_the_true_prior_cover_as_often_as_they_say(prior):
    make, runs = coverage.PRIORS[prior][0], []
    for seed in range(30):
        torch.manual_seed(seed)
        truth = make(None, torch.randn(20, 2, dtype=torch.float64))
        runs.append(list(coverage.coverage(truth, coverage.draw(truth, 20)).values()))
    runs = torch.tensor(runs)
    error = RARE * runs.std(0) / math.sqrt(len(runs))
    # inducing points and a mean-field q approximate: they may lose a little
    slack = 0.03 if prior in ("InducingPrior", "ProductPrior") else 0.0
    assert ((runs.mean(0) - torch.tensor([0.5, 0.9])).abs() <= error + slack).all(), runs.mean(0)


def test_coregionalized_loadings_learned_from_60_groups_cover_as_the_warning_says():
    make, found = coverage.coregionalized(4, 4, 4), []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(coverage.one_replicate(make, coverage.LOADINGS_AND_KERNEL, 60, 80)["learned"]["90"])
    block = make(None, torch.zeros(0, 2)).prior.blocks[0]
    assert isinstance(block, CoregionalizedChannels)
    assert sum(found) / 3 == pytest.approx(block.expected_coverage(60), abs=0.08)
    with pytest.warns(UserWarning, match="72 %"):
        FactorizedGPPrior([block]).warn_of_few_groups(60)


def test_best_mean_field_is_the_stationary_point_of_the_elbo():
    torch.manual_seed(0)
    prior = ProductPrior(2, noise=0.2)
    x, variance = 6 * torch.rand(3, 4, 1).double(), 0.1 + torch.rand(3, 4, 2).double()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    inputs = GroupInputs(unit_length(torch.randn(3, 2).double()), x, torch.randn(3, 4, 2).double(), variance, mask)
    found = coverage.best_mean_field(prior, inputs)
    root = prior.root(inputs.vectors, x)[mask]
    k = root @ root.mT + prior.noise * torch.eye(len(root))
    for channel in range(2):
        y, s = inputs.mean[mask][:, channel], variance[mask][:, channel]
        mean = k @ torch.linalg.solve(k + torch.diag(s), y)
        torch.testing.assert_close(found.mean[mask][:, channel], mean)
        torch.testing.assert_close(found.variance[mask][:, channel], 1 / (1 / s + k.inverse().diagonal()))


def test_objective_of_an_exact_posterior_is_the_log_evidence():
    torch.manual_seed(0)
    model = coverage.PRIORS["LocalChannels, periodic"][0]("kernel", torch.zeros(3, 2))
    data = coverage.draw(model, 5)
    evidence = model.posterior(data).log_evidence.sum()
    variance = data.variance[:, : coverage.CONTEXT][data.mask[:, : coverage.CONTEXT]]
    # the objective leaves the constants of the noise out
    torch.testing.assert_close(model.objective(data) - 0.5 * (2 * math.pi * variance).log().sum(), evidence)


def test_quick_form_has_a_record_of_every_prior():
    for key in coverage.keys(Plan(quick=True)):
        if key["learned"] in (coverage.NOTHING, coverage.KERNEL, coverage.LOADINGS):
            settings, result = coverage.run(key, Plan(quick=True))
            assert len(result["fixed"]["90"]) == settings["replicates"] == 2
            assert ("learned" in result) == (key["learned"] != coverage.NOTHING)
