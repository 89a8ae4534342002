"""The check of a device: its record, and that it notices what is wrong."""

import json
import math

import torch

from benchmarks import device_cases, device_check


def test_short_form_on_the_cpu_passes_and_writes_one_record(tmp_path, monkeypatch) -> None:
    few = ("prior, local", "model, FGPVAE", "kernels on tables")
    monkeypatch.setattr(device_cases, "OPERATIONS", {name: device_cases.OPERATIONS[name] for name in few})
    out = tmp_path / "check.json"
    parts = ["operations", "step time", "bf16-mixed", "state space"]
    assert device_check.main(["--device", "cpu", "--quick", "--out", str(out), "--only", *parts]) == 0
    record = json.loads(out.read_text())
    assert record["passed"]
    assert list(record["parts"]) == parts
    assert set(record["parts"]["operations"]["differences"]) == set(few)
    assert record["device"]["type"] == "cpu"
    assert {"commit", "versions", "threads"} <= record["made"].keys()
    step = record["parts"]["step time"]["20 groups, 220 images"]
    assert step["FGP-VAE over VAE"]["median"] > 0
    space = record["parts"]["state space"]
    assert 0 < space["difference from dense inference, 300 members"] < 1e-6
    assert space["difference from the CPU"] == 0
    assert space["times"]["2,000 members"]["median"] > 0


def test_a_part_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    def broken(device: torch.device) -> dict:
        raise ValueError("no such kernel")

    values = iter((1.0, 1.5))

    def drifting(device: torch.device) -> dict:
        return {"mean": torch.tensor([next(values), 2.0])}

    monkeypatch.setattr(device_cases, "OPERATIONS", {"broken": broken, "drifting": drifting})
    monkeypatch.setitem(device_check.PARTS, "state space", lambda check: {"fine": 1})
    out = tmp_path / "check.json"
    assert device_check.main(["--device", "cpu", "--out", str(out), "--only", "operations", "state space"]) == 1
    record = json.loads(out.read_text())
    failures = record["parts"]["operations"]["failures"]
    assert failures[0].startswith("broken: ValueError: no such kernel (at ")
    assert failures[1] == "drifting: mean differs from the CPU's by 2.5e-01"
    assert not record["passed"]
    assert record["parts"]["state space"]["passed"]


def test_difference_is_relative_to_the_largest_entry() -> None:
    assert device_check.relative_difference([1.0, 4.0], torch.tensor([1.0, 5.0])) == 0.25
    assert device_check.relative_difference([None, 4.0], [None, 4.0]) == 0.0
    assert device_check.relative_difference([1.0], [1.0, 1.0]) == math.inf
    assert device_check.relative_difference(1.0, math.nan) == math.inf
