"""Elements of different kinds: against torch.distributions, SciPy, loops and sums over all values."""

import itertools
import math

import pyro
import pytest
import scipy.optimize
import scipy.stats
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import distributions, nn

from factories import SIZES, make_data, make_model, make_prior, same_state, state_of
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    HeldOut,
    fit,
)
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.likelihoods import (
    BernoulliElements,
    CategoricalElements,
    ColumnLikelihood,
    Elements,
    GaussianElements,
    NegativeBinomialElements,
    OrdinalElements,
    PoissonElements,
    mixture_quantile,
)
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse
from fgp_gpytorch.models import CVAE, GPVAE, SVGPVAE, VAE, LatentAngleFGPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures

GROUPS = [4, 0, 5, 2]


def ordinal(levels=4):
    part = OrdinalElements(levels)
    with torch.no_grad():
        part.first_threshold.fill_(-0.8)
        part.raw_steps.copy_(torch.linspace(-1.0, 1.2, levels - 2))
    return part


def gaussian(number=3, **options):
    part = GaussianElements(number, **options)
    with torch.no_grad():
        part.log_variance.copy_(torch.linspace(-1.3, 0.9, len(part.log_variance)))
    return part


def negative_binomial(number=2):
    part = NegativeBinomialElements(number)
    with torch.no_grad():
        part.log_dispersion.copy_(torch.linspace(-1.5, 1.0, number))
    return part


KINDS = {
    "gaussian": gaussian,
    "shared": lambda: gaussian(shared=True),
    "heteroscedastic": lambda: gaussian(heteroscedastic=True),
    "bernoulli": lambda: BernoulliElements(3),
    "categorical": lambda: CategoricalElements(4),
    "ordinal": ordinal,
    "two levels": lambda: ordinal(2),
    "poisson": lambda: PoissonElements(2),
    "negative binomial": negative_binomial,
}
DISCRETE = [name for name in KINDS if name not in ("gaussian", "shared", "heteroscedastic")]


def mixed(**options):
    """One part of each kind, 14 elements and 15 outputs."""
    parts = [gaussian(), gaussian(1, heteroscedastic=True), BernoulliElements(2), CategoricalElements(4), ordinal()]
    return ColumnLikelihood([*parts, PoissonElements(), negative_binomial()], **options)


def draws(part, rows=7, scale=1.5):
    """Outputs (rows, num_outputs) and possible values, float64."""
    part = part.double()
    output = scale * torch.randn(rows, part.num_outputs, dtype=torch.float64)
    return part, output, part.sample(output).detach()


def reference(part, output, y):
    """Log probabilities of SciPy and torch.distributions, element by element."""
    result = torch.zeros(len(y), part.num_elements, dtype=torch.float64)
    for n, k in itertools.product(range(len(y)), range(part.num_elements)):
        o, value = output[n, k].item(), y[n, k].item()
        if isinstance(part, GaussianElements):
            log_variance = part.log_variance[0 if part.shared else k].item()
            log_variance += output[n, part.num_elements + k].item() if part.heteroscedastic else 0.0
            result[n, k] = scipy.stats.norm.logpdf(value, o, math.exp(log_variance / 2))
        elif isinstance(part, BernoulliElements):
            result[n, k] = distributions.Bernoulli(logits=output[n, k]).log_prob(y[n, k])
        elif isinstance(part, CategoricalElements):
            if value:
                result[n, k] = distributions.OneHotCategorical(logits=output[n]).log_prob(y[n])
        elif isinstance(part, OrdinalElements):
            ends = [-math.inf, *part.thresholds.tolist(), math.inf]
            cdf = scipy.stats.logistic.cdf
            result[n, k] = math.log(cdf(ends[int(value) + 1] - o) - cdf(ends[int(value)] - o))
        elif isinstance(part, PoissonElements):
            result[n, k] = scipy.stats.poisson.logpmf(value, math.exp(o))
        else:
            size = math.exp(-part.log_dispersion[k].item())
            result[n, k] = scipy.stats.nbinom.logpmf(value, size, size / (size + math.exp(o)))
    return result


def all_values(part, output):
    """Every value with a probability that matters, (V, *1, num_elements)."""
    if isinstance(part, CategoricalElements):
        return torch.eye(part.num_elements, dtype=torch.float64).unsqueeze(1)
    top = 1 if isinstance(part, BernoulliElements) else getattr(part, "levels", 30_001) - 1
    return torch.arange(top + 1.0, dtype=torch.float64)[:, None, None].expand(-1, 1, part.num_elements)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_is_that_of_scipy_and_torch(kind):
    part, output, y = draws(KINDS[kind](), rows=40)
    torch.testing.assert_close(part.log_prob(output, y), reference(part, output, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_has_the_gradient_of_finite_differences(kind):
    part, output, y = draws(KINDS[kind](), rows=3)
    parameters = list(part.parameters())

    def summed(output, *_):
        return part.log_prob(output, y)

    assert torch.autograd.gradcheck(summed, (output.requires_grad_(), *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 40.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_and_gradient_are_finite_at_extreme_outputs(kind, scale, dtype):
    part, output, y = draws(KINDS[kind](), rows=20)
    part = part.to(dtype)
    output = (scale * output).to(dtype).requires_grad_()
    for value in (y.to(dtype), torch.zeros_like(y, dtype=dtype)):
        log_prob = part.log_prob(output, value)
        assert bool(log_prob.isfinite().all())
        assert part.integer is False or bool((log_prob <= 0).all())
        gradients = torch.autograd.grad(log_prob.sum(), [output, *part.parameters()])
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    for answer in (part.mean(output), part.variance(output), part.sample(output), part.cdf(output, y.to(dtype))):
        assert bool(answer.isfinite().all())
        assert answer.shape == y.shape
        assert answer.dtype == dtype


def test_tails_keep_their_digits():
    binary, code = BernoulliElements(1), ordinal().double()
    output = torch.tensor([[45.0]], dtype=torch.float64)
    torch.testing.assert_close(binary.log_prob(output, torch.ones(1, 1)).item(), -math.exp(-45), rtol=1e-12, atol=0)
    # P(y = 1 | output) = exp(t_1 - output) - exp(t_0 - output), to first order in exp(-45)
    first, second = code.thresholds[:2].tolist()
    expected = math.log(math.exp(second) - math.exp(first)) - 45
    assert code.log_prob(output, torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-12)


def test_float32_counts_are_those_of_float64():
    part = NegativeBinomialElements(1, dispersion=1e-4)
    output, y = torch.tensor([[3.0]]), torch.tensor([[17.0]])
    single = torch.autograd.grad(part.log_prob(output, y).sum(), part.log_dispersion)[0]
    double = torch.autograd.grad(part.double().log_prob(output.double(), y.double()).sum(), part.log_dispersion)[0]
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", DISCRETE)
def test_probabilities_sum_to_one_and_give_mean_variance_and_cdf(kind):
    part, output, y = draws(KINDS[kind](), rows=5, scale=0.8)
    values = all_values(part, output)
    log_prob = part.log_prob(output, values.expand(-1, *y.shape))
    if isinstance(part, CategoricalElements):
        probability = log_prob.sum(-1, keepdim=True).exp().expand(values.shape[0], *y.shape)
    else:
        probability = log_prob.exp()
    torch.testing.assert_close(probability.sum(0), torch.ones_like(y))
    mean = (values * probability).sum(0)
    torch.testing.assert_close(part.mean(output), mean)
    torch.testing.assert_close(part.variance(output), ((values - mean).square() * probability).sum(0))
    for value in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.7, 9.0):
        expected = torch.where(values <= value, probability, 0.0).sum(0)
        torch.testing.assert_close(part.cdf(output, torch.full_like(y, value)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "shared", "heteroscedastic"])
def test_gaussian_mean_variance_and_cdf_are_those_of_the_normal(kind):
    part, output, y = draws(KINDS[kind]())
    variance = part.variance(output)
    assert variance.shape == y.shape
    exact = distributions.Normal(part.mean(output), variance.sqrt())
    torch.testing.assert_close(exact.log_prob(y), reference(part, output, y))
    torch.testing.assert_close(part.cdf(output, y), exact.cdf(y))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_mean_and_the_variance(kind):
    part, output, _ = draws(KINDS[kind](), rows=2, scale=0.5)
    many = part.sample(output.expand(40_000, *output.shape)).detach()
    assert part.possible(many).all()
    error = (part.variance(output) / 40_000).sqrt()
    assert ((many.mean(0) - part.mean(output)).abs() < 5 * error).all()
    # the standard error of a variance is below 0.1 of it for these outputs
    torch.testing.assert_close(many.var(0), part.variance(output), rtol=0.4, atol=0)


@pytest.mark.parametrize("count", [0, 3, 40, 3000])
@pytest.mark.parametrize("log_dispersion", [-10.0, -3.0, 0.0, 4.0, 10.0])
@pytest.mark.parametrize("log_mean", [-15.0, -2.0, 3.0, 9.0])
def test_cdf_of_counts_is_scipys(log_mean, log_dispersion, count):
    part = NegativeBinomialElements(1).double()
    with torch.no_grad():
        part.log_dispersion.fill_(log_dispersion)
    output, value = torch.tensor([[log_mean]]).double(), torch.tensor([[count]]).double()
    size = math.exp(-log_dispersion)
    expected = scipy.stats.nbinom.cdf(count, size, size / (size + math.exp(log_mean)))
    assert part.cdf(output, value).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    expected = scipy.stats.poisson.cdf(count, math.exp(log_mean))
    assert PoissonElements(1).cdf(output, value).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


# the likelihood


def test_slices_outputs_and_blocks_follow_the_parts():
    likelihood = ColumnLikelihood(
        [GaussianElements(2), GaussianElements(2, heteroscedastic=True), CategoricalElements(3), OrdinalElements(5)]
    )
    assert (likelihood.num_elements, likelihood.num_outputs) == (8, 10)
    assert likelihood.y_slices == [slice(0, 2), slice(2, 4), slice(4, 7), slice(7, 8)]
    assert likelihood.output_slices == [slice(0, 2), slice(2, 6), slice(6, 9), slice(9, 10)]
    assert likelihood.element_blocks.tolist() == [0, 1, 2, 3, 4, 4, 4, 5]
    assert likelihood.element_outputs().tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert likelihood.output_shape() == likelihood.output_shape([8]) == (10,)
    assert "element_blocks" not in likelihood.state_dict()


def make_case(gaps, dtype=torch.float64):
    """A likelihood, outputs (2, 3, 4, 15), values (3, 4, 14), whole blocks observed; gaps have the value NaN."""
    likelihood = mixed().to(dtype)
    output = torch.randn(2, 3, 4, 15, dtype=dtype)
    y, observed = likelihood.sample(output[0]).detach(), None
    if gaps:
        blocks = torch.rand(3, 4, int(likelihood.element_blocks.max()) + 1) > 0.4
        observed = blocks[..., likelihood.element_blocks]
        observed[1, 2] = False
        y = torch.where(observed, y, math.nan)
    return likelihood, output.requires_grad_(), y, observed


@pytest.mark.parametrize("gaps", [False, True])
def test_log_probability_score_and_gradient_equal_a_loop_over_what_was_observed(gaps):
    likelihood, output, y, observed = make_case(gaps)
    there = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    expected, squares = torch.zeros(2, 3, 4).double(), torch.zeros(2, 3).double()
    for s, g, q in itertools.product(range(2), range(3), range(4)):
        for part, own, outputs in zip(likelihood.parts, likelihood.y_slices, likelihood.output_slices, strict=True):
            row = output[s, g, q, outputs]
            for k in range(part.num_elements):
                if there[g, q, own][k]:
                    values = y[g, q, own].nan_to_num(7.0)  # k is one of the others
                    expected[s, g, q] += part.log_prob(row, values)[k]
                    squares[s, g] += (part.mean(row)[k] - values[k]).square()
    score = likelihood.score(output, y, observed)
    log_prob = likelihood.log_prob(output, y, observed)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(score.log_prob, expected.sum(-1))
    torch.testing.assert_close(score.squared_error, squares)
    assert torch.equal(score.num_elements, there.flatten(1).sum(-1).double())
    where = [output, *likelihood.parameters()]
    right = torch.autograd.grad(expected.sum(), where, retain_graph=True)
    for mine in (log_prob, score.log_prob):
        for got, gradient in zip(torch.autograd.grad(mine.sum(), where, retain_graph=True), right, strict=True):
            torch.testing.assert_close(got, gradient)


def test_nothing_observed_has_log_probability_and_gradient_zero():
    likelihood, output, y, _ = make_case(gaps=False)
    nothing = torch.zeros_like(y, dtype=torch.bool)
    score = likelihood.score(output, torch.full_like(y, math.nan), nothing)
    assert not score.log_prob.any()
    assert not score.num_elements.any()
    (gradient,) = torch.autograd.grad(score.log_prob.sum(), output)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_distribution_has_the_elements_and_their_support():
    likelihood, output, y, _ = make_case(gaps=False)
    distribution = likelihood.distribution(output, y)
    assert distribution.batch_shape == (2, 3, 4, 14)
    assert distribution.event_shape == ()
    torch.testing.assert_close(distribution.log_prob(y).sum(-1), likelihood.log_prob(output, y))
    torch.testing.assert_close(distribution.mean, likelihood.mean(output))
    torch.testing.assert_close(distribution.variance, likelihood.variance(output))
    drawn = distribution.sample((5,))
    assert drawn.shape == (5, 2, 3, 4, 14)
    assert not drawn.requires_grad
    assert distribution.support.check(drawn).all()
    wrong = drawn.clone()
    wrong[0, 0, 0, 0, 4] = 0.5
    wrong[1, 0, 0, 0, 6:10] = 0.0
    possible = distribution.support.check(wrong)
    assert (~possible).sum() == 5
    assert not possible[0, 0, 0, 0, 4]
    assert not possible[1, 0, 0, 0, 6:10].any()
    more = distribution.expand((6, 2, 3, 4, 14))
    assert more.batch_shape == (6, 2, 3, 4, 14)
    torch.testing.assert_close(more.log_prob(y)[5], distribution.log_prob(y))


def test_gaussian_parts_are_the_gaussian_likelihoods():
    y, output = torch.randn(3, 4, 5), torch.randn(2, 3, 4, 5)
    observed = torch.rand(3, 4, 5) > 0.3
    theirs, mine = DiagonalGaussianLikelihood([5], 0.3), ColumnLikelihood([GaussianElements(5, 0.3)])
    torch.testing.assert_close(mine.log_prob(output, y, observed), theirs.log_prob(output, y, observed))
    y, output, observed = (t.unflatten(-1, (5, 1)) for t in (y, output, observed))
    theirs = GaussianLikelihood("learned", 0.3)
    mine = ColumnLikelihood([GaussianElements(5, 0.3, shared=True)], y_shape=(5, 1))
    assert [p.numel() for p in mine.parameters()] == [1]
    torch.testing.assert_close(mine.log_prob(output, y, observed), theirs.log_prob(output, y, observed))
    assert mine.mean(output).shape == output.shape
    assert mine.distribution(output).sample().shape == output.shape
    assert mine.quantiles(output, [0.5]).shape == (1, 3, 4, 5, 1)


# mixtures over draws


def test_quantiles_of_gaussians_are_roots_of_the_mixture():
    likelihood = ColumnLikelihood([gaussian(2, heteroscedastic=True)]).double()
    output = 3 * torch.randn(6, 5, 4, dtype=torch.float64)
    probabilities = [0.001, 0.05, 0.5, 0.95, 0.9999]
    found = likelihood.quantiles(output, probabilities)
    assert found.shape == (5, 5, 2)
    mean, scale = likelihood.mean(output), likelihood.variance(output).sqrt()
    for p, n, k in itertools.product(range(5), range(5), range(2)):

        def excess(value, p=p, n=n, k=k):
            return (
                scipy.stats.norm.cdf(value, mean[:, n, k].detach(), scale[:, n, k].detach()).mean() - probabilities[p]
            )

        exact = scipy.optimize.brentq(excess, -1000, 1000, xtol=1e-12)
        assert abs(found[p, n, k].item() - exact) < 1e-6 * scale[:, n, k].min().item()


def test_quantiles_of_one_gaussian_are_the_normals():
    likelihood = ColumnLikelihood([gaussian()]).double()
    output = torch.randn(1, 4, 3, dtype=torch.float64)
    exact = distributions.Normal(output[0], likelihood.variance(output)[0].sqrt())
    for probability in (0.01, 0.5, 0.9):
        found = likelihood.quantiles(output, [probability])[0]
        torch.testing.assert_close(found, exact.icdf(torch.tensor(probability).double()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", DISCRETE)
def test_quantiles_of_integers_are_the_first_whose_cumulated_probability_reaches(kind):
    part, output, _ = draws(KINDS[kind](), rows=6 * 3)
    likelihood = ColumnLikelihood([part])
    output = output.unflatten(0, (6, 3))
    probabilities = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.999])
    found = likelihood.quantiles(output, probabilities)
    if isinstance(part, CategoricalElements):
        cumulated = torch.stack([1 - likelihood.mean(output).mean(0), torch.ones(3, part.num_elements).double()])
    else:
        values = all_values(part, output).unsqueeze(1)
        terms = part.log_prob(output, values.expand(-1, 6, 3, part.num_elements)).exp()
        cumulated = terms.mean(1).cumsum(0)
    for p, probability in enumerate(probabilities.tolist()):
        expected = (cumulated < probability).sum(0)
        assert torch.equal(found[p], expected.double())


@pytest.mark.parametrize("log_dispersion", [-6.0, 0.0, 3.0])
@pytest.mark.parametrize("log_mean", [-9.0, 2.0, 6.0, 7.5, 11.0])
def test_quantiles_of_negative_binomials_are_scipys_at_any_size(log_mean, log_dispersion):
    part = NegativeBinomialElements(2).double()
    with torch.no_grad():
        part.log_dispersion.fill_(log_dispersion)
    likelihood, size = ColumnLikelihood([part]), math.exp(-log_dispersion)
    output = torch.tensor([[[log_mean, 0.0]]]).double()
    for probability in (1e-6, 0.3, 0.5, 0.95, 0.9999999):
        found = likelihood.quantiles(output, [probability])[0, 0].tolist()
        exact = [scipy.stats.nbinom.ppf(probability, size, size / (size + math.exp(m))) for m in (log_mean, 0.0)]
        assert found == exact


def test_quantiles_of_many_rows_are_those_of_each(monkeypatch):
    likelihood, output = mixed(), torch.randn(4, 9, 2, 15)
    whole = likelihood.quantiles(output, [0.1, 0.7])
    monkeypatch.setattr("fgp_gpytorch.likelihoods.column_likelihood._VALUES_AT_ONCE", 150)
    assert torch.equal(likelihood.quantiles(output, [0.1, 0.7]), whole)
    assert torch.equal(likelihood.quantiles(output[:, 3, 1], [0.1, 0.7]), whole[:, 3, 1])


def test_moments_are_those_of_the_mixture():
    likelihood, output = mixed().double(), 0.5 * torch.randn(5, 3, 15).double()
    mean, variance = likelihood.moments(output)
    means, variances = likelihood.mean(output), likelihood.variance(output)
    torch.testing.assert_close(mean, means.mean(0))
    torch.testing.assert_close(variance, (variances + means.square()).mean(0) - means.mean(0).square())
    torch.testing.assert_close(likelihood.moments(output[:1])[1], variances[0])


def test_mixture_quantile_takes_any_increasing_function():
    low, high = torch.zeros(3).double(), torch.full((3,), 50.0).double()
    rate = torch.tensor([0.5, 1.0, 2.0]).double()
    found = mixture_quantile(lambda v: 1 - (-rate * v).exp(), 0.75, low, high, torch.tensor(1e-9))
    torch.testing.assert_close(found, math.log(4) / rate, rtol=0, atol=1e-9)
    found = mixture_quantile(lambda v: v / 50, torch.tensor([0.02, 0.5, 1.0]), low, high, None)
    assert found.tolist() == [1.0, 25.0, 50.0]


# starts


def test_initial_variances_are_the_residuals_or_those_of_y():
    y = torch.tensor([1.0, 10.0, 0.0, 0.1]) * torch.randn(500, 4) + 3
    y[:, 2] = 7.0  # constant
    observed = torch.rand(500, 4) > 0.2
    observed[:, 3] = False
    part = GaussianElements(4, variance=0.1)
    part.initialize(y, observed)
    seen = [y[observed[:, k], k].var(correction=0).item() for k in (0, 1)]
    assert part.log_variance.exp().tolist() == pytest.approx([*seen, 0.1, 0.1], rel=1e-5)
    part.initialize(y, observed, torch.tensor([0.4, 0.0, 0.4, 0.4]))
    assert part.log_variance.exp().tolist() == pytest.approx([0.4, 1e-6 * seen[1], 0.1, 0.1], rel=1e-5)
    part = GaussianElements(4, shared=True)
    part.initialize(y, observed, torch.tensor([0.4, 0.8, 99.0, 99.0]))
    assert part.log_variance.exp().tolist() == pytest.approx([0.6], rel=1e-5)


def test_initial_thresholds_have_the_frequencies_at_output_zero():
    part, number = OrdinalElements(4).double(), torch.tensor([30, 0, 50, 20])
    y = torch.repeat_interleave(torch.arange(4), number).double().unsqueeze(-1)
    observed = torch.ones_like(y, dtype=torch.bool)
    part.initialize(torch.cat([y, torch.ones(9, 1)]), torch.cat([observed, torch.zeros(9, 1, dtype=torch.bool)]))
    codes = torch.arange(4.0).double().unsqueeze(-1)
    probability = part.log_prob(torch.zeros(4, 1).double(), codes).exp()[:, 0]
    torch.testing.assert_close(probability, (number + 0.5) / 102, check_dtype=False)
    assert (part.thresholds.diff() > 0).all()


def test_untrained_levels_are_equally_likely():
    part = OrdinalElements(5).double()
    probability = part.log_prob(torch.zeros(5, 1).double(), torch.arange(5.0).unsqueeze(-1)).exp()
    torch.testing.assert_close(probability, torch.full((5, 1), 0.2).double(), rtol=1e-6, atol=0)


def test_initial_dispersion_is_that_of_the_moments():
    part = NegativeBinomialElements(3, dispersion=0.7)
    y = torch.stack([torch.arange(200.0) % 11, torch.full((200,), 4.0), torch.zeros(200)], -1)
    part.initialize(y)
    mean, variance = y[:, 0].mean(), y[:, 0].var(correction=0)
    expected = [((variance - mean) / mean**2).item(), 0.01, 0.7]
    assert part.log_dispersion.exp().tolist() == pytest.approx(expected, rel=1e-5)


def test_starting_outputs_give_the_means_of_y():
    likelihood, output, _, observed = make_case(gaps=True)
    large = likelihood.sample(output.detach()[0].expand(400, -1, -1, -1))
    observed = observed.expand(large.shape)
    large = torch.where(observed, large, math.nan)
    likelihood.initialize(large, observed, torch.full((14,), 0.2).double())
    start = likelihood.starting_output(large, observed)
    assert start.shape == (15,)
    frequency = torch.where(observed, large, 0.0).sum((0, 1, 2)) / observed.sum((0, 1, 2))
    # half an observation of about 2000 is added
    torch.testing.assert_close(likelihood.mean(start), frequency, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(likelihood.parts[0].log_variance.exp(), torch.full((3,), 0.2).double())
    with pytest.raises(ShapeError, match=r"residual_variance: expected shape \(14\), got \(3,\)"):
        likelihood.initialize(large, observed, torch.ones(3))


# errors

IMPOSSIBLE = {
    "a half": (4, 0.5, r"y\[..., 4:6\]: expected 0 or 1 for BernoulliElements, got 0.5\. Try"),
    "no category": (
        6,
        0.0,
        r"y\[..., 6:10\]: expected a one-hot block of 0 and a single 1 .*, got \[0.0, 0.0, 0.0, 0.0\]",
    ),
    "two categories": (7, 1.0, r"y\[..., 6:10\]: expected a one-hot block .*, got \[1.0, 1.0, 0.0, 0.0\]\. Try"),
    "half a category": (6, 0.5, r"y\[..., 6:10\]: expected a one-hot block"),
    "a level too many": (10, 4.0, r"y\[..., 10:11\]: expected codes 0, 1, ... 3 for OrdinalElements, got 4\. Try"),
    "a negative level": (10, -1.0, r"expected codes"),
    "between levels": (10, 1.5, r"expected codes"),
    "a negative count": (11, -1.0, r"y\[..., 11:12\]: expected counts 0, 1, 2, ... for PoissonElements, got -1\. Try"),
    "a fraction": (13, 2.5, r"y\[..., 12:14\]: expected counts 0, 1, 2, ... for NegativeBinomialElements, got 2.5"),
    "not a number": (12, math.nan, r"expected counts"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values_are_refused_where_they_were_observed(case):
    place, value, message = IMPOSSIBLE[case]
    likelihood, output = mixed(), torch.zeros(2, 3, 15)
    y = torch.zeros(2, 3, 14)
    y[..., 6] = 1.0
    likelihood.log_prob(output, y)
    y[1, 2, place] = value
    for call in (likelihood.check_range, lambda y: likelihood.log_prob(output, y), likelihood.starting_output):
        with pytest.raises(DataError, match=message):
            call(y)
    with pytest.raises(DataError, match=message):
        likelihood.distribution(output, y)
    observed = torch.ones_like(y, dtype=torch.bool)
    observed[1, 2] = False
    assert likelihood.log_prob(output, y, observed)[1, 2] == 0


def test_a_block_that_is_observed_in_part_is_refused():
    y, observed = torch.zeros(2, 3, 14), torch.ones(2, 3, 14, dtype=torch.bool)
    y[..., 6] = 1.0
    observed[0, 1, 7] = False
    with pytest.raises(
        DataError, match=r"y\[..., 6:10\]: expected a one-hot block that is observed as a whole .* 3 of 4"
    ):
        mixed().log_prob(torch.zeros(2, 3, 15), y, observed)
    observed[0, 1, 6:10] = False
    mixed().log_prob(torch.zeros(2, 3, 15), y, observed)


def test_check_data_looks_at_every_row_and_lets_lazy_data_pass():
    y = torch.zeros(9000, 1)
    y[8500] = -3
    data = GroupedDataset(y, torch.arange(9000.0), torch.arange(9000) // 10)
    with pytest.raises(DataError, match=r"expected counts .* got -3"):
        ColumnLikelihood([PoissonElements()]).check_data(data)
    likelihood = ColumnLikelihood([PoissonElements()])
    lazy = LazyDataset(data, lambda batch: batch.y)
    likelihood.check_data(lazy)
    with pytest.raises(DataError, match=r"expected counts .* got -3"):  # in use it is noticed
        likelihood.log_prob(torch.zeros(1, 10, 1), lazy[[850]].y)


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="parts: expected at least one kind of elements, got none"):
        ColumnLikelihood([])
    with pytest.raises(ArgumentError, match="parts: expected a list or tuple or ModuleList, got GaussianElements"):
        ColumnLikelihood(GaussianElements(3))
    with pytest.raises(ArgumentError, match="parts: expected an Elements, got GaussianLikelihood"):
        ColumnLikelihood([GaussianLikelihood()])
    with pytest.raises(ShapeError, match=r"y_shape: expected a shape of 3 elements, .*, got \(2, 2\)"):
        ColumnLikelihood([GaussianElements(3)], y_shape=(2, 2))
    with pytest.raises(ShapeError, match=r"y_shape: expected vectors \(4,\) for parts with 8 outputs"):
        ColumnLikelihood([GaussianElements(4, heteroscedastic=True)], y_shape=(2, 2))
    with pytest.raises(ArgumentError, match="num_categories: expected an integer >= 2, got 1"):
        CategoricalElements(1)
    with pytest.raises(ArgumentError, match="levels: expected an integer >= 2, got 1"):
        OrdinalElements(1)
    with pytest.raises(ArgumentError, match="variance: expected a positive finite number, got 0"):
        GaussianElements(1, variance=0)
    with pytest.raises(ArgumentError, match="shared: expected a bool, got int"):
        GaussianElements(1, shared=1)
    with pytest.raises(ArgumentError, match="dispersion: expected a positive finite number, got -1"):
        NegativeBinomialElements(1, dispersion=-1)


def test_wrong_shapes_are_refused_and_never_broadcast():
    likelihood = mixed()
    with pytest.raises(ShapeError, match=r"output: expected shape \(..., 15\), got \(2, 3, 14\)"):
        likelihood.mean(torch.zeros(2, 3, 14))
    with pytest.raises(ShapeError, match=r"y: expected shape \(..., 14\), got \(2, 3, 15\)"):
        likelihood.check_range(torch.zeros(2, 3, 15))
    y = likelihood.distribution(torch.zeros(1, 3, 15)).sample()
    with pytest.raises(ShapeError, match=r"y: expected the leading dimensions of the output"):
        likelihood.log_prob(torch.zeros(2, 3, 15), y)
    with pytest.raises(ShapeError, match=r"y: expected observations of shape \(14,\), .*, got \(13,\)"):
        likelihood.output_shape((13,))
    with pytest.raises(ArgumentError, match=r"probabilities: expected a number in \(0, 1\), got 1.0"):
        likelihood.quantiles(torch.zeros(2, 3, 15), [1.0])
    with pytest.raises(ShapeError, match=r"output: expected draws"):
        likelihood.quantiles(torch.zeros(15), [0.5])
    with pytest.raises(ShapeError, match=r"output: expected draws"):
        likelihood.moments(torch.zeros(0, 4, 15))


# in models


def mixed_data(gaps=False, seed=0):
    """Ragged groups whose columns depend on one curve of each group."""
    curve = make_data(seed=seed).flat()
    likelihood = mixed()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        y = likelihood.sample(0.7 * curve.y[:, :1] * torch.linspace(-1, 1, 15)).detach()
        observed = torch.rand(len(y), int(likelihood.element_blocks.max()) + 1)[:, likelihood.element_blocks] > 0.25
    return GroupedDataset(y, curve.x, curve.group, observed if gaps else None)


def mixed_model(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        likelihood = mixed()
        networks = MLPEncoder([14], 3, (8,)), MLPDecoder(3, likelihood.output_shape(), (8,))
    return make_model(likelihood, encoder=networks[0], decoder=networks[1])


def repeated(loss, times):
    """Mean of a noisy loss and its standard error."""
    with torch.no_grad():
        values = torch.tensor([loss() for _ in range(times)], dtype=torch.float64)
    return values.mean().item(), (values.std() / math.sqrt(times)).item()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_elbos_agree_with_ours_in_expectation(pyro_elbo, gaps):
    model, batch = mixed_model(), mixed_data(gaps)[GROUPS]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    (a, error_a), (b, error_b) = (
        repeated(lambda: theirs.loss(model.model, model.guide, batch), 40),
        repeated(lambda: ELBO(num_particles=50).loss(model, model, batch), 40),
    )
    error = math.hypot(error_a, error_b)
    assert error < 0.02 * abs(a), "the comparison is too noisy to mean anything"
    assert abs(a - b) < 4.5 * error


def test_density_in_the_trace_is_that_of_the_observed_elements():
    model, batch = mixed_model(), mixed_data(gaps=True)[GROUPS]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    trace.compute_log_prob()
    node = trace.nodes["y"]
    output = model.decode(trace.nodes["z"]["value"], batch.x, batch.y.shape[2:])
    expected = model.likelihood.log_prob(output, batch.y, batch.observed).sum(-1)
    # sums of 84 terms in float32
    torch.testing.assert_close(node["log_prob"] / node["scale"], expected.double(), rtol=1e-5, atol=1e-5)


def test_a_column_that_a_batch_lacks_has_no_density_in_the_trace():
    model, data = mixed_model(), mixed_data()
    rows = data.flat()
    observed = torch.ones_like(rows.y, dtype=torch.bool)
    observed[:, 10:] = rows.group.unsqueeze(-1) == 6  # which the batch does not contain
    y = torch.where(observed, rows.y, math.nan)
    batch = GroupedDataset(y, rows.x, rows.group, observed)[GROUPS]
    loss = Trace_ELBO().differentiable_loss(model.model, model.guide, batch)
    loss.backward()
    assert math.isfinite(loss.item())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert not gradients["likelihood.parts.6.log_dispersion"].any()
    assert not gradients["likelihood.parts.4.first_threshold"].any()
    assert gradients["likelihood.parts.0.log_variance"].all()


def test_predictive_draws_possible_observations():
    model, batch = mixed_model().eval(), mixed_data()[GROUPS]
    for parallel in (False, True):
        drawn = Predictive(model.model, guide=model.guide, num_samples=5, parallel=parallel)(batch, observe=False)["y"]
        assert drawn.shape == (5, *batch.y.shape)
        assert model.likelihood.possible(drawn).all()


@pytest.mark.parametrize("gaps", [False, True])
def test_fit_lowers_the_loss_and_moves_every_parameter(gaps):
    model, data = mixed_model(), mixed_data(gaps)
    model.likelihood.initialize(data.members.y, data.members.y_mask)
    judge, before = ELBO(num_particles=100), state_of(model)
    first = judge.loss(model, model, data[:])
    fit(model, data, epochs=60, batch_size=4, learning_rate=0.01, folder=None, progress=False, accelerator="cpu")
    assert judge.loss(model, model, data[:]) < first - 15
    after = state_of(model)
    moved = [name for name in before if name.startswith("likelihood.")]
    assert len(moved) == 5
    assert not any(torch.equal(before[name], after[name]) for name in moved)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_answers_of_a_model_have_the_shape_of_y():
    model, data = mixed_model().eval(), mixed_data(gaps=True)
    batch = data[GROUPS]
    shape = batch.y.shape
    assert model.reconstruct(batch).shape == shape
    assert model.generate(batch.x[:, :2], batch).shape == (4, 2, 14)
    assert model.generate(batch.x[:, :2], batch, sample_shape=(3,)).shape == (3, 4, 2, 14)
    assert model.generate(batch.x[:, :2]).shape == (4, 2, 14)
    assert model.decode(model.infer(batch).mean, batch.x).shape == (*shape[:2], 15)
    held_out = HeldOut.random(data.subset([0, 1, 3, 4, 6]), 1)
    assert math.isfinite(held_out_mse(model, held_out))
    assert all(math.isfinite(value) for value in held_out_calibration(model, held_out, num_samples=19))


def on_circle():
    return FactorizedGPPrior([GlobalChannels(3)])


MODELS = {
    "VAE": lambda e, d, lk: VAE(e, d, 3, lk),
    "CVAE": lambda _, d, lk: CVAE(
        MLPEncoder([14], 3, (4,), num_features=1), WithFeatures(d), make_prior(), likelihood=lk
    ),
    "GPVAE": lambda e, d, lk: GPVAE(e, d, 3, num_groups=7, num_factors=2, likelihood=lk),
    "SVGPVAE": lambda e, d, lk: SVGPVAE(e, d, 3, num_groups=7, num_factors=2, num_inducing=4, likelihood=lk),
    "LatentAngleFGPVAE": lambda e, d, lk: LatentAngleFGPVAE(e, d, on_circle(), MLPFeatures([14], 2), likelihood=lk),
}


class WithFeatures(nn.Module):
    """A decoder that gets features and leaves them out."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z, features):
        return self.decoder(z)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_decodes_more_outputs_than_elements(kind):
    networks = MLPEncoder([14], 3, (4,)), MLPDecoder(3, [15], (4,))
    model, data = MODELS[kind](*networks, mixed()), mixed_data(gaps=True)
    batch = data[:]
    loss = ELBO().differentiable_loss(model, model, batch)
    loss.backward()
    assert math.isfinite(loss.item())
    assert math.isfinite(Trace_ELBO().loss(model.model, model.guide, batch))
    model.eval()
    assert model.reconstruct(batch).shape == batch.y.shape
    if kind in ("GPVAE", "SVGPVAE"):
        conditioned = model.condition_on(data)
        assert conditioned.generate(batch.x[:, :2], batch).shape == (7, 2, 14)
    else:
        assert model.generate(batch.x[:, :2], batch).shape == (7, 2, 14)


def test_calibration_is_that_of_a_loop_over_draws():
    model, data = mixed_model().eval(), mixed_data(gaps=True)
    held_out = HeldOut.random(data.subset([0, 1, 3, 4, 6]), 1)
    found = held_out_calibration(model, held_out, num_samples=19, seed=8)
    batch = held_out[:5]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(8)
        z = model.predict(batch.x_new, batch.context).rsample((19,))
        output, total = model.decode(z, batch.x_new), 0.0
        for g in range(5):
            observed = None if batch.observed is None else batch.observed[g : g + 1]
            draws = [
                model.likelihood.log_prob(output[s, g : g + 1], batch.y_new[g : g + 1], observed) for s in range(19)
            ]
            total -= torch.stack(draws).double().logsumexp(0).sub(math.log(19)).sum().item()
    assert found.negative_log_likelihood == pytest.approx(total / batch.num_elements, rel=1e-5)


def test_a_decoder_with_as_many_outputs_as_elements_is_named():
    model, batch = mixed_model(), mixed_data()[GROUPS]
    model.decoder = MLPDecoder(3, [14], (8,))
    message = r"decoder: expected the shape \(1, 12, 15\) .* Try a decoder that maps \(\*batch, L\) to \(\*batch, 15\)"
    with pytest.raises(ShapeError, match=message):
        model.terms(batch)
    model = mixed_model()
    model.likelihood = ColumnLikelihood([GaussianElements(13)])
    with pytest.raises(ShapeError, match=r"y: expected observations of shape \(13,\)"):
        model.reconstruct(batch)


def test_saved_model_has_the_same_likelihood(tmp_path):
    model, data = mixed_model(), mixed_data()
    model.likelihood.initialize(data.members.y)
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    assert same_state(state_of(loaded), state_of(model))
    assert [type(part) for part in loaded.likelihood.parts] == [type(part) for part in model.likelihood.parts]
    assert torch.equal(loaded.likelihood.element_blocks, model.likelihood.element_blocks)
    output = torch.randn(2, 4, 15)
    y = model.likelihood.distribution(output).sample()
    assert torch.equal(loaded.likelihood.log_prob(output, y), model.likelihood.log_prob(output, y))
    image = make_model(ColumnLikelihood([GaussianElements(3, shared=True)], y_shape=(3, 1)), y_shape=(3, 1))
    image.save(tmp_path / "image.pt")
    assert FGPVAE.load(tmp_path / "image.pt").likelihood.y_shape == (3, 1)


def test_geco_refuses_columns():
    with pytest.raises(DataError, match=r"likelihood: expected .* for GECO.* got ColumnLikelihood"):
        GECO(0.1).loss(mixed_model(), mixed_model(), mixed_data()[:])
    model = make_model(ColumnLikelihood([BernoulliElements(3)]))
    with pytest.raises(DataError, match=r"likelihood: expected a GaussianLikelihood for GECO.* got ColumnLikelihood"):
        GECO(0.1).loss(model, model, make_data()[:])


class LaplaceElements(Elements):
    """Real elements with Laplace noise of a learned scale, as a user would write them."""

    integer = False

    def __init__(self, num_elements=1):
        super().__init__(num_elements)
        self.log_scale = nn.Parameter(torch.zeros(num_elements))

    def law(self, output):
        return distributions.Laplace(output, self.log_scale.exp().expand(output.shape))

    def log_prob(self, output, y):
        return self.law(output).log_prob(y)

    def mean(self, output):
        return output

    def variance(self, output):
        return self.law(output).variance

    def sample(self, output):
        return self.law(output).sample()

    def cdf(self, output, value):
        return self.law(output).cdf(value)


def test_kinds_of_ones_own_train_and_have_quantiles():
    data = make_data(SIZES, element_mask=True)
    likelihood = ColumnLikelihood([LaplaceElements(2), GaussianElements()])
    model = make_model(likelihood)
    history = fit(model, data, epochs=2, batch_size=4, folder=None, progress=False, accelerator="cpu").history
    assert history.log_likelihood.notna().all()
    output = torch.randn(1, 5, 3).double()
    exact = distributions.Laplace(output[0, :, :2], likelihood.parts[0].log_scale.exp().double())
    quantile = likelihood.double().quantiles(output, [0.2])[0]
    torch.testing.assert_close(quantile[:, :2], exact.icdf(torch.tensor(0.2).double()), rtol=0, atol=1e-5)
