"""Every metric over a data set is that of the whole data set at once."""

import dataclasses

import pytest
import torch
from metric_cases import make_circle_data, make_circle_model, make_linear_model

from factories import make_data
from fgp_gpytorch import HeldOut
from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.metrics import (
    _evaluation,
    centroid_accuracy,
    disentanglement,
    held_out_calibration,
    held_out_mse,
    latent_means,
    mse_by_context_size,
    nearest_group,
    nearest_group_mse,
    nearest_path_accuracy,
    probes,
    swap_errors,
)

SIZES = (6, 3, 8, 4, 2)


def make_ragged():
    """Ragged contexts and targets with gaps. Of one group no target, of another no context was observed."""
    data = make_data(SIZES, element_mask=True, dtype=torch.float64)
    y_mask, group = data.members.y_mask.clone(), data.features().group
    place = torch.cat([torch.arange(size) for size in SIZES])
    target = place % 2 == 1
    y_mask[(group == 1) & target] = False
    y_mask[(group == 3) & ~target] = False
    y, x, group = data.flat()
    data = GroupedDataset(y, x, group, y_mask)
    return HeldOut.of(data.select(~target), data.select(target))


@pytest.mark.parametrize("metric", [held_out_mse, swap_errors])
def test_sums_over_batches_are_those_of_the_whole(metric):
    model, held_out = make_linear_model(), make_ragged()
    whole = metric(model, held_out)
    for size in (1, 2, 3):
        assert metric(model, held_out, batch_size=size) == pytest.approx(whole, rel=1e-10)


def test_error_is_that_of_all_observed_elements_and_not_a_mean_of_means():
    model, held_out = make_linear_model(), make_ragged()
    batch = held_out[:]
    error = (model.generate(batch.x_new, batch.context) - batch.y_new)[batch.observed].square().mean()
    order = [4, 2, 0, 3, 1]
    shuffled = HeldOut(
        held_out.context.subset(order), held_out.x_new[order], held_out.y_new[order], held_out.y_new_mask[order]
    )
    for rows in (held_out, shuffled):
        assert held_out_mse(model, rows, batch_size=1) == pytest.approx(error.item(), rel=1e-10)


def test_a_group_without_observations_changes_no_calibration():
    model, held_out = make_linear_model(variance=0.3), make_ragged()
    seen = held_out.y_new_mask.flatten(1).any(-1)
    order = [*seen.nonzero()[:, 0].tolist(), *(~seen).nonzero()[:, 0].tolist()]
    assert (int(seen.sum()), order[-1]) == (len(SIZES) - 1, 1)
    last, without = (
        HeldOut(held_out.context.subset(p), held_out.x_new[p], held_out.y_new[p], held_out.y_new_mask[p])
        for p in (order, order[:-1])
    )
    assert held_out_mse(model, last) == pytest.approx(held_out_mse(model, without), rel=1e-10)
    # in batches of one group, the draws of the first groups are the same
    scores = (held_out_calibration(model, rows, num_samples=19, batch_size=1) for rows in (last, without))
    assert next(scores) == pytest.approx(next(scores), rel=1e-10)


def test_context_size_counts_observed_members_first():
    model, held_out = make_linear_model(), make_ragged()
    context = held_out.context
    y, x, group = context.flat()
    nothing = torch.zeros(len(context), 3, dtype=torch.bool)
    more = GroupedDataset(
        torch.cat([torch.zeros(len(context), 3, dtype=y.dtype), y]),
        torch.cat([torch.full((len(context), 1), 0.5, dtype=x.dtype), x]),
        torch.cat([torch.arange(len(context)), group]),
        torch.cat([nothing, context.members.y_mask]),
    )
    padded = dataclasses.replace(held_out, context=more)
    assert held_out_mse(model, padded) == pytest.approx(held_out_mse(model, held_out), rel=1e-10)
    smallest = int(context.group_sizes.min())
    # the smallest group has one observed member, which is the context of size 1 whatever the order
    only = torch.arange(len(context)) == int(context.group_sizes.argmin())
    alone, more = (
        HeldOut(rows.context.subset(only), rows.x_new[only], rows.y_new[only], rows.y_new_mask[only])
        for rows in (held_out, padded)
    )
    assert smallest == 1
    expected = held_out_mse(model, alone)
    assert mse_by_context_size(model, more, (1, 2)) == pytest.approx({1: expected, 2: expected}, rel=1e-10)


def test_members_without_observations_change_no_probe():
    model, data = make_circle_model(), make_circle_data()
    y, x, group = data.flat()
    extra = 5
    more = GroupedDataset(
        torch.cat([y, torch.zeros(extra, 3, dtype=y.dtype)]),
        torch.cat([x, torch.rand(extra, 1, dtype=x.dtype)]),
        torch.cat([group, torch.tensor([0, 0, 2, 9, 9])]),
        torch.cat([torch.ones(len(y), 3, dtype=torch.bool), torch.zeros(extra, 3, dtype=torch.bool)]),
    )
    expected = disentanglement(model, data, period=None)
    for size in (1, 64):
        found = disentanglement(model, more, period=None, batch_size=size)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-9)


def test_latent_means_do_not_depend_on_the_batch_size():
    model, data = make_linear_model(), make_ragged().context
    for alone in (False, True):
        whole = latent_means(model, data, alone).mean
        torch.testing.assert_close(latent_means(model, data, alone, batch_size=2).mean, whole)


def test_contexts_of_a_size_are_those_of_selected_members():
    model, context = make_linear_model(), make_data(SIZES, dtype=torch.float64)
    held_out = HeldOut.of(context, make_data(SIZES, seed=4, dtype=torch.float64))
    place, found = context.random_places(torch.Generator().manual_seed(3)), {}
    for size in (1, int(context.group_sizes.min())):
        part = dataclasses.replace(held_out, context=context.select(place < size))
        found[size] = pytest.approx(held_out_mse(model, part), rel=1e-9)
    for batch_size in (1, 3, None):
        assert mse_by_context_size(model, held_out, tuple(found), 3, 1, batch_size) == found


@pytest.mark.parametrize("values", [1, 40, 100])
def test_large_groups_come_few_at_a_time_and_change_no_metric(values, monkeypatch):
    model, held_out, data = make_linear_model(), make_ragged(), make_circle_data()
    circle = make_circle_model()

    def figures():
        curve = mse_by_context_size(model, held_out, (1,))
        probed = disentanglement(circle, data, period=None)
        return [held_out_mse(model, held_out), *swap_errors(model, held_out), *curve.values(), *probed]

    expected, calls = figures(), []
    monkeypatch.setattr(_evaluation, "_VALUES", values)
    infer = type(model).infer
    monkeypatch.setattr(type(model), "infer", lambda self, batch: calls.append(batch.y.numel()) or infer(self, batch))
    for one, other in zip(figures(), expected, strict=True):
        assert one == pytest.approx(other, rel=1e-8)
    largest = max(held_out.context.group_sizes.max(), data.group_sizes.max()) * 3
    assert max(calls) <= max(values, largest)


def test_accuracies_do_not_depend_on_the_rows_at_a_time(monkeypatch):
    g = torch.Generator().manual_seed(0)
    features, group = torch.randn(40, 3, generator=g), torch.arange(40) % 5
    paths, at = torch.randn(5, 4, 3, generator=g), torch.randint(4, (40,), generator=g)
    known = torch.randn(9, 4, 3, generator=g)
    figures = [
        lambda: centroid_accuracy(features, group, features + 0.1, group),
        lambda: nearest_path_accuracy(paths, features, at, group),
        lambda: nearest_group_mse(paths, known).tolist(),
    ]
    expected = [figure() for figure in figures]
    monkeypatch.setattr(probes, "_DISTANCES", 15)
    monkeypatch.setattr(nearest_group, "_VALUES", 24)
    assert [figure() for figure in figures] == expected
    assert 0 < expected[0] < 1
