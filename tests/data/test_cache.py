import logging
import os
from pathlib import Path

import pytest
import torch

from octo_exp.data import cache
from octo_exp.data.sources import load_split


@pytest.fixture
def cache_file(tmp_path: Path):
    def find() -> Path:
        (file,) = (tmp_path / "cache").iterdir()
        return file

    return find


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every split that was really decoded."""
    from octo_exp.data import sources

    seen: list[str] = []
    for name in ("read_parquet_split", "read_folder_split"):
        real = getattr(sources, name)
        monkeypatch.setattr(sources, name, lambda *args, real=real: (seen.append(args[-1]), real(*args))[1])
    return seen


def test_second_reading_comes_from_the_cache(spec, toy: Path, reads: list[str]) -> None:
    first, second = load_split(spec(), "train"), load_split(spec(), "train")
    assert reads == ["train"]
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.class_names == second.class_names == ("a", "b", "c")
    assert second.labels.dtype == torch.int64


def test_changed_files_are_read_anew(files, spec, toy: Path, reads: list[str], cache_file) -> None:
    load_split(spec(), "train")
    pictures = files.pictures(5, seed=9)
    files.parquet(toy / "train.parquet", [files.encode(p) for p in pictures], [0, 1, 2, 0, 1])
    changed = load_split(spec(), "train")
    assert changed.images.squeeze(1).tolist() == [p.tolist() for p in pictures]
    # Same name and size, another time.
    os.utime(toy / "train.parquet", ns=(1, 1))
    load_split(spec(), "train")
    assert reads == ["train"] * 3
    # The old content was replaced: nothing piles up.
    assert cache_file().name.startswith("toy-train-")


def test_what_decoding_depends_on_is_part_of_the_key(files, spec, tmp_path: Path, reads: list[str]) -> None:
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(p) for p in files.pictures(3, size=(8, 8))], [0, 1, 2])
    for size in (6, 5, 5):
        assert load_split(spec(shape=(1, None, None), size=size), "train").images.shape == (3, 1, size, size)
    assert len(reads) == 2
    # With a fixed shape the model's size does not matter to decoding.
    for size in (6, 5):
        assert load_split(spec(shape=(1, 8, 8), size=size), "train").images.shape == (3, 1, 8, 8)
    assert len(reads) == 3


def test_a_new_image_in_a_class_folder_is_seen(files, spec, folders: Path, reads: list[str]) -> None:
    load_split(spec(), "train")
    (folders / "train/cat/99.png").write_bytes(files.encode(files.pictures(1)[0]))
    assert len(load_split(spec(), "train").labels) == 25
    assert reads == ["train", "train"]


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "bit", "other"])
def test_broken_cache_is_rebuilt(spec, toy: Path, reads: list[str], cache_file, caplog, damage: str) -> None:
    first = load_split(spec(), "train")
    file = cache_file()
    content = file.read_bytes()
    at = content.index(first.images.numpy().tobytes()[:32])
    broken = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "noise": b"\x00" * 100,
        "bit": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
    }
    if damage == "other":
        torch.save({"key": torch.load(file)["key"], "images": first.images[:3], "labels": first.labels}, file)
    else:
        file.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        again = load_split(spec(), "train")
    assert torch.equal(again.images, first.images)
    assert reads == ["train", "train"]
    assert f"{file} is broken" in caplog.text
    load_split(spec(), "train")
    assert reads == ["train", "train"]


def test_nothing_but_the_finished_file_is_left(spec, toy: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(cache.torch, "save", fail)
    with caplog.at_level(logging.WARNING):
        assert len(load_split(spec(), "train").labels) == 24
    assert list((tmp_path / "cache").iterdir()) == []
    assert "set OCTO_CACHE_DIR" in caplog.text


def test_unusable_cache_folder_costs_only_time(spec, toy: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "file"))
    assert len(load_split(spec(), "train").labels) == 24
    assert "set OCTO_CACHE_DIR" in caplog.text


def test_both_splits_that_cannot_be_kept_are_one_line(spec, toy: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "file" / "below"))
    for split in ("train", "train"):
        load_split(spec(), split)
    assert caplog.text.count("set OCTO_CACHE_DIR") == len(caplog.records) == 1


def test_what_a_killed_run_left_half_written_is_removed(spec, toy: Path, tmp_path: Path, cache_file) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".toy-train-0.pt.partial").write_bytes(b"half")
    load_split(spec(), "train")
    assert cache_file().suffix == ".pt"
