import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import SVI

from factories import BlindDecoder, ConstantEncoder, make_data, make_model, same_state, state_of
from fgp_gpytorch import ELBO, GECO, GaussianLikelihood
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.models import Terms


def make_terms(mse=0.5, dtype=torch.float64):
    """Four groups of a dataset of ten; 2, 1, 3 and 2 members of 6 elements each."""
    members = torch.tensor([2, 1, 3, 2])
    elements = 6.0 * members
    return Terms(
        log_likelihood=torch.tensor([-3.0, -1.5, 0.25, -7.0], dtype=dtype),
        kl_local=torch.tensor([1.0, 0.5, 2.0, 0.25], dtype=dtype, requires_grad=True),
        kl_global=torch.tensor([0.125, 0.5, 0.0625, 1.0], dtype=dtype, requires_grad=True),
        squared_error=(mse * elements).to(dtype),
        num_elements=elements.to(dtype),
        num_members=members,
        log_hyperprior=torch.tensor(-1.75, dtype=dtype, requires_grad=True),
        num_dataset_groups=10,
        num_dataset_members=21,
    )


LIKELIHOOD, KL = -3.0 - 1.5 + 0.25 - 7.0, 1.0 + 0.5 + 2.0 + 0.25 + 0.125 + 0.5 + 0.0625 + 1.0


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_elbo_is_the_formula_for_every_beta(beta):
    loss = ELBO(beta=beta).loss_of(make_terms())
    assert loss.item() == pytest.approx(-(10 / 4) * (LIKELIHOOD - beta * KL) + 1.75, rel=1e-12)


@pytest.mark.parametrize("multiplier", [1e-6, 0.4, 70.0])
@pytest.mark.parametrize("kappa", [0.02, 0.7])
def test_geco_loss_is_the_lagrangian_over_one_plus_kappa_lambda(multiplier, kappa):
    loss = GECO(kappa, initial_multiplier=multiplier).loss_of(make_terms(mse=0.5))
    members = (10 / 4) * 8
    lagrangian = (10 / 4) * KL + multiplier * members * (0.5 - kappa) + 1.75
    assert loss.item() == pytest.approx(lagrangian / (1 + kappa * multiplier), rel=1e-9)


ERRORS = [0.15, 0.3, *[0.0] * 150, *[2.0] * 60]  # down to the lower bound and up to the upper one


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": 0.3},
        {"rate": 5.0},
        {"decay": 0.0},
        {"decay": 0.5},
        {"initial_multiplier": 0.01},
        {"minimum_multiplier": 0.5},
        {"maximum_multiplier": 3.0},
        {"kappa": 0.3},
    ],
)
def test_multiplier_follows_the_recursion_of_every_option(options):
    options = {"kappa": 0.1, **options}
    geco = GECO(**options)
    log_multiplier, average = math.log(options.get("initial_multiplier", 1.0)), None
    trajectory = []
    for mse in ERRORS:
        geco.update(make_terms(mse))
        violation = mse - options["kappa"]
        decay = options.get("decay", 0.99)
        average = violation if average is None else decay * average + (1 - decay) * violation
        log_multiplier += options.get("rate", 1.0) * average
        highest = options.get("maximum_multiplier", 6 / (2 * options["kappa"]))
        log_multiplier = min(log_multiplier, math.log(highest))
        log_multiplier = max(log_multiplier, math.log(options.get("minimum_multiplier", 1e-6)))
        trajectory.append(math.exp(log_multiplier))
        assert geco.multiplier == pytest.approx(trajectory[-1], rel=1e-6)  # mse arrives with a float32's digits
    assert len(set(trajectory)) > 5


def test_every_option_of_geco_changes_the_trajectory():
    """The test above would pass with options that do nothing and are never reached; here each one shows."""

    def run(**options):
        geco = GECO(**{"kappa": 0.1, **options})
        values = []
        for mse in ERRORS:
            geco.update(make_terms(mse))
            values.append(geco.multiplier)
        return values

    plain = run()
    options = [
        {"rate": 2.0},
        {"decay": 0.9},
        {"initial_multiplier": 2.0},
        {"minimum_multiplier": 0.9},
        {"maximum_multiplier": 3.0},
        {"kappa": 0.2},
    ]
    trajectories = [run(**option) for option in options]
    assert all(trajectory != plain for trajectory in trajectories)
    assert len({tuple(trajectory) for trajectory in trajectories}) == len(options)


def test_multiplier_stays_within_its_bounds_for_ever():
    geco = GECO(0.02, rate=50.0)
    for _ in range(50):
        geco.update(make_terms(1e6))
    assert geco.multiplier == pytest.approx(6 / (2 * 0.02))
    geco = GECO(5.0, rate=50.0, decay=0.0)
    for _ in range(50):
        geco.update(make_terms(0.0))
    assert geco.multiplier == pytest.approx(1e-6)


def test_geco_at_its_default_bound_is_the_elbo_with_the_variance_kappa():
    kappa, data = 0.05, make_data()
    model = make_model(GaussianLikelihood("fixed", kappa)).double()
    geco = GECO(kappa)
    for _ in range(400):
        geco.update(make_terms(1.0)._replace(num_elements=torch.tensor([6.0, 3.0, 9.0, 6.0])))  # K = 3, as in the data
    terms = model.terms(data[[0, 4, 2]].to(torch.float64))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weight = 1 + kappa * geco.multiplier
    mine = torch.autograd.grad(weight * geco.loss_of(terms), parameters, retain_graph=True)
    theirs = torch.autograd.grad(ELBO().loss_of(terms), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("multiplier", [1e-6, 1.0, 1e6, 1e19])
def test_gradients_stay_of_order_one_whatever_the_multiplier(multiplier):
    kappa, data, model = 0.05, make_data(), make_model()
    geco = GECO(kappa, initial_multiplier=multiplier)
    terms = model.terms(data[:])
    (geco.loss_of(terms) / terms.num_dataset_members).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    assert 1e-3 < norm < 10 / kappa
    assert all(gradient.square().isfinite().all() for gradient in gradients)  # Adam's second moment, in float32


def test_state_of_geco_survives_a_round_trip():
    first, second = GECO(0.1), GECO(0.1)
    for mse in (0.9, 0.4):
        first.update(make_terms(mse))
    state = first.state_dict()
    second.load_state_dict(state)
    first.update(make_terms(0.7))
    second.update(make_terms(0.7))
    assert second.multiplier == first.multiplier
    third = GECO(0.1)
    third.load_state_dict(state)  # it was not moved by the steps of the two others
    assert third.multiplier != first.multiplier
    assert ELBO().state_dict() == {}


@pytest.mark.parametrize("objective", [ELBO(), GECO(0.1, initial_multiplier=2.0)])
@pytest.mark.parametrize("size", [1, 3])
def test_loss_averaged_over_all_minibatches_is_the_loss_of_the_dataset(objective, size):
    data, model = make_data(), make_model(hyperprior=True, decoder=BlindDecoder())
    full = objective.loss(model, model, data[:])
    losses = [
        objective.loss(model, model, data[list(groups)]) for groups in itertools.combinations(range(len(data)), size)
    ]
    assert sum(losses) / len(losses) == pytest.approx(full, rel=1e-6)
    assert max(losses) - min(losses) > 1  # they do differ


@pytest.mark.parametrize("objective", [ELBO(), GECO(0.1, initial_multiplier=2.0)])
def test_gradient_averaged_over_all_minibatches_is_that_of_the_dataset(objective):
    data, model = make_data(), make_model(hyperprior=True, decoder=BlindDecoder())
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(groups):
        loss = objective.differentiable_loss(model, model, data[list(groups)])
        return torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, parameters)])

    batches = list(itertools.combinations(range(len(data)), 2))
    mean = torch.stack([gradient(groups) for groups in batches]).mean(0)
    torch.testing.assert_close(mean, gradient(range(len(data))), rtol=1e-4, atol=1e-4)


def test_hyperprior_enters_once_per_dataset_not_once_per_batch():
    data = make_data()
    bare, model = make_model(decoder=BlindDecoder()), make_model(hyperprior=True, decoder=BlindDecoder())
    log_density = torch.distributions.Gamma(20.0, 4.0).log_prob(torch.tensor(0.8)).item()
    for groups in ([3], [0, 6], range(7)):
        batch = data[list(groups)]
        with_it, without = ELBO().loss(model, model, batch), ELBO().loss(bare, bare, batch)
        assert with_it - without == pytest.approx(-log_density, abs=1e-4)
        geco = GECO(0.1, initial_multiplier=2.0)
        difference = geco.loss(model, model, batch) - geco.loss(bare, bare, batch)
        assert difference == pytest.approx(-log_density / 1.2, abs=1e-4)


@pytest.mark.parametrize("make", [lambda n: ELBO(num_particles=n), lambda n: GECO(0.1, num_particles=n)])
def test_more_particles_have_the_same_mean_and_less_noise(make):
    data, model = make_data(), make_model()

    def losses(particles):
        objective = make(particles)
        return torch.tensor([objective.loss(model, model, data[:]) for _ in range(200)])

    few, many = losses(1), losses(25)
    error = (few.var() / 200 + many.var() / 200).sqrt()
    assert (few.mean() - many.mean()).abs() < 4.5 * error
    # 25 draws have a fifth of the deviation; a ratio of two deviations from 200 values is known to 7 %
    assert (few.std() / many.std()).item() == pytest.approx(5.0, rel=0.35)


@pytest.mark.parametrize("make", [ELBO, lambda: GECO(0.1)])
def test_report_gives_the_parts_per_group(make):
    report = make().report(make_terms(mse=0.5))
    means = {name: (total / count).item() for name, (total, count) in report.items()}
    assert means["log_likelihood"] == pytest.approx(LIKELIHOOD / 4)
    assert means["kl_local"] == pytest.approx(3.75 / 4)
    assert means["kl_global"] == pytest.approx(1.6875 / 4)
    assert means["mse"] == pytest.approx(0.5)
    assert means["multiplier"] == 1.0
    assert not any(part.requires_grad for pair in report.values() for part in pair)


def test_reported_multiplier_is_lambda_and_one_over_beta():
    def reported(objective):
        return objective.report(make_terms())["multiplier"][0].item()

    assert reported(ELBO(beta=4.0)) == 0.25
    assert reported(ELBO(beta=0.0)) == math.inf
    geco = GECO(0.1)
    geco.update(make_terms(0.9))
    assert reported(geco) == pytest.approx(math.exp(0.8), rel=1e-6)


@pytest.mark.parametrize("make", [ELBO, lambda: GECO(0.05)])
def test_objectives_are_losses_of_svi(make):
    data, model, objective = make_data(), make_model(), make()
    start = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    torch.manual_seed(5)
    loss = svi.step(data[:])
    torch.manual_seed(5)
    again = make_model()
    assert loss == pytest.approx(make().loss(again.model, again.guide, data[:]), rel=1e-6)
    assert not same_state(start, state_of(model))
    moved = objective.state_dict()
    svi.evaluate_loss(data[:])
    assert objective.state_dict() == moved  # evaluation moves nothing
    if isinstance(objective, GECO):
        assert objective.multiplier > 1.0


def test_evaluating_a_loss_keeps_the_multiplier():
    geco, model = GECO(0.05), make_model()
    geco.loss(model, model, make_data()[:])
    assert geco.multiplier == 1.0


def test_a_pair_of_somebody_else_is_refused():
    model, other, batch = make_model(), make_model(), make_data()[:]
    with pytest.raises(DataError, match=r"and guide of one GroupedVAE, got .*FGPVAE\.model.*TraceMeanField_ELBO\(\)"):
        ELBO().loss(model.model, other.guide, batch)
    with pytest.raises(DataError, match=r"expected model and guide of one GroupedVAE, got test_a_pair"):
        ELBO().loss(lambda b: None, lambda b: None, batch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kappa": 0.0}, r"kappa: expected a positive finite number, got 0\.0"),
        ({"kappa": 0.1, "rate": -1.0}, "rate: expected a positive finite"),
        ({"kappa": 0.1, "decay": 1.0}, r"decay: expected a number in \[0, 1\), got 1\.0"),
        ({"kappa": 0.1, "initial_multiplier": math.inf}, "initial_multiplier: expected a positive"),
        ({"kappa": 0.1, "minimum_multiplier": 2.0}, "minimum_multiplier <= initial_multiplier"),
        ({"kappa": 0.1, "maximum_multiplier": 0.5}, "minimum_multiplier <= initial_multiplier"),
        ({"kappa": 0.1, "num_particles": 0}, "num_particles: expected an integer >= 1, got 0"),
    ],
)
def test_impossible_options_of_geco_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        GECO(**options)


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_impossible_beta_is_refused(beta):
    with pytest.raises(ArgumentError, match=r"beta: expected a finite number >= 0, got .*Try 1\.0, which is the ELBO"):
        ELBO(beta=beta)


def test_ragged_members_weigh_alike_in_the_error():
    """The mean squared error is over elements, not a mean of groups' means."""
    data, model = make_data(), make_model(encoder=ConstantEncoder(), decoder=BlindDecoder())
    batch = data[:]
    terms = model.terms(batch)
    error = (model.decoder.output - data.flat().y).square().mean()
    torch.testing.assert_close(terms.mse, error)
