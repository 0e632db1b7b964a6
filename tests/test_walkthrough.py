"""docs/microcontrollers.md, line by line and at a small size: train, quantise, search, fine-tune, export, run again."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from octo_exp.cli.entry import main as octo
from octo_exp.config import check_arguments
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.runs.run import run
from tests.configs import CONF, composed

ROOT = Path(__file__).resolve().parents[1]
DATA = ("data=digits", "data.limit_train=300", "data.limit_test=60")
SMALL = (*DATA, "logger=csv")
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


def train(words: list[str]) -> None:
    """A call of train.py at a small size, on the bundled digits, in this process."""
    check_arguments(words, config_dir=CONF)
    small = [word for word in words if word not in ("data=cifar10",) and not word.startswith("hydra.run.dir=")]
    small += SMALL
    small += NARROW if "model=vgg11" in small else ()
    small += TRAINED if "quant=fp32" in small else ["data.epochs=1", "data.batch_size=32"]
    small += SEARCH if "update.budget_kb=100" in small else ()
    folder = next(word for word in words if word.startswith("hydra.run.dir=")).partition("=")[2]
    run(composed(*small, save_dir=Path(folder).absolute()))


# Trained, quantised.
FIRST = 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The folder in which the first commands have run."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands()[:FIRST]:
            train(words[2:])
    return folder


@pytest.fixture(scope="module")
def walked(begun) -> Iterator[Path]:
    """The folder in which all commands have run."""
    folder = begun
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OCTO_CACHE_DIR", str(folder / "cache"))
        for words in commands()[FIRST:]:
            if words[1] == "train.py":
                train(words[2:])
                continue
            assert words[0] == "octo"
            if words[1] == "graph":
                np.save("codes.npy", codes_of(Path("runs/vgg11.pkl")))
            assert octo(words[1:]) == 0
        yield folder


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


def test_quantisation_keeps_the_accuracy(begun):
    before, after = results(begun / "runs/float"), results(begun / "runs/int8")
    assert before["test/acc"] > 0.5
    # Two of 60 images.
    assert abs(after["test/acc"] - before["test/acc"]) < 0.04


@pytest.mark.slow
def test_the_scheme_was_searched_for_and_fits(walked):
    tuned = results(walked / "runs/tuned")
    assert 0 < tuned["update/extra_memory_kb"] <= 100
    assert tuned["steps"] > 0
    assert "budget_kb: null" in (walked / "runs/tuned/scheme.yaml").read_text()
    assert list((walked / "cache/contributions").glob("*.json"))


@pytest.mark.slow
def test_export_and_import_give_identical_logits(walked):
    manifest = json.loads((walked / "runs/vgg11.pkl.json").read_text())
    tuned, again = results(walked / "runs/tuned"), results(walked / "runs/again")
    assert manifest["logits_identical_to_run"] is True
    assert manifest["accuracy"] == pytest.approx(tuned["test/acc"])
    assert again["test/acc"] == tuned["test/acc"]
    assert again["test/loss"] == tuned["test/loss"]


@pytest.mark.slow
def test_the_file_alone_classifies_the_same(walked):
    logits = np.load(walked / "logits.npy")
    assert logits.dtype == np.int8
    labels = torch.cat([y for _, y in batches()]).numpy()
    right = (logits.argmax(1) == labels).mean()
    assert right == pytest.approx(results(walked / "runs/tuned")["test/acc"])
