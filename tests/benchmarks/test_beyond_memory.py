"""The file that the study reads, and how its memory is measured."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.studies import beyond_memory as study


def test_the_part_is_the_beginning_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ELEMENTS", 50)
    study.write(tmp_path / "y.raw", 4, seed=0)
    rows = np.fromfile(tmp_path / "y.raw", np.float32).reshape(4, study.VIEWS, 50)
    whole, part = study.on_disk(tmp_path / "y.raw", 4), study.on_disk(tmp_path / "y.raw", 4, part=2)
    assert (len(whole), len(part)) == (4, 2)
    assert torch.equal(whole[:].y, torch.from_numpy(rows))
    assert torch.equal(part[:].y, torch.from_numpy(rows[:2]))
    assert whole[0].x.flatten()[4].item() == pytest.approx(np.pi / 2)
    assert rows.std() > 0.1
    assert not np.array_equal(rows[0], rows[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_workers_counts():
    code = "import time; kept = bytearray(b'1') * 150_000_000; print('there', flush=True); time.sleep(60)"
    with study.watched_memory(0.01) as seen:
        time.sleep(0.05)
        before = study.anonymous_gb(os.getpid())
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            worker.stdout.readline()
            assert worker.pid in study.family(os.getpid())
            time.sleep(0.1)
        finally:
            worker.kill()
            worker.communicate()
    assert max(seen) > before + 0.12
    assert min(seen) < max(seen) - 0.12
