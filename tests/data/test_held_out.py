"""Held-out members that are ragged and partly missing: every metric as if what is missing were not there."""

import dataclasses
import itertools
import math

import lightning
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch.utils.data._utils.pin_memory import pin_memory

from factories import make_data, make_model
from fgp_gpytorch import GroupedDataset, HeldOut, fit
from fgp_gpytorch.data import HeldOutBatch, LazyDataset
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.metrics import central_interval, held_out_calibration, held_out_mse, mse_by_context_size, swap_errors
from fgp_gpytorch.metrics.swap import other_group

SIZES = (6, 5, 8, 4)


def split(element_mask=True):
    """The first three members of each group as context, the others, of unequal number, to predict."""
    data = make_data(sizes=SIZES, element_mask=element_mask)
    place = torch.cat([torch.arange(size) for size in SIZES])
    return data.select(place < 3), data.select(place >= 3)


def one_by_one(context, targets):
    """Each observed member as held-out members of its own, elements left in."""
    batch = targets[:]
    for g in range(len(targets)):
        for q in range(int(batch.mask[g].sum())):
            observed = batch.observed[g, q]
            yield context.subset([g]), batch.x[g, q].reshape(1, 1, -1), batch.y[g, q].reshape(1, 1, -1), observed


def test_error_of_ragged_targets_is_that_of_their_observed_elements():
    model, (context, targets) = make_model().eval(), split()
    held_out = HeldOut.of(context, targets)
    total, count = 0.0, 0
    for part, x_new, y_new, observed in one_by_one(context, targets):
        error = (model.generate(x_new, part) - y_new)[0, 0][observed]
        total, count = total + error.double().square().sum().item(), count + int(observed.sum())
    assert count == targets.num_elements < held_out.y_new.numel()
    assert held_out_mse(model, held_out) == pytest.approx(total / count, rel=1e-6)
    assert held_out_mse(model, held_out, batch_size=3) == pytest.approx(total / count, rel=1e-6)
    whole = dataclasses.replace(held_out, y_new_mask=None)
    assert held_out_mse(model, whole) != pytest.approx(total / count, rel=1e-3)
    assert mse_by_context_size(model, held_out, (3,))[3] == pytest.approx(total / count, rel=1e-6)


def test_what_was_not_observed_changes_no_metric():
    model, held_out = make_model().eval(), HeldOut.of(*split())
    other = torch.where(held_out.y_new_mask, held_out.y_new, torch.nan)
    hidden = dataclasses.replace(held_out, y_new=other)
    for metric in (held_out_mse, held_out_calibration, swap_errors):
        assert metric(model, hidden) == metric(model, held_out)


def test_calibration_counts_the_observed_elements_and_no_others():
    model, held_out = make_model().eval(), HeldOut.of(*split())
    found = held_out_calibration(model, held_out, num_samples=99, seed=3)
    with torch.no_grad():
        torch.manual_seed(3)
        z = model.predict(held_out[:].x_new, held_out.context).rsample((99,))
        output = model.decoder(z.float())
        draws = model.likelihood.distribution(output).sample().double()
    score, inside, log_likelihood = 0.0, [0, 0], 0.0
    y, observed, count = held_out.y_new, held_out.y_new_mask, int(held_out.y_new_mask.sum())
    for g, q in itertools.product(range(4), range(y.shape[1])):
        seen = observed[g, q].nonzero()[:, 0].tolist()
        density = torch.distributions.Normal(output[:, g, q].double(), model.likelihood.variance.double().sqrt())
        elements = density.log_prob(y[g, q].double())[:, seen]
        log_likelihood += torch.logsumexp(elements.sum(-1), 0).item() - math.log(99)
        for k in seen:
            value, sample = y[g, q, k].double(), draws[:, g, q, k]
            pairs = (sample[:, None] - sample).abs().sum() / (99 * 98)
            score += ((sample - value).abs().mean() - 0.5 * pairs).item()
            for place, level in enumerate((0.5, 0.9)):
                low, high = central_interval(sample, level)
                inside[place] += bool(low <= value <= high)
    expected = [-log_likelihood / count, score / count, inside[0] / count, inside[1] / count]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_swap_counts_the_observed_elements_of_the_member_that_it_is_compared_with():
    model, held_out = make_model().eval(), HeldOut.of(*split())
    local_from = other_group(4, 0)
    expected = []
    with torch.no_grad():
        for which in ("to_global", "to_local", "unswapped"):
            total, count = 0.0, 0
            for b in range(4):
                a = int(local_from[b])
                target = a if which == "to_local" else b
                giver = b if which == "unswapped" else a
                local = model.predict(held_out.x_new[[target]], held_out.context[[giver]]).mean
                shared = model.predict(held_out.x_new[[target]], held_out.context[[b]]).mean
                z = torch.cat([local[..., :2], shared[..., 2:]], dim=-1)
                error = (model.decoder(z.float()) - held_out.y_new[[target]])[held_out.y_new_mask[[target]]]
                total, count = total + error.double().square().sum().item(), count + error.numel()
            expected.append(total / count)
    found = swap_errors(model, held_out)
    assert [found.to_global, found.to_local, found.unswapped] == pytest.approx(expected, rel=1e-5)


def test_features_of_members_who_are_not_there_cost_nobody_precision_and_may_be_nan():
    """Dates in seconds: with 0 for who is not there, a kernel would be evaluated at 1.7e9 lengthscales."""
    data = make_data(sizes=SIZES)
    rows = data.flat()
    dated = GroupedDataset(rows.y, 1.7e9 + rows.x.double(), rows.group)
    place = torch.cat([torch.arange(size) for size in SIZES])
    held_out = HeldOut.of(dated.select(place < 3), dated.select(place >= 3))
    batch = held_out[:]
    there = held_out.y_new_mask[..., 0]
    assert (batch.x_new - 1.7e9).abs().max() < 4
    assert torch.equal(batch.x_new[there], held_out.x_new[there])
    unknown = dataclasses.replace(held_out, x_new=held_out.x_new.masked_fill(~there.unsqueeze(-1), torch.nan))
    model = make_model().eval()
    assert held_out_mse(model, unknown) == held_out_mse(model, held_out)
    nobody = dataclasses.replace(
        unknown, y_new_mask=held_out.y_new_mask & torch.tensor([False, True, True, True])[:, None, None]
    )
    assert nobody[[0]].x_new.isfinite().all()
    assert held_out_mse(model, nobody, batch_size=1) == pytest.approx(held_out_mse(model, nobody), rel=1e-6)


def test_a_mask_of_members_is_one_of_their_elements():
    model, (context, targets) = make_model().eval(), split(element_mask=False)
    held_out = HeldOut.of(context, targets)
    members = dataclasses.replace(held_out, y_new_mask=targets[:].mask)
    assert held_out_mse(model, members) == held_out_mse(model, held_out)


def test_groups_are_matched_by_label_and_those_without_targets_left_out():
    y = torch.rand(8, 3)
    context = GroupedDataset(y, torch.arange(8.0), ["d", "a", "c", "b", "b", "c", "a", "d"])
    targets = GroupedDataset(y[:3], torch.arange(3.0), ["d", "b", "b"])
    held_out = HeldOut.of(context, targets)
    assert held_out.context.labels.tolist() == ["b", "d"]
    assert held_out.y_new_mask[..., 0].tolist() == [[True, True], [True, False]]
    assert torch.equal(held_out.y_new[1, 0], y[0])
    assert held_out.align(context).context[:].group_index.tolist() == [1, 3]
    with pytest.raises(GroupError, match="got 1 others, the first 'z'"):
        HeldOut.of(context, GroupedDataset(y[:1], torch.zeros(1), ["z"]))
    with pytest.raises(ShapeError, match=r"x_new: expected shape \(1, Q\*, 1\), got"):
        HeldOut.of(context, GroupedDataset(y[:1], torch.zeros(1, 2), ["a"]))


def test_validation_counts_what_was_observed_and_refuses_what_is_not_finite():
    (context, targets), data = split(), make_data(sizes=SIZES)
    held_out = HeldOut.of(context, targets)
    lost = torch.where(held_out.y_new_mask, held_out.y_new, torch.nan)
    hidden = dataclasses.replace(held_out, y_new=lost)
    model = make_model()
    result = fit(model, data, validation=hidden, epochs=2, batch_size=2, seed=0, folder=None, progress=False)
    assert result.history["val_mse"].iloc[-1] == pytest.approx(held_out_mse(model, held_out), rel=1e-5)
    with pytest.raises(DataError, match="y_new: expected finite"):
        HeldOut(context, held_out.x_new, lost)


def test_errors_say_what_to_try():
    context, targets = split()
    held_out = HeldOut.of(context, targets)
    change = {
        "mask of another shape": ({"y_new_mask": torch.ones(4, 2, dtype=torch.bool)}, ShapeError, r"y_new_mask: .*\(4"),
        "mask of numbers": ({"y_new_mask": torch.ones(4, 5)}, DataError, "y_new_mask: expected torch.bool"),
        "nothing observed": ({"y_new_mask": torch.zeros(4, 5, dtype=torch.bool)}, DataError, "y_new_mask: .*got none"),
        "a batch": ({"context": context[:]}, ArgumentError, "context: expected a GroupedDataset, got GroupedBatch"),
        "other features": (
            {"x_new": held_out.x_new.expand(-1, -1, 2)},
            ShapeError,
            r"x_new: expected shape \(4, Q\*, 1\), got .*features are those of the context",
        ),
        "whole numbers": ({"y_new": torch.ones(4, 5, 3, dtype=torch.int64)}, DataError, "y_new: expected a floating"),
        "one new member": ({"y_new": held_out.y_new[:, 0]}, ShapeError, r"y_new.unsqueeze\(1\)"),
    }
    for fields, error, words in change.values():
        with pytest.raises(error, match=words):
            dataclasses.replace(held_out, **fields)
    arrays = HeldOut(context, *(part.numpy() for part in (held_out.x_new, held_out.y_new, held_out.y_new_mask)))
    assert held_out_mse(make_model().eval(), arrays) == held_out_mse(make_model().eval(), held_out)


def test_what_cannot_be_predicted_is_said_before_anything_is():
    data = GroupedDataset(torch.randn(5, 2), torch.arange(5.0), list("aabbc"))
    early = torch.tensor([True, False, True, False, False])
    with pytest.raises(
        GroupError, match="targets: expected groups with a member in the context, got 1 others, the first 'c'"
    ):
        HeldOut.of(data.select(early), data.select(~early))
    with pytest.raises(ArgumentError, match="targets: expected a GroupedDataset, got GroupedBatch"):
        HeldOut.of(data, data[:])
    known = torch.tensor([True, True, True, False, True])
    unknown = GroupedDataset(torch.randn(5, 2), torch.arange(5.0), list("aabbc"), x_mask=known)
    with pytest.raises(DataError, match=r"x_new: expected finite values.* members to predict are known"):
        HeldOut.of(data, unknown)


@pytest.fixture
def visits():
    """Three groups whose members are not sorted by x, with two features."""
    x = torch.tensor([5.0, 1.0, 3.0, 2.0, 0.0, 7.0, 6.0, 9.0, 8.0, 4.0])
    return GroupedDataset(torch.arange(10.0).unsqueeze(-1), torch.stack([x, -x], -1), list("aaabbbbcca"))


def told(held_out):
    """First features of context and targets for each label."""
    batch, mask = held_out[:], held_out.y_new_mask
    there = torch.ones(batch.x_new.shape[:2]).bool() if mask is None else mask[..., 0]
    return {
        label: (
            sorted(batch.context.x[g, batch.context.mask[g], 0].tolist()),
            sorted(batch.x_new[g, there[g], 0].tolist()),
        )
        for g, label in enumerate(held_out.labels.tolist())
    }


def test_last_holds_out_the_greatest_x_of_each_group(visits):
    assert told(HeldOut.last(visits)) == {"a": ([1, 3, 4], [5]), "b": ([0, 2, 6], [7]), "c": ([8], [9])}
    assert told(HeldOut.last(visits.subset([0, 1]), 3)) == {"a": ([1], [3, 4, 5]), "b": ([0], [2, 6, 7])}
    tied = GroupedDataset(torch.arange(3.0).unsqueeze(-1), torch.zeros(3), list("aaa"))
    assert HeldOut.last(tied, 1).y_new.item() == 2
    with pytest.raises(GroupError, match=r"more than 2 members.*got 1 smaller ones of 3. Try data.subset"):
        HeldOut.last(visits, 2)
    with pytest.raises(ArgumentError, match="k: expected an integer >= 1, got 0"):
        HeldOut.last(visits, 0)
    unknown = GroupedDataset(torch.ones(2, 1), torch.ones(2), list("aa"), x_mask=torch.tensor([False, True]))
    with pytest.raises(DataError, match="x_new: expected finite"):
        HeldOut.last(unknown)


def test_after_leaves_out_groups_on_one_side(visits):
    assert told(HeldOut.after(visits, 3)) == {"a": ([1, 3], [4, 5]), "b": ([0, 2], [6, 7])}
    assert told(HeldOut.after(visits, 6.5)) == {"b": ([0, 2, 6], [7])}
    with pytest.raises(GroupError, match=r"x: expected a group with members before and after it, got 9 .* 0.0 to 9.0"):
        HeldOut.after(visits, 9)
    unknown = GroupedDataset(torch.ones(2, 1), torch.ones(2), list("aa"), x_mask=torch.tensor([False, True]))
    with pytest.raises(DataError, match=r"data\.x: expected finite"):
        HeldOut.after(unknown, 0.0)


@pytest.mark.parametrize(
    ("amount", "held_out"), [(1, [1, 1, 1]), (0.01, [1, 1, 1]), (0.5, [2, 2, 1]), (0.99, [3, 3, 1])]
)
def test_random_holds_out_a_number_or_a_fraction_of_each_group(visits, amount, held_out):
    found = told(HeldOut.random(visits, amount, seed=2))
    assert [len(targets) for _, targets in found.values()] == held_out
    whole = {"a": [1, 3, 4, 5], "b": [0, 2, 6, 7], "c": [8, 9]}
    assert {label: sorted(context + targets) for label, (context, targets) in found.items()} == whole
    assert found == told(HeldOut.random(visits, amount, seed=2))


def test_random_depends_on_its_seed_and_refuses_what_leaves_no_context(visits):
    assert any(told(HeldOut.random(visits, 1, seed=s)) != told(HeldOut.random(visits, 1)) for s in range(1, 5))
    with pytest.raises(GroupError, match="more than 2 members"):
        HeldOut.random(visits, 2)
    for amount, words in ((1.0, r"a number in \(0, 1\), got 1.0"), (0, "an integer >= 1, got 0"), ("a", "an integer")):
        with pytest.raises(ArgumentError, match=f"amount: expected {words}"):
            HeldOut.random(visits, amount)
    lonely = GroupedDataset(torch.ones(3, 1), torch.ones(3), list("aab"))
    with pytest.raises(GroupError, match="got 1 smaller ones of 2"):
        HeldOut.random(lonely, 0.5)


def test_groups_are_held_out_whole_with_some_members_as_context(visits):
    found = told(HeldOut.groups(visits, [1, 0], context=1, seed=3))
    assert {label: (len(context), len(targets)) for label, (context, targets) in found.items()} == {
        "b": (1, 3),
        "a": (1, 3),
    }
    assert sorted([*found["a"][0], *found["a"][1]]) == [1, 3, 4, 5]
    assert [len(context) for context, _ in told(HeldOut.groups(visits, [0, 2], 0.75)).values()] == [3, 1]
    with pytest.raises(GroupError, match="each group once"):
        HeldOut.groups(visits, [0, 0])
    with pytest.raises(GroupError, match="more than 4 members"):
        HeldOut.groups(visits, [0], context=4)
    with pytest.raises(ArgumentError, match="context: expected"):
        HeldOut.groups(visits, [0], context=0)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (lambda data: HeldOut.last(None), "data"),
        (lambda data: HeldOut.after(data, None), "x"),
        (lambda data: HeldOut.random(data, 1, seed=None), "seed"),
        (lambda data: HeldOut.groups(data, [0], context=1, seed=0.5), "seed"),
    ],
)
def test_arguments_of_another_type_are_refused(split, name, visits):
    with pytest.raises(ArgumentError, match=f"^{name}: expected"):
        split(visits)


def test_the_constructors_take_observations_that_are_made_on_request(visits):
    y, x, group = visits.flat()
    lazy = LazyDataset(GroupedDataset(y[:, 0], x, visits.labels[group.numpy()]), lambda batch: batch.y.unsqueeze(-1))
    for made, kept in (
        (HeldOut.last(lazy), HeldOut.last(visits)),
        (HeldOut.random(lazy, 1), HeldOut.random(visits, 1)),
    ):
        assert made.context.is_lazy
        assert torch.equal(made.y_new, kept.y_new)
        assert torch.equal(made[[1, 0]].context.y, kept[[1, 0]].context.y)


def test_a_context_that_is_aligned_stays_so(visits):
    held_out = HeldOut.last(visits.subset([2, 0]).align(visits))
    assert held_out[:].context.group_index.tolist() == [2, 0]
    assert held_out[[1]].context.num_dataset_members == 10


@pytest.mark.parametrize("index", [1, -1, [2, 0], slice(1, None), range(2), torch.tensor([True, False, True])])
def test_every_kind_of_index_finds_the_same_groups(visits, index):
    held_out = HeldOut.random(visits, 0.5)
    batch, where = held_out[index], held_out.context.positions(index)
    assert torch.equal(batch.context.y, held_out.context[where].y)
    for name, part in (("x_new", batch.x_new), ("y_new", batch.y_new), ("y_new_mask", batch.observed)):
        assert torch.equal(part, getattr(held_out, name)[where])
    assert batch.num_elements == int(held_out.y_new_mask[where].sum())


def test_a_plain_loader_returns_batches_of_groups(visits):
    for held_out in (HeldOut.random(visits, 0.5), HeldOut.last(visits)):
        first, second = DataLoader(held_out, batch_size=2)
        assert (len(first.x_new), len(second.x_new)) == (2, 1)
        assert torch.equal(torch.cat([first.y_new, second.y_new]), held_out.y_new)
        assert [b.context.num_groups for b in DataLoader(Subset(held_out, [0, 2]), batch_size=2)] == [2]
        (both,) = DataLoader(ConcatDataset([held_out]), batch_size=3)  # fetches groups one by one
        assert torch.equal(both.y_new, held_out.y_new)
        assert torch.equal(both.context.y, held_out.context[:].y)
        moved = first.to("meta")
        assert {part.device.type for part in moved if part is not None} == {"meta"}


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_lightning_moves_and_casts_batches(visits, precision, dtype):
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    batch = HeldOut.random(visits, 0.5)[:]
    cast = fabric._precision.convert_input(fabric.to_device(batch))
    assert (cast.x_new.dtype, cast.y_new.dtype, cast.context.y.dtype) == (dtype, dtype, dtype)
    assert cast.observed.dtype == torch.bool


def test_every_tensor_is_pinned(visits, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    batch = pin_memory(HeldOut.random(visits, 0.5)[:])
    assert len(pinned) == 3 + 4
    assert isinstance(batch, HeldOutBatch)


def test_observations_of_a_batch_are_masked(visits):
    batch = HeldOut.random(visits, 0.5)[:]
    assert batch.masked(torch.full((2, *batch.y_new.shape), torch.nan)).nansum() == 0
    assert int(batch.masked(torch.ones_like(batch.y_new)).sum()) == batch.num_elements == 5
