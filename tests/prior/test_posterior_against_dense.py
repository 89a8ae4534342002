"""The factorized posterior against one dense Gaussian over every latent number of every group and channel.

Tolerances: float64 loses at most cond(K_oo + V) * eps, about 1e3 * 2e-16 here; 1e-9 leaves room for
the oracle's own loss.
"""

import numpy as np
import pytest
import torch
from prior_cases import CASES, Data, answers, data_for

import oracles

RTOL = 1e-9


def _close(got: torch.Tensor, wanted, rtol=RTOL, atol=1e-10) -> None:
    np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=rtol, atol=atol)


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]()


def _dense(case, data: Data, groups=slice(None)):
    return case.dense.condition(*(t[groups] for t in data.observations), data.x_new[groups])


def test_marginals_at_the_members_equal_the_dense_posterior(case):
    data = data_for(case)
    dense = _dense(case, data)
    posterior = case.prior.posterior(*data.observations)
    assert posterior.mean.shape == posterior.variance.shape == data.mean.shape
    _close(posterior.mean, dense.mean)
    _close(posterior.variance, dense.variance)


def test_predictions_equal_the_dense_posterior(case):
    data = data_for(case)
    dense = _dense(case, data)
    predicted = case.prior.posterior(*data.observations).predict(data.x_new)
    assert predicted.mean.shape == predicted.variance.shape == (*data.x_new.shape[:-1], case.channels)
    _close(predicted.mean, dense.new_mean)
    _close(predicted.variance, dense.new_variance)


def test_evidence_and_kl_of_every_group_equal_the_dense_ones(case):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    assert posterior.kl.shape == posterior.log_evidence.shape == (3,)
    for g in range(3):
        alone = _dense(case, data, slice(g, g + 1))
        _close(posterior.log_evidence[g], alone.log_evidence)
        _close(posterior.kl[g], alone.kl, rtol=1e-8)  # the oracle's E_q[log q~] - log Z cancels


def test_groups_add_up_to_the_dense_gaussian_of_all_groups(case):
    data = data_for(case)
    dense = _dense(case, data)
    posterior = case.prior.posterior(*data.observations)
    _close(posterior.log_evidence.sum(), dense.log_evidence)
    _close(posterior.kl.sum(), dense.kl, rtol=1e-8)


def test_kl_equals_the_textbook_divergence_of_dense_gaussians():
    case = CASES["paper"]()
    data = data_for(case, ragged=False)
    local = slice(0, 2)  # a global channel's covariance over members is singular: the textbook formula has no value
    dense = oracles.DenseGaussian(case.dense.kernels[local])
    y, v = data.mean[..., local], data.variance[..., local]
    rows = dense.rows(data.x)
    answer = dense.condition(data.x, y, v)
    prior_cov = dense.covariance(rows, rows)
    wanted = oracles.gaussian_kl(answer.mean.reshape(-1), answer.covariance, np.zeros(len(rows)), prior_cov)
    posterior = case.prior.posterior(data.x, data.mean, data.variance)
    _close(posterior.kl_blocks[0].sum(), wanted, rtol=1e-7)


def test_log_z_minus_the_expected_pseudo_likelihood_is_minus_the_kl(case):
    """The last line of Appendix B: ELBO = E_q[log p(y | z)] + { log Z - E_q[log q~] }, so the brace is -KL(q || p)."""
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    # E_q[log N(z | mu, s^2)] = log N(m | mu, s^2) - v / (2 s^2)
    log_density = torch.distributions.Normal(data.mean, data.variance.sqrt()).log_prob(posterior.mean)
    expected = (log_density - posterior.variance / (2 * data.variance)) * data.mask.unsqueeze(-1)
    _close(posterior.kl, (expected.sum((-2, -1)) - posterior.log_evidence).detach(), rtol=1e-8)


def test_global_channels_follow_appendix_b_as_printed():
    case = CASES["per_channel"]()
    prior = type(case.prior)([type(case.prior.blocks[1])(2)])  # variance 1, as in the paper
    data = data_for(case, groups=3)
    mean, variance = data.mean[..., :2], data.variance[..., :2]
    posterior = prior.posterior(data.x, mean, variance, data.mask)
    for g in range(3):
        seen = data.mask[g]
        evidence = 0.0
        for channel in range(2):
            mu, s2 = mean[g, seen, channel].tolist(), variance[g, seen, channel].tolist()
            mu_bar, var_bar = oracles.paper_global_posterior(mu, s2)
            _close(posterior.mean[g, :, channel], mu_bar)
            _close(posterior.variance[g, :, channel], var_bar)
            evidence += oracles.paper_global_log_evidence(mu, s2)
        _close(posterior.log_evidence[g], evidence)


def test_kl_channels_and_kl_blocks_sum_to_kl(case):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    assert posterior.kl_channels.shape == (3, case.channels)
    _close(posterior.kl_channels.sum(-1), posterior.kl.detach())
    _close(torch.stack(posterior.kl_blocks).sum(0), posterior.kl.detach())
    assert (posterior.kl_channels >= 0).all()


def test_every_channel_answers_for_itself(case):
    """KL of channel l by the dense Gaussian of channel l alone."""
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    coupled = {channel for pair in case.dense.couplings for channel in pair}
    for channel in set(range(case.channels)) - coupled:
        alone = oracles.DenseGaussian([case.dense.kernels[channel]], [case.dense.means[channel]])
        one = slice(channel, channel + 1)
        wanted = alone.condition(data.x, data.mean[..., one], data.variance[..., one], data.mask)
        _close(posterior.kl_channels[:, channel].sum(), wanted.kl, rtol=1e-8)


def test_one_group_is_an_ordinary_gp():
    case = CASES["ard"]()
    data = data_for(case, groups=1, members=6, ragged=False)
    posterior = case.prior.posterior(data.x, data.mean, data.variance)
    # the ordinary GP: torch.distributions for the evidence, one linear solve for the mean; channel 0, no groups
    gram = case.prior.blocks[0].kernel(data.x[0]).to_dense().detach()
    noise = torch.diag(data.variance[0, :, 0])
    wanted = gram @ torch.linalg.solve(gram + noise, data.mean[0, :, 0])
    _close(posterior.mean[0, :, 0], wanted)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(6).double(), gram + noise)
    evidence = posterior.blocks[0].log_evidence()[0, 0]
    _close(evidence, marginal.log_prob(data.mean[0, :, 0]))


@pytest.mark.parametrize("case_name", ["paper", "means"])
def test_group_without_observed_members_has_its_prior_as_posterior(case_name):
    case = CASES[case_name]()
    data = data_for(case)
    data.mask[1] = False
    posterior = case.prior.posterior(*data.observations)
    predicted = posterior.predict(data.x_new)
    prior = case.prior(data.x)
    _close(posterior.mean[1], prior.mean[1].detach(), rtol=1e-12)
    _close(posterior.variance[1], prior.variance[1].detach(), rtol=1e-12)
    _close(predicted.mean[1], case.prior(data.x_new).mean[1].detach(), rtol=1e-12)
    _close(predicted.variance[1], case.prior(data.x_new).variance[1].detach(), rtol=1e-12)
    assert posterior.kl[1] == 0
    assert posterior.log_evidence[1] == 0
    assert (posterior.kl[[0, 2]] > 0).all()


def test_single_member_groups(case):
    data = data_for(case, groups=4, members=1, ragged=False)
    dense = _dense(case, data)
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    _close(got["mean"], dense.mean)
    _close(got["variance"], dense.variance)
    _close(got["new mean"], dense.new_mean)
    _close(got["kl"].sum(), dense.kl)


def test_prediction_at_the_members_equals_the_posterior_there(case):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    predicted = posterior.predict(data.x)
    _close(predicted.mean, posterior.mean.detach())
    _close(predicted.variance, posterior.variance.detach(), rtol=1e-8)


def test_repeated_features_within_a_group_equal_the_dense_posterior(case):
    data = data_for(case, ragged=False)
    data.x[:, 1] = data.x[:, 0]
    data.x_new[:, 0] = data.x[:, 0]
    dense = _dense(case, data)
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    _close(got["mean"], dense.mean)
    _close(got["variance"], dense.variance)
    _close(got["new variance"], dense.new_variance)
    _close(got["kl"].sum(), dense.kl, rtol=1e-8)


def test_float32_answers_are_within_single_precision():
    """Loss is at most cond(B) * eps32: variances >= 0.02, amplitudes <= 4, Q = 4 give 800 * 1.2e-7 = 1e-4."""
    for name in CASES:
        case = CASES[name]()
        data = data_for(case)
        wanted = answers(case.prior.posterior(*data.observations), data.x_new)
        single = type(case.prior)(list(case.prior.blocks), dtype=torch.float32)
        floats = Data(*(t.float() if t.is_floating_point() else t for t in vars(data).values()))
        got = answers(single.posterior(*floats.observations), floats.x_new)
        for key, value in got.items():
            assert value.dtype == torch.float32, (name, key)
            torch.testing.assert_close(value.double(), wanted[key], rtol=3e-4, atol=1e-4, msg=f"{name}: {key}")


def test_float32_networks_get_float64_algebra_by_default():
    case = CASES["paper"]()
    data = data_for(case)
    floats = Data(*(t.float() if t.is_floating_point() else t for t in vars(data).values()))
    floats.mean.requires_grad_()
    posterior = case.prior.posterior(*floats.observations)
    assert posterior.mean.dtype == posterior.kl.dtype == torch.float64
    posterior.kl.sum().backward()
    assert floats.mean.grad.dtype == torch.float32
    dense = case.dense.condition(floats.x, floats.mean.detach(), floats.variance, floats.mask)
    _close(posterior.kl.sum(), dense.kl, rtol=1e-8)
