"""Draws of new groups by models: what is kept, saved, discarded and refused."""

import math

import gpytorch
import pytest
import torch

from factories import BlindDecoder, ConstantEncoder, make_data, make_model, make_prior
from fgp_gpytorch import CVAE, FGPVAE, VAE, GroupedDataset, LatentAngleFGPVAE, fit
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures
from fgp_gpytorch.prior import FactorizedGPPrior, GlobalChannels, GroupDistribution, LocalChannels

X = torch.linspace(0, 3, 5).reshape(1, 5, 1)


def same_draws(first, second):
    draws = []
    for model in (first, second):
        torch.manual_seed(4)
        draws.append(model.sample_groups(X.expand(3, -1, -1), (2,)))
    return torch.equal(*draws)


def test_draws_are_decoded_draws_of_the_fitted_distribution():
    model, data = make_model(), make_data()
    distribution = model.fit_groups(data)
    assert distribution is model.group_distribution
    torch.manual_seed(2)
    drawn = model.sample_groups(X.expand(4, -1, -1), [3])
    torch.manual_seed(2)
    z = distribution.sample(model.prior, X.expand(4, -1, -1), [3])
    assert drawn.shape == (3, 4, 5, 3)
    assert torch.equal(drawn, model.likelihood.mean(model.decoder(z.float())))
    assert model.sample_groups(X).shape == (1, 5, 3)


def test_fit_is_that_of_the_posteriors_of_infer_for_any_batch_size():
    model, data = make_model(), make_data(element_mask=True)
    x = data.features().x.double()
    wanted = GroupDistribution.fit(model.prior, [model.infer(data)], x, 1.0, 20)
    for batch_size, given in ((64, data), (2, data), (64, data[:])):
        got = model.fit_groups(given, batch_size=batch_size)
        # networks are float32: other batches round differently
        torch.testing.assert_close(got.mean, wanted.mean, rtol=0, atol=1e-4)
        torch.testing.assert_close(got.covariance, wanted.covariance, rtol=0, atol=1e-4)


def test_order_of_groups_has_no_effect():
    model, data = make_model(), make_data()
    order = [4, 0, 6, 2, 1, 5, 3]
    first, second = model.fit_groups(data), model.fit_groups(data[order])
    torch.testing.assert_close(first.mean, second.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.covariance, second.covariance, rtol=0, atol=1e-6)


def test_draws_follow_groups_that_are_far_from_the_prior():
    """Levels of 200 groups are near 3 or near 5 under a prior of N(0, 1): both fits find their mean and variance."""
    generator = torch.Generator().manual_seed(0)
    level = 3 + 2 * (torch.arange(200) % 2) + 0.1 * torch.randn(200, generator=generator)
    y = level.repeat_interleave(40).unsqueeze(-1)
    data = GroupedDataset(y, torch.zeros(8000, 1), torch.arange(200).repeat_interleave(40))
    model = FGPVAE(Identity(), torch.nn.Identity(), FactorizedGPPrior([GlobalChannels(1)]))
    x = torch.zeros(20_000, 1, 1)
    assert abs(float(model.generate(x).mean())) < 5 / math.sqrt(20_000)
    for bandwidth in (1.0, 0.1):
        model.fit_groups(data, bandwidth)
        draws = model.sample_groups(x).flatten()
        # the prior's pull on 40 members of variance 0.01 is a factor of 1 - 1 / 4001
        assert abs(float(draws.mean() - level.mean())) < 0.002 + 5 * float(level.std()) / math.sqrt(20_000)
        assert abs(float(draws.std() / level.std(correction=0)) - 1) < 0.002 + 5 / math.sqrt(20_000)
        between = float(((draws > 3.6) & (draws < 4.4)).double().mean())
        assert between < 0.01 if bandwidth < 1 else between > 0.2


class Identity(torch.nn.Module):
    """Members as their own pseudo-observations, of variance 0.01."""

    def forward(self, y):
        return y, torch.full_like(y, 0.01)


@pytest.mark.parametrize("bandwidth", [1.0, 0.5])
def test_fitted_distribution_is_saved_and_loaded(bandwidth, tmp_path):
    model = make_model()
    model.fit_groups(make_data(), bandwidth, num_points=3)
    model.save(tmp_path / "model.pt")
    loaded = FGPVAE.load(tmp_path / "model.pt")
    assert len(loaded.group_distribution.centers) == (1 if bandwidth == 1 else 7)
    assert same_draws(model, loaded)


def test_model_without_a_fit_is_saved_as_before(tmp_path):
    model = make_model()
    assert not any(name.startswith("group_distribution") for name in model.state_dict())
    model.save(tmp_path / "model.pt")
    assert FGPVAE.load(tmp_path / "model.pt").group_distribution is None


def test_training_discards_the_fit_and_a_run_can_be_resumed_after_one(tmp_path):
    model, data = make_model(), make_data()
    options = {"batch_size": 3, "seed": 0, "folder": tmp_path / "run", "progress": False, "accelerator": "cpu"}
    model.fit_groups(data)
    fit(model, data, epochs=1, **options)
    assert model.group_distribution is None
    model.fit_groups(data)
    fit(model, data, epochs=2, resume=True, **options)
    assert model.group_distribution is None
    model.fit_groups(data)
    model.eval().terms(data[:])
    assert model.group_distribution is not None
    model.train().terms(data[:])
    assert model.group_distribution is None


def test_fitting_leaves_mode_and_random_numbers_alone():
    model, data = make_model(), make_data()
    model.train()
    state = torch.get_rng_state()
    model.fit_groups(data)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.requires_grad for tensor in model.group_distribution.buffers())


def test_cvae_decodes_draws_at_their_x():
    prior = FactorizedGPPrior([GlobalChannels(2)])
    model = CVAE(MLPEncoder([3], 2, (8,), 1), MLPDecoder(2, [3], (8,), 1), prior)
    model.fit_groups(make_data())
    drawn = model.sample_groups(X.expand(2, -1, -1))
    assert drawn.shape == (2, 5, 3)
    assert (drawn[:, 0] - drawn[:, 1]).abs().min() > 0  # one code for each group: only x differs


def test_vae_keeps_its_prior():
    model = VAE(MLPEncoder([3], 2, (8,)), MLPDecoder(2, [3], (8,)), 2)
    assert model.fit_groups(make_data()).centers.shape == (1, 0)
    assert model.sample_groups(X.expand(2, -1, -1)).shape == (2, 5, 3)


def test_members_of_unknown_angle_count_at_their_inferred_angle():
    kernel = gpytorch.kernels.PeriodicKernel()
    kernel.period_length = 2 * math.pi
    prior = FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1)])
    model = LatentAngleFGPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), prior, MLPFeatures([3], 2, (8,)))
    rows = make_data().flat()
    known = torch.arange(len(rows.x)) % 3 > 0
    data = GroupedDataset(rows.y, rows.x, rows.group, x_mask=known)
    distribution = model.fit_groups(data)
    assert bool(distribution.centers.isfinite().all())
    assert model.sample_groups(X).shape == (1, 5, 3)


def test_wrong_arguments_are_refused():
    model, data = make_model(encoder=ConstantEncoder(), decoder=BlindDecoder()), make_data()
    with pytest.raises(DataError, match=r"sample_groups: expected a model after fit_groups\(data\).* Try model.fit_gr"):
        model.sample_groups(X)
    with pytest.raises(ArgumentError, match="data: expected a GroupedDataset or GroupedBatch"):
        model.fit_groups(data.flat().y)
    for wrong in (0, -1, math.nan, "1"):
        with pytest.raises(ArgumentError, match="bandwidth: expected a positive finite number"):
            model.fit_groups(data, bandwidth=wrong)
    with pytest.raises(ArgumentError, match=r"bandwidth: expected at most 1, got 1\.5"):
        model.fit_groups(data, bandwidth=1.5)
    with pytest.raises(ArgumentError, match="num_points: expected an integer >= 1, got 0"):
        model.fit_groups(data, num_points=0)
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
        model.fit_groups(data, batch_size=0)
    with pytest.raises(DataError, match="data: expected at least 2 groups, got 1"):
        model.fit_groups(data[[0]])
    assert model.group_distribution is None
    model.fit_groups(data)
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(G, Q\*, D\), got \(5, 1\)"):
        model.sample_groups(X[0])
    with pytest.raises(DataError, match="x_new: expected finite values"):
        model.sample_groups(X / 0)
    with pytest.raises(ArgumentError, match="sample_shape"):
        model.sample_groups(X, sample_shape="3")
    model.num_features = 2
    with pytest.raises(ShapeError, match="x_new: expected D = 2 auxiliary features"):
        model.sample_groups(X)


def test_prior_of_the_wrong_number_of_blocks_is_refused():
    model = make_model()
    model.fit_groups(make_data())
    model.prior = FactorizedGPPrior([*make_prior().blocks, GlobalChannels(1)])
    with pytest.raises(ArgumentError, match=r"prior: expected one of 2 blocks.* Try the prior of the model, or"):
        model.sample_groups(X)
