"""Class folders as they come from other people's disks: which files are images, of which class, what is said."""

import logging
import os
import re
import socket
from pathlib import Path

import pytest
from PIL import Image

from octo_exp.base.errors import UserError
from octo_exp.data.folders import class_files, image_suffixes
from octo_exp.data.sources import load_split


@pytest.fixture
def plain(files, folders: Path) -> Path:
    """Encoded image of the set's shape, to be put anywhere."""
    path = folders / "picture"
    path.write_bytes(files.encode(files.pictures(1)[0]))
    return path


def put(picture: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture.read_bytes())


def test_images_at_any_depth_are_of_the_first_folder(spec, folders: Path, plain: Path) -> None:
    put(plain, folders / "train/bee/2024/may/0.png", folders / "train/bee/x/y/z/0.png", folders / "train/cat/ant/9.png")
    split = load_split(spec(), "train")
    assert split.class_names == ("ant", "bee", "cat")
    assert split.labels.tolist() == [0] * 8 + [1] * 10 + [2] * 9


@pytest.mark.parametrize("suffix", [".gif", ".pgm", ".ppm", ".tif", ".TIFF", ".bmp", ".webp", ".PNG", ".tga", ".jp2"])
def test_every_type_that_the_decoder_reads_is_used(files, spec, folders: Path, suffix: str) -> None:
    name = folders / f"train/ant/new{suffix}"
    Image.fromarray(files.pictures(1, mode="RGB", size=(9, 9))[0]).save(name)
    for path in folders.rglob("*.png"):
        if path != name:
            Image.fromarray(files.pictures(1, mode="RGB")[0]).save(path)
    split = load_split(spec(shape=(3, None, None)), "train")
    assert split.labels.tolist() == [0] * 9 + [1] * 8 + [2] * 8


def test_the_decoder_says_what_it_reads() -> None:
    named = {".gif", ".ppm", ".jfif", ".jpe", ".avif", ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
    assert named <= image_suffixes()
    assert not image_suffixes() & {"", ".txt", ".mp4", ".mpg", ".h5", ".pdf", ".json", ".db", ".zip"}


@pytest.mark.parametrize(
    "name",
    [
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "train/__MACOSX/ant/._0.png",
        "train/ant/._0.png",
        "train/ant/.trash/0.png",
        "train/bee/@eaDir/0.png/thumb.png",
        "train/$RECYCLE.BIN/0.png",
        "train/Thumbs.db",
        "train/.DS_Store",
    ],
)
def test_hidden_and_system_things_are_no_classes_and_no_images(spec, folders: Path, caplog, name: str) -> None:
    path = folders / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
    with caplog.at_level(logging.INFO):
        split = load_split(spec(), "train")
    assert (split.class_names, len(split.labels)) == (("ant", "bee", "cat"), 24)
    (line,) = [record for record in caplog.records if "left out" in record.getMessage()]
    assert re.fullmatch(rf"{re.escape(str(folders))}/train: left out: 1 hidden [^;\n]*", line.getMessage())
    assert line.levelno == logging.INFO


def test_what_is_left_out_is_said_once_with_its_count(spec, folders: Path, caplog) -> None:
    for name in ("ant/a.txt", "ant/b.txt", "bee/film.mp4", "bee/LICENSE", "notes.TXT", "cat/.hidden"):
        (folders / "train" / name).write_text("no image")
    (folders / "train/dog").mkdir()
    with caplog.at_level(logging.WARNING):
        load_split(spec(), "train")
        load_split(spec(), "train")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{folders / 'train'}: left out: 5 file(s) that are no images (.txt 3, no suffix 1, .mp4 1); "
        f"1 hidden or system file(s) or folder(s); 1 folder(s) without images (dog)"
    )


def test_a_wrong_number_of_classes_shows_their_names(spec, folders: Path, plain: Path) -> None:
    put(plain, folders / "train/old\nones/0.png")
    with pytest.raises(UserError) as caught:
        load_split(spec(), "train")
    assert "has 4 classes (ant, bee, cat, old\\nones), data.classes says 3: set data.classes=4 if" in str(caught.value)
    put(plain, *(folders / f"train/c{i:03d}/0.png" for i in range(100)))
    with pytest.raises(UserError, match=r"has 104 classes \(ant, bee, c000, .*, c009 and 92 more\)"):
        load_split(spec(), "train")


def test_an_image_of_no_class_is_named(spec, folders: Path, plain: Path) -> None:
    put(plain, folders / "test/stray.png")
    with pytest.raises(UserError, match=r"test/stray\.png lies in no class's folder: move it into .*/test/<class>/"):
        load_split(spec(), "test")


def test_links_to_images_and_folders_are_followed(spec, folders: Path, plain: Path) -> None:
    put(plain, folders / "elsewhere/deep/0.png")
    (folders / "train/ant/link.png").symlink_to(plain)
    (folders / "train/bee/more").symlink_to(folders / "elsewhere")
    assert load_split(spec(), "train").labels.tolist() == [0] * 9 + [1] * 9 + [2] * 8


def test_what_is_no_file_is_named_and_nothing_hangs(spec, folders: Path, monkeypatch) -> None:
    def refused() -> None:
        load_split(spec(), "train")

    path = folders / "train/ant/x.png"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"ant/x\.png is a pipe, not a file"):
        refused()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        # A socket's path may have some hundred bytes only.
        monkeypatch.chdir(path.parent)
        listener.bind("x.png")
        with pytest.raises(UserError, match=r"ant/x\.png is a device or a socket, not a file"):
            refused()
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"ant/x\.png is a folder with an image's name: rename or remove it"):
        refused()
    path.rmdir()
    path.symlink_to(folders / "nowhere.png")
    with pytest.raises(UserError, match=r"ant/x\.png: a link that leads nowhere \(No such file"):
        refused()
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UserError, match=r"ant/x\.png: a link that leads nowhere \(Too many levels"):
        refused()
    path.unlink()
    path.with_name("loop").symlink_to(folders / "train")
    with pytest.raises(UserError, match=r"train/ant/loop: a link that leads back to a folder that it lies in"):
        refused()


@pytest.mark.parametrize("name", ["bee", "bee/0.png"])
def test_what_cannot_be_read_is_named(spec, folders: Path, monkeypatch, name: str) -> None:
    path, scan, read = folders / "train" / name, os.scandir, Path.read_bytes

    def unless_forbidden(real, opened: Path):
        if opened == path:
            raise PermissionError(13, "Permission denied")
        return real(opened)

    # Permission bits do not keep root out.
    monkeypatch.setattr(os, "scandir", lambda folder: unless_forbidden(scan, folder))
    monkeypatch.setattr(Path, "read_bytes", lambda file: unless_forbidden(read, file))
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\): change its permissions"):
        load_split(spec(), "train")


def test_a_name_whose_bytes_are_no_text_is_a_name(files, spec, folders: Path, plain: Path) -> None:
    name = os.fsdecode(b"cat\xff")
    (folders / "train/cat").rename(folders / "train" / name)
    (folders / "test/cat").rename(folders / "test" / name)
    for _ in range(2):
        assert load_split(spec(), "test").class_names == ("ant", "bee", name)
    assert class_files(spec(), folders, "train")[-1].parent.name == name
