import dataclasses

import pyro
import pytest
import torch
from torch import nn

from factories import BlindDecoder, ConstantEncoder, make_data, make_model, make_prior
from fgp_gpytorch import CVAE, FGPVAE, BernoulliLikelihood, GaussianLikelihood, GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


def slow_terms(model, data, groups, seed, particles, padded):
    """One group after another, one member after another; only the noise is drawn as the model does."""
    torch.manual_seed(seed)
    noise = torch.randn(*([particles] if particles > 1 else []), len(groups), padded, 3, dtype=torch.float64)
    noise = noise.reshape(particles, len(groups), padded, 3)
    likelihoods, divergences, errors = [], [], []
    for g, group in enumerate(groups):
        alone = data[group]  # one group, not padded
        mean, variance = model.encoder(alone.y[0])
        posterior = model.prior.posterior(alone.x, mean[None], variance[None])
        log_likelihood, squared_error = 0.0, 0.0
        for s in range(particles):
            for q in range(alone.num_members):
                z = posterior.mean[0, q] + posterior.variance[0, q].sqrt() * noise[s, g, q]
                output = model.decoder(z.float())
                observed = alone.observed[0, q]
                if isinstance(model.likelihood, BernoulliLikelihood):
                    density, expected = torch.distributions.Bernoulli(logits=output), output.sigmoid()
                else:
                    density, expected = torch.distributions.Normal(output, model.likelihood.variance.sqrt()), output
                log_likelihood += density.log_prob(alone.y[0, q])[observed].sum() / particles
                squared_error += (expected - alone.y[0, q])[observed].square().sum() / particles
        likelihoods.append(log_likelihood)
        errors.append(squared_error)
        divergences.append([posterior.kl_blocks[0][0], posterior.kl_blocks[1][0]])
    return likelihoods, divergences, errors


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", ["fixed", "learned", "bernoulli"])
@pytest.mark.parametrize("element_mask", [False, True])
def test_terms_equal_a_loop_over_groups_and_members(particles, kind, element_mask):
    data = make_data(element_mask=element_mask)
    if kind == "bernoulli":
        rows = data.flat()
        y_mask = data[:].observed[data[:].mask] if element_mask else None
        data = GroupedDataset((rows.y > 0).float(), rows.x, rows.group, y_mask)
    likelihood = BernoulliLikelihood() if kind == "bernoulli" else GaussianLikelihood(kind, 0.4)
    model, groups = make_model(likelihood, hyperprior=True), [4, 0, 5, 2]
    with torch.no_grad():
        torch.manual_seed(11)
        terms = model.terms(data[groups], particles)
        likelihoods, divergences, errors = slow_terms(model, data, groups, 11, particles, 6)
    # networks are float32: some hundred roundings of 6e-8
    torch.testing.assert_close(terms.log_likelihood, torch.stack(likelihoods), rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(terms.squared_error, torch.stack(errors), rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(terms.kl_local, torch.stack([kl[0] for kl in divergences]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.kl_global, torch.stack([kl[1] for kl in divergences]), rtol=1e-5, atol=1e-6)
    assert terms.num_members.tolist() == [6, 3, 1, 2]
    observed = [int(data[g].observed.sum()) for g in groups]
    assert terms.num_elements.tolist() == observed
    assert (terms.num_dataset_groups, terms.num_dataset_members) == (7, 25)
    torch.testing.assert_close(terms.log_hyperprior, model.prior.log_hyperprior())


def test_optimal_variance_is_shared_by_the_groups_of_the_batch():
    model, batch = make_model(GaussianLikelihood(), decoder=BlindDecoder()), make_data(element_mask=True)[:]
    terms = model.terms(batch)
    error = (model.decoder.output - batch.y)[batch.observed].square().mean()
    normal = torch.distributions.Normal(model.decoder.output, error.sqrt())
    expected = torch.stack([normal.log_prob(y)[o].sum() for y, o in zip(batch.y, batch.observed, strict=True)])
    torch.testing.assert_close(terms.log_likelihood, expected)
    torch.testing.assert_close(model.likelihood.variance, error)


def test_unobserved_elements_do_not_count():
    model, batch = make_model(encoder=ConstantEncoder()), make_data(element_mask=True)[:]
    garbage = dataclasses.replace(batch, y=torch.where(batch.observed, batch.y, 1e6))
    torch.manual_seed(2)
    clean = model.terms(batch)
    torch.manual_seed(2)
    for mine, theirs in zip(model.terms(garbage), clean, strict=True):
        assert (mine is None and theirs is None) or torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))


def test_padding_does_not_count_and_gives_finite_gradients():
    model, data = make_model(), make_data()
    batch = data[[0, 4]]
    garbage = dataclasses.replace(
        batch, y=torch.where(batch.observed, batch.y, 1e6), x=torch.where(batch.mask[..., None], batch.x, 1e9)
    )
    torch.manual_seed(2)
    clean = model.terms(batch)
    torch.manual_seed(2)
    terms = model.terms(garbage)
    torch.testing.assert_close(terms.kl_local, clean.kl_local)
    torch.testing.assert_close(terms.log_likelihood, clean.log_likelihood)
    (terms.kl_local.sum() - terms.log_likelihood.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_padding_does_not_count_beside_features_far_from_zero():
    """Seconds since 1970 in ragged groups: a padding of 0 must not eat the digits of the distances."""
    model, data = make_model().double(), make_data(dtype=torch.float64)
    rows = data.flat()
    shifted = GroupedDataset(rows.y, rows.x + 2.0**31, rows.group)
    # x itself keeps 2^-22 = 2e-7 there
    torch.testing.assert_close(model.infer(shifted).kl, model.infer(data).kl, rtol=1e-5, atol=1e-5)
    batch = shifted[:]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    trace = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    divergence = torch.distributions.kl_divergence(guide.nodes["u_0"]["fn"], trace.nodes["u_0"]["fn"])
    torch.testing.assert_close(divergence, model.infer(data).kl_blocks[0], rtol=1e-5, atol=1e-5)


def test_padded_members_do_not_enter_the_encoder():
    model, data = make_model(encoder=ConstantEncoder()), make_data()
    model.terms(data[[0, 4, 5]])
    model.infer(data[[4]])
    model.reconstruct(data)
    assert model.encoder.rows == [3 + 6 + 1, 6, 25]


class Told(nn.Module):
    """Remembers what it was told of; its mean is how many elements were observed."""

    takes_observed = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, y, features=None, observed=None):
        self.seen.append(observed)
        count = torch.full((len(y),), 3.0) if observed is None else observed.sum(-1).to(y.dtype)
        return count.unsqueeze(-1).expand(-1, 3), torch.ones(len(y), 3)


@pytest.mark.parametrize("groups", [[0, 4, 5], [4]])
def test_an_encoder_that_takes_it_is_told_which_elements_were_observed(groups):
    data = make_data(element_mask=True)
    model, batch = make_model(encoder=Told()), data[groups]
    model.infer(batch)
    torch.testing.assert_close(model.encoder.seen[0], batch.observed[batch.mask], rtol=0, atol=0)
    model.infer(make_data()[groups])
    assert model.encoder.seen[1] is None


def test_a_cvae_tells_its_encoder_too():
    data = make_data(element_mask=True)
    prior, decoder = make_prior(), MLPDecoder(3, [3], (8,), num_features=1)
    model = CVAE(Told(), decoder, prior)
    model.infer(data)
    assert model.encoder.seen[0].sum() == data[:].observed.sum()


def test_values_of_missing_elements_do_not_matter_to_an_encoder_that_is_told(tmp_path):
    encoder = MLPEncoder([3], 3, (8,), takes_observed=True)
    model, batch = make_model(encoder=encoder).eval(), make_data(element_mask=True)[:]
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    torch.testing.assert_close(loaded.infer(batch).mean, model.infer(batch).mean, rtol=0, atol=0)
    untold = dataclasses.replace(batch, y_mask=None)
    assert not torch.allclose(model.infer(untold).mean[batch.mask], model.infer(batch).mean[batch.mask])


def test_groups_of_a_permuted_batch_are_permuted():
    model, data = make_model(), make_data()
    first, second = model.infer(data[[0, 4, 2]]), model.infer(data[[2, 0, 4]])
    torch.testing.assert_close(second.kl, first.kl[[2, 0, 1]])
    torch.testing.assert_close(second.mean, first.mean[[2, 0, 1]])


def test_reconstruction_is_the_decoded_posterior_mean():
    model, batch = make_model(BernoulliLikelihood()), make_data()[[4, 1]]
    images = model.reconstruct(batch)
    assert images.shape == batch.y.shape
    assert not images.requires_grad
    decoded = model.decoder(model.infer(batch).mean.float()).sigmoid()
    torch.testing.assert_close(images, decoded * batch.mask.unsqueeze(-1))
    assert not bool(batch.mask.all())


def test_reconstruct_and_infer_take_a_whole_dataset():
    model, data = make_model(), make_data()
    torch.testing.assert_close(model.reconstruct(data), model.reconstruct(data[:]))
    assert model.infer(data).mean.shape == (7, 6, 3)


def test_generation_at_the_members_is_their_reconstruction():
    model, batch = make_model(), make_data(sizes=(4, 4))[:]
    torch.testing.assert_close(model.generate(batch.x, batch), model.reconstruct(batch), rtol=1e-5, atol=1e-5)


def test_a_group_never_seen_is_a_context_like_any_other():
    model = make_model()
    new = make_data(sizes=(4, 2), seed=77)
    x_new = torch.linspace(0, 3, 5)[:, None].expand(2, 5, 1)
    images = model.generate(x_new, context=new)
    assert images.shape == (2, 5, 3)
    for g in range(2):  # each by itself, unpadded
        torch.testing.assert_close(model.generate(x_new[:1], context=new[g])[0], images[g], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images, model.decoder(model.infer(new[:]).predict(x_new).mean.float()))


def test_draws_are_coherent_within_a_group():
    model, data = make_model(), make_data()
    x_new = torch.tensor([0.5, 2.0, 0.5])[:, None].expand(7, 3, 1)
    images = model.generate(x_new, context=data, sample_shape=(4, 2))
    assert images.shape == (4, 2, 7, 3, 3)
    # members 0 and 2 have one x, so one z; the root of a singular covariance is good to 1e-8
    torch.testing.assert_close(images[..., 0, :], images[..., 2, :], rtol=0, atol=1e-4)
    assert (images[..., 0, :] - images[..., 1, :]).abs().max() > 0.01
    assert images.flatten(0, 1).std(0).min() > 1e-3  # draws differ


def test_draws_have_the_mean_and_variance_of_the_prediction():
    model, data = make_model(decoder=nn.Identity()), make_data()
    x_new = torch.tensor([0.5, 2.0])[:, None].expand(7, 2, 1)
    draws = model.generate(x_new, context=data, sample_shape=(20_000,))
    prediction = model.infer(data).predict(x_new)
    # standard errors below sqrt(1.7 / 20000) = 0.01 and 1.7 sqrt(2 / 20000) = 0.017
    torch.testing.assert_close(draws.mean(0), prediction.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(draws.var(0), prediction.variance, rtol=0, atol=0.08)
    torch.testing.assert_close(model.generate(x_new, context=data), prediction.mean)


def test_without_context_new_groups_come_from_the_prior():
    model = make_model(decoder=nn.Identity())
    x_new = torch.tensor([0.5, 2.0, 0.5])[:, None].expand(2, 3, 1)
    assert model.generate(x_new).shape == (2, 3, 3)
    draws = model.generate(x_new, sample_shape=(20_000,))
    assert draws.shape == (20_000, 2, 3, 3)
    torch.testing.assert_close(draws[..., 0, :], draws[..., 2, :], rtol=0, atol=1e-6)
    torch.testing.assert_close(draws[..., 0, 2], draws[..., 1, 2])  # a global channel has one value per group
    prior = model.prior(x_new)
    torch.testing.assert_close(draws.mean(0), prior.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(draws.var(0), prior.variance, rtol=0, atol=0.1)


def test_model_in_double_precision_stays_there():
    model, batch = make_model().double(), make_data(dtype=torch.float64)[:]
    assert model.reconstruct(batch).dtype == torch.float64
    assert model.terms(batch).log_likelihood.dtype == torch.float64


def bad_encoder(outputs):
    class Encoder(nn.Module):
        def forward(self, y):
            return outputs(y)

    return make_model(encoder=Encoder())


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (lambda y: torch.ones(len(y), 3), "got Tensor"),
        (lambda y: (torch.ones(len(y), 2), torch.ones(len(y), 2)), r"\(25, 3\), got \[\(25, 2\), \(25, 2\)\]"),
        (lambda y: (torch.ones(len(y), 3), torch.ones(3)), r"got \[\(25, 3\), \(3,\)\]"),
    ],
)
def test_an_encoder_with_other_outputs_is_named(outputs, words):
    model = bad_encoder(outputs)
    with pytest.raises(ShapeError, match=r"encoder: expected a mean and a variance .*" + words):
        model.terms(make_data()[:])
    with pytest.raises(ShapeError, match="The prior has 3 channels"):
        model.infer(make_data())


def test_negative_variances_of_an_encoder_are_refused_by_infer():
    model = bad_encoder(lambda y: (torch.ones(len(y), 3), -torch.ones(len(y), 3)))
    with pytest.raises(DataError, match="encoder: expected positive variances, got -1"):
        model.infer(make_data())


def test_what_is_no_batch_is_refused():
    model, y = make_model(), torch.ones(2, 3, 3)
    for call in (model.infer, model.reconstruct, lambda value: model.generate(torch.ones(2, 1, 1), value)):
        with pytest.raises(ArgumentError, match=r"expected a GroupedBatch or GroupedDataset, got Tensor\. Try Grouped"):
            call(y)


def test_non_finite_observations_are_refused():
    model, batch = make_model(), make_data()[:]
    batch = dataclasses.replace(batch, y=batch.y.where(batch.y < batch.y.max(), torch.inf))
    with pytest.raises(DataError, match=r"batch\.y: expected finite values, got 1 NaN or infinite"):
        model.infer(batch)


@pytest.mark.parametrize("shape", [(6, 2, 1), (8, 2, 1), (1, 2, 1)])
def test_new_members_of_unknown_groups_are_refused(shape):
    with pytest.raises(GroupError, match=r"x_new: expected \(G, Q\*, D\) with G = 7 and D = 1, .*Try context=data"):
        make_model().generate(torch.ones(shape), context=make_data())


def test_new_members_with_other_features_are_refused():
    model, data = make_model(), make_data()
    with pytest.raises(ShapeError, match=r"x_new: expected .*\(7, Q\*, 1\).*got \(7, 2, 2\)"):
        model.generate(torch.ones(7, 2, 2), context=data)
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(Q\*, 1\), got \(7, 2\)\. .*unsqueeze\(-1\)"):
        model.generate(torch.ones(7, 2), context=data)
    with pytest.raises(DataError, match=r"x_new: expected a floating-point dtype, got torch\.int64"):
        model.generate(torch.ones(7, 2, 1, dtype=torch.long), context=data)
    with pytest.raises(DataError, match="x_new: expected finite"):
        model.generate(torch.full((7, 2, 1), torch.nan), context=data)
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(G, Q\*, D\), got \(2, 1\)"):
        model.generate(torch.ones(2, 1))


@pytest.mark.parametrize("name", ["encoder", "decoder", "prior", "likelihood"])
def test_parts_of_another_kind_are_refused(name):
    parts = {
        "encoder": MLPEncoder((3,), 3),
        "decoder": MLPDecoder(3, (3,)),
        "prior": make_prior(),
        "likelihood": GaussianLikelihood(),
    }
    parts[name] = "nothing"
    with pytest.raises(ArgumentError, match=rf"{name}: expected a .*, got str\. Try FGPVAE\(encoder, decoder, prior"):
        FGPVAE(**parts)


def test_default_likelihood_is_the_gaussian_with_optimal_variance():
    model = FGPVAE(MLPEncoder((3,), 3), MLPDecoder(3, (3,)), make_prior())
    assert isinstance(model.likelihood, GaussianLikelihood)
    assert model.likelihood.mode == "optimal"


def test_a_group_without_members_has_its_prior_as_posterior():
    mask = torch.tensor([[True, True], [False, False]])
    batch = GroupedBatch.from_tensors(torch.ones(2, 2, 3), torch.rand(2, 2, 1), mask)
    model = make_model()
    terms = model.terms(batch)
    assert terms.kl_local[1].item() == pytest.approx(0, abs=1e-12)
    assert terms.log_likelihood[1].item() == 0
    torch.testing.assert_close(model.infer(batch).mean[1], model.prior(batch.x).mean[1])
