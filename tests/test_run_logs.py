"""What a run says of itself: to W&B, and of the memory of a step."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.run_helpers import SMALL, go


def test_wandb_is_offline_by_default_and_one_run_a_job(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    settings = [o for o in SMALL if o not in ("logger=csv", "hw=[]")]
    for job in ("0", "1"):
        go(tmp_path / job, *settings, "trainer=debug")
    for job in ("0", "1"):
        runs = list((tmp_path / job / "wandb").glob("offline-run-*/*.wandb"))
        assert len(runs) == 1
        assert (tmp_path / job / "metrics.csv").is_file()
    records = inspect_wandb(runs[0])
    config = next(r["config"]["update"] for r in records if r["type"] == "config")
    assert config["quant"]["name"] == "int8"
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    wanted = {"test/acc", "cost/systolic_32x32/train_step_cycles", "memory/saved_for_backward_mib", "weights_sha256"}
    assert wanted <= set(summary)


def inspect_wandb(file: Path) -> list[dict[str, Any]]:
    """The records of an offline run, by W&B's own reader."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file.parent)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_run_on_a_machine_of_a_cluster_is_silent(tmp_path, monkeypatch):
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    with warnings.catch_warnings(record=True) as seen:
        # Without pytest's own filters: what a user would read.
        warnings.resetwarnings()
        go(tmp_path / "run", *SMALL, "data.epochs=1", "callbacks={}")
    assert not [w for w in seen if "srun" in str(w.message)]


def test_int8_saves_less_for_the_backward_pass(tmp_path):
    sizes = {}
    for name in ("fp32", "int8"):
        settings = ("model=vgg11", "model.stages=[8,pool,16,16,pool]", "model.classifier=[16]", "trainer=debug")
        results = go(tmp_path / name, *settings, "logger=csv", "hw=[]", "data.limit_train=200", f"quant={name}")
        rows = (tmp_path / name / "memory.csv").read_text().splitlines()[1:]
        sizes[name] = {row.split(",")[0]: int(row.split(",")[1]) for row in rows}
        assert results["memory/saved_for_backward_mib"] == pytest.approx(sum(sizes[name].values()) / 2**20)
    # The first layer is float and keeps its input, the others their input's codes and two scales; then, one int8 a
    # window where a pool follows, one bit an output where ReLU alone does.
    batch, scales = 64, 2 * 4
    kept = {name: sizes["int8"][name] for name in ("features.0", "features.3", "features.5")}
    assert kept == {
        "features.0": batch * (4 * 1 * 32 * 32 + 8 * 16 * 16),
        "features.3": batch * (8 * 16 * 16 + 16 * 16 * 16 // 8) + scales,
        "features.5": batch * (16 * 16 * 16 + 16 * 8 * 8) + scales,
    }
    assert sum(sizes["int8"].values()) < sum(sizes["fp32"].values()) / 4
