"""sweeps/mcu_transfer.yaml composes, with every option that it sweeps."""

import itertools
from pathlib import Path

from omegaconf import OmegaConf

from octo_exp.config import check_arguments

ROOT = Path(__file__).resolve().parents[2]


def test_the_sweep_composes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["-m", "-cd", str(ROOT / "sweeps"), "-cn", "mcu_transfer", "data.epochs=11"]
    assert check_arguments(line, config_dir=ROOT / "conf") == line


def test_its_head_says_how_many_jobs_there_are():
    path = ROOT / "sweeps" / "mcu_transfer.yaml"
    params = OmegaConf.load(path).hydra.sweeper.params
    jobs = list(itertools.product(*(str(values).split(",") for values in params.values())))
    assert f" {len(jobs)} jobs" in path.read_text()
