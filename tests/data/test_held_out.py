"""Held-out members that are ragged and partly missing: every metric as if what is missing were not there."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from factories import make_data, make_model
from fgp_gpytorch import GroupedDataset, fit
from fgp_gpytorch.data import AlignedDataset, HeldOutMembers, align_held_out
from fgp_gpytorch.errors import DataError, GroupError, ShapeError
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse, mse_by_context_size, swap_errors

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


def test_calibration_of_padded_targets_is_that_of_the_members():
    model, (context, targets) = make_model().eval(), split(element_mask=False)
    held_out = HeldOutMembers.of(context, targets)
    found = held_out_calibration(model, held_out, num_samples=999)
    parts, count = torch.zeros(4), 0
    for part, x_new, y_new, _ in one_by_one(context, targets):
        single = held_out_calibration(model, HeldOutMembers(part, x_new, y_new), num_samples=999)
        parts, count = parts + torch.tensor(single), count + 1
    # two sets of 999 draws of a Gaussian with noise: standard errors below 0.02
    torch.testing.assert_close(torch.tensor(found), parts / count, rtol=0, atol=0.05)


def test_swap_of_members_that_were_not_observed_counts_the_others():
    model, (context, targets) = make_model().eval(), split(element_mask=False)
    held_out = HeldOutMembers.of(context, targets)
    expected = held_out_mse(model, held_out)
    assert swap_errors(model, held_out).unswapped == pytest.approx(expected, rel=1e-6)


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
    with pytest.raises(ShapeError, match="targets: expected 1 features as the context has, got 2"):
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
        "a batch": ({"context": context[:]}, DataError, "expected a GroupedDataset as context, got GroupedBatch"),
        "one new member": ({"y_new": held_out.y_new[:, 0]}, ShapeError, r"y_new.unsqueeze\(1\)"),
    }
    for fields, error, words in change.values():
        with pytest.raises(error, match=words):
            dataclasses.replace(held_out, **fields)
    with pytest.raises(DataError, match=r"held_out: expected a dataclass .*Try HeldOutMembers"):
        align_held_out(SimpleNamespace(context=context), context)
