"""Runs in two processes. Each starts two Python processes, as a person's script would."""

import subprocess
import sys

import pytest
import torch

from benchmarks.studies.processes import MUST, run
from factories import make_data, make_model
from fgp_gpytorch import GPVAE, GaussianLikelihood, fit
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder

QUIET = {"epochs": 1, "folder": None, "progress": False, "accelerator": "cpu"}


@pytest.mark.parametrize("case", ["GECO with gaps", "shared effects", "resumed in two"])  # the study runs all others
def test_two_processes_take_the_steps_of_one(case):
    """Ragged groups, gaps, a last minibatch of one group, and validation groups that do not divide evenly."""
    _, largest = run({"case": case, "seed": 3}, None)
    assert max(largest.values()) <= MUST


def script(folder, body):
    """Run a script that trains in two processes. Returns what it printed, and its exit status."""
    head = """
import os, sys, warnings
warnings.filterwarnings("ignore")
import torch, lightning
torch.set_num_threads(1)
from factories import make_data, make_model
from fgp_gpytorch import ELBO, GECO, GaussianLikelihood, fit
rank = int(os.environ.get("LOCAL_RANK", "0"))
two = dict(epochs=1, batch_size=2, folder=None, progress=False, accelerator="cpu", devices=2, strategy="ddp")
"""
    path = folder / "script.py"
    path.write_text(head + body)
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    return done.stdout, done.stderr, done.returncode


def test_without_a_seed_every_group_is_seen_once_and_nothing_blocks_afterwards(tmp_path):
    out, err, status = script(
        tmp_path,
        """
class Groups(lightning.Callback):
    def __init__(self):
        self.seen = []
    def on_train_batch_start(self, trainer, module, batch, index):
        self.seen += batch.group_index.tolist()

geco, groups, data = GECO(0.05), Groups(), make_data((2,) * 12)
model = make_model(GaussianLikelihood())
result = fit(model, data, objective=geco, callbacks=[groups], **two)
both = [None, None]
torch.distributed.all_gather_object(both, groups.seen)
if rank == 0:
    print("seen", sorted(both[0] + both[1]) == list(range(12)))
    # one process alone goes on: an objective or a likelihood that reduced over processes would wait for the other
    geco.loss_and_grads(model.model, model.guide, data[:])
    fit(model, data, objective=geco, epochs=1, folder=None, progress=False, accelerator="cpu", devices=1)
    print("not blocked")
""",
    )
    assert status == 0, err[-2000:]
    assert out.splitlines()[-2:] == ["seen True", "not blocked"]


def test_an_error_of_one_process_ends_both(tmp_path):
    out, err, status = script(
        tmp_path,
        """
class Fails(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        if rank == 1 and trainer.global_step == 2:
            raise OSError("the second process fails")

fit(make_model(), make_data((2,) * 12), callbacks=[Fails()], **two)
print("came through")
""",
    )
    assert status != 0
    assert "came through" not in out
    assert "the second process fails" in err


def test_a_caught_error_leaves_nobody_waiting(tmp_path):
    out, err, status = script(
        tmp_path,
        """
class Fails(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        if rank == 0 and trainer.global_step == 2:
            raise OSError("the first process fails")

for _ in range(2):
    try:
        fit(make_model(), make_data((2,) * 12), callbacks=[Fails()], **two)
    except Exception as error:
        print(rank, type(error).__name__, str(error)[:59], flush=True)
""",
    )
    assert status == 0, err[-2000:]
    lines = [line for line in out.splitlines() if line.startswith("0 ")]
    assert lines == [
        "0 OSError the first process fails",
        "0 ArgumentError devices: expected a new start of the script after a run tha",
    ]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_spawned_and_forked_processes_are_refused(strategy):
    with pytest.raises(ArgumentError, match=r"strategy: expected 'auto' or 'ddp', got .* Try strategy='ddp'"):
        fit(make_model(), make_data(), devices=2, strategy=strategy, **QUIET)


def test_a_coupled_prior_is_refused_in_two_processes():
    model = GPVAE(MLPEncoder([3], 3, (8,)), MLPDecoder(3, [3], (8,)), 3, 7, 2)
    with pytest.raises(ArgumentError, match="devices: expected one process for GPVAE, got 2"):
        fit(model, make_data(), devices=2, strategy="ddp", **QUIET)
    assert not torch.distributed.is_initialized()


PARTS = """
from fgp_gpytorch import FGPVAE
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
from factories import make_prior

def trained(batch_size, **options):
    torch.manual_seed(1)
    encoder, decoder = MLPEncoder((3,), 3, (8,), takes_observed=True), MLPDecoder(3, (3,), (8,))
    model = FGPVAE(encoder, decoder, make_prior(), GaussianLikelihood(), (0.0, 0.5), (0.2, 0.6)).double()
    data = make_data((3, 5, 2, 4, 6, 1, 4, 2, 3), element_mask=True, dtype=torch.float64)
    result = fit(model, data, batch_size=batch_size, validation=0.3, restore_best=True, kl_warmup_steps=3,
                 max_steps=7, learning_rate=0.05, seed=3, folder=None, progress=False, accelerator="cpu", **options)
    return result, model
"""


def test_dropped_elements_split_groups_warm_up_and_best_epoch_are_those_of_one_process(tmp_path):
    path = tmp_path / "two.pt"
    body = f"""
result, model = trained(2, devices=2, strategy="ddp")
if rank == 0:
    torch.save((model.state_dict(), result.best_epoch, result.history.val_loss.tolist()), {str(path)!r})
"""
    _, err, status = script(tmp_path, PARTS + body)
    assert status == 0, err[-2000:]
    names = {"torch": torch, "make_data": make_data, "fit": fit, "GaussianLikelihood": GaussianLikelihood}
    exec(PARTS, names)
    result, model = names["trained"](4)
    state, best_epoch, losses = torch.load(path, weights_only=True)
    assert best_epoch == result.best_epoch
    torch.testing.assert_close(losses, result.history.val_loss.tolist(), rtol=1e-12, atol=0)
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=1e-11, atol=1e-12)


def test_several_processes_need_a_seed_to_split_the_same_groups_off():
    with pytest.raises(ArgumentError, match=r"seed: expected a number, by which all processes split .*Try seed=0"):
        fit(make_model(), make_data(), validation=0.2, devices=2, strategy="ddp", **QUIET)
