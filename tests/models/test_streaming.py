"""Work on some groups at a time gives what work on all at once gives, in bounded memory."""

import gpytorch
import pytest
import torch
from torch import nn

from factories import SIZES, make_data, make_model, make_prior
from fgp_gpytorch import (
    CVAE,
    FGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
)
from fgp_gpytorch.data import LazyDataset, group_parts
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.feature_maps import LinearFeatures
from fgp_gpytorch.models import CorrelatedFGPVAE, _streaming
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


class Counting(nn.Module):
    """A network, and the members of each of its calls."""

    def __init__(self, network):
        super().__init__()
        self.network, self.members = network, []

    def forward(self, first, *others):
        self.members.append(first.shape[:-1].numel())
        return self.network(first, *others)


def make_cvae():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return CVAE(MLPEncoder([3], 3, (8,), 1), MLPDecoder(3, [3], (8,), 1), make_prior()).eval()


MODELS = {"FGPVAE": lambda: make_model().eval(), "CVAE": make_cvae}


def parts_of(*args, **options):
    return [(part.start, part.stop) for part in group_parts(*args, **options)]


@pytest.mark.parametrize("added", [0, 3])
@pytest.mark.parametrize("values_at_once", [1, 24, 60, 10**6])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 100])
def test_parts_are_the_longest_runs_of_groups_that_fit(batch_size, values_at_once, added):
    sizes, values = [3, 5, 2, 40, 1, 1, 1, 4], 3
    limit = max(1, values_at_once // values)

    def fits(start, stop):
        padded = (stop - start) * (max(sizes[start:stop]) + added)
        return stop - start == 1 or (padded <= limit and stop - start <= (batch_size or 8))

    expected, start = [], 0
    while start < len(sizes):
        stop = start + 1
        while stop < len(sizes) and fits(start, stop + 1):
            stop += 1
        expected.append((start, stop))
        start = stop
    found = parts_of(torch.tensor(sizes), values, batch_size, added=added, values_at_once=values_at_once)
    assert found == expected


def test_batches_of_a_data_set_are_all_of_its_groups_in_their_order():
    data = make_data(element_mask=True)
    for size in (1, 3, 7, None):
        found = list(data.batches(size))
        assert max(batch.num_groups for batch in found) == (size or len(SIZES))
        assert torch.equal(torch.cat([batch.group_index for batch in found]), torch.arange(len(SIZES)))
        assert torch.equal(torch.cat([batch.y[batch.mask] for batch in found]), data.flat().y)
        assert torch.equal(torch.cat([batch.y_mask[batch.mask] for batch in found]), data.members.y_mask)


def test_a_large_group_is_not_padded_beside_others():
    sizes = torch.tensor([1] * 10 + [9000] + [1] * 10)
    assert parts_of(sizes, 1) == [(0, 10), (10, 11), (11, 21)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
@pytest.mark.parametrize("lazy", [False, True])
def test_results_do_not_depend_on_the_batch_size(name, batch_size, lazy):
    model, data = MODELS[name](), make_data(element_mask=not lazy)
    if lazy:
        data = LazyDataset(data, lambda batch: batch.y)
    whole = data[:]
    x_new = torch.rand(len(SIZES), 4, 1)
    expected = model.likelihood.mean(model.decode(model.infer(whole).mean, whole.x)).detach()
    expected = torch.where(whole.mask.unsqueeze(-1), expected, 0.0)
    for source in (data, whole):
        # networks are float32: other batches round differently
        torch.testing.assert_close(model.reconstruct(source, batch_size), expected, rtol=1e-4, atol=1e-5)
        found = model.generate(x_new, source, batch_size=batch_size)
        torch.testing.assert_close(found, model.generate(x_new, whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generators_yield_the_result_part_by_part(batch_size):
    model, data = make_model().eval(), make_data()
    x_new = torch.rand(len(SIZES), 2, 1)
    starts = []
    for groups, y in model.generate_batches(x_new, data, batch_size=batch_size):
        starts.append(groups.start)
        torch.testing.assert_close(y, model.generate(x_new, data)[groups], rtol=1e-4, atol=1e-5)
        assert not y.requires_grad
        assert torch.is_grad_enabled()  # the consumer's mode is its own
    assert starts == list(range(0, len(SIZES), batch_size))
    for groups, y in model.reconstruct_batches(data, batch_size):
        assert y.shape[1] == int(data.group_sizes[groups].max())
        torch.testing.assert_close(y, model.reconstruct(data)[groups, : y.shape[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_draws_some_groups_at_a_time_have_the_mean_and_covariance_of_the_prediction(batch_size):
    """Both moments of two new members of each group, which a coherent path correlates."""
    encoder, decoder = MLPEncoder([3], 3, (8,)).double(), nn.Identity()
    model = FGPVAE(encoder, decoder, make_prior(), GaussianLikelihood("fixed", 0.5)).eval()
    data = make_data((3, 5, 2, 4), dtype=torch.float64)
    x_new, draws = torch.tensor([[0.4], [0.9]], dtype=torch.float64), 20_000
    torch.manual_seed(0)
    found = model.generate(x_new, data, (draws,), batch_size)
    assert found.shape == (draws, 4, 2, 3)
    posterior = model.infer(data[:])
    joint = posterior.paths_at(x_new.expand(4, -1, -1), torch.Size([100_000])).new
    scale = joint.var(0).sqrt()
    assert bool(
        ((found.mean(0) - posterior.predict(x_new.expand(4, -1, -1)).mean).abs() < 5 * scale / draws**0.5).all()
    )
    one, other = ((z - z.mean(0)).prod(-2) for z in (found, joint))
    error = 5 * (one.var(0) / draws + other.var(0) / len(joint)).sqrt()
    assert bool(((one.mean(0) - other.mean(0)).abs() < error).all())
    apart = found.flatten(2)
    between = (apart[:, 0] * apart[:, 1]).mean(0) - apart[:, 0].mean(0) * apart[:, 1].mean(0)
    assert bool((between.abs() < 5 * (apart[:, 0].std(0) * apart[:, 1].std(0)) / draws**0.5).all())


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_new_groups_come_some_at_a_time(batch_size):
    model = make_model().eval()
    x = torch.linspace(0, 3, 4).reshape(1, 4, 1).expand(5, -1, -1)
    assert model.generate(x, batch_size=batch_size, sample_shape=(2,)).shape == (2, 5, 4, 3)
    sizes = [groups.stop - groups.start for groups, _ in model.generate_batches(x, batch_size=batch_size)]
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], None: [5]}[batch_size]
    distributions = [model.fit_groups(make_data(), batch_size=size) for size in (None, batch_size)]
    torch.testing.assert_close(distributions[0].covariance, distributions[1].covariance, rtol=0, atol=1e-4)
    drawn = model.sample_groups(x, (3,), batch_size)
    assert drawn.shape == (3, 5, 4, 3)
    flat = drawn.flatten(0, 1).flatten(1)
    assert float(torch.cdist(flat, flat)[~torch.eye(15, dtype=torch.bool)].min()) > 0  # no part is repeated


def test_groups_that_depend_on_each_other_are_not_split():
    torch.manual_seed(0)
    data, x = make_data((2, 3, 4)), torch.rand(3, 2, 1)
    local = [LocalChannels(2, gpytorch.kernels.RBFKernel())]
    coupled = CorrelatedFGPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), local, 1, 3, 2).eval()
    torch.testing.assert_close(coupled.generate(x, data), coupled.generate(x, data[:]))
    torch.testing.assert_close(coupled.generate(x, data, batch_size=3), coupled.generate(x, data))
    for call in (coupled.reconstruct, lambda d, batch_size: coupled.generate(x, d, batch_size=batch_size)):
        with pytest.raises(ArgumentError, match="batch_size: expected None for groups that depend on each other"):
            call(data, batch_size=2)
    conditioned = coupled.condition_on(data)
    expected = conditioned.generate(x, data[:])
    torch.testing.assert_close(conditioned.generate(x, data, batch_size=1), expected, rtol=1e-4, atol=1e-5)
    for groups, y in conditioned.generate_batches(x, data, batch_size=2):
        torch.testing.assert_close(y, expected[groups], rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match="batch_size: expected None for groups that depend on each other"):
        conditioned.generate(x, data, (2,), batch_size=1)
    shared = FactorizedGPPrior([GlobalChannels(3)], effects=[LinearFeatures(1)])
    model = FGPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), shared).eval()
    with pytest.raises(ArgumentError, match="Try None, or an FGPVAE without shared effects"):
        model.generate(x, batch_size=2)
    assert model.generate(x, data, (2,), batch_size=1).shape == (2, 3, 2, 3)


def test_networks_take_bounded_numbers_of_members_and_no_padding(monkeypatch):
    monkeypatch.setattr(_streaming, "_ELEMENTS", 3 * 7)
    monkeypatch.setattr(_streaming, "_MEMBERS", (1, 10**6))
    model, data = make_model(), make_data()
    whole, x_new = data[:], torch.rand(len(SIZES), 4, 1)
    expected = model.train().reconstruct(whole), model.generate(x_new, whole, (2,)).shape  # in training mode at once
    model.encoder, model.decoder = Counting(model.encoder), Counting(model.decoder)
    torch.testing.assert_close(model.eval().reconstruct(data), expected[0], rtol=1e-4, atol=1e-5)
    total, sevens = sum(SIZES), sum(SIZES) // 7
    assert model.encoder.members == model.decoder.members == [7] * sevens + [total % 7]
    model.decoder.members.clear()
    assert model.generate(x_new, whole, (2,)).shape == expected[1]
    assert model.decoder.members == [7] * 8
    model.decoder.members.clear()
    model.terms(whole)  # gradients need all activations
    assert model.decoder.members == [total]


def test_chunks_of_draws_meet_the_features_of_their_members(monkeypatch):
    model, x = make_cvae(), torch.rand(3, 4, 1)
    z = torch.randn(2, 3, 4, 3)
    expected = model.decode(z, x).detach()
    monkeypatch.setattr(_streaming, "_ELEMENTS", 3 * 5)
    monkeypatch.setattr(_streaming, "_MEMBERS", (1, 10**6))
    model.decoder = Counting(model.decoder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.decode(z, x, (3,)), expected)
    assert model.decoder.members == [5, 5, 5, 5, 4]


def test_wrong_arguments_are_refused_before_the_first_part():
    model, data, x = make_model().eval(), make_data(), torch.rand(len(SIZES), 2, 1)
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
        model.generate_batches(x, data, batch_size=0)
    with pytest.raises(ArgumentError, match="progress: expected one of False, True, got 1"):
        model.reconstruct_batches(data, progress=1)
    with pytest.raises(ArgumentError, match="batch: expected"):
        model.reconstruct_batches("data")
    with pytest.raises(ArgumentError, match="batch_size: expected an integer >= 1, got 0"):
        data.batches(0)
    assert isinstance(data, GroupedDataset)


def test_a_progress_bar_counts_groups(capsys):
    model, data = make_model().eval(), make_data()
    model.reconstruct(data, batch_size=2)
    assert capsys.readouterr().err == ""
    model.reconstruct(data, batch_size=2, progress=True)
    assert f"{len(SIZES)}/{len(SIZES)}" in capsys.readouterr().err
