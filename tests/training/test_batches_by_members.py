"""Minibatches by members, and of groups of similar sizes: what they contain, and that their gradients are unbiased."""

import itertools
import math
from types import SimpleNamespace

import lightning
import pytest
import torch

from factories import BlindDecoder, ConstantEncoder, make_data, make_model, same_state
from fgp_gpytorch import GECO, GPVAE, fit
from fgp_gpytorch.errors import ArgumentError, CheckpointError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from fgp_gpytorch.objectives import ELBO
from fgp_gpytorch.training.shared_batches import SharedBatches, lengths_of

SIZES = (3, 5, 2, 14, 6, 1, 4, 1, 1, 9, 2, 3, 5, 4, 2)
QUIET = {"folder": None, "progress": False, "accelerator": "cpu", "seed": 3}
WAYS = {
    "members": {"batch_members": 10},
    "members of similar groups": {"batch_members": 10, "bucketing": True},
    "similar groups": {"batch_size": 4, "bucketing": True},
    "similar groups, full batches": {"batch_size": 4, "bucketing": True, "drop_last": True},
}


def batches_of(sizes=SIZES, epoch=0, processes=1, rank=0, batch_size=None, **options):
    trainer = SimpleNamespace(world_size=processes, global_rank=rank)
    sizes = torch.as_tensor(sizes)
    return SharedBatches(sizes, batch_size, trainer, lambda: epoch, 7, **options)  # pyright: ignore


def positions_of(batches):
    return [request.positions for request in batches]


@pytest.mark.parametrize("most", [1, 3, 10, 47, 1000])
def test_a_minibatch_takes_groups_until_its_members_reach_the_number(most):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 12, (30,), generator=g)
        sizes[3] = 200
        clamped = sizes.clamp_max(most).tolist()
        number = math.ceil(sum(clamped) / most)
        lengths = lengths_of(clamped, number)
        assert (len(lengths), sum(lengths)) == (number, 30)
        assert min(lengths) >= 1
        start = 0
        for length in lengths:
            assert sum(clamped[start : start + length - 1]) < most  # it would have ended before its last group
            start += length


@pytest.mark.parametrize("way", WAYS)
def test_every_epoch_has_every_group_once_in_as_many_other_batches(way):
    found = [positions_of(batches_of(epoch=epoch, **WAYS[way])) for epoch in range(6)]
    assert len({len(epoch) for epoch in found}) == 1
    assert len({str(sorted(map(sorted, epoch))) for epoch in found}) > 1
    for epoch in found:
        groups = [group for batch in epoch for group in batch]
        assert len(set(groups)) == len(groups) == (12 if "drop_last" in WAYS[way] else len(SIZES))
    if "drop_last" in WAYS[way]:
        left_out = [set(range(len(SIZES))) - {group for batch in epoch for group in batch} for epoch in found]
        assert len(set().union(*left_out)) > 3  # not always the groups of one size


@pytest.mark.parametrize("way", ["members of similar groups", "similar groups"])
def test_bucketed_groups_have_similar_sizes_and_come_in_random_order(way):
    first = set()
    for epoch in range(20):
        sizes = [[SIZES[g] for g in batch] for batch in positions_of(batches_of(epoch=epoch, **WAYS[way]))]
        first.add(max(sizes[0]))
        ordered = sorted(sizes, key=lambda batch: (-sum(batch) / len(batch), -max(batch)))
        for larger, smaller in itertools.pairwise(ordered):
            assert max(smaller) <= min(larger) * math.exp(0.2) + 1e-9
    assert len(first) > 2


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_share_the_batches_of_one_with_twice_the_number(way):
    options = dict(WAYS[way])
    name = "batch_members" if "batch_members" in options else "batch_size"
    whole = batches_of(**options | {name: 2 * options[name]})
    shared = [batches_of(processes=2, rank=rank, **options) for rank in range(2)]
    assert shared[0].weight == shared[1].weight == whole.weight
    for number, batch in enumerate(positions_of(whole)):
        sizes = shared[0].sizes(len(batch))
        parts = [list(part)[number].positions[: sizes[rank]] for rank, part in enumerate(shared)]
        assert parts[0] + parts[1] == batch
        assert shared[1].whole(number).tolist() == batch


class Gradients(lightning.Callback):
    """The gradient of every step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = (p.grad for p in pl_module.model.parameters() if p.grad is not None)
        self.steps.append(torch.cat([gradient.double().flatten() for gradient in gradients]))


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("objective", [ELBO(0.7), GECO(0.02)])
@pytest.mark.parametrize("way", ["members", "members of similar groups", "similar groups"])
def test_the_mean_gradient_of_an_epoch_is_that_of_the_whole_data_set(way, objective):
    """Without a gap, and with a decoder that ignores z: then a step draws no numbers that matter."""
    data = make_data(SIZES)

    def gradients(**options):
        model, found = make_model(encoder=ConstantEncoder(), decoder=BlindDecoder(), hyperprior=True), Gradients()
        fit(model, data, objective=objective, epochs=1, optimizer=still, callbacks=[found], **QUIET, **options)
        return torch.stack(found.steps)

    # GECO's multiplier moves after each step, so its one step has the first multiplier only
    if isinstance(objective, GECO):
        objective = GECO(0.02, rate=1e-12)
    (whole,) = gradients(batch_size=len(SIZES))
    steps = gradients(**WAYS[way])
    assert len(steps) == len(batches_of(**WAYS[way])) > 2
    scale = whole.abs().max()
    assert float((steps.mean(0) - whole).abs().max() / scale) < 1e-5  # networks are float32
    assert float((steps - whole).abs().max() / scale) > 1e-3  # single steps differ


def test_weights_by_numbers_of_groups_would_be_biased():
    """The reason for the weight: the sum over groups of N/G, averaged over batches, is not 1 for each group."""
    for way in ("members", "members of similar groups", "similar groups"):
        batches = positions_of(batches_of(**WAYS[way]))
        weight = {g: len(SIZES) / len(batch) / len(batches) for batch in batches for g in batch}
        assert max(weight.values()) > 1.1
    assert batches_of(batch_size=3).weight is None
    assert batches_of(batch_size=4, bucketing=True, drop_last=True).weight == pytest.approx(len(SIZES) / 4)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    data, options = make_data(SIZES), {**QUIET, **WAYS["members of similar groups"], "validation": make_data(seed=5)}
    one, other = make_model(), make_model()
    fit(one, data, epochs=4, **options)
    options["folder"] = tmp_path / "run"
    fit(other, data, epochs=2, **options)
    for name, value in (("batch_members", 12), ("bucketing", False)):
        with pytest.raises(CheckpointError, match=name):
            fit(other, data, epochs=4, resume=True, **options | {name: value})
    fit(other, data, epochs=4, resume=True, **options)
    assert same_state(one.state_dict(), other.state_dict())


def test_options_that_do_not_fit_together_are_refused():
    model, data = make_model(), make_data()
    with pytest.raises(ArgumentError, match="batch_size: expected None beside batch_members=5, got 3"):
        fit(model, data, batch_size=3, batch_members=5, **QUIET)
    with pytest.raises(ArgumentError, match="drop_last: expected False with batch_members"):
        fit(model, data, drop_last=True, batch_members=5, **QUIET)
    with pytest.raises(ArgumentError, match="batch_members: expected an integer >= 1, got 0"):
        fit(model, data, batch_members=0, **QUIET)
    with pytest.raises(ArgumentError, match="bucketing: expected one of False, True, got 1"):
        fit(model, data, bucketing=1, **QUIET)
    coupled = GPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), 3, len(data), 2)
    with pytest.raises(ArgumentError, match="expected neither for a prior that couples groups"):
        fit(coupled, data, batch_members=5, **QUIET)
