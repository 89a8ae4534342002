"""Disentanglement of a model whose latents are known, and its parts against loops over groups and members."""

import importlib
import math

import pytest
import torch
from gpytorch.kernels import PeriodicKernel
from metric_cases import circle_rows, make_circle_data, make_circle_model

from factories import make_data, make_model
from fgp_gpytorch import (
    CVAE,
    FGPVAE,
    GPVAE,
    SVGPVAE,
    VAE,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError
from fgp_gpytorch.metrics import disentanglement, latent_means, mutual_information_gap
from fgp_gpytorch.metrics.disentanglement import _random_half
from fgp_gpytorch.metrics.probes import centroid_accuracy
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork


def test_means_are_those_of_the_groups_one_by_one_in_flat_order():
    model, data = make_model().train(), make_data()
    found = latent_means(model, data, batch_size=3)
    assert model.training
    model.eval()
    expected = torch.cat([model.infer(data[[g]]).mean[0, : data.group_sizes[g]].detach() for g in range(len(data))])
    torch.testing.assert_close(found.mean, expected)
    assert torch.equal(found.x, data.flat().x)
    assert torch.equal(found.group, data.flat().group)


@pytest.mark.parametrize("element_mask", [False, True])
def test_alone_is_every_member_as_a_group_of_its_own(element_mask):
    model, data = make_model().eval(), make_data(element_mask=element_mask)
    expected = []
    for row in range(data.num_members):
        chosen = torch.zeros(data.num_members, dtype=torch.bool)
        chosen[row] = True
        expected.append(model.infer(data.select(chosen)).mean[0].detach())
    torch.testing.assert_close(latent_means(model, data, alone=True, batch_size=2).mean, torch.cat(expected))


@pytest.mark.parametrize("kind", [CorrelatedFGPVAE, GPVAE, SVGPVAE])
@pytest.mark.parametrize("amortized", [False, True])
def test_alone_is_every_member_as_a_data_set_of_its_own_where_groups_are_coupled(kind, amortized):
    data = make_data()
    torch.manual_seed(0)
    networks = MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,))
    objects = (
        {"representation": RepresentationNetwork(MLPFeatures([3], 2, (8,)))} if amortized else {"num_groups": len(data)}
    )
    if kind is CorrelatedFGPVAE:
        blocks = [LocalChannels(1, PeriodicKernel())]
        model = CorrelatedFGPVAE(*networks, blocks, 2, num_factors=2, **objects).eval()
    else:
        model = kind(*networks, 3, num_factors=2, **objects).eval()
    expected = []
    for row in range(data.num_members):
        chosen = torch.zeros(data.num_members, dtype=torch.bool)
        chosen[row] = True
        expected.append(model.infer(data.select(chosen).align(data)).mean[0].detach())
    found = latent_means(model, data, alone=True, batch_size=2).mean
    torch.testing.assert_close(found, torch.cat(expected))


def test_a_lazy_data_set_is_asked_like_one_in_memory():
    model, data = make_model().eval(), make_data()
    rows = data.flat()
    lazy = LazyDataset(GroupedDataset(rows.y, rows.x, rows.group), lambda batch: batch.y)
    found, expected = latent_means(model, lazy), latent_means(model, data)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [FGPVAE, GPVAE])
def test_of_members_alone_the_halves_are_as_if_inferred_anew(kind):
    data = make_data((4, 3, 5, 4))
    if kind is FGPVAE:
        model = make_model()
    else:
        model = kind(MLPEncoder([3], 3), MLPDecoder(3, [3]), 3, num_groups=len(data), num_factors=2)
    first = _random_half(data, 3)
    fitted, tested = (latent_means(model, data.select(half), alone=True) for half in (first, ~first))
    chosen = ~model.prior.is_global
    expected = centroid_accuracy(fitted.mean[:, chosen], fitted.group, tested.mean[:, chosen], tested.group)
    assert disentanglement(model, data, None, alone=True, seed=3).local_group_accuracy == expected
    everything = latent_means(model, data, alone=True)
    for half, part in ((first, fitted), (~first, tested)):
        torch.testing.assert_close(everything.mean[half], part.mean)
        assert torch.equal(everything.group[half], part.group)
        assert torch.equal(everything.x[half], part.x)


def test_alone_hides_x_from_the_latents():
    model, data = make_model().eval(), make_data()
    rows = data.flat()
    other = GroupedDataset(rows.y, rows.x.flip(0), rows.group)
    torch.testing.assert_close(latent_means(model, data, True).mean, latent_means(model, other, True).mean)
    assert not torch.allclose(latent_means(model, data).mean, latent_means(model, other).mean)


def test_ideal_latents_have_the_ideal_scores():
    found = disentanglement(make_circle_model(), make_circle_data(groups=20), 2 * math.pi)
    assert found.local_feature_r2 == pytest.approx(1, abs=1e-3)
    assert found.global_feature_r2 == pytest.approx(0, abs=0.02)
    assert found.local_group_accuracy == pytest.approx(found.chance, abs=0.05)
    assert found.global_group_accuracy == 1
    assert found.chance == 1 / 20
    assert found.group_gap == pytest.approx(1, abs=0.05)  # the group has a channel of its own, and a bin of its own
    assert found.mean_gap == pytest.approx((found.feature_gap + found.group_gap) / 2)


def test_a_path_with_a_shape_of_its_own_names_its_group_to_a_reader_that_is_told_x():
    """Groups that go round at their own phase: one centre for all, and no two in one place."""
    groups, members = 8, 24
    x = torch.linspace(0, 2 * math.pi, members + 1, dtype=torch.float64)[:-1].expand(groups, -1)
    phase = 2 * math.pi / groups * torch.arange(groups, dtype=torch.float64)[:, None]
    y = circle_rows(x + phase, torch.zeros(groups, 1, dtype=torch.float64)).flatten(0, 1)
    data = GroupedDataset(y, x.flatten(), torch.arange(groups).repeat_interleave(members))
    found = disentanglement(make_circle_model(), data, 2 * math.pi)
    assert found.local_group_accuracy < 0.5
    assert found.local_path_accuracy > 0.95
    assert disentanglement(make_circle_model(), data, 2 * math.pi, alone=True).local_path_accuracy is None
    same_path = disentanglement(make_circle_model(), make_circle_data(groups=8), 2 * math.pi)
    assert same_path.local_path_accuracy < 0.4  # the halves see other places, by which a few are found


def test_paths_are_not_asked_for_at_places_without_number(monkeypatch):
    module = importlib.import_module("fgp_gpytorch.metrics.disentanglement")
    monkeypatch.setattr(module, "_MOST_PLACES", 3)
    found = disentanglement(make_circle_model(), make_circle_data(), 2 * math.pi)
    assert found.local_path_accuracy is None
    assert found.local_feature_r2 is not None


def test_what_members_share_only_by_joint_inference_does_not_name_their_group():
    data = make_circle_data(groups=20)
    rows = data.flat()
    y = torch.cat([rows.y[:, :2], torch.randn(len(rows.y), 1).double()], dim=-1)  # the third element is noise
    found = disentanglement(make_circle_model(), GroupedDataset(y, rows.x, rows.group), 2 * math.pi)
    assert found.global_group_accuracy < 0.3  # 1 if the halves had been inferred together


def test_gaps_are_of_the_level_of_x_and_of_the_group():
    model, data = make_circle_model(), make_circle_data()
    latents = latent_means(model, data)
    found = disentanglement(model, data, 2 * math.pi, num_bins=12)
    step = torch.round(latents.x[:, 0] / (2 * math.pi / 12)).long()
    assert found.feature_gap == pytest.approx(mutual_information_gap(latents.mean, step, 12))
    assert found.group_gap == pytest.approx(mutual_information_gap(latents.mean, latents.group, 12))


def test_a_feature_that_is_no_angle_is_read_as_it_is():
    model, data = make_circle_model(), make_circle_data()
    as_angle, as_number = (disentanglement(model, data, period) for period in (2 * math.pi, None))
    assert as_angle.local_feature_r2 > 0.99
    assert as_number.local_feature_r2 < 0.8  # x itself jumps where the circle closes


def test_a_model_without_such_channels_has_no_such_numbers():
    data = make_data((3, 5, 2, 4))
    vae = disentanglement(VAE(MLPEncoder([3], 2, (8,)), MLPDecoder(2, [3], (8,)), 2), data, None)
    assert vae.global_feature_r2 is None
    assert vae.global_group_accuracy is None
    assert vae.local_feature_r2 is not None
    prior = FactorizedGPPrior([GlobalChannels(1)])
    encoder, decoder = MLPEncoder([3], 1, (8,), num_features=1), MLPDecoder(1, [3], (8,), num_features=1)
    cvae = disentanglement(CVAE(encoder, decoder, prior), data, None)
    assert cvae.local_feature_r2 is None
    assert cvae.local_path_accuracy is None
    assert cvae.global_group_accuracy is not None
    assert cvae[-3:] == (None, None, None)  # a gap needs two channels


def test_halves_divide_every_group():
    data = make_data((3, 5, 2, 4))
    halves = _random_half(data, seed=1).split([3, 5, 2, 4])
    assert [int(half.sum()) for half in halves] == [1, 2, 1, 2]


def test_disentanglement_says_what_is_wrong_with_its_arguments():
    model, data = make_model(), make_data()
    with pytest.raises(GroupError, match="two groups or more of two members or more, got 7 groups, the smallest of 1"):
        disentanglement(model, data, None)
    with pytest.raises(ArgumentError, match="feature: expected one of 0, got 1"):
        disentanglement(model, data, None, feature=1)


def test_a_feature_that_is_not_known_is_said_at_once():
    rows = make_circle_data().flat()
    data = GroupedDataset(rows.y, rows.x, rows.group, x_mask=torch.arange(len(rows.y)) > 1)
    with pytest.raises(DataError, match=r"data.x: expected a feature that is known everywhere, got 2 members"):
        disentanglement(make_circle_model(), data, 2 * math.pi)
    for ask in (latent_means, lambda model, batch: disentanglement(model, batch, None)):
        with pytest.raises(ArgumentError, match="data: expected a GroupedDataset, got GroupedBatch"):
            ask(make_circle_model(), make_circle_data()[:])
