"""docs/microcontrollers.md, line by line and at a small size: train, quantise, search, fine-tune, export, run again."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from octo_exp.mcu.graph import McuNet
from octo_exp.mcu.reader import read_model
from tests.configs import composed

ROOT = Path(__file__).resolve().parents[1]
DATA = ("data=digits", "data.limit_train=300", "data.limit_test=60")
SMALL = (*DATA, "logger=csv", "trainer.enable_progress_bar=false")
# The same network, narrow.
NARROW = (
    "model.stages=[8,pool,8,pool,16,16,pool,16,16,pool,16,16,pool]",
    "model.classifier=[32,32]",
    "model.norm=batch",
)
TRAINED = ("data.epochs=10", "data.batch_size=32", "optim.optimizer.lr=0.01")
SEARCH = [
    *("update.search.ratios=[0.25,1]", "update.search.bias_step=5", "update.search.probe.train_images=64"),
    *("update.search.probe.val_images=30", "update.search.probe.head_steps=5", "update.search.probe.steps=2"),
]


def commands() -> list[list[str]]:
    """The words of the document's first block, a list for each command."""
    block = (ROOT / "docs" / "microcontrollers.md").read_text().split("```bash\n")[1].split("```")[0]
    return [shlex.split(line) for line in block.splitlines() if not line.startswith("#")]


def shrunk(words: list[str]) -> list[str]:
    """A command at a small size, on the bundled digits."""
    small = [word for word in words if word != "data=cifar10"]
    if small[1] == "train.py":
        small[1] = str(ROOT / "train.py")
        small += SMALL
        small += NARROW if "model=vgg11" in small else ()
        small += TRAINED if "quant=fp32" in small else ["data.epochs=1", "data.batch_size=32"]
        small += SEARCH if "update.budget_kb=100" in small else ()
    return [sys.executable, *small[1:]]


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """The folder in which all commands have run."""
    folder = tmp_path_factory.mktemp("walk")
    environment = {**os.environ, "OCTO_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    for words in commands():
        if "octo_exp.mcu.run" in words:
            np.save(folder / "codes.npy", codes_of(folder / "runs" / "vgg11.pkl"))
        done = subprocess.run(shrunk(words), cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return folder


@torch.no_grad()
def codes_of(model: Path) -> np.ndarray:
    images = torch.cat([x for x, _ in batches()])
    return McuNet.with_classifier(read_model(model), mode="integer").input(images).to(torch.int8).numpy()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = instantiate(composed(*DATA, "model=vgg11").data)
    data.setup()
    return [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_quantisation_keeps_the_accuracy(walked):
    before, after = results(walked / "runs/float"), results(walked / "runs/int8")
    assert before["test/acc"] > 0.5
    # Two of 60 images.
    assert abs(after["test/acc"] - before["test/acc"]) < 0.04


def test_the_scheme_was_searched_for_and_fits(walked):
    tuned = results(walked / "runs/tuned")
    assert 0 < tuned["update/extra_memory_kb"] <= 100
    assert tuned["steps"] > 0
    assert "budget_kb: null" in (walked / "runs/tuned/scheme.yaml").read_text()
    assert list((walked / "cache/contributions").glob("*.json"))


def test_export_and_import_give_identical_logits(walked):
    manifest = json.loads((walked / "runs/vgg11.pkl.json").read_text())
    tuned, again = results(walked / "runs/tuned"), results(walked / "runs/again")
    assert manifest["logits_identical_to_run"] is True
    assert manifest["accuracy"] == pytest.approx(tuned["test/acc"])
    assert again["test/acc"] == tuned["test/acc"]
    assert again["test/loss"] == tuned["test/loss"]


def test_the_file_alone_classifies_the_same(walked):
    logits = np.load(walked / "logits.npy")
    assert logits.dtype == np.int8
    labels = torch.cat([y for _, y in batches()]).numpy()
    right = (logits.argmax(1) == labels).mean()
    assert right == pytest.approx(results(walked / "runs/tuned")["test/acc"])
