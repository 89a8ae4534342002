"""Everything follows the model to another device, which is pretended here."""

import copy

import pytest
import torch

from benchmarks import device_cases as cases
from benchmarks.device_check import Check
from factories import make_data, make_model
from fgp_gpytorch import HeldOut
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.metrics import held_out_calibration, held_out_mse
from pretend_device import pretended_device

LATENT = ["prior, all blocks", "kernels on tables", "exact_gp", "data", "metrics", "plots"]
LATENT += [f"prior, {name}" for name in ("state space", "low rank", "inducing points", "shared effects")]
MODELS = ["FGPVAE, gaps", "LatentAngleFGPVAE", "GPVAE", "SVGPVAE, representation", "CorrelatedFGPVAE, representation"]


@pytest.mark.parametrize("name", [*LATENT, *(f"model, {name}" for name in MODELS)])
def test_operations_give_the_same_on_another_device(name) -> None:
    with pretended_device() as device:
        check = Check(device, quick=True)
        check.compare(name, cases.OPERATIONS[name], tolerance=1e-9, on_device=name not in ("data", "metrics"))
    assert check.failures == []


def test_mixed_devices_are_noticed() -> None:
    with pretended_device() as device:
        there = torch.ones(2).to(device)
        assert torch.equal((there + there).cpu(), torch.full((2,), 2.0))
        with pytest.raises(RuntimeError, match="one device in add"):
            there + torch.ones(2)
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()


@pytest.mark.parametrize("call", ["infer", "encode", "terms", "reconstruct"])
def test_batch_on_another_device_than_the_model_is_refused(call) -> None:
    batch = make_data()[:].to("meta")
    with pytest.raises(DataError, match=r"on the device of the model, cpu, got one on meta\. Try batch\.to\('cpu'\)"):
        getattr(make_model(), call)(batch)


def test_data_set_follows_the_model() -> None:
    data, model = make_data(), make_model().eval()
    expected = model.reconstruct(data)
    with pretended_device() as device:
        found = model.to(device).reconstruct(data)
        assert found.device == device
        assert torch.equal(found.cpu(), expected)


def test_conditioned_model_takes_its_posterior_along() -> None:
    data, held_out = cases.make_data(), HeldOut.random(cases.make_data(), 1)
    torch.manual_seed(0)
    conditioned = cases.MODELS["SVGPVAE"]().double().condition_on(held_out.context)
    expected = held_out_mse(conditioned, held_out)
    with pretended_device() as device:
        moved = copy.deepcopy(conditioned).to(device)
        assert moved.posterior.x.device == moved.group_index.device == device
        assert held_out_mse(moved, held_out) == pytest.approx(expected, rel=1e-9)
    assert len(data) == moved.num_groups


def test_summary_follows_the_model() -> None:
    data = cases.make_data()
    torch.manual_seed(0)
    model = cases.MODELS["GPVAE"]().double()
    model.summary = model.summarize(data)
    expected = model.terms(data[:3]).kl_local.detach()
    with pretended_device() as device:
        model.to(device)
        assert torch.allclose(model.terms(data[:3].to(device)).kl_local.detach().cpu(), expected, rtol=1e-9)


def test_batch_on_a_device_is_not_pinned() -> None:
    batch = make_data(element_mask=True)[:].to("meta")
    assert batch.pin_memory() is batch


def test_seed_of_a_metric_leaves_the_generators_of_other_devices_alone(monkeypatch) -> None:
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    held_out = HeldOut.random(make_data((3, 4, 2)), 1)
    first = held_out_calibration(make_model(), held_out, num_samples=19, seed=3)
    torch.manual_seed(5)
    seeded.clear()
    assert held_out_calibration(make_model(), held_out, num_samples=19, seed=3) == first
    assert 3 not in seeded
