"""The pair in Pyro's own hands: SVI, Predictive, traces, and Pyro's ELBOs against ours."""

import copy
import io
import math
import pickle
import subprocess
import sys

import gpytorch
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from factories import SIZES, make_data, make_model, same_state, state_of
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    BernoulliLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

GROUPS = [4, 0, 5, 2]  # of 6, 3, 1 and 2 members


def repeated(loss, times):
    """Mean of a noisy loss and its standard error."""
    with torch.no_grad():
        values = torch.tensor([loss() for _ in range(times)], dtype=torch.float64)
    return values.mean().item(), (values.std() / math.sqrt(times)).item()


def assert_agree(first, second):
    """Two means agree within 4.5 standard errors (one false alarm in 100,000), which are small enough to tell."""
    (a, error_a), (b, error_b) = first, second
    error = math.hypot(error_a, error_b)
    assert error < 0.02 * abs(a), "the comparison is too noisy to mean anything"
    assert abs(a - b) < 4.5 * error


def test_a_whole_data_set_is_a_batch_and_other_things_are_named():
    model, data = make_model(), make_data()
    losses = []
    for batch in (data, data[:]):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(model.model, model.guide, batch))
    assert losses[0] == losses[1]
    with pytest.raises(ArgumentError, match="batch: expected a GroupedBatch or GroupedDataset, got Tensor"):
        model.guide(data[:].y)


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("case", ["plain", "element mask", "hyperprior", "bernoulli"])
def test_pyros_elbos_agree_with_ours_in_expectation(pyro_elbo, case):
    data = make_data(element_mask=case == "element mask")
    likelihood = None
    if case == "bernoulli":
        rows = data.flat()
        data = GroupedDataset((rows.y > 0).float(), rows.x, rows.group)
        likelihood = BernoulliLikelihood()
    model = make_model(likelihood, hyperprior=case == "hyperprior")
    batch = data[GROUPS]
    theirs = pyro_elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    ours = ELBO(num_particles=50)
    assert_agree(
        repeated(lambda: theirs.loss(model.model, model.guide, batch), 40),
        repeated(lambda: ours.loss(model.model, model.guide, batch), 40),
    )


@pytest.mark.parametrize("pyro_elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_elbos_agree_with_ours_with_the_optimal_variance(pyro_elbo):
    model, batch = make_model(GaussianLikelihood()), make_data()[GROUPS]
    assert_agree(
        repeated(lambda: pyro_elbo().loss(model.model, model.guide, batch), 400),
        repeated(lambda: ELBO().loss(model.model, model.guide, batch), 400),
    )


def test_a_left_out_hyperprior_or_scale_would_be_noticed():
    """The agreement above can fail: a hyperprior, and the scale of a minibatch, are many standard errors."""
    model, data = make_model(hyperprior=True), make_data()
    ours = repeated(lambda: ELBO(num_particles=50).loss(model, model, data[GROUPS]), 40)
    hyperprior = model.prior.log_hyperprior().item()
    assert abs(hyperprior) > 10 * ours[1]
    assert ours[0] * (1 - len(GROUPS) / len(SIZES)) > 100 * ours[1]


def test_kl_of_the_whitened_sites_is_the_posteriors():
    model, batch = make_model(), make_data()[GROUPS]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    sites = [name for name in guide.stochastic_nodes if name.startswith("u_")]
    assert sites == ["u_0", "u_1"]
    divergences = [
        torch.distributions.kl_divergence(guide.nodes[name]["fn"], trace.nodes[name]["fn"]) for name in sites
    ]
    for mine, theirs in zip(model.infer(batch).kl_blocks, divergences, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def make_model_of(inference):
    """One local block of two channels, whose inference is not the dense one."""
    kernels = {"low_rank": gpytorch.kernels.PolynomialKernel(2), "state_space": gpytorch.kernels.MaternKernel(nu=1.5)}
    kernel = kernels.get(inference, gpytorch.kernels.RBFKernel())
    points = torch.linspace(-1, 1, 3) if inference == "inducing" else None
    prior = FactorizedGPPrior([LocalChannels(2, kernel, inference=inference, inducing_points=points)])
    torch.manual_seed(0)
    return FGPVAE(MLPEncoder((3,), 2, (8,)), MLPDecoder(2, (3,), (8,)), prior, GaussianLikelihood("fixed", 0.5))


@pytest.mark.parametrize("inference", ["state_space", "low_rank", "inducing"])
def test_pair_of_every_inference_has_the_priors_covariance_and_the_posteriors_kl(inference):
    model, batch = make_model_of(inference), make_data()[GROUPS]
    x = batch.x.double()
    root = model.prior.blocks[0].covariance_root(x)
    covariance = model.prior.blocks[0].covariance(x, x)
    torch.testing.assert_close(root @ root.mT, covariance, rtol=1e-6, atol=1e-6)  # the root of a rest has jitter
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    divergence = torch.distributions.kl_divergence(guide.nodes["u_0"]["fn"], trace.nodes["u_0"]["fn"])
    torch.testing.assert_close(divergence, model.infer(batch).kl, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inference", ["low_rank", "inducing"])
def test_pyros_elbo_agrees_with_ours_without_dense_inference(inference):
    model, batch = make_model_of(inference), make_data()[GROUPS]
    theirs = TraceMeanField_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    assert_agree(
        repeated(lambda: theirs.loss(model.model, model.guide, batch), 40),
        repeated(lambda: ELBO(num_particles=50).loss(model.model, model.guide, batch), 40),
    )


def test_trace_has_the_documented_sites_shapes_and_scale():
    model, data = make_model(hyperprior=True), make_data(element_mask=True)
    batch = data[GROUPS]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    trace.compute_log_prob()
    nodes = trace.nodes
    members = batch.num_members
    assert nodes["u_0"]["value"].shape == (4, 2, members)
    assert nodes["u_1"]["value"].shape == (4, 1, 1)
    assert nodes["z"]["value"].shape == (4, members, 3)
    assert torch.equal(nodes["y"]["value"], batch.y)
    assert nodes["y"]["is_observed"]
    assert nodes["y"]["log_prob"].shape == (4,)
    for name in ("u_0", "u_1", "y"):
        assert nodes[name]["scale"] == len(data) / 4
        (frame,) = nodes[name]["cond_indep_stack"]
        assert (frame.name, frame.size, frame.full_size) == ("groups", 4, len(data))
    assert torch.equal(nodes["groups"]["value"], batch.group_index)
    hyperprior = nodes["log_hyperprior"]
    assert hyperprior["scale"] == 1.0
    torch.testing.assert_close(hyperprior["log_prob_sum"], model.prior.log_hyperprior())


def test_replayed_density_is_the_likelihood_of_the_observed_elements():
    model, batch = make_model(), make_data(element_mask=True)[GROUPS]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    output = model.decoder(z.float())
    terms = torch.distributions.Normal(output, 0.5**0.5).log_prob(batch.y)
    expected = torch.stack([terms[g][batch.observed[g]].sum() for g in range(4)])
    torch.testing.assert_close(trace.nodes["y"]["log_prob"] / trace.nodes["y"]["scale"], expected.double())


def test_sites_in_the_model_have_the_prior_and_z_its_covariance():
    model, batch = make_model(), make_data()[GROUPS]
    with torch.no_grad(), pyro.plate("draws", 20_000, dim=-2):
        z = pyro.poutine.trace(model.model).get_trace(batch).nodes["z"]["value"]
    empirical = (z - z.mean(0)).flatten(2)[:, 0]
    empirical = empirical.T @ empirical / len(z)
    exact = model.prior(batch.x).covariance_matrix[0]
    # an entry's standard error is at most 1.7 sqrt(2 / 20000) = 0.017
    torch.testing.assert_close(empirical, exact, rtol=0, atol=0.08)
    torch.testing.assert_close(z.mean(0)[0, 0], torch.tensor([0.3, 0.3, 0.0]).double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("make_loss", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
def test_svi_reduces_the_loss(make_loss):
    model, data = make_model(GaussianLikelihood(), member_dropout=0.2, hyperprior=True), make_data(element_mask=True)
    judge = ELBO(num_particles=100)
    before = judge.loss(model, model, data[:])
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    losses = [svi.step(data[[k % 7, (k + 3) % 7]]) for k in range(120)]
    assert all(math.isfinite(loss) for loss in losses)
    after = judge.loss(model, model, data[:])
    assert after < before - 15


def test_svi_moves_kernel_and_network_parameters():
    model, data = make_model(), make_data()
    before = state_of(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    svi.step(data[:])
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "prior.blocks.0.kernel.base_kernel.raw_lengthscale" in moved
    assert "prior.blocks.1.raw_variance" not in moved


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("second_of", [lambda _: make_model(), copy.deepcopy, unpickled, through_a_file])
@pytest.mark.parametrize("make_loss", [Trace_ELBO, ELBO])
def test_two_instances_do_not_share_parameters(second_of, make_loss):
    data, first = make_data(), make_model()
    first_start = state_of(first)
    SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.02}), make_loss()).step(data[:])  # announces its parameters
    trained = state_of(first)
    second = second_of(first)
    start = state_of(second)
    svi = SVI(second.model, second.guide, pyro.optim.Adam({"lr": 0.02}), make_loss())
    for _ in range(3):
        svi.step(data[:])
    assert same_state(state_of(first), trained)
    assert not same_state(trained, first_start)
    assert all(
        not torch.equal(start[name], parameter)
        for name, parameter in second.named_parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_observations_from_the_posterior_and_from_the_prior(parallel):
    model, batch = make_model().eval(), make_data()[GROUPS]
    draws = Predictive(model.model, guide=model.guide, num_samples=3000 if parallel else 7, parallel=parallel)
    sites = draws(batch, observe=False)
    count, shape = sites["y"].shape[0], batch.y.shape
    assert sites["y"].shape == (3000 if parallel else 7, *shape)
    assert sites["z"].shape == (count, *shape[:2], 3)
    if parallel:
        mean = model.infer(batch).mean
        # standard error at most sqrt(1.7 / 3000) = 0.024
        torch.testing.assert_close(sites["z"].mean(0), mean, rtol=0, atol=0.12)
    prior = Predictive(model.model, num_samples=5)(batch, observe=False)
    assert prior["y"].shape == (5, *shape)
    assert prior["y"].std(0).min() > 0


def test_importing_the_package_changes_no_global_state():
    program = """
import logging, random, warnings
import numpy, pandas, torch, torchvision, gpytorch, pyro, lightning, matplotlib
def state():
    gp = {}
    for name, value in vars(gpytorch.settings).items():
        if isinstance(value, type) and hasattr(value, "on"):
            gp[name] = value.on()
        elif isinstance(value, type) and hasattr(value, "value"):
            try:
                gp[name] = str(value.value())
            except Exception:
                gp[name] = str(value.value(torch.float32))
    return dict(
        pyro=str(pyro.settings.get()), params=len(pyro.get_param_store()), gpytorch=gp,
        dtype=torch.get_default_dtype(), threads=torch.get_num_threads(), grad=torch.is_grad_enabled(),
        validate=torch.distributions.Distribution._validate_args, tf32=torch.backends.cudnn.allow_tf32,
        deterministic=torch.are_deterministic_algorithms_enabled(), rng=torch.get_rng_state().sum().item(),
        numpy=str(numpy.random.get_state()), numpy_errors=numpy.geterr(), random=hash(random.getstate()),
        root=logging.getLogger().level, handlers=str(logging.getLogger().handlers),
        levels={n: l.level for n, l in logging.root.manager.loggerDict.items() if isinstance(l, logging.Logger)},
        warnings=str(warnings.filters), matplotlib=str(dict(matplotlib.rcParams)),
        printing=numpy.get_printoptions(), pandas=pandas.get_option("display.max_rows"),
    )
before = state()
import fgp_gpytorch
from fgp_gpytorch import datasets, kernels, nets
after = state()
known = before["levels"].keys()
after["levels"] = {n: l for n, l in after["levels"].items() if n in known}
changed = [k for k in before if before[k] != after[k]]
assert not changed, [(k, before[k], after[k]) for k in changed]
print("unchanged")
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == "unchanged", run.stderr
