"""Sets too large for memory: the same batches from a mapped file, made once, shared, and made anew where damaged."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.base.lock import hold
from octo_exp.data import mapped
from octo_exp.data.mapped import find_mapped, keep_mapped
from octo_exp.data.pixels import Rows
from octo_exp.data.sources import load_split
from tests.data.helpers import Make, images_of


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 24 images of 6x6 pixels were too many."""
    monkeypatch.setattr(mapped, "IN_MEMORY_BYTES", 500)


def batches_of(data: Any) -> dict[str, list[bytes]]:
    data.setup()
    loaders = {name: getattr(data, f"{name}_dataloader")() for name in ("train", "val", "test")}
    loaders["calibration"] = [(images,) for images in data.calibration_batches(6)]
    return {name: images_of(loader) for name, loader in loaders.items()}


VARIANTS = [{}, {"limit_train": 20}, {"limit_train": 8, "limit_test": 3}, {"image_size": 9}, {"channels": 3}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("source", ["parquet", "imagefolder"])
def test_batches_are_the_same_from_memory_and_from_disk(
    datamodule: Make, toy: Path, folders: Path, tmp_path: Path, monkeypatch, source: str, changes: dict[str, Any]
) -> None:
    expected = batches_of(datamodule(source=source, **changes))
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "other"))
    monkeypatch.setattr(mapped, "IN_MEMORY_BYTES", 500)
    for _ in range(2):
        assert batches_of(datamodule(source=source, **changes)) == expected
    assert any((tmp_path / "other").glob("*/pixels.npy"))


def test_joined_splits_are_read_from_their_own_files(datamodule: Make, toy: Path, files, monkeypatch) -> None:
    encoded = [files.encode(picture) for picture in files.pictures(5, seed=7)]
    files.parquet(toy / "more.parquet", encoded, [0, 1, 2, 0, 1])
    expected = batches_of(datamodule(train_split="train+more"))
    monkeypatch.setattr(mapped, "IN_MEMORY_BYTES", 500)
    data = datamodule(train_split="train+more")
    assert batches_of(data) == expected
    assert isinstance(data.train_dataloader().images, Rows)


def test_only_what_is_too_large_is_mapped(spec, toy: Path, small_memory: None, tmp_path: Path) -> None:
    for _ in range(2):
        assert [len(load_split(spec(), name).labels) for name in ("train", "test")] == [24, 6]
    (test,) = (tmp_path / "cache").glob("*.pt")
    (pixels,) = (tmp_path / "cache").glob("*/pixels.npy")
    assert test.name.startswith("toy-test-")
    assert pixels.parent.name.startswith("toy-train-")
    assert np.load(pixels).shape == (24, 1, 6, 6)


def test_a_size_is_kept_beside_another(files, spec, tmp_path: Path, small_memory: None, monkeypatch) -> None:
    encoded = [files.encode(picture) for picture in files.pictures(24, size=(8, 8))]
    files.parquet(tmp_path / "toy/train.parquet", encoded, [0, 1, 2] * 8)
    sizes = [load_split(spec(shape=(1, None, None), size=size), "train").images.shape for size in (6, 5)]
    assert sizes == [(24, 1, 6, 6), (24, 1, 5, 5)]
    monkeypatch.setattr("octo_exp.data.sources.decode_images", None)
    assert load_split(spec(shape=(1, None, None), size=6), "train").images.shape == sizes[0]


DAMAGE = ["bit", "half", "long", "header", "facts", "no facts", "other key", "no pixels"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_made_anew(spec, toy: Path, small_memory: None, tmp_path: Path, caplog, damage: str) -> None:
    expected = load_split(spec(), "train").images.clone()
    (pixels,) = (tmp_path / "cache").glob("*/pixels.npy")
    facts, content = pixels.with_name("facts.json"), pixels.read_bytes()
    if damage == "other key":
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"key": "other"}))
    elif damage.startswith("no "):
        (facts if damage == "no facts" else pixels).unlink()
    elif damage == "facts":
        facts.write_text(facts.read_text()[:40])
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        broken = {"bit": flipped, "half": content[:300], "long": content + b"x", "header": b"x" + content[1:]}
        pixels.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_split(spec(), "train").images, expected)
    assert pixels.read_bytes() == content
    silent = ("no facts", "other key", "no pixels")
    assert ("is broken" in caplog.text) == (damage not in silent)


def test_an_image_that_does_not_decode_leaves_nothing(spec, toy: Path, files, small_memory: None, tmp_path) -> None:
    encoded = [files.encode(picture) for picture in files.pictures(24)]
    files.parquet(toy / "train.parquet", [*encoded[:20], b"noise"], [0] * 21)
    with pytest.raises(UserError, match=r"train\.parquet, row 20: .* decode"):
        load_split(spec(), "train")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(
    spec, toy: Path, small_memory: None, monkeypatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"do not fit on this disk \(0\.0 GB free\); set OCTO_CACHE_DIR"):
        load_split(spec(), "train")


def test_no_place_for_the_pixels_is_one_line(spec, toy: Path, small_memory: None, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\): 0\.0 GB .*; set OCTO_CACHE_DIR"):
        load_split(spec(), "train")


def test_who_comes_second_waits_and_takes_what_was_made(tmp_path: Path) -> None:
    folder = tmp_path / "cache/set"
    folder.mkdir(parents=True)
    with hold(folder, what="cache"):
        second = threading.Thread(target=write, args=(1,))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert find_mapped("set", "key") is None
    second.join()
    write(2)
    assert find_mapped("set", "key").images.unique().tolist() == [1]


def write(value: int) -> None:
    images = np.full((3, 1, 2, 2), value, dtype=np.uint8)
    keep_mapped("set", "key", iter(images), (3, 1, 2, 2), labels=torch.tensor([0, 1, 0]), names=("a", "b"))


def test_a_slow_check_and_a_slow_decoding_have_a_bar(spec, toy: Path, small_memory: None, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("octo_exp.base.progress._SECONDS_BEFORE_BAR", 0.0)
    load_split(spec(), "train")
    assert "decoding toy/train" in capsys.readouterr().err
    load_split(spec(), "train")
    assert "checking toy-train" in capsys.readouterr().err


# Memory of the process's own is limited, after all that is loaded on the way to a first batch.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from octo_exp.data import ImageDataModule, mapped
from tests.data.conftest import FACTS

def batches(folder, side, size):
    shape = {"shape": [3, side, side], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "image_size": size}
    data = ImageDataModule(**(FACTS | shape | {"root": sys.argv[1], "folder": folder, "batch_size": 64}))
    data.setup()
    return sum(len(labels) for name in ("train", "val") for _, labels, *_ in getattr(data, f"{name}_dataloader")())

torch.set_num_threads(1)
batches("few", 28, 96)
lines = Path("/proc/self/status").read_text().splitlines()
used = int(next(line for line in lines if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (100 << 20),) * 2)
mapped.IN_MEMORY_BYTES = int(sys.argv[2])
print(batches("photographs", 224, 224), batches("small", 28, 96))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told and limited on Linux only")
@pytest.mark.parametrize("in_memory", [30 << 20, 1 << 30])
def test_two_hundred_megabytes_of_pixels_take_half_of_that(files, tmp_path: Path, root: Path, in_memory: int) -> None:
    for name, count, side in (("few", 40, 28), ("photographs", 1400, 224), ("small", 7600, 28)):
        (picture,) = files.pictures(1, mode="RGB", size=(side, side))
        for split, images in (("train", count), ("test", 3)):
            encoded = [files.encode(picture, "JPEG")] * images
            files.parquet(tmp_path / name / f"{split}.parquet", encoded, [i % 3 for i in range(images)])
    # Arrow's other allocators take more than they use.
    settings = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OCTO_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(in_memory)]
    run = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, check=False)
    if in_memory == 30 << 20:
        assert run.stdout.split() == ["1400", "7600"], run.stderr
    else:
        # In memory they do not fit.
        assert run.returncode != 0
        assert "memory" in run.stderr.lower()
