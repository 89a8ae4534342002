"""What holds for every posterior, whatever the data: Hypothesis looks for the exception."""

import gpytorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prior_cases import answers, assert_same, scale, with_lengthscale

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels

F64 = torch.float64
FINITE = {"allow_nan": False, "allow_infinity": False, "width": 64}


@st.composite
def problems(draw):
    """Ragged groups with arbitrary (also repeated) features, variances over eight decades, an arbitrary amplitude."""
    groups, members = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def tensor(strategy, *shape):
        size = int(torch.Size(shape).numel())
        return torch.tensor(draw(st.lists(strategy, min_size=size, max_size=size)), dtype=F64).reshape(shape)

    x = tensor(st.sampled_from([-2.0, 0.0, 0.3, 0.31, 1.0, 5.0]), groups, members, 1)
    mean = tensor(st.floats(-10, 10, **FINITE), groups, members, 2)
    variance = 10 ** tensor(st.floats(-4, 4, **FINITE), groups, members, 2)
    mask = tensor(st.booleans(), groups, members).bool()
    amplitude, spread = draw(st.sampled_from([0.1, 1.0, 20.0])), draw(st.sampled_from([0.3, 1.0, 8.0]))
    base = with_lengthscale(gpytorch.kernels.RBFKernel(), 0.9)
    prior = FactorizedGPPrior([LocalChannels(1, scale(base, amplitude)), GlobalChannels(1, variance=spread)])
    return prior, x, mean, variance, mask, torch.tensor([amplitude, spread], dtype=F64)


relaxed = settings(deadline=None, max_examples=60, derandomize=True)


@relaxed
@given(problems())
def test_kl_is_not_negative_and_variances_lie_between_zero_and_the_prior_s(problem):
    prior, x, mean, variance, mask, top = problem
    with torch.no_grad():
        got = answers(prior.posterior(x, mean, variance, mask), x + 0.1)
    assert all(value.isfinite().all() for value in got.values())
    assert (got["kl"] >= 0).all()
    assert (got["kl"][~mask.any(-1)] == 0).all()
    for name in ("variance", "new variance"):
        assert (got[name] > 0).all()
        assert (got[name] <= top * (1 + 1e-12)).all()
    # at an observed member the pseudo-observation alone already bounds the variance
    assert (got["variance"] <= torch.where(mask.unsqueeze(-1), variance, top) * (1 + 1e-8)).all()


@relaxed
@given(problems())
def test_another_observation_never_widens_the_posterior(problem):
    prior, x, mean, variance, mask, top = problem
    fewer = mask.clone()
    fewer[:, -1] = False
    with torch.no_grad():
        more = answers(prior.posterior(x, mean, variance, mask), x + 0.1)
        less = answers(prior.posterior(x, mean, variance, fewer), x + 0.1)
    for name in ("variance", "new variance"):
        assert (more[name] <= less[name] + 1e-10 * top).all()


@relaxed
@given(problems(), st.floats(-5, 5, **FINITE))
def test_posterior_means_are_linear_in_the_pseudo_means(problem, factor):
    prior, x, mean, variance, mask, _ = problem
    with torch.no_grad():
        one = answers(prior.posterior(x, mean, variance, mask), x + 0.1)
        scaled = answers(prior.posterior(x, factor * mean, variance, mask), x + 0.1)
    for name in ("mean", "new mean"):
        torch.testing.assert_close(scaled[name], factor * one[name], rtol=1e-6, atol=1e-7)
    for name in ("variance", "new variance"):
        torch.testing.assert_close(scaled[name], one[name], rtol=0, atol=0)


@relaxed
@given(problems())
def test_masking_is_deleting(problem):
    prior, x, mean, variance, mask, _ = problem
    with torch.no_grad():
        full = answers(prior.posterior(x, mean, variance, mask), x + 0.1)
        for g in range(len(x)):
            seen = mask[g]
            if not seen.any():
                continue
            one = slice(g, g + 1)
            deleted = prior.posterior(x[one, seen], mean[one, seen], variance[one, seen])
            alone = answers(deleted, x[one] + 0.1)
            kept = {name: value[one] for name, value in full.items()}
            kept["mean"], kept["variance"] = kept["mean"][:, seen], kept["variance"][:, seen]
            # B's condition number reaches Q * 20 * 1e4, and GPyTorch centres x differently
            assert_same(kept, alone, rtol=1e-6, atol=1e-7)


@relaxed
@given(problems())
def test_evidence_obeys_the_chain_rule(problem):
    """log Z(all) = log Z(all but the last) + log N(mu_last | predicted mean, predicted variance + sigma^2)."""
    prior, x, mean, variance, mask, _ = problem
    fewer = mask.clone()
    fewer[:, -1] = False
    with torch.no_grad():
        whole = prior.posterior(x, mean, variance, mask).log_evidence
        part = prior.posterior(x, mean, variance, fewer)
        predicted = part.predict(x[:, -1:])
    spread = (predicted.variance + variance[:, -1:]).sqrt()
    step = torch.distributions.Normal(predicted.mean, spread).log_prob(mean[:, -1:]).sum((-2, -1))
    wanted = part.log_evidence + torch.where(mask[:, -1], step, 0.0)
    torch.testing.assert_close(whole, wanted, rtol=1e-7, atol=1e-6)
