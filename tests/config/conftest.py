"""A small project: the true front of octo-exp over few, small configs and a run that only writes results."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FILES = {
    "conf/data/digits.yaml": "name: digits\nclasses: 10\nepochs: 3\nroot: null\nval_fraction: 0.1\n",
    "conf/data/mnist.yaml": "name: mnist\nclasses: 10\nepochs: 5\nroot: null\nval_fraction: 0.1\n",
    "conf/data/fashion_mnist.yaml": "name: fashion_mnist\nclasses: 10\nepochs: 5\nroot: null\n",
    "conf/data/local.yaml": "name: local\nclasses: 10\nepochs: 5\nroot: ???\nval_fraction: 0.1\n",
    "conf/data/lost.yaml": "name: lost\nclasses: ${nowhere.classes}\nepochs: 5\n",
    "conf/data/broken.yaml": "name: [lost\n",
    "conf/model/simplecnn.yaml": "name: simplecnn\nwidth: 30\nclasses: ${data.classes}\n",
    "conf/model/lenet5.yaml": "name: lenet5\nkernels: [5, 5]\nclasses: ${data.classes}\n",
    "conf/model/vgg11.yaml": "name: vgg11\ndropout: 0.0\nclasses: ${data.classes}\n",
    "conf/quant/int8.yaml": "defaults: [_self_, {clip: null}]\nname: int8\nbits: 8\nskip: [first]\nclip: null\n"
    "overrides: {}\nprecision: 32-true\n",
    "conf/quant/fp32.yaml": "name: fp32\nbits: 32\nskip: []\nclip: null\noverrides: {}\nprecision: 32-true\n",
    "conf/quant/octo.yaml": "defaults: [int8, _self_]\nname: octo\nclip: {ratio: 0.95}\noverrides: {fc: fp32}\n",
    "conf/quant/prc.yaml": "defaults: [int8, _self_, {override clip: ratio}]\nname: prc\n",
    "conf/quant/clip/ratio.yaml": "coefficient: 0.95\n",
    "conf/quant/clip/gaussian.yaml": "z: 2.5\n",
    "conf/kernel/auto.yaml": "impl: auto\n",
    "conf/hw/systolic_32x32.yaml": "# @package hw.systolic_32x32\nrows: 32\n",
    "conf/energy/horowitz_45nm.yaml": "name: horowitz_45nm\n",
    "conf/hw/tpu_v1.yaml": "# @package hw.tpu_v1\nrows: 256\n",
    "conf/callbacks/default.yaml": "cost:\n  every: 10\nmemory:\n  every: 10\n",
    "conf/experiment/claim.yaml": "# @package _global_\ndefaults:\n  - override /model: vgg11\nseed: 7\n",
    "octo_exp/runs/run.py": """
import json, logging, os, signal
from pathlib import Path
from octo_exp.base.errors import UserError

def fail(seed):
    try:
        raise UserError(f"seed {seed} is\\nunlucky")
    except UserError as error:
        raise RuntimeError("wrapped") from error

def run(cfg):
    if cfg.seed == 13:
        raise UserError("seed 13 is\\nunlucky")
    if cfg.seed == 14:
        raise ZeroDivisionError("a bug")
    if cfg.seed == 15:
        fail(15)
    if cfg.seed == 16:
        raise KeyboardInterrupt
    if cfg.seed == 17:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)
    if cfg.seed in (20, 21, 22):
        # As a run that has begun: it owns its folder.
        Path(cfg.save_dir, "config.yaml").write_text(f"seed: {cfg.seed}\\n")
        os.kill(os.getpid(), {20: signal.SIGTERM, 21: signal.SIGINT, 22: signal.SIGUSR2}[cfg.seed])
    if cfg.seed == 18:
        # As a job in another process, of which only the folder tells.
        Path(cfg.save_dir, "failed.json").write_text('{"error": "far away", "overrides": []}')
        return
    log = logging.getLogger("octo_exp.somewhere")
    log.info("quiet news")
    if cfg.seed == 19:
        log.warning("loud news")
    source = cfg.source.name if cfg.get("source") else None
    results = {"data": cfg.data.name, "source": source, "model": cfg.model.name, "quant": cfg.quant.name,
               "seed": cfg.seed, "test/acc": 0.9 + cfg.seed / 1000, "epochs": cfg.trainer.max_epochs}
    Path(cfg.save_dir, "results.json").write_text(json.dumps(results))
""",
}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(root / "train.py", folder)
    for name in (
        "sweeps",
        "octo_exp/base",
        "octo_exp/config",
        "octo_exp/cli",
        "octo_exp/runs/sweep",
        "conf/trainer",
        "conf/logger",
        "conf/optim",
    ):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("octo_exp/__init__.py", "octo_exp/runs/__init__.py", "conf/train.yaml"):
        shutil.copy(root / name, folder / name)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(project: Path, tmp_path: Path) -> Train:
    """Runs train.py in an empty folder, warnings being errors."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(project / "train.py"), *arguments]
        # A shell's background jobs ignore SIGINT, and so would their children.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        finally:
            signal.signal(signal.SIGINT, before)

    return run
