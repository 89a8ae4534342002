"""Held-out members that are ragged and partly missing: every metric as if what is missing were not there."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from factories import make_data, make_model
from fgp_gpytorch import GroupedDataset, fit
from fgp_gpytorch.data import AlignedDataset, HeldOutMembers, align_held_out
from fgp_gpytorch.data.held_out import held_out_batch
from fgp_gpytorch.errors import DataError, GroupError, ShapeError
from fgp_gpytorch.metrics import central_interval, held_out_calibration, held_out_mse, mse_by_context_size, swap_errors
from fgp_gpytorch.metrics.swap import _other_group

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
    held_out = HeldOutMembers.of(context, targets)
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
    model, held_out = make_model().eval(), HeldOutMembers.of(*split())
    other = torch.where(held_out.y_new_mask, held_out.y_new, torch.nan)
    hidden = dataclasses.replace(held_out, y_new=other)
    for metric in (held_out_mse, held_out_calibration, swap_errors):
        assert metric(model, hidden) == metric(model, held_out)


def test_calibration_counts_the_observed_elements_and_no_others():
    model, held_out = make_model().eval(), HeldOutMembers.of(*split())
    found = held_out_calibration(model, held_out, num_samples=99, seed=3)
    with torch.no_grad():
        torch.manual_seed(3)
        z = model.predict(held_out_batch(held_out, slice(None)).x_new, held_out.context).rsample((99,))
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
    model, held_out = make_model().eval(), HeldOutMembers.of(*split())
    local_from = _other_group(4, 0)
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
    held_out = HeldOutMembers.of(dated.select(place < 3), dated.select(place >= 3))
    batch = held_out_batch(held_out, slice(None))
    there = held_out.y_new_mask[..., 0]
    assert (batch.x_new - 1.7e9).abs().max() < 4
    assert torch.equal(batch.x_new[there], held_out.x_new[there])
    unknown = dataclasses.replace(held_out, x_new=held_out.x_new.masked_fill(~there.unsqueeze(-1), torch.nan))
    model = make_model().eval()
    assert held_out_mse(model, unknown) == held_out_mse(model, held_out)
    nobody = dataclasses.replace(
        unknown, y_new_mask=held_out.y_new_mask & torch.tensor([False, True, True, True])[:, None, None]
    )
    assert held_out_batch(nobody, [0]).x_new.isfinite().all()
    assert held_out_mse(model, nobody, batch_size=1) == pytest.approx(held_out_mse(model, nobody), rel=1e-6)


def test_a_mask_of_members_is_one_of_their_elements():
    model, (context, targets) = make_model().eval(), split(element_mask=False)
    held_out = HeldOutMembers.of(context, targets)
    members = dataclasses.replace(held_out, y_new_mask=targets[:].mask)
    assert held_out_mse(model, members) == held_out_mse(model, held_out)


def test_groups_are_matched_by_label_and_those_without_targets_left_out():
    y = torch.rand(8, 3)
    context = GroupedDataset(y, torch.arange(8.0), ["d", "a", "c", "b", "b", "c", "a", "d"])
    targets = GroupedDataset(y[:3], torch.arange(3.0), ["d", "b", "b"])
    held_out = HeldOutMembers.of(context, targets)
    assert held_out.context.labels.tolist() == ["b", "d"]
    assert held_out.y_new_mask[..., 0].tolist() == [[True, True], [True, False]]
    assert torch.equal(held_out.y_new[1, 0], y[0])
    assert isinstance(align_held_out(held_out, context).context, AlignedDataset)
    with pytest.raises(GroupError, match="got 1 others, the first 'z'"):
        HeldOutMembers.of(context, GroupedDataset(y[:1], torch.zeros(1), ["z"]))
    with pytest.raises(ShapeError, match="expected x_new with the context's 1 features"):
        HeldOutMembers.of(context, GroupedDataset(y[:1], torch.zeros(1, 2), ["a"]))


def test_validation_counts_what_was_observed_and_refuses_what_is_not_finite():
    (context, targets), data = split(), make_data(sizes=SIZES)
    held_out = HeldOutMembers.of(context, targets)
    hidden = dataclasses.replace(held_out, y_new=torch.where(held_out.y_new_mask, held_out.y_new, torch.nan))
    model = make_model()
    result = fit(model, data, validation=hidden, epochs=2, batch_size=2, seed=0, folder=None, progress=False)
    assert result.history["val_mse"].iloc[-1] == pytest.approx(held_out_mse(model, held_out), rel=1e-5)
    lost = SimpleNamespace(context=context, x_new=held_out.x_new, y_new=hidden.y_new)
    with pytest.raises(DataError, match="y_new: expected finite"):
        fit(make_model(), data, validation=lost, epochs=1, seed=0, folder=None, progress=False)


def test_errors_say_what_to_try():
    context, targets = split()
    held_out = HeldOutMembers.of(context, targets)
    change = {
        "mask of another shape": ({"y_new_mask": torch.ones(4, 2, dtype=torch.bool)}, ShapeError, r"y_new_mask: .*\(4"),
        "mask of numbers": ({"y_new_mask": torch.ones(4, 5)}, DataError, "y_new_mask: expected a boolean"),
        "nothing observed": ({"y_new_mask": torch.zeros(4, 5, dtype=torch.bool)}, DataError, "y_new_mask: .*got none"),
        "a batch": ({"context": context[:]}, DataError, "context: expected a GroupedDataset, got GroupedBatch"),
        "other features": ({"x_new": held_out.x_new.expand(-1, -1, 2)}, ShapeError, "the context's 1 features, got"),
        "whole numbers": ({"y_new": torch.ones(4, 5, 3, dtype=torch.int64)}, DataError, "y_new: expected a floating"),
        "one new member": ({"y_new": held_out.y_new[:, 0]}, ShapeError, r"y_new.unsqueeze\(1\)"),
    }
    for fields, error, words in change.values():
        with pytest.raises(error, match=words):
            dataclasses.replace(held_out, **fields)
    arrays = HeldOutMembers(context, *(part.numpy() for part in (held_out.x_new, held_out.y_new, held_out.y_new_mask)))
    assert held_out_mse(make_model().eval(), arrays) == held_out_mse(make_model().eval(), held_out)
    with pytest.raises(DataError, match=r"held_out: expected a dataclass .*Try HeldOutMembers"):
        align_held_out(SimpleNamespace(context=context), context)


def test_what_cannot_be_predicted_is_said_before_anything_is():
    data = GroupedDataset(torch.randn(5, 2), torch.arange(5.0), list("aabbc"))
    early = torch.tensor([True, False, True, False, False])
    with pytest.raises(
        GroupError, match="targets: expected groups of whom the context has somebody, got 1 others, the first 'c'"
    ):
        HeldOutMembers.of(data.select(early), data.select(~early))
    with pytest.raises(DataError, match="targets: expected a GroupedDataset, got GroupedBatch"):
        HeldOutMembers.of(data, data[:])
    known = torch.tensor([True, True, True, False, True])
    unknown = GroupedDataset(torch.randn(5, 2), torch.arange(5.0), list("aabbc"), x_mask=known)
    with pytest.raises(DataError, match="x_new: expected known features of all members to predict"):
        HeldOutMembers.of(data, unknown)


def test_batches_are_no_data_sets_to_align():
    data = GroupedDataset(torch.randn(3, 2), torch.arange(3.0), list("aab"))
    with pytest.raises(DataError, match="data: expected a GroupedDataset, got GroupedBatch"):
        AlignedDataset(data[:], data)
    with pytest.raises(DataError, match="reference: expected a GroupedDataset, got GroupedBatch"):
        AlignedDataset(data, data[:])
