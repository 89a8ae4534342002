"""`GroupInputs`: ragged groups put together, taken apart, and flattened for the inference."""

import torch

from fgp_gpytorch.coupled import GroupInputs

F64 = torch.float64


def make_inputs(sizes, members=None, seed=0, dtype=F64):
    members = max(sizes) if members is None else members
    g = torch.Generator().manual_seed(seed)
    groups = len(sizes)
    return GroupInputs.of(
        torch.randn(groups, 2, generator=g, dtype=F64),
        torch.rand(groups, members, 1, generator=g, dtype=F64),
        torch.randn(groups, members, 3, generator=g, dtype=F64),
        0.1 + torch.rand(groups, members, 3, generator=g, dtype=F64),
        torch.arange(members) < torch.tensor(sizes).unsqueeze(-1),
        dtype,
    )


def test_numbers_are_converted_and_no_mask_observes_all():
    inputs = make_inputs((2, 3))
    got = GroupInputs.of(*(value.float() for value in inputs[:4]), None, F64)
    assert [value.dtype for value in got] == [F64, F64, F64, F64, torch.bool]
    assert torch.equal(got.mask, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(got.mean, inputs.mean, rtol=1e-6, atol=1e-7)
    assert {value.dtype for value in make_inputs((2, 3), dtype=torch.float32)[:4]} == {torch.float32}


def test_selected_groups_are_those_of_the_positions():
    inputs = make_inputs((2, 4, 1))
    order = torch.tensor([2, 0, 2])
    got = inputs.select(order)
    for name in GroupInputs._fields:
        assert torch.equal(getattr(got, name), torch.stack([getattr(inputs, name)[i] for i in (2, 0, 2)]))


def test_ragged_groups_put_together_keep_their_observed_members():
    parts = make_inputs((2, 1)), make_inputs((4,), seed=1), make_inputs((3, 3, 2), seed=2)
    whole = parts[0].cat(*parts[1:])
    assert whole.x.shape == (6, 4, 1)
    assert whole.vectors.shape == (6, 2)
    assert whole.mask.sum(-1).tolist() == [2, 1, 4, 3, 3, 2]
    assert torch.equal(whole.vectors, torch.cat([part.vectors for part in parts]))
    for name in ("x", "mean", "variance"):
        wanted = torch.cat([getattr(part, name)[part.mask] for part in parts])
        assert torch.equal(getattr(whole, name)[whole.mask], wanted)
    assert bool((whole.variance > 0).all())  # padding included
    start = 0
    for part in parts:  # and each part comes back
        again = whole.select(torch.arange(start, start + len(part.x)))
        size = part.x.shape[1]
        assert torch.equal(again.mask[:, :size], part.mask)
        assert not again.mask[:, size:].any()
        assert torch.equal(again.x[:, :size], part.x)
        start += len(part.x)


def test_padding_repeats_the_last_x_and_is_not_observed():
    short = make_inputs((2, 2))
    whole = short.cat(make_inputs((5,), seed=1))
    assert torch.equal(whole.x[:2, 2:], short.x[:, 1:].expand(2, 3, 1))
    assert not whole.mask[:2, 2:].any()
    assert torch.equal(short.cat().x, short.x)


def test_targets_are_the_flat_precisions_and_means_of_observed_members():
    inputs = make_inputs((2, 4, 1))
    inputs.mean[~inputs.mask] = float("nan")
    inputs.variance[~inputs.mask] = 0.0
    for times in (1.0, 2.5):
        precision, mean = inputs.targets(times)
        assert precision.shape == mean.shape == (3, 12)
        for group in range(3):
            for member in range(4):
                for channel in range(3):
                    row = 4 * group + member
                    seen = bool(inputs.mask[group, member])
                    wanted = times / float(inputs.variance[group, member, channel]) if seen else 0.0
                    assert abs(float(precision[channel, row]) - wanted) <= 1e-12 * wanted
                    assert float(mean[channel, row]) == (float(inputs.mean[group, member, channel]) if seen else 0.0)


def test_targets_have_no_gradient_at_members_that_are_not_observed():
    inputs = make_inputs((2, 4, 1))
    inputs = inputs._replace(mean=inputs.mean.requires_grad_(), variance=inputs.variance.requires_grad_())
    precision, mean = inputs.targets()
    (precision.sum() + mean.square().sum()).backward()
    for value in (inputs.mean, inputs.variance):
        assert value.grad[~inputs.mask].abs().max() == 0
        assert value.grad[inputs.mask].abs().min() > 0
