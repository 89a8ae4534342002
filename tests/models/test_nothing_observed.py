"""A member, group, batch or element without observations changes nothing."""

import dataclasses
import math

import gpytorch
import pyro
import pytest
import torch
from torch import nn

from factories import make_data, make_model
from fgp_gpytorch import (
    CVAE,
    ELBO,
    GECO,
    GPVAE,
    SVGPVAE,
    BernoulliLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LatentAngleFGPVAE,
    LocalChannels,
    fit,
)
from fgp_gpytorch.data import GroupedBatch
from fgp_gpytorch.errors import DataError, NonFiniteError
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork


def with_unobserved(extra=(2, 1), members=False):
    """`make_data` in float64, and the same with groups (or members of all groups) in which nothing was observed."""
    data = make_data(element_mask=True, dtype=torch.float64)
    y, x, group = data.flat()
    y_mask = data.members.y_mask
    sizes = torch.tensor(extra) if not members else torch.ones(len(data), dtype=torch.int64)
    new = torch.repeat_interleave(torch.arange(len(sizes)) + (0 if members else len(data)), sizes)
    nothing = torch.zeros(len(new), 3, dtype=torch.bool)
    both = GroupedDataset(
        torch.cat([y, torch.full((len(new), 3), torch.nan, dtype=y.dtype)]),
        torch.cat([x, 2.5 + 0.01 * torch.arange(len(new), dtype=x.dtype).unsqueeze(-1)]),
        torch.cat([group, new]),
        torch.cat([y_mask, nothing]),
    )
    return data, both


def gradients(model, batch, objective):
    """Gradients of the loss."""
    model.zero_grad()
    torch.manual_seed(0)
    objective.differentiable_loss(model, model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class MeanDecoder(nn.Module):
    """A decoder of no latent, so that random numbers play no part."""

    def __init__(self):
        super().__init__()
        self.output = nn.Parameter(torch.linspace(-1, 1, 3, dtype=torch.float64))

    def forward(self, z):
        return self.output + 0 * z.sum(-1, keepdim=True)


@pytest.mark.parametrize("members", [False, True])
@pytest.mark.parametrize("objective", [ELBO(), GECO(0.1, initial_multiplier=2.0)])
@pytest.mark.parametrize("likelihood", ["optimal", "learned"])
def test_unobserved_groups_and_members_leave_loss_and_gradient(members, objective, likelihood):
    if likelihood == "learned" and isinstance(objective, GECO):
        pytest.skip("GECO has no gradient for a variance")
    data, both = with_unobserved(members=members)
    model = make_model(GaussianLikelihood(likelihood), decoder=MeanDecoder()).double()
    one, two = model.terms(data[:]), model.terms(both[:])
    groups = len(data)
    for name in ("log_likelihood", "squared_error", "num_elements", "num_members", "kl_local", "kl_global"):
        before, after = getattr(one, name), getattr(two, name)
        torch.testing.assert_close(after[:groups], before, msg=name)
        assert not after[groups:].abs().gt(1e-12).any(), name
    assert one.scale == two.scale == 1
    first, second = gradients(model, data[:], objective), gradients(model, both[:], objective)
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, msg=name)


def test_posterior_of_an_unobserved_group_is_its_prior():
    _, both = with_unobserved()
    model, batch = make_model().double().eval(), both[[-1, 0, -2]]
    posterior = model.infer(batch)
    prior = model.prior(posterior.x)
    torch.testing.assert_close(posterior.mean[[0, 2]], prior.mean[[0, 2]])
    torch.testing.assert_close(posterior.variance[[0, 2]], prior.variance[[0, 2]])
    assert posterior.kl[[0, 2]].abs().max() < 1e-12 < posterior.kl[1]


@pytest.mark.parametrize("path", ["terms", "log_prob", "pyro"])
def test_a_batch_without_observations_leaves_the_optimal_variance(path):
    _, both = with_unobserved()
    likelihood = GaussianLikelihood(variance=0.7)
    model = make_model(likelihood).double()

    def step(batch):
        if path == "terms":
            return model.terms(batch).log_likelihood.sum()
        if path == "log_prob":
            return likelihood.log_prob(torch.randn_like(batch.y), batch.y, batch.observed).sum()
        trace = pyro.poutine.trace(model.model).get_trace(batch)
        trace.compute_log_prob()
        return trace.nodes["y"]["log_prob_sum"]

    empty, full = both[[-1, -2]], both[[0, 1]]
    assert step(empty) == 0
    assert likelihood.variance.item() == pytest.approx(0.7)
    assert int(likelihood._num_updates) == 0
    step(full)
    variance = likelihood.variance.clone()
    assert variance != 0.7
    assert int(likelihood._num_updates) == 1
    assert step(empty) == 0
    assert torch.equal(likelihood.variance, variance)
    assert int(likelihood._num_updates) == 1


def test_running_variance_is_that_of_the_observed_batches_alone():
    data, both = with_unobserved((2, 1, 3, 1, 2, 4, 1))
    settings = {"epochs": 1, "learning_rate": 1e-30, "folder": None, "progress": False, "accelerator": "cpu"}
    variances = []
    for rows in (data, both):
        model = make_model(GaussianLikelihood(), decoder=MeanDecoder()).double()
        fit(model, rows, batch_size=len(rows), seed=0, **settings)
        variances.append(model.likelihood.variance.item())
    model = make_model(GaussianLikelihood(), decoder=MeanDecoder()).double()
    fit(model, both, batch_size=1, seed=0, **settings)
    assert int(model.likelihood._num_updates) == len(data)
    assert variances[0] == pytest.approx(variances[1], rel=1e-12)


def test_a_batch_without_observations_leaves_gecos_state():
    _, both = with_unobserved()
    model, geco = make_model().double(), GECO(0.1)
    empty, full = model.terms(both[[-1]]), model.terms(both[:])
    for _ in range(2):  # before the first step, and after one
        before = geco.state_dict()
        geco.update(empty)
        after = geco.state_dict()
        assert torch.equal(before["log_multiplier"], after["log_multiplier"])
        assert torch.equal(before["average"], after["average"]) or before["average"].isnan()
        assert bool(before["average"].isnan()) == bool(after["average"].isnan())
        geco.update(full)


def test_gecos_bound_counts_observed_members():
    y_mask = torch.ones(6, 4, dtype=torch.bool)
    y_mask[3:] = False
    data = GroupedDataset(torch.randn(6, 4), torch.arange(6.0), [0, 0, 1, 0, 1, 2], y_mask)
    model, geco = make_model(y_shape=(4,)), GECO(1e-3, rate=1e6)
    geco.update(model.terms(data[:]))
    assert geco.multiplier == pytest.approx(4 / (2 * 1e-3))


class Counting(MLPEncoder):
    """An encoder with running statistics, which notes its rows."""

    def __init__(self):
        super().__init__([3], 3, (8,))
        self.norm, self.rows = nn.BatchNorm1d(3), []

    def forward(self, y, features=None, observed=None):
        self.rows.append(len(y))
        return super().forward(self.norm(y), features)


def test_unobserved_members_do_not_enter_the_encoder_or_its_batch_norm():
    data, both = with_unobserved(members=True)
    states = []
    for rows in (data, both):
        model = make_model(encoder=Counting()).double()
        model.terms(rows[:])
        states.append(model.encoder.norm.state_dict())
        seen = int(rows.members.y_mask.any(1).sum())
        assert model.encoder.rows == [seen]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    batch = with_unobserved()[1][[-1, -2]]
    terms = model.terms(batch)  # the encoder gets nothing
    assert len(model.encoder.rows) == 1
    terms.kl.sum().backward()
    # with several processes every parameter needs a gradient
    assert all(p.grad is not None and not p.grad.any() for p in model.encoder.layers.parameters())


class NormedDecoder(MLPDecoder):
    """A decoder with running statistics, which notes its rows."""

    def __init__(self, num_features=0):
        super().__init__(3, [3], (8,), num_features=num_features)
        self.norm, self.rows = nn.BatchNorm1d(3), []

    def forward(self, z, features=None):
        self.rows.append(z.shape[:-1].numel())
        return super().forward(self.norm(z.reshape(-1, 3)).reshape(z.shape), features)


@pytest.mark.parametrize("path", ["terms", "pyro"])
@pytest.mark.parametrize("element_mask", [False, True])
def test_only_observed_members_enter_a_batch_norm_of_the_decoder(path, element_mask):
    """Padding, and members and batches without observations. Those enter neither its statistics nor a gradient."""
    data = with_unobserved(members=True)[1] if element_mask else make_data(dtype=torch.float64)
    model = make_model(decoder=NormedDecoder()).double()
    batch, decoder = data[:], model.decoder
    seen = int(batch.observed.any(-1).sum())
    assert seen < batch.mask.numel()

    def loss(batch):
        if path == "terms":
            return model.terms(batch, num_particles=1).log_likelihood.sum()
        return pyro.poutine.trace(model.model).get_trace(batch).log_prob_sum()

    loss(batch).backward()
    assert decoder.rows == [seen]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in decoder.parameters())
    before = {name: value.clone() for name, value in decoder.norm.state_dict().items()}
    empty = with_unobserved()[1][[-1, -2]]
    model.zero_grad()
    model.terms(empty).log_likelihood.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in decoder.norm.state_dict().items())
    assert decoder.norm.training
    # with several processes every parameter needs a gradient
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("num_particles", [1, 3])
def test_decoding_observed_members_alone_gives_the_loss_and_the_gradient(num_particles):
    """The same as a decoder of all places of the batch, padding too."""
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder([3], 3, (8,), num_features=1), MLPDecoder(3, [3], (8,), num_features=1)
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    likelihood = GaussianLikelihood("fixed", 0.3)
    model, batch = CVAE(encoder, decoder, prior, likelihood=likelihood).double(), with_unobserved()[1][:]
    torch.manual_seed(1)
    z = model.training_posterior(batch).rsample_marginals(torch.Size([num_particles] if num_particles > 1 else []))
    output = model.decode(z, model.encode(batch).x)
    expected = likelihood.log_prob(output, batch.y, batch.observed).sum(-1).reshape(-1, len(batch.mask)).mean(0)
    torch.manual_seed(1)
    got = model.terms(batch, num_particles=num_particles).log_likelihood
    torch.testing.assert_close(got, expected)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    first = torch.autograd.grad(expected.sum(), parameters, retain_graph=True)
    for one, two in zip(first, torch.autograd.grad(got.sum(), parameters), strict=True):
        torch.testing.assert_close(one, two)


def nystrom():
    return NystromFeatures(gpytorch.kernels.RBFKernel(), torch.linspace(0, 3, 6).unsqueeze(-1))


@pytest.mark.parametrize("members", [False, True])
def test_a_gp_vae_is_not_changed_by_what_was_not_observed(members):
    data, both = with_unobserved(members=members)
    torch.manual_seed(0)
    network = RepresentationNetwork(MLPFeatures([3], 8), MLPFeatures([8], 2), "mean")
    options = {"num_factors": 2, "view_features": nystrom(), "likelihood": GaussianLikelihood("fixed", 0.3)}
    model = GPVAE(MLPEncoder([3], 2), MeanDecoder(), 2, representation=network, **options).double()
    torch.testing.assert_close(model.vectors_of(both)[: len(data)], model.vectors_of(data))
    one, two = model.terms(data[:]), model.terms(both[:])
    torch.testing.assert_close(one.kl.sum(), two.kl.sum())
    first, second = gradients(model, data[:], ELBO()), gradients(model, both[:], ELBO())
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, msg=name)
    torch.testing.assert_close(model.summarize(data).kl, model.summarize(both).kl)


def test_an_unobserved_group_does_not_change_the_start_of_the_group_vectors():
    data, both = with_unobserved()
    vectors = []
    for rows in (data, both):
        torch.manual_seed(0)
        model = GPVAE(MLPEncoder([3], 2), MLPDecoder(2, [3]), 2, num_groups=len(rows), num_factors=2)
        kept = model.group_vectors.vectors.detach().clone()
        model.initialize_vectors(rows)
        vectors.append(model.group_vectors.vectors.detach())
    torch.testing.assert_close(vectors[1][: len(data)], vectors[0])
    assert torch.equal(vectors[1][len(data) :], kept[len(data) :])


def test_inducing_points_start_at_observed_members():
    _, both = with_unobserved((40,))
    model = SVGPVAE(
        MLPEncoder([3], 2), MLPDecoder(2, [3]), 2, num_groups=len(both), num_factors=2, num_inducing=30,
        view_kernel=gpytorch.kernels.RBFKernel(),
    )  # fmt: skip
    model.initialize_inducing(both)
    assert not bool((model.prior.inducing_x == 2.5).any())
    with pytest.raises(DataError, match="dataset: expected an observed member, got none"):
        model.initialize_inducing(both[[-1]])


class LogFeatures(nn.Module):
    """Features of a positive x. A padding of 0 would give minus infinity."""

    def forward(self, x):
        assert bool((x > 0).all())
        return x.log()


class LogKernel(gpytorch.kernels.RBFKernel):
    """A kernel of a positive x."""

    def forward(self, x1, x2, **params):
        assert bool((x1 > 0).all())
        assert bool((x2 > 0).all())
        return super().forward(x1.log(), x2.log(), **params)


@pytest.mark.parametrize("empty_group", [False, True])
def test_padding_of_x_reaches_no_network_and_no_kernel(empty_group):
    data = make_data(element_mask=True)
    batch = dataclasses.replace(data[:], x=torch.where(data[:].mask.unsqueeze(-1), data[:].x + 1, 0.0))
    if empty_group:
        mask = batch.mask.clone()
        mask[1] = False
        batch = GroupedBatch.from_tensors(batch.y, batch.x, mask, batch.observed)
    prior = FactorizedGPPrior([LocalChannels(2, LogKernel()), GlobalChannels(1)])
    encoder, decoder = MLPEncoder([3], 3, num_features=1), MLPDecoder(3, [3], num_features=1)
    model = CVAE(encoder, decoder, prior, LogFeatures(), GaussianLikelihood("fixed", 0.3))
    ELBO().loss_and_grads(model, model, batch)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    trace = pyro.poutine.trace(model.model).get_trace(batch)
    assert math.isfinite(trace.log_prob_sum().item())
    model.model(batch, observe=False)
    model.eval()
    assert bool(model.reconstruct(batch).isfinite().all())


def test_an_angle_encoder_gets_observed_members_only():
    y_mask = torch.ones(6, 3, dtype=torch.bool)
    y_mask[4:] = False
    known = torch.tensor([True, False, True, False, False, True])
    data = GroupedDataset(torch.randn(6, 3), torch.rand(6), [0, 0, 1, 1, 2, 2], y_mask, known)
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.CosineKernel()), GlobalChannels(1)])
    kernel = prior.blocks[0].kernel
    kernel.period_length = math.pi
    model = LatentAngleFGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior, MLPFeatures([3], 2))
    empty = model.terms(data[[2]])
    assert empty.kl_features.abs().max() < 1e-12
    assert not empty.log_supervision.any()
    (empty.kl_features + empty.log_supervision).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.angle_encoder.parameters())


@pytest.mark.parametrize("variance", [math.inf, -1.0])
def test_an_infinite_or_negative_variance_is_refused_in_training_too(variance):
    class Bad(MLPEncoder):
        def forward(self, y, features=None, observed=None):
            mean, own = super().forward(y)
            return mean, torch.full_like(own, variance)

    model, batch = make_model(encoder=Bad([3], 3)), make_data()[:]
    kind, words = (NonFiniteError, "finite variances, got inf") if variance > 0 else (DataError, "positive .* got -1")
    for call in (model.terms, model.infer, model.encode):
        with pytest.raises(kind, match=rf"encoder: expected {words}\. Try"):
            call(batch)
    if kind is NonFiniteError:
        with pytest.raises(NonFiniteError, match=r"encoder's mean and variance.*in epoch 0, in the batch of groups"):
            fit(model, make_data(), epochs=1, batch_size=2, folder=None, progress=False, accelerator="cpu")


def test_geco_refuses_a_likelihood_without_a_squared_error():
    data = make_data()
    rows = GroupedDataset((data.flat().y > 0).float(), data.flat().x, data.flat().group)
    model = make_model(BernoulliLikelihood())
    with pytest.raises(
        DataError, match=r"expected a GaussianLikelihood for GECO, .*got BernoulliLikelihood\. Try ELBO"
    ):
        GECO(0.02).terms(model, model, rows[:])
    with pytest.raises(DataError, match="expected a GaussianLikelihood for GECO"):
        fit(model, rows, objective=GECO(0.02), epochs=1, folder=None, progress=False, accelerator="cpu")
