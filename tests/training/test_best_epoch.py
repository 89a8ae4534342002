"""Validation groups that fit splits off, the best epoch, the end by steps, and the warm-up of the KL."""

import math

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from test_fit import At, assert_same_history, interrupt, train

from factories import BlindDecoder, make_data, make_model, same_state, state_of
from fgp_gpytorch import ELBO, FGPVAE, GECO, GPVAE, SVGPVAE, GroupedDataset, HeldOut, fit
from fgp_gpytorch.errors import ArgumentError, CheckpointError, DataError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder, RepresentationNetwork

# some runs of these tests take so large steps that they end at the mean of y


def there_and_back(optimizer, steps):
    """Down for half of the steps, and up again."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < steps // 2 else -1.0)


BEST = {
    "validation": make_data(seed=9), "restore_best": True, "epochs": 8, "learning_rate": 0.02,
    "lr_schedule": there_and_back,
}  # fmt: skip


def positions(labels):
    return [label for label in range(7) if label in labels]


# a fraction of the groups


def test_a_fraction_is_the_run_that_holds_out_these_groups(tmp_path):
    model, result = train(validation=0.3)
    assert len(result.validation_labels) == 2
    data, out = make_data(), positions(result.validation_labels)
    rest = [group for group in range(7) if group not in out]
    plain, expected = train(data=data.subset(rest), validation=data.subset(out))
    assert same_state(model.state_dict(), plain.state_dict())
    assert_same_history(result.history, expected.history)
    assert expected.validation_labels is None


def test_the_seed_chooses_the_groups():
    chosen = [tuple(train(validation=0.3, epochs=1, seed=seed)[1].validation_labels) for seed in (3, 3, *range(8))]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 2


@pytest.mark.parametrize(("fraction", "number"), [(0.01, 1), (0.5, 4), (0.99, 6), (np.float64(0.3), 2)])
def test_a_group_is_left_for_both_sides(fraction, number):
    assert len(train(validation=fraction, epochs=1)[1].validation_labels) == number


def test_two_groups_are_enough_and_one_is_not():
    _, result = train(data=make_data((3, 4)), validation=0.1, epochs=1)
    assert len(result.validation_labels) == 1
    with pytest.raises(DataError, match=r"validation: expected at least 2 groups .* 0\.1 off, got 1\. Try HeldOut"):
        train(data=make_data((3,)), validation=0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan, 2])
def test_other_numbers_are_refused(fraction):
    with pytest.raises(ArgumentError, match=r"validation: expected a number in \(0, 1\), got .*Try 0\.1"):
        train(validation=fraction)


def test_learned_vectors_of_groups_need_held_out_members():
    model = GPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), 3, 7, 2)
    with pytest.raises(ArgumentError, match=r"validation: expected held-out members for GPVAE, got the fraction 0\.2"):
        train(model, validation=0.2)
    network = RepresentationNetwork(MLPEncoder([3], 2, (8,)).layers, torch.nn.Linear(4, 2))
    model = SVGPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), 3, None, 2, 4, representation=network)
    assert len(train(model, validation=0.2, epochs=1)[1].validation_labels) == 1


@pytest.mark.parametrize("seed", [3, None])
def test_a_resumed_run_splits_the_same_groups_off(seed, tmp_path):
    options = {"validation": 0.3, "seed": seed}
    _, first = train(folder=tmp_path, epochs=2, **options)
    model, resumed = train(folder=tmp_path, resume=True, **options)
    assert resumed.validation_labels.tolist() == first.validation_labels.tolist()
    drawn = torch.load(first.last_checkpoint, weights_only=True)["seed"]
    whole, _ = train(validation=0.3, seed=drawn)
    assert same_state(model.state_dict(), whole.state_dict())
    with pytest.raises(CheckpointError, match=r"got one of another: .*(validation_fraction 0\.5, there 0\.3|groups)"):
        train(folder=tmp_path, resume=True, validation=0.5, seed=seed)
    with pytest.raises(CheckpointError, match="got one of another: seed 4, there"):
        train(folder=tmp_path, resume=True, validation=0.3, seed=4)


# the best epoch


class States(lightning.Callback):
    """Keeps the state after each epoch."""

    def __init__(self):
        self.by_epoch = []

    def on_train_epoch_end(self, trainer, module):
        self.by_epoch.append(state_of(module.model))


@pytest.mark.parametrize("kind", ["groups", "members"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_the_model_ends_in_the_state_of_the_best_epoch(kind, in_folder, tmp_path):
    folder = tmp_path if in_folder else None
    validation, name = (
        (make_data(seed=9), "val_loss")
        if kind == "groups"
        else (HeldOut.random(make_data().subset([0, 1, 2, 3, 4, 6]), 1), "val_mse")
    )
    options = BEST | {"validation": validation}
    states = States()
    model, result = train(folder=folder, callbacks=[states], **options)
    best = int(result.history[name].idxmin())
    assert best < 7, "the last epoch is the best: the test would not see a wrong state"
    assert result.best_epoch == best + 1
    assert same_state(model.state_dict(), states.by_epoch[best])
    assert not model.training
    if in_folder:
        assert same_state(FGPVAE.load(result.best_checkpoint).state_dict(), model.state_dict())
        assert not same_state(FGPVAE.load(result.last_checkpoint).state_dict(), model.state_dict())


def climb(parameters):
    return torch.optim.SGD(parameters, lr=1e-3, maximize=True)


def test_training_that_only_does_harm_leaves_the_start(tmp_path):
    model = make_model()
    before = state_of(model)
    options = BEST | {"validation": make_data(), "batch_size": 7, "optimizer": climb, "lr_schedule": None, "epochs": 3}
    _, result = train(model, folder=tmp_path, **options)
    assert result.best_epoch == 0
    assert same_state(state_of(model), before)
    assert result.best_checkpoint is None
    model, resumed = train(make_model(), folder=tmp_path, resume=True, **options | {"epochs": 4})
    assert (resumed.best_epoch, len(resumed.history), resumed.best_checkpoint) == (0, 4, None)
    assert same_state(state_of(model), before)


def test_without_restoring_the_last_epoch_stays_and_the_best_is_named():
    model, result = train(**BEST | {"restore_best": False})
    assert result.best_epoch == result.history.val_loss.idxmin() + 1
    last, _ = train(**BEST | {"restore_best": False, "validation": None})
    assert same_state(model.state_dict(), last.state_dict())
    assert train(epochs=1)[1].best_epoch is None


def test_every_validation_draws_the_same_numbers():
    """Nothing moves, so all values are equal, and none is better than the start."""
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), "lr_schedule": None}
    model = make_model(member_dropout=0.3)
    _, result = train(model, **BEST | still)
    assert result.history.val_loss.nunique() == 1
    assert result.history.log_likelihood.nunique() == 8  # training draws other numbers in each epoch
    assert result.best_epoch == 0


@pytest.mark.parametrize("step", [5, 15, 31])
def test_interrupted_and_resumed_ends_in_the_same_best_state(step, tmp_path):
    whole, expected = train(objective=GECO(0.1), **BEST)
    _, cut = train(objective=GECO(0.1), folder=tmp_path, callbacks=[At(step, interrupt)], **BEST)
    assert cut.interrupted
    model, result = train(objective=GECO(0.1), folder=tmp_path, resume=True, **BEST)
    assert same_state(model.state_dict(), whole.state_dict())
    assert_same_history(result.history, expected.history)
    assert result.best_epoch == expected.best_epoch
    again, finished = train(objective=GECO(0.1), resume=result.last_checkpoint, **BEST)
    assert finished.best_epoch == expected.best_epoch
    assert same_state(again.state_dict(), whole.state_dict())


def test_an_interrupted_run_holds_its_best_state():
    model, result = train(callbacks=[At(6, interrupt)], **BEST)
    assert result.interrupted
    plain, _ = train(max_steps=4, **BEST | {"epochs": None, "lr_schedule": None})
    assert (len(result.history), result.best_epoch) == (1, 1)
    assert same_state(model.state_dict(), plain.state_dict())


def test_a_run_without_its_best_state_cannot_restore_it(tmp_path):
    train(folder=tmp_path, **BEST | {"restore_best": False, "epochs": 2})
    with pytest.raises(CheckpointError, match="got one of another: restore_best True, there False"):
        train(folder=tmp_path, resume=True, **BEST)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": None}, r"restore_best: expected validation data to judge by, got none\. Try validation=0\.1"),
        ({"restore_best": 1}, "restore_best: expected one of False, True"),
        ({"val_check_interval": 0.5}, r"restore_best: .*got .*val_check_interval=0\.5"),
        ({"limit_val_batches": 0}, "restore_best: .*got limit_val_batches=0"),
        ({"fast_dev_run": True}, "restore_best: .*fast_dev_run=True"),
        ({"callbacks": [EMAWeightAveraging(decay=0.9)]}, "restore_best: .*got EMAWeightAveraging"),
        ({"num_sanity_val_steps": 2}, "num_sanity_val_steps: expected fit's own argument restore_best"),
    ],
)
def test_runs_whose_best_state_cannot_be_judged_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        train(**BEST | options)


# the end by steps


def test_max_steps_ends_the_run_and_none_epochs_are_as_many_as_needed():
    for epochs, steps in ((None, 10), (100, 10), (2, 8)):
        _, result = train(epochs=epochs, max_steps=10)
        assert result.trainer.global_step == steps
    plain, _ = train(epochs=2)
    model, _ = train(epochs=None, max_steps=8)
    assert same_state(model.state_dict(), plain.state_dict())
    with pytest.raises(ArgumentError, match="epochs: expected an integer >= 1, got None"):
        train(epochs=None)
    with pytest.raises(ArgumentError, match="max_steps: expected an integer >= 1, got 0"):
        train(max_steps=0)


class Rates(lightning.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(("epochs", "max_steps", "total"), [(None, 10, 10), (4, 10, 10), (2, 10, 8)])
def test_the_cosine_runs_over_the_steps_of_the_run(epochs, max_steps, total):
    rates = Rates()
    train(epochs=epochs, max_steps=max_steps, lr_schedule="cosine", learning_rate=0.01, callbacks=[rates])
    expected = [0.005 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    np.testing.assert_allclose(rates.rates, expected, rtol=1e-12)


def test_the_end_within_an_epoch_is_validated_and_may_be_the_best():
    options = {"validation": make_data(seed=9), "restore_best": True, "max_steps": 6, "learning_rate": 0.01}
    model, result = train(make_model(), **options)
    assert result.history.val_loss.notna().all()
    assert len(result.history) == 2
    assert result.history.val_loss[1] < result.history.val_loss[0]
    assert result.best_epoch == 2
    plain, _ = train(make_model(), **options | {"restore_best": False})
    assert same_state(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_a_run_by_steps_resumes_bit_for_bit(schedule, tmp_path):
    options = {"lr_schedule": schedule, "validation": make_data(seed=9), "restore_best": True, "epochs": None}
    whole, expected = train(max_steps=10, **options)
    train(folder=tmp_path, max_steps=10, callbacks=[At(9, interrupt)], **options)
    for _ in range(2):  # the second time it repeats the steps after the last whole epoch
        model, result = train(folder=tmp_path, max_steps=10, resume=True, **options)
        assert same_state(model.state_dict(), whole.state_dict())
        assert_same_history(result.history, expected.history)
    _, longer = train(folder=tmp_path, max_steps=12, resume=True, **options)
    assert longer.trainer.global_step == 12
    with pytest.raises(CheckpointError, match=r"expected at most max_steps=10 behind it, got 12\. Try max_steps=12"):
        train(folder=tmp_path, max_steps=10, resume=True, **options)


# the warm-up


class Spy(ELBO):
    """Keeps the KL that it weighs, and the one that it reports."""

    def __init__(self, beta=1.0):
        super().__init__(beta)
        self.weighed, self.reported, self.losses = [], [], []

    def loss_of(self, terms):
        loss = super().loss_of(terms)
        self.weighed.append(terms.kl.sum().item())
        self.losses.append(loss.item())
        return loss

    def report(self, terms):
        self.reported.append(terms.kl.sum().item())
        return super().report(terms)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_weight_of_the_kl_rises_linearly_by_steps(accumulate):
    spy = Spy(beta=0.5)
    train(make_model(), objective=spy, kl_warmup_steps=5, accumulate_grad_batches=accumulate)
    expected = [min(1.0, (batch // accumulate) / 5) for batch in range(16)]
    np.testing.assert_allclose(np.array(spy.weighed) / np.array(spy.reported), expected, atol=1e-6)


def test_without_a_kl_the_first_step_is_that_of_the_likelihood_alone():
    first, _ = train(make_model(), max_steps=1, kl_warmup_steps=1)
    second, _ = train(make_model(), max_steps=1, objective=ELBO(beta=0.0))
    assert same_state(first.state_dict(), second.state_dict())


def test_validation_and_history_have_the_whole_kl():
    model = make_model(decoder=BlindDecoder())
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), "validation": make_data(seed=9)}
    _, warm = train(model, kl_warmup_steps=16, **still)
    _, plain = train(model, **still)
    assert_same_history(warm.history, plain.history)


def test_a_warm_up_resumes_bit_for_bit(tmp_path):
    options = {"kl_warmup_steps": 13, "epochs": 4}
    whole, expected = train(**options)
    train(folder=tmp_path, callbacks=[At(7, interrupt)], **options)
    model, result = train(folder=tmp_path, resume=True, **options)
    assert same_state(model.state_dict(), whole.state_dict())
    assert_same_history(result.history, expected.history)
    with pytest.raises(CheckpointError, match="kl_warmup_steps 12, there 13"):
        train(folder=tmp_path, resume=True, **options | {"kl_warmup_steps": 12})


def test_a_warm_up_longer_than_the_run_and_one_for_geco_are_refused():
    with pytest.raises(
        ArgumentError, match=r"kl_warmup_steps: expected at most 16, .*, got 17: .*Try kl_warmup_steps=3"
    ):
        train(kl_warmup_steps=17)
    with pytest.raises(ArgumentError, match=r"kl_warmup_steps: expected at most 6, .*, got 7"):
        train(kl_warmup_steps=7, max_steps=6)
    with pytest.raises(ArgumentError, match=r"kl_warmup_steps: expected None for GECO, .*got 5\. Try ELBO"):
        train(kl_warmup_steps=5, objective=GECO(0.1))


def test_splitting_keeps_columns_that_the_rest_observes():
    """A column that only the validation groups observe is refused, as in data of one's own."""
    rows = make_data().flat()
    observed = torch.ones(rows.y.shape, dtype=torch.bool)
    out = train(validation=0.2, epochs=1)[1].validation_labels
    observed[:, 1] = torch.isin(rows.group, torch.as_tensor(out))
    with pytest.raises(DataError, match="column"):
        train(data=GroupedDataset(rows.y, rows.x, rows.group, observed), validation=0.2)


def test_held_out_members_judge_the_start_too():
    data = HeldOut.random(make_data().subset([0, 1, 2, 3, 4, 6]), 1)
    model = make_model()
    before = state_of(model)
    result = fit(model, data.context, validation=data, restore_best=True, optimizer=climb, epochs=2, folder=None,
                 progress=False, seed=0)  # fmt: skip
    assert (result.best_epoch, same_state(state_of(model), before)) == (0, True)
