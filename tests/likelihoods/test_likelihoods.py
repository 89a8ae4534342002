import math

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import distributions

from factories import make_data, make_model
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    BernoulliLikelihood,
    DiagonalGaussianLikelihood,
    GaussianLikelihood,
    fit,
)
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError


@pytest.fixture
def observations():
    """Output (s, G, Q, 2, 3), y (G, Q, 2, 3), and which elements were observed."""
    output = torch.randn(4, 2, 5, 2, 3, dtype=torch.float64)
    y = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    observed = torch.rand(2, 5, 2, 3) > 0.4
    return output, y, observed


def summed(terms, observed=None):
    """Sum a density over the observed elements of a member, one by one."""
    result = torch.zeros(terms.shape[:3], dtype=terms.dtype)
    for s, g, q, i, j in torch.cartesian_prod(*[torch.arange(n) for n in terms.shape]).tolist():
        if observed is None or observed[g, q, i, j]:
            result[s, g, q] += terms[s, g, q, i, j]
    return result


@pytest.mark.parametrize("mode", ["fixed", "learned"])
@pytest.mark.parametrize("masked", [False, True])
def test_gaussian_is_the_normal_density_of_the_observed_elements(observations, mode, masked):
    output, y, observed = observations
    observed = observed if masked else None
    likelihood = GaussianLikelihood(mode, 0.3).double()
    terms = distributions.Normal(output, torch.tensor(0.3).double().sqrt()).log_prob(y)
    # the variance is stored as a float32 before .double()
    torch.testing.assert_close(likelihood.log_prob(output, y, observed), summed(terms, observed), rtol=1e-7, atol=0)
    assert torch.equal(likelihood.mean(output), output)


@pytest.mark.parametrize("masked", [False, True])
def test_optimal_variance_is_the_mean_squared_error_of_the_observed_elements(observations, masked):
    output, y, observed = observations
    observed = observed if masked else torch.ones_like(observed)
    likelihood = GaussianLikelihood().double()
    error = (output - y)[observed.expand(output.shape)].square()
    terms = distributions.Normal(output, error.mean().sqrt()).log_prob(y)
    torch.testing.assert_close(likelihood.log_prob(output, y, observed), summed(terms, observed))


def test_optimal_variance_maximizes_the_likelihood(observations):
    output, y, observed = observations
    best = GaussianLikelihood().double().log_prob(output, y, observed).sum()
    error = (output - y).square()[observed.expand(output.shape)].mean().item()
    for factor in (0.98, 1.02):
        other = GaussianLikelihood("fixed", factor * error).double()
        assert other.log_prob(output, y, observed).sum() < best


def test_running_variance_starts_with_the_first_batch_and_moves_by_a_tenth(observations):
    output, y, observed = observations
    likelihood = GaussianLikelihood(variance=77.0).double()
    errors = []
    for k in range(3):
        scaled = (k + 1.0) * output
        errors.append((scaled - y).square()[observed.expand(output.shape)].mean().item())
        likelihood.log_prob(scaled, y, observed)
    expected = errors[0]
    for error in errors[1:]:
        expected += 0.1 * (error - expected)
    assert likelihood.variance.item() == pytest.approx(expected, rel=1e-7)  # a tenth in float32


def test_outside_training_the_running_variance_is_used_and_left_alone(observations):
    output, y, observed = observations
    likelihood = GaussianLikelihood().double()
    likelihood.log_prob(output, y, observed)
    likelihood.eval()
    variance = likelihood.variance.clone()
    terms = distributions.Normal(output, variance.sqrt()).log_prob(y + 3)
    torch.testing.assert_close(likelihood.log_prob(output, y + 3, observed), summed(terms, observed))
    assert torch.equal(likelihood.variance, variance)


def test_gradient_in_optimal_mode_is_that_of_the_profile_likelihood(observations):
    output, y, observed = observations
    output.requires_grad_()
    likelihood = GaussianLikelihood().double()
    (mine,) = torch.autograd.grad(likelihood.log_prob(output, y, observed).sum(), output)
    where = observed.expand(output.shape)
    # with the variance put in, the log likelihood is - n/2 (log 2 pi mse + 1): its gradient needs no derivative of mse
    profile = -0.5 * where.sum() * (2 * math.pi * (output - y)[where].square().mean()).log()
    (theirs,) = torch.autograd.grad(profile, output)
    torch.testing.assert_close(mine, theirs)
    assert (mine[~where] == 0).all()


@pytest.mark.parametrize("mode", ["fixed", "learned", "optimal"])
@pytest.mark.parametrize("masked", [False, True])
def test_density_from_the_squared_error_is_the_density(observations, mode, masked):
    output, y, observed = observations
    first, second = GaussianLikelihood(mode, 0.7).double(), GaussianLikelihood(mode, 0.7).double()
    where = observed if masked else torch.ones_like(observed)
    error = torch.where(where, (output - y).square(), 0.0).flatten(2).sum(-1)
    mine = first.score(output, y, observed if masked else None)
    torch.testing.assert_close(mine.log_prob, second.log_prob(output, y, where).sum(-1))
    torch.testing.assert_close(first.variance, second.variance)
    torch.testing.assert_close(mine.squared_error, error)
    assert torch.equal(mine.num_elements, where.flatten(1).sum(-1).double())
    # "optimal" takes the mean squared error of the batch
    optimum = error.sum() / (4 * where.sum())
    variance = optimum if mode == "optimal" else torch.tensor(0.7)  # stored as a float32 before .double()
    terms = distributions.Normal(output, variance.double().sqrt()).log_prob(y)
    torch.testing.assert_close(mine.log_prob, summed(terms, where).sum(-1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["diagonal", "bernoulli"])
def test_score_of_any_likelihood_is_the_sum_of_its_density_over_each_group(observations, kind, masked):
    output, y, observed = observations
    observed = observed if masked else None
    where = torch.ones(y.shape, dtype=torch.bool) if observed is None else observed
    if kind == "bernoulli":
        y, likelihood = (y > 0).double(), BernoulliLikelihood()
        terms, mean = distributions.Bernoulli(logits=output).log_prob(y), 1 / (1 + (-output).exp())
    else:
        likelihood = DiagonalGaussianLikelihood((2, 3)).double()
        with torch.no_grad():
            likelihood.log_variance.copy_(torch.linspace(-2, 1, 6).reshape(2, 3))
        terms = distributions.Normal(output, torch.linspace(-2, 1, 6).double().reshape(2, 3).exp().sqrt()).log_prob(y)
        mean = output
    score = likelihood.score(output, y, observed)
    torch.testing.assert_close(score.log_prob, summed(terms, where).sum(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(score.squared_error, summed((mean - y).square(), where).sum(-1))
    assert torch.equal(score.num_elements, where.flatten(1).sum(-1).double())


def test_score_in_optimal_mode_has_the_gradient_of_the_log_density_and_none_of_the_variance(observations):
    output, y, observed = observations
    output.requires_grad_()
    first, second = GaussianLikelihood().double(), GaussianLikelihood().double()
    (mine,) = torch.autograd.grad(first.score(output, y, observed).log_prob.sum(), output)
    (theirs,) = torch.autograd.grad(second.log_prob(output, y, observed).sum(), output)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("variance", [True, "1", None, torch.ones(1)])
def test_variance_is_a_number(variance):
    for make in (lambda v: GaussianLikelihood("fixed", v), lambda v: DiagonalGaussianLikelihood([3], v)):
        with pytest.raises(ArgumentError, match=r"variance: expected a positive finite number, got .*Try (1\.0|0\.1)"):
            make(variance)


def test_perfect_reconstruction_gives_no_infinity_in_optimal_mode():
    y = torch.randn(2, 3, 4)
    assert GaussianLikelihood().log_prob(y.clone(), y).isfinite().all()


def test_learned_variance_is_a_parameter_with_the_right_gradient(observations):
    output, y, _ = observations
    likelihood = GaussianLikelihood("learned", 0.3).double()
    likelihood.log_prob(output, y).sum().backward()
    error, count = (output - y).square().sum(), output.numel()
    expected = 0.5 * (error / likelihood.variance - count)
    torch.testing.assert_close(likelihood.log_variance.grad, expected.detach())


@pytest.mark.parametrize("masked", [False, True])
def test_bernoulli_is_torchs(observations, masked):
    output, y, observed = observations
    y, observed = (y > 0).double(), observed if masked else None
    likelihood = BernoulliLikelihood()
    terms = distributions.Bernoulli(logits=output).log_prob(y)
    torch.testing.assert_close(likelihood.log_prob(output, y, observed), summed(terms, observed))
    torch.testing.assert_close(likelihood.distribution(output).mean, likelihood.mean(output))
    torch.testing.assert_close(likelihood.mean(output), 1 / (1 + (-output).exp()))


def test_a_grey_pixel_counts_as_an_expected_one(observations):
    output, _, _ = observations
    y = torch.rand(2, 5, 2, 3, dtype=torch.float64)
    ones, zeros = (
        distributions.Bernoulli(logits=output).probs.log(),
        distributions.Bernoulli(logits=-output).probs.log(),
    )
    torch.testing.assert_close(BernoulliLikelihood().log_prob(output, y), summed(y * ones + (1 - y) * zeros))


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_impossible_variances_are_refused(variance):
    with pytest.raises(ArgumentError, match=r"variance: expected a positive finite number, got .*Try 1\.0"):
        GaussianLikelihood("fixed", variance)


def test_unknown_mode_is_refused():
    with pytest.raises(ArgumentError, match="mode: expected one of 'optimal', 'learned', 'fixed', got 'best'"):
        GaussianLikelihood("best")


def test_running_variance_ends_with_the_error_of_the_last_steps_and_not_of_the_first():
    likelihood = GaussianLikelihood()
    errors = [max(0.5**k, 0.01) for k in range(60)]
    for error in errors:
        likelihood.score(torch.full((1, 4, 5), error**0.5), torch.zeros(1, 4, 5))
    assert likelihood.variance.item() == pytest.approx(0.01, rel=0.3)  # a memory of a hundred steps has 0.55


class PerColumn(GaussianLikelihood):
    """Another distribution under the name of a Gaussian."""

    def __init__(self):
        super().__init__("fixed")
        self.log_scale = torch.nn.Parameter(torch.zeros(3))

    def distribution(self, output, y=None, observed=None):
        return torch.distributions.Normal(output, self.log_scale.exp().expand(output.shape))


def test_a_subclass_of_the_gaussian_is_asked_for_its_own_distribution():
    model, batch = make_model(PerColumn()), make_data()[:]
    with torch.no_grad():
        model.likelihood.log_scale.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    torch.manual_seed(0)
    terms = model.terms(batch)
    torch.manual_seed(0)
    z = model.training_posterior(batch).rsample((), marginals=True)
    expected = model.likelihood.log_prob(model.decode(z, batch.x, batch.y.shape[2:]), batch.y, batch.observed).sum(-1)
    torch.testing.assert_close(terms.log_likelihood, expected)
    terms.log_likelihood.sum().backward()
    assert (model.likelihood.log_scale.grad != 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_diagonal_gaussian_has_a_variance_for_each_element(observations, masked):
    output, y, observed = observations
    observed = observed if masked else None
    likelihood = DiagonalGaussianLikelihood((2, 3)).double()
    with torch.no_grad():
        likelihood.log_variance.copy_(torch.linspace(-2, 1, 6).reshape(2, 3))
    terms = distributions.Normal(output, likelihood.variance.detach().sqrt()).log_prob(y)
    torch.testing.assert_close(likelihood.log_prob(output, y, observed), summed(terms, observed))
    assert torch.equal(likelihood.mean(output), output)


def test_diagonal_gaussian_starts_below_the_variance_of_a_standardised_column():
    torch.testing.assert_close(DiagonalGaussianLikelihood([2, 3]).variance.detach(), torch.full((2, 3), 0.1))


def test_diagonal_gaussian_finds_the_noise_of_each_element():
    """Zero where the mean is zero: the ELBO's best variances are the mean squares of what was observed."""
    data = make_data(element_mask=True)
    model = make_model(DiagonalGaussianLikelihood((3,), variance=0.5))
    for parameter in (*model.encoder.parameters(), *model.prior.parameters(), *model.decoder.parameters()):
        parameter.requires_grad_(False)
        parameter.zero_()
    fit(model, data, epochs=300, learning_rate=0.05, lr_schedule="cosine", seed=0, folder=None, progress=False)
    batch = data[:]
    squares = torch.where(batch.observed, batch.y, 0.0).square().sum((0, 1)) / batch.observed.sum((0, 1))
    torch.testing.assert_close(model.likelihood.variance.detach(), squares, rtol=0.02, atol=0)


def test_diagonal_gaussian_comes_back_and_names_other_shapes(tmp_path):
    model = make_model(DiagonalGaussianLikelihood([3], variance=0.25)).eval()
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    assert isinstance(loaded.likelihood, DiagonalGaussianLikelihood)
    assert torch.equal(loaded.likelihood.variance, model.likelihood.variance)
    with pytest.raises(ShapeError, match=r"y_shape: expected observations of shape \(4,\), got \(3,\)"):
        make_model(DiagonalGaussianLikelihood([4])).terms(make_data()[:])
    with pytest.raises(ArgumentError, match="variance: expected a positive finite number, got 0"):
        DiagonalGaussianLikelihood([3], variance=0.0)
    with pytest.raises(DataError, match="DiagonalGaussianLikelihood whose log_variance would never move"):
        GECO(0.02).terms(model, model, make_data()[:])


def test_pyros_elbo_of_the_diagonal_gaussian_is_ours():
    model, data = make_model(DiagonalGaussianLikelihood([3], variance=0.25)), make_data(element_mask=True)
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = torch.tensor([Trace_ELBO().loss(model.model, model.guide, data) for _ in range(400)])
        ours = torch.stack([ELBO().loss_of(ELBO().terms(model, model, data[:])) for _ in range(400)])
    error = math.hypot(float(theirs.std()), float(ours.std())) / 20
    assert abs(float(theirs.mean()) - float(ours.mean())) < 4.5 * error
