"""Likelihoods of one's own: what was not observed plays no part, whatever values they can take."""

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from factories import SIZES, make_data, make_model
from fgp_gpytorch import BernoulliLikelihood, DiagonalGaussianLikelihood, GroupedDataset, HeldOut, fit
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood, observed_pair
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse
from fgp_gpytorch.nets import MLPDecoder


class Own(Likelihood):
    """A distribution of each element from the decoder's output, with a learned number for each element."""

    def __init__(self, make, validate):
        super().__init__()
        self.make, self.validate = make, validate
        self.log_scale = nn.Parameter(torch.tensor([-0.5, 0.0, 0.3]))

    def distribution(self, output, y=None, observed=None):
        return self.make(output, self.log_scale.exp(), self.validate)

    def mean(self, output):
        distribution = self.distribution(output)
        if isinstance(distribution, dist.TransformedDistribution) and self.make is shifted:
            return 5 + distribution.base_dist.mean
        if isinstance(distribution, dist.Categorical):
            return distribution.probs[..., 1] + 2 * distribution.probs[..., 2]
        return distribution.mean


def log_normal(output, scale, validate):
    return dist.LogNormal(output, scale, validate_args=validate)


def gamma(output, scale, validate):
    return dist.Gamma(scale, output.exp(), validate_args=validate)


def beta(output, scale, validate):
    return dist.Beta(scale, output.exp(), validate_args=validate)


def poisson(output, scale, validate):
    return dist.Poisson(scale * output.exp(), validate_args=validate)


def negative_binomial(output, scale, validate):
    return dist.NegativeBinomial(scale, logits=output, validate_args=validate)


def categorical(output, scale, validate):
    logits = torch.stack([torch.zeros_like(output), output, scale * output], -1)
    return dist.Categorical(logits=logits, validate_args=validate)


def uniform(output, scale, validate):
    """A support that depends on the output: what another member takes need not do here."""
    return dist.Uniform(-50 * scale * output.square() - 20, 20 + output.exp(), validate_args=validate)


def shifted(output, scale, validate):
    """A log-normal above 5. PyTorch reports all real numbers as its support."""
    above = [dist.transforms.AffineTransform(5.0, 1.0)]
    return dist.TransformedDistribution(dist.LogNormal(output, scale), above, validate_args=validate)


def values(make, count):
    """Observations that the distribution can take, none of them 0 unless they are counts."""
    z = torch.randn(count, 3)
    kinds = {shifted: 5 + z.exp(), beta: z.sigmoid(), poisson: z.exp().round(), negative_binomial: z.exp().round() + 1}
    return {**kinds, categorical: z.exp().round().clamp_max(2), uniform: z}.get(make, z.exp())


KINDS = [log_normal, gamma, beta, poisson, negative_binomial, categorical, uniform, shifted]


def make_case(make, validate, gaps=True, seed=3):
    torch.manual_seed(seed)
    count = sum(SIZES)
    y, group = values(make, count), torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    y_mask = None
    if gaps:
        y_mask = torch.rand(count, 3) > 0.3
        y_mask[group == 2] = False  # of one group nothing was observed
    data = GroupedDataset(y, 3 * torch.rand(count), group, y_mask)
    return make_model(Own(make, validate)), data


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_density_and_gradient_equal_a_loop_over_what_was_observed(make, validate, gaps):
    model, data = make_case(make, validate, gaps)
    likelihood, batch = model.likelihood, data[:]
    output = torch.randn(2, *batch.y.shape, requires_grad=True)
    score = likelihood.score(output, batch.y, batch.observed)
    log_prob = likelihood.log_prob(output, batch.y, batch.observed)
    expected, squares = torch.zeros(2, *batch.mask.shape), torch.zeros(2, len(batch.mask))
    mean = likelihood.mean(output)
    for g, q, k in batch.observed.nonzero().tolist():
        alone = make(output[:, g, q, k], likelihood.log_scale[k].exp(), validate)
        expected[:, g, q] += alone.log_prob(batch.y[g, q, k].expand(2))
        squares[:, g] += (mean[:, g, q, k] - batch.y[g, q, k]).square()
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(score.log_prob, expected.sum(-1))
    torch.testing.assert_close(score.squared_error, squares)
    assert torch.equal(score.num_elements, batch.observed.flatten(1).sum(-1).float())
    where = [output, likelihood.log_scale]
    gradients = torch.autograd.grad(expected.sum(), where, retain_graph=True)
    for mine in (log_prob.sum(), score.log_prob.sum()):
        for got, right in zip(torch.autograd.grad(mine, where, retain_graph=True), gradients, strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_fit_and_metrics_of_a_likelihood_of_ones_own_are_finite(make, validate):
    model, data = make_case(make, validate)
    history = fit(model, data, epochs=2, batch_size=2, folder=None, progress=False, accelerator="cpu").history
    assert history.log_likelihood.isna().sum() == 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("make", [log_normal, gamma, categorical, shifted])
def test_pyros_svi_takes_a_likelihood_of_ones_own(make, validate, loss):
    model, data = make_case(make, validate)
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), loss())
    assert math.isfinite(svi.step(data[:]))
    assert math.isfinite(svi.step(data[[2, 5]]))  # nothing of group 2 was observed
    assert all(bool(p.isfinite().all()) for p in model.parameters())


class Mixed(Likelihood):
    """Columns of different kinds: what one column takes, another does not."""

    def distribution(self, output, y=None, observed=None):
        return MixedColumns(output)

    def mean(self, output):
        return torch.cat([output[..., :1], output[..., 1:2].exp(), output[..., 2:].sigmoid()], -1)


class MixedColumns(dist.TorchDistribution):
    """Normal, log-normal and binary columns. It has no `support`, and refuses what a column cannot take."""

    arg_constraints: ClassVar = {}

    def __init__(self, output):
        self.parts = [
            dist.Normal(output[..., :1], 1.0, validate_args=True),
            dist.LogNormal(output[..., 1:2], 1.0, validate_args=True),
            dist.Bernoulli(logits=output[..., 2:], validate_args=True),
        ]
        super().__init__(output.shape)

    def log_prob(self, value):
        columns = zip(self.parts, value.split(1, -1), strict=True)
        return torch.cat([part.log_prob(v) for part, v in columns], -1)

    def sample(self, sample_shape=()):
        return torch.cat([part.sample(sample_shape) for part in self.parts], -1)


def test_a_column_that_a_batch_lacks_is_drawn_from_its_own_distribution():
    y = torch.tensor([[[-3.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    observed = torch.tensor([[[True, False, False], [True, False, False]]])
    output = torch.randn(1, 2, 3, requires_grad=True)
    before = torch.get_rng_state()
    log_prob = Mixed().log_prob(output, y, observed)
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.distributions.Normal(output[..., 0], 1.0).log_prob(y[..., 0])
    torch.testing.assert_close(log_prob, expected)
    (gradient,) = torch.autograd.grad(log_prob.sum(), output)
    assert torch.equal(gradient[..., 1:], torch.zeros(1, 2, 2))


def test_nothing_observed_has_log_probability_and_gradient_zero():
    for make in KINDS:
        likelihood = Own(make, validate=True)
        output = torch.randn(2, 3, 3, requires_grad=True)
        score = likelihood.score(output, torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool))
        assert not score.log_prob.any()
        assert not score.squared_error.any()
        assert not score.num_elements.any()
        (gradient,) = torch.autograd.grad(score.log_prob.sum(), output)
        assert torch.equal(gradient, torch.zeros_like(gradient))


class OwnDensity(Own):
    """A log density that its author wrote, with the mask at its end."""

    def log_prob(self, output, y, observed=None):
        terms = self.distribution(output).log_prob(y)
        return terms.sum(-1) if observed is None else torch.where(observed, terms, 0.0).sum(-1)


def test_a_log_density_of_ones_own_gets_observed_values_only():
    model, data = make_case(log_normal, validate=True)
    model.likelihood = OwnDensity(log_normal, validate=True)
    terms = model.terms(data[:])
    terms.log_likelihood.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_observed_pair_repeats_the_first_observed_element_at_the_same_place():
    y = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]])
    observed = torch.tensor([[[True, False], [True, False]], [[True, True], [False, False]]])
    output, filled = observed_pair(10 * y, y, observed)
    assert filled.tolist() == [[[1.0, 4.0], [2.0, 4.0]], [[3.0, 4.0], [1.0, 4.0]]]
    assert torch.equal(output, 10 * filled)


class LogEncoder(nn.Module):
    """An encoder for positive data. It takes nothing else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, y):
        assert bool((y > 0).all())
        mean = self.layer(y.log())
        return mean, torch.ones_like(mean)


@pytest.mark.parametrize("make", [log_normal, gamma, beta])
def test_an_encoder_gets_a_value_that_the_data_can_have_in_gaps(make):
    model, data = make_case(make, validate=True)
    model.encoder = LogEncoder()
    model.terms(data[:]).log_likelihood.sum().backward()
    assert bool(model.encoder.layer.weight.grad.isfinite().all())
    model.eval()
    held_out = data.only_observed()
    assert model.reconstruct(held_out).isfinite().all()


def test_the_gap_value_is_zero_where_zero_can_be_observed_and_an_encoder_may_choose():
    y = torch.ones(2, 3, 3)
    names = {make.__name__: Own(make, True).gap_value(y) for make in KINDS}
    assert names == {
        "log_normal": 1.0, "gamma": 1.0, "beta": 0.5, "poisson": 0.0, "negative_binomial": 0.0, "categorical": 0.0,
        "uniform": 0.0, "shifted": 0.0,
    }  # fmt: skip
    assert DiagonalGaussianLikelihood([3]).gap_value(y) == 0.0
    assert BernoulliLikelihood().gap_value(y) == 0.0
    model, batch = make_model(), make_data(element_mask=True)[:]
    assert torch.equal(model.without_gaps(batch, model.encoder), batch.y)
    model.encoder.gap_value = -7.0
    assert torch.equal(model.without_gaps(batch, model.encoder), batch.y.masked_fill(~batch.observed, -7.0))


class PositiveDecoder(MLPDecoder):
    """A decoder that notes what it gets."""

    def forward(self, z, features=None):
        assert bool(z.isfinite().all())
        return super().forward(z, features)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_metrics_of_a_likelihood_of_ones_own_are_finite(batch_size):
    model, data = make_case(log_normal, validate=True)
    model.decoder = PositiveDecoder(3, [3], (8,))
    held_out = HeldOut.random(data.subset([0, 1, 2, 3, 4, 6]), 1)
    assert math.isfinite(held_out_mse(model, held_out, batch_size=batch_size))
    scores = held_out_calibration(model, held_out, num_samples=19, batch_size=batch_size)
    assert all(math.isfinite(score) for score in scores)


def test_range_is_checked_for_observed_elements_of_a_data_set():
    y = torch.tensor([[0.0, 1.0], [0.5, 7.0], [1.0, 0.0]])
    observed = torch.tensor([[True, True], [True, False], [True, True]])
    likelihood = BernoulliLikelihood()
    likelihood.check_range(y, observed)
    likelihood.log_prob(torch.zeros(1, 3, 2), y[None], observed[None])
    likelihood.distribution(torch.zeros(1, 3, 2), y[None], observed[None])
    with pytest.raises(DataError, match=r"y: expected values in \[0, 1\] for a BernoulliLikelihood, got 0 to 7"):
        likelihood.check_range(y)
    likelihood.check_data(GroupedDataset(y, torch.arange(3.0), [0, 0, 1], observed))
    far = torch.rand(10_000, 1)
    far[9_500] = 1e5
    with pytest.raises(DataError, match=r"got .* to 100000\. Try GaussianLikelihood"):
        likelihood.check_data(GroupedDataset(far, torch.arange(10_000.0), torch.arange(10_000) // 10))
    DiagonalGaussianLikelihood([2]).check_data(GroupedDataset(y, torch.arange(3.0), [0, 0, 1]))


class TwoOutputs(Likelihood):
    """Log-normal elements whose decoder gives a location and a log scale each."""

    def output_shape(self, y_shape):
        return (*y_shape, 2)

    def distribution(self, output, y=None, observed=None):
        return dist.LogNormal(output[..., 0], output[..., 1].exp(), validate_args=True)

    def mean(self, output):
        return self.distribution(output).mean


def test_a_likelihood_may_take_two_outputs_for_each_element():
    _, data = make_case(log_normal, validate=True)
    model, batch = make_model(TwoOutputs(), decoder=MLPDecoder(3, [3, 2], (8,))), data[:]
    output = torch.randn(2, *batch.y.shape, 2, requires_grad=True)
    score = model.likelihood.score(output, batch.y, batch.observed)
    expected, mean = torch.zeros(2, len(batch.mask)), model.likelihood.mean(output)
    squares = torch.zeros(2, len(batch.mask))
    for g, q, k in batch.observed.nonzero().tolist():
        location, scale = output[:, g, q, k, 0], output[:, g, q, k, 1].exp()
        expected[:, g] += torch.distributions.LogNormal(location, scale).log_prob(batch.y[g, q, k])
        squares[:, g] += (mean[:, g, q, k] - batch.y[g, q, k]).square()
    torch.testing.assert_close(score.log_prob, expected)
    torch.testing.assert_close(score.squared_error, squares)
    (gradient,) = torch.autograd.grad(score.log_prob.sum(), output)
    assert bool(gradient.isfinite().all())
    assert not gradient[:, ~batch.observed].any()
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step(batch))
    history = fit(model, data, epochs=2, batch_size=2, folder=None, progress=False, accelerator="cpu").history
    assert history.log_likelihood.notna().all()
    assert model.reconstruct(batch).shape == batch.y.shape
    model.decoder = MLPDecoder(3, [3], (8,))
    with pytest.raises(ShapeError, match=r"Try a decoder that maps \(\*batch, L\) to \(\*batch, 3, 2\)"):
        model.terms(batch)
