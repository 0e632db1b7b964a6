"""Runs that start from another run's weights, or train on a source first."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octo_exp.base.errors import UserError
from tests.run_helpers import SMALL, go

TRANSFER = (*SMALL, "data@source=digits", "source.limit_train=100", "source.epochs=1", "source.name=digits_source")


@pytest.fixture(scope="module")
def octo(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("octo")
    return folder, go(folder, *SMALL, "quant=octo")


@pytest.fixture(scope="module")
def transferred(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run in a folder of its own, whose parent holds its source's."""
    folder = tmp_path_factory.mktemp("transfer") / "0"
    return folder, go(folder, *TRANSFER)


def test_start_from_another_runs_weights(octo, tmp_path):
    folder, source = octo
    frozen = ("optim.optimizer.lr=0.0", "quant=int8")
    target = go(tmp_path / "same", *SMALL, *frozen, f"init_from={folder}")
    theirs = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = torch.load(tmp_path / "same/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(ours["net.features.0.weight"], theirs["net.features.0.weight"])
    assert abs(target["test/acc"] - source["test/acc"]) < 0.05
    with pytest.raises(UserError, match=r"data\.channels"):
        go(tmp_path / "rgb", *SMALL, "data.channels=3", f"init_from={folder}")
    with pytest.raises(UserError, match="another model"):
        go(tmp_path / "model", "model=lenet5", "logger=csv", "data.limit_train=200", f"init_from={folder}")


def test_the_head_starts_anew_where_the_classes_differ(octo, tmp_path, monkeypatch):
    import octo_exp.runs.run as module

    build = module.build_module
    taken = {}

    def keep(cfg, datamodule):
        built = build(cfg, datamodule)
        taken["state"] = {k: v.clone() for k, v in built.module.net.state_dict().items()}
        return built

    monkeypatch.setattr(module, "build_module", keep)
    images = tmp_path / "data" / "five"
    make_image_folder(images, classes=5)
    go(
        tmp_path / "run",
        *SMALL,
        "data.limit_train=null",
        "data.source=imagefolder",
        f"data.root={tmp_path / 'data'}",
        "data.folder=five",
        "data.classes=5",
        "data.batch_size=8",
        f"init_from={octo[0]}",
    )
    theirs = torch.load(octo[0] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(taken["state"]["classifier.0.weight"], theirs["net.classifier.0.weight"])
    assert taken["state"]["classifier.2.weight"].shape == (5, 12)


def make_image_folder(folder: Path, *, classes: int) -> None:
    from PIL import Image

    for split, count in (("train", 8), ("test", 2)):
        for label in range(classes):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8), (label * 50 + index) % 256).save(target / f"{index}.png")


def test_transfer_trains_its_source_once(transferred, tmp_path):
    folder, first = transferred
    assert first["source"] == "digits_source"
    sources = list((folder.parent / "_sources").iterdir())
    assert len(sources) == 1
    assert str(first["init_from"]) == str(sources[0])
    written = (sources[0] / "results.json").stat().st_mtime_ns
    go(folder.parent / "1", *TRANSFER, "optim.optimizer.lr=0.002", "data.limit_train=150")
    go(folder.parent / "2", *TRANSFER, "data.limit_train=150")
    assert (sources[0] / "results.json").stat().st_mtime_ns == written
    alone = go(tmp_path, *SMALL, "data@source=digits")
    assert alone["init_from"] is None
    assert alone["weights_sha256"] != first["weights_sha256"]


def test_a_transfer_is_evaluated_from_its_own_checkpoint(transferred, tmp_path):
    folder, trained = transferred
    evaluated = go(tmp_path / "1", *TRANSFER, "train=false", f"ckpt={folder}")
    assert evaluated["test/acc"] == trained["test/acc"]
    assert evaluated["source"] == "digits_source"
    assert not (tmp_path / "_sources").exists()
