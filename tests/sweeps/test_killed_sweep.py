"""A sweep of forty jobs, five of them failing, that is killed seven times: nothing is run twice, nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
JOBS = (
    *("model=simplecnn", "model.width=4", "model.hidden=12", "quant=int8", "logger=csv", "hw=[]"),
    *("data.limit_train=150", "data.epochs=2", "data.batch_size=12", "trainer.log_every_n_steps=1"),
    *("callbacks.last_checkpoint.every_n_train_steps=3", "seed=0,1,2,3,4"),
    # At the first of these rates every job fails.
    "optim.optimizer.lr=1e30,1e-3,2e-3,3e-3,4e-3,5e-3,6e-3,7e-3",
)


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *JOBS, f"hydra.sweep.dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def results(folder: Path) -> dict[str, int]:
    """job -> when its results were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}


def test_a_sweep_under_kills_is_the_sweep(tmp_path):
    random.seed(0)
    folder, done = tmp_path / "killed", {}
    for number in (signal.SIGKILL,) * 5 + (signal.SIGTERM,) * 2:
        process = start(folder)
        time.sleep(random.uniform(12, 25))
        os.killpg(process.pid, number)
        output, errors = process.communicate()
        if process.returncode == 0 or "failed" in errors:
            pytest.fail(f"the sweep was over before it was killed: {output[-500:]}{errors[-500:]}")
        if number == signal.SIGTERM:
            assert process.returncode == 143, errors[-2000:]
            assert "to go on: python train.py -m" in errors
        now = results(folder)
        assert {job: now[job] for job in done} == done
        done = now
    process = start(folder)
    output, errors = process.communicate()
    assert process.returncode == 1, errors[-2000:]
    now = results(folder)
    assert {job: now[job] for job in done} == done
    failed = {path.parent.name for path in folder.glob("*/failed.json")}
    assert (len(now), len(failed)) == (35, 5)
    assert not failed & set(now)
    assert "35 jobs" in output
    whole = tmp_path / "whole"
    process = start(whole)
    process.communicate()
    for job in now:
        hashes = [json.loads((place / job / "results.json").read_text())["weights_sha256"] for place in (folder, whole)]
        assert hashes[0] == hashes[1]
        assert (folder / job / "metrics.csv").read_text() == (whole / job / "metrics.csv").read_text()
