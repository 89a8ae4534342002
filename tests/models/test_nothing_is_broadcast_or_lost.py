"""Mistakes and odd cases that once went through in silence."""

import gpytorch
import pytest
import torch
from torch import nn

from factories import make_data, make_model, make_prior, same_state
from fgp_gpytorch import (
    ELBO,
    FGPVAE,
    GECO,
    GPVAE,
    SVGPVAE,
    BernoulliLikelihood,
    Configurable,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedBatch,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.errors import ArgumentError, DataError, MissingFileError, ShapeError
from fgp_gpytorch.models import AnglePosterior
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

F64 = torch.float64


@pytest.mark.parametrize("shape", [20, 2.0, [1.5], "ab", [-1]])
def test_a_number_in_the_place_of_a_shape_of_draws_is_refused(shape):
    model, data = make_model().eval(), make_data()
    for context in (data, None):
        with pytest.raises(ArgumentError, match=r"sample_shape: expected a sequence of integers, got .*Try \["):
            model.generate(torch.zeros(len(data), 1, 1), context, sample_shape=shape)


def draws_of(kind):
    """Every way to draw from a posterior or a prior of one kind of model."""
    data = make_data()
    if kind is FGPVAE:
        model, batch = make_model(), data[:]
        q = model.infer(batch)
        return [
            q.rsample,
            q.predict(batch.x).rsample,
            lambda s: q.rsample_paths(batch.x, s),
            lambda s: model.prior.sample(batch.x, s),
        ]
    networks, local = (MLPEncoder([3], 3), MLPDecoder(3, [3])), [LocalChannels(2, gpytorch.kernels.RBFKernel())]
    first = (local, 1) if kind is CorrelatedFGPVAE else (3,)
    q = kind(*networks, *first, num_groups=len(data), num_factors=2).infer(data[:])
    return [q.rsample, q.predict(data[:].x).rsample]


@pytest.mark.parametrize("shape", [20, None, [1.5], [-1]])
@pytest.mark.parametrize("kind", [FGPVAE, GPVAE, SVGPVAE, CorrelatedFGPVAE])
def test_posteriors_and_priors_refuse_a_number_in_the_place_of_a_shape_of_draws(kind, shape):
    for draw in draws_of(kind):
        with pytest.raises(ArgumentError, match=r"sample_shape: expected a sequence of integers, got .*Try \["):
            draw(shape)
        first = draw([2])
        assert all(part.shape[0] == 2 for part in (first if isinstance(first, tuple) else (first,)))


def test_an_angle_refuses_a_number_in_the_place_of_a_shape_of_draws():
    angle = AnglePosterior(torch.ones(2, 3, 2), 360.0)
    assert angle.sample([4]).shape == (4, 2, 3)
    with pytest.raises(ArgumentError, match=r"sample_shape: expected a sequence of integers, got 4\. Try \[4\]"):
        angle.sample(4)


def test_a_decoder_of_another_shape_is_refused_everywhere():
    model = FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [1]), make_prior())
    batch = make_data()[[0, 4]]
    # padding is not decoded in training: the 9 members come as one group
    words = r"decoder: expected the shape \((2, 6|1, 9), 3\) from z \((2, 6|1, 9), 3\), got \((2, 6|1, 9), 1\)"
    for use in (model.terms, model.reconstruct, model.model, lambda b: model.generate(b.x, b)):
        with pytest.raises(ShapeError, match=words):
            use(batch)

    class Flat(nn.Module):
        def forward(self, z):
            return z.flatten()

    with pytest.raises(ShapeError, match=r"decoder: expected the shape \(1, 2, '\*y_shape'\)"):
        FGPVAE(MLPEncoder([3], 3), Flat(), make_prior()).generate(torch.rand(1, 2, 1))


@pytest.mark.parametrize("kernel", ["RBFKernel", "PeriodicKernel", "MaternKernel"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 0.0, 1e18])
def test_padding_among_dates_in_seconds_leaves_the_observed_alone(kernel, junk):
    base = getattr(gpytorch.kernels, kernel)()
    base.lengthscale = 5.0
    prior = FactorizedGPPrior([LocalChannels(2, base), GlobalChannels(1)])
    x = (1.7e9 + 3 * torch.arange(5, dtype=F64)).reshape(1, 5, 1)
    mean, variance = torch.randn(1, 5, 3, dtype=F64), torch.rand(1, 5, 3, dtype=F64) + 0.1
    expected = prior.posterior(x[:, :4], mean[:, :4], variance[:, :4])
    x[0, 4] = junk
    mask = torch.tensor([[True, True, True, True, False]])
    posterior = prior.posterior(x, mean, variance, mask)
    torch.testing.assert_close(posterior.kl, expected.kl)
    torch.testing.assert_close(posterior.mean[:, :4], expected.mean)
    assert posterior.variance.isfinite().all()


def test_a_masked_member_at_an_ordinary_place_keeps_its_x():
    prior = make_prior()
    x = torch.tensor([[[0.1], [0.1], [40.0]]], dtype=F64)
    mean, variance = torch.randn(1, 3, 3, dtype=F64), torch.ones(1, 3, 3, dtype=F64)
    posterior = prior.posterior(x, mean, variance, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(posterior.mean[:, 2:], posterior.predict(x[:, 2:]).mean)


def test_float32_algebra_refuses_x_that_it_cannot_tell_apart():
    prior = make_prior(dtype=torch.float32)
    seconds = 1.7e9 + torch.arange(4, dtype=F64).reshape(1, 4, 1)
    with pytest.raises(DataError, match=r"x: expected values that differ in torch\.float32, got 1\.7e\+09"):
        prior(seconds)
    assert prior(seconds - 1.7e9).mean.shape == (1, 4, 3)
    early = torch.arange(4, dtype=F64).reshape(1, 4, 1)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    given = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    with pytest.raises(DataError, match=r"x: expected values that differ in torch\.float32"):  # beside an early group
        prior.posterior(torch.cat([early, seconds]), *given, mask)
    with pytest.raises(DataError, match=r"x: expected values that differ in torch\.float32"):  # within a group
        prior(torch.cat([early, seconds], 1))
    late = torch.where(mask[:, :, None], torch.cat([early, 1e6 * early]), 0.0)
    assert prior.posterior(late, *given, mask).mean.isfinite().all()
    assert prior(torch.full((1, 2, 1), 0.1, dtype=F64)).mean.shape == (1, 2, 3)


def test_a_look_without_gradients_costs_a_later_loss_nothing():
    prior = make_prior()
    x = torch.rand(2, 4, 1, dtype=F64)
    mean = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    variance = torch.ones(2, 4, 3, dtype=F64)
    (expected,) = torch.autograd.grad(prior.posterior(x, mean, variance).kl.sum(), mean)
    posterior = prior.posterior(x, mean, variance)
    with torch.no_grad():
        posterior.mean, posterior.predict(x), posterior.kl, posterior.log_evidence
    (got,) = torch.autograd.grad(posterior.kl.sum(), mean, retain_graph=True)
    assert torch.equal(got, expected)
    assert posterior.log_evidence.requires_grad
    assert posterior.mean.requires_grad


def test_observations_without_a_shape():
    rows = make_data().flat()
    y_mask = torch.rand(len(rows.y)) > 0.2
    for likelihood, y in ((GaussianLikelihood(), rows.y[:, 0]), (BernoulliLikelihood(), rows.y[:, 0].sigmoid())):
        data = GroupedDataset(y, rows.x, rows.group, y_mask)
        model = FGPVAE(MLPEncoder([], 3), MLPDecoder(3, []), make_prior(), likelihood)
        batch = data[[4, 0]]
        terms = model.terms(batch)
        assert terms.num_elements.tolist() == batch.y_mask.sum(-1).tolist()
        assert terms.log_likelihood.isfinite().all()
        assert model.reconstruct(batch).shape == (2, 6)
        assert model.generate(torch.rand(2, 3, 1), batch).shape == (2, 3)


def test_a_shared_kernels_hyperprior_counts_once():
    kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 6.0))
    once = FactorizedGPPrior([LocalChannels(2, kernel)]).log_hyperprior()
    assert torch.equal(FactorizedGPPrior([LocalChannels(1, kernel), LocalChannels(1, kernel)]).log_hyperprior(), once)


def test_observations_in_another_precision_are_cast_for_the_encoder():
    single, double = make_data(), make_data(dtype=F64)
    model = make_model().eval()
    torch.testing.assert_close(model.reconstruct(single), model.reconstruct(double))
    assert model.terms(double[:]).log_likelihood.isfinite().all()


def test_geco_refuses_a_variance_it_would_never_move():
    model = make_model(GaussianLikelihood("learned"))
    with pytest.raises(DataError, match="likelihood: expected one without a learned variance for GECO"):
        GECO(0.1).differentiable_loss(model.model, model.guide, make_data()[:])
    assert ELBO().differentiable_loss(model.model, model.guide, make_data()[:]).isfinite()


def test_bernoulli_refuses_what_is_no_probability():
    model = make_model(BernoulliLikelihood())
    for use in (model.terms, model.model):
        with pytest.raises(DataError, match=r"y: expected values in \[0, 1\] for a BernoulliLikelihood, got -"):
            use(make_data()[:])


def test_negative_variances_stop_training_too():
    class Negative(MLPEncoder):
        def forward(self, y, features=None):
            mean, variance = super().forward(y)
            return mean, -variance

    model = make_model(encoder=Negative([3], 3))
    for use in (model.terms, model.guide):
        with pytest.raises(DataError, match="encoder: expected positive variances, got -"):
            use(make_data()[:])


def test_asking_for_the_loss_moves_nothing():
    model, batch = make_model(GaussianLikelihood()), make_data()[:]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ELBO().loss(model.model, model.guide, batch)
    assert same_state(before, model.state_dict())
    ELBO().differentiable_loss(model.model, model.guide, batch)
    assert not same_state(before, model.state_dict())


def test_a_whole_data_set_serves_as_a_batch():
    model, data = make_model(), make_data()
    assert torch.equal(model.terms(data).kl_local, model.terms(data[:]).kl_local)


def test_kernels_that_do_not_fit_the_features_are_named():
    x = torch.rand(1, 3, 2, dtype=F64)
    ard = FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernel(ard_num_dims=3))])
    with pytest.raises(ShapeError, match=r"kernel RBFKernel: expected to evaluate x with D = 2 .* Try ard_num_dims=2"):
        ard(x)
    with pytest.raises(ShapeError, match=r"kernel RBFKernelGrad: expected one row for each member, \(3, 3\)"):
        FactorizedGPPrior([LocalChannels(1, gpytorch.kernels.RBFKernelGrad())])(x)


def test_values_of_the_wrong_type_are_named():
    prior = make_prior()
    with pytest.raises(ArgumentError, match=r"x: expected a tensor or an array of numbers, got str"):
        prior.sample("x")
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(G, Q\*, D\), got \(1, 1\)"):
        make_model().generate([[0.0]])
    with pytest.raises(DataError, match=r"variance: expected a value that the constraint .* allows, got 1"):
        GlobalChannels(1, variance_constraint=gpytorch.constraints.Interval(2.0, 3.0))
    with pytest.raises(ArgumentError, match="num_channels: expected an integer >= 1, got True"):
        GlobalChannels(True)
    with pytest.raises(DataError, match=r"group_index: expected integers, got torch\.float32"):
        GroupedBatch.from_tensors(torch.rand(2, 3, 1), torch.rand(2, 3), group_index=[0.6, 1.9])
    with pytest.raises(ArgumentError, match=r"num_dataset_groups: expected an integer >= 1, got 2\.5"):
        GroupedBatch.from_tensors(torch.rand(2, 3, 1), torch.rand(2, 3), num_dataset_groups=2.5)


# saving


class Mine(FGPVAE):
    def extra(self):
        return 1


class Leaky(Configurable, nn.Module):
    def __init__(self, slope=0.1):
        super().__init__()
        self.slope, self.layer = slope, nn.Linear(3, 3)

    def forward(self, z):
        return nn.functional.leaky_relu(self.layer(z), self.slope)


class SubLeaky(Leaky):
    def extra(self):
        return 2


def test_subclasses_without_a_constructor_keep_their_arguments(tmp_path):
    model = Mine(MLPEncoder([3], 3), SubLeaky(slope=0.7), make_prior())
    model.save(tmp_path / "model.pt")
    loaded = Mine.load(tmp_path / "model.pt")
    assert type(loaded) is Mine
    assert type(loaded.decoder) is SubLeaky
    assert loaded.decoder.slope == 0.7


def test_parts_that_were_replaced_are_saved_as_they_are(tmp_path):
    model, data = make_model().eval(), make_data()
    model.decoder, model.likelihood, model.member_dropout = Leaky(0.4), BernoulliLikelihood(), 0.5
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    assert loaded.member_dropout == 0.5
    assert isinstance(loaded.likelihood, BernoulliLikelihood)
    assert torch.equal(loaded.reconstruct(data), model.reconstruct(data))


def test_tied_parameters_stay_tied(tmp_path):
    first, second = gpytorch.kernels.RBFKernel(), gpytorch.kernels.RBFKernel()
    second.raw_lengthscale = first.raw_lengthscale
    prior = FactorizedGPPrior([LocalChannels(2, first), LocalChannels(1, second)])
    FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior).save(tmp_path / "model.pt")
    blocks = FGPVAE.load(tmp_path / "model.pt").prior.blocks
    assert blocks[0].kernel.raw_lengthscale is blocks[1].kernel.raw_lengthscale


def test_a_folder_is_no_file_to_save_to(tmp_path):
    with pytest.raises(MissingFileError, match="expected a file, got the folder"):
        make_model().save(tmp_path)


def test_one_x_for_all_groups_is_that_x_for_each_group():
    model, context = make_model().eval(), make_data()[[0, 1, 3]]
    x = torch.rand(2, 1)
    every = x.expand(3, 2, 1)
    assert torch.equal(model.generate(x, context), model.generate(every, context))
    assert torch.equal(model.predict(x, context).mean, model.predict(every, context).mean)
    assert model.generate(torch.rand(3, 1), context).shape == (3, 3, 3)  # (G, D) are G members of each group
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(Q\*, 1\), got \(2, 3\)"):
        model.generate(torch.rand(2, 3), context)
