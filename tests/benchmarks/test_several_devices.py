"""The cost model of several devices by hand, and the page of the device check."""

import copy
import math

import pytest
import torch

from benchmarks import device_pages
from benchmarks.device_check import PARTS
from benchmarks.records import Plan, Record
from benchmarks.studies import several_devices as study
from benchmarks.studies.several_devices import Link, Step

LINK = Link(latency=2e-5, bandwidth=1e9)
STEP = Step(fixed=0.01, per_group=0.001, gradient=40_000, buffers=(800, 40), gathered=48)


def ring(values: list[list[float]]) -> tuple[list[list[float]], int]:
    """Sum lists over devices in a ring, a part of the list at a time. Returns the sums and the number of rounds."""
    n = len(values)
    parts = [[value[i::n] for i in range(n)] for value in values]
    rounds = 0
    for shift, add in ((0, True), (1, False)):
        for step in range(n - 1):
            sent = [copy.copy(parts[d][(d + shift - step) % n]) for d in range(n)]
            for d in range(n):
                part = (d - 1 + shift - step) % n
                before = parts[d][part]
                parts[d][part] = [a + b for a, b in zip(before, sent[d - 1], strict=True)] if add else sent[d - 1]
            rounds += 1
    whole = [[0.0] * len(values[0]) for _ in range(n)]
    for d in range(n):
        for i in range(n):
            whole[d][i::n] = parts[d][i]
    return whole, rounds


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_ring_takes_the_rounds_of_a_ring_that_sums(devices) -> None:
    values = torch.randn(devices, 4 * devices, dtype=torch.float64).tolist()
    found, rounds = ring(values)
    expected = torch.tensor(values, dtype=torch.float64).sum(0).expand(devices, -1)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)
    size = 8 * 4 * devices
    part = LINK.latency + size / devices / LINK.bandwidth
    assert study.all_reduce(size, devices, LINK, rings=True) == pytest.approx(rounds * part, rel=1e-12)


@pytest.mark.parametrize("devices", [2, 3, 5, 8, 64])
def test_trees_and_gathers_reach_all_devices_in_their_rounds(devices) -> None:
    reached = 1
    rounds = 0
    while reached < devices:  # everybody who has the message sends it on; parts of a gather double
        reached, rounds = 2 * reached, rounds + 1
    assert study.broadcast(1000, devices, LINK) == pytest.approx(rounds * (LINK.latency + 1000 / LINK.bandwidth))
    arrived = sum(1000 / LINK.bandwidth for _ in range(devices - 1))
    assert study.all_gather(1000, devices, LINK) == pytest.approx(rounds * LINK.latency + arrived)
    in_ring = sum(LINK.latency + 1000 / LINK.bandwidth for _ in range(devices - 1))
    assert study.all_gather(1000, devices, LINK, rings=True) == pytest.approx(in_ring)


def test_small_sums_take_a_tree_and_large_ones_a_ring() -> None:
    small, large = 100, 1e9
    assert study.all_reduce(small, 512, LINK) == pytest.approx(2 * study.broadcast(small, 512, LINK))
    assert study.all_reduce(large, 8, LINK) == study.all_reduce(large, 8, LINK, rings=True)
    limit = 2 * large / LINK.bandwidth  # of a ring of many devices: every byte is sent twice
    assert study.all_reduce(large, 512, LINK._replace(latency=0.0), rings=True) == pytest.approx(limit, rel=3e-3)


def test_efficiency_adds_all_messages_to_the_step() -> None:
    together = (
        study.all_reduce(40_000, 64, LINK)
        + study.broadcast(800, 64, LINK)
        + study.broadcast(40, 64, LINK)
        + study.all_gather(20 * 48, 64, LINK)
    )
    assert study.weak(STEP, 20, 64, LINK) == pytest.approx(0.03 / (0.03 + together))
    assert study.speed_up(STEP, 1280, 64, LINK) == pytest.approx((0.01 + 1.28) / (0.03 + together))
    assert study.weak(STEP, 20, 1, LINK) == 1.0
    assert study.speed_up(STEP, 1280, 1, LINK) == 1.0


def test_free_messages_leave_the_fixed_part_of_a_step() -> None:
    free = Link(0.0, math.inf)
    assert study.weak(STEP, 20, 512, free) == 1.0
    assert study.speed_up(STEP, 2000, 512, free) == pytest.approx((0.01 + 2.0) / (0.01 + 4 * 0.001))
    assert study.speed_up(STEP._replace(fixed=0.0), 512 * 7, 512, free) == pytest.approx(512)


def test_more_devices_than_groups_gain_nothing() -> None:
    assert study.speed_up(STEP, 20, 512, LINK) < study.speed_up(STEP, 20, 64, LINK)


def test_line_recovers_constants_and_is_never_negative() -> None:
    assert study.line([(x, 3.0 + 0.5 * x) for x in (1, 10, 100, 1000)]) == pytest.approx((3.0, 0.5))
    assert study.line([(1, 0.9), (2, 2.1), (3, 3.3)])[0] == 0.0


def test_constants_are_read_from_records() -> None:
    times = {str(n): {"low": 0.01 + 0.001 * n} for n in (5, 20, 80)}
    made = {"gradient": 40_000, "buffers": [800, 40], "gathered": 48, "alone": times}
    record = Record({"part": "paper"}, {}, made, {})
    step = study.step_of(record)
    assert step[:2] == pytest.approx(STEP[:2])
    assert step[2:] == STEP[2:]
    sums = {str(n): {"low": study.all_reduce(n, 2, LINK, rings=True)} for n in (4, 1000, 1_000_000)}
    assert study.link_of(Record({}, {}, {"all_reduce": sums}, {})) == pytest.approx(LINK)
    check = {
        "device": {"type": "cuda"},
        "parts": {
            "step time": {
                f"{n} groups, {11 * n} images": {"times": {"FGP-VAE": {"low": 12 + 0.002 * n}}} for n in (20, 2000)
            }
        },
    }
    found = study.step_of_gpu(record, check)
    assert found is not None
    assert found[0][:2] == pytest.approx((12e-3, 2e-6))
    assert found[0][2:] == STEP[2:]
    assert study.step_of_gpu(record, check | {"device": {"type": "cpu"}}) is None


def test_gradient_bytes_are_four_for_each_float() -> None:
    layer = torch.nn.Linear(3, 5)
    assert study.bytes_of(layer.parameters()) == 4 * (3 * 5 + 5)
    assert study.bytes_of(layer.double().parameters()) == 8 * (3 * 5 + 5)


def test_page_of_a_check_on_a_cpu_says_not_run_everywhere() -> None:
    check = study.device_record()
    for other in (check | {"device": check["device"] | {"type": "cpu"}}, check | {"quick": True}):
        page = device_pages.device_page(other)
        rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
        assert len(rows) > len(PARTS)
        assert not any("passed" in row or "e-" in row or " ms" in row or " s " in row for row in rows[1:])


def test_page_marks_what_the_record_lacks() -> None:
    check = copy.deepcopy(study.device_record())
    check["parts"]["operations"]["differences"] = {"data": 2.5e-16}
    check["parts"]["step time"]["passed"] = False
    del check["parts"]["two workers"]
    page = device_pages.device_page(check)
    assert "| operations: data | 2.5e-16 |" in page
    assert "| operations: prior, local | not run |" in page
    assert "| two workers | not run |" in page
    assert "| step time | FAILED |" in page


def test_pages_without_records_have_heads_only(tmp_path) -> None:
    plan = Plan(tmp_path)
    for make in (device_pages.constants, device_pages.all_reduces, device_pages.two_processes):
        assert len(make(plan).splitlines()) == 2
