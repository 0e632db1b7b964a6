"""Files that are no set: what is wrong, in which file and row, and the remedy."""

import re
from pathlib import Path

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.data.sources import load_split


@pytest.mark.parametrize("kind", ["auto", "parquet", "imagefolder"])
def test_missing_folder(spec, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=rf"no folder {re.escape(str(tmp_path / 'toy'))}.*OCTO_DATA_DIR or data\.root="):
        load_split(spec(kind=kind), "train")
    remedy = r"set data\.root=" if kind == "imagefolder" else r"set OCTO_DATA_DIR or data\.root="
    with pytest.raises(UserError, match=f"toy: no data folder is set; {remedy}"):
        load_split(spec(kind=kind, folder=None), "train")


def test_missing_split(spec, toy: Path, folders: Path) -> None:
    (toy / "test.parquet").unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(toy))} has no test\*\.parquet.*data\.root="):
        load_split(spec(), "test")
    for path in sorted((folders / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(UserError, match=r"test: the test split is empty: put images"):
        load_split(spec(kind="imagefolder"), "test")
    (folders / "test").rmdir()
    with pytest.raises(UserError, match=rf"{re.escape(str(folders))} has neither test\*\.parquet nor test/<class>/"):
        load_split(spec(kind="imagefolder"), "test")


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_parquet(spec, toy: Path, keep: int) -> None:
    file = toy / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))} does not read as parquet .*download it again$"):
        load_split(spec(), "train")


def test_damaged_middle_of_a_parquet(spec, toy: Path) -> None:
    file = toy / "train.parquet"
    content = bytearray(file.read_bytes())
    content[40:2000] = bytes(1960)
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        load_split(spec(), "train")


def test_missing_columns(spec, toy: Path) -> None:
    file = re.escape(str(toy / "train.parquet"))
    with pytest.raises(
        UserError, match=rf"{file} has no column img or pic: set data\.image_column= to one of image, la"
    ):
        load_split(spec(image_columns=("img", "pic")), "train")
    with pytest.raises(UserError, match=rf"{file} has no column digit: set data\.label_column= to one of image, label"):
        load_split(spec(label_column="digit"), "train")
    with pytest.raises(UserError, match=rf"{file}: column label holds int64: set data\.image_column="):
        load_split(spec(image_columns=("label",)), "train")


@pytest.mark.parametrize("label", [3, -1, 255])
def test_label_out_of_range(files, spec, tmp_path: Path, label: int) -> None:
    encoded = [files.encode(p) for p in files.pictures(4)]
    file = files.parquet(tmp_path / "toy/train.parquet", encoded, [0, 1, label, 2])
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}, row 2: label {label} is outside \[0, 3\) \(1 such"):
        load_split(spec(), "train")


def test_class_count_differs(spec, toy: Path) -> None:
    file = re.escape(str(toy / "train.parquet"))
    with pytest.raises(UserError, match=rf"{file} has 3 classes \(a, b, c\), data\.classes says 4: set data\.cla.*=3"):
        load_split(spec(classes=4), "train")


def test_class_folder_count_differs(spec, folders: Path) -> None:
    where = re.escape(str(folders / "train"))
    with pytest.raises(UserError, match=rf"{where} has 3 classes \(ant, bee, cat\), data\.classes says 2"):
        load_split(spec(classes=2), "test")


def test_class_folder_unknown_to_training(files, spec, folders: Path) -> None:
    (folders / "test/dog").mkdir()
    (folders / "test/dog/0.png").write_bytes(files.encode(files.pictures(1)[0]))
    with pytest.raises(UserError, match=rf"{re.escape(str(folders / 'test/dog'))}: the train split has no such class"):
        load_split(spec(), "test")


def test_shards_of_different_sets(files, spec, tmp_path: Path) -> None:
    encoded = [files.encode(p) for p in files.pictures(2)]
    files.parquet(tmp_path / "toy/train-00000-of-00002.parquet", encoded, [0, 1])
    files.parquet(tmp_path / "toy/train-00001-of-00002.parquet", encoded, [0, 1], names=["x", "y", "z"])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: its class names differ from train-00000"):
        load_split(spec(), "train")
    files.parquet(tmp_path / "toy/train.parquet", encoded, [0, 1])
    with pytest.raises(UserError, match=r"mixes several copies of the train split \(train-0.*, train\.parquet\): keep"):
        load_split(spec(), "train")


def test_channels_differ(files, spec, tmp_path: Path) -> None:
    pictures = [*files.pictures(1), *files.pictures(1, mode="RGB")]
    file = files.parquet(tmp_path / "toy/train.parquet", [files.encode(p) for p in pictures], [0, 1])
    place = re.escape(f"{file}, row 1: ")
    with pytest.raises(UserError, match=place + r"the image has 3 channel\(s\), data\.shape=\[1,6,6\] says 1"):
        load_split(spec(), "train")
    with pytest.raises(UserError, match=r"row 1: the image has 3 channel\(s\), data\.shape=\[1,null,null\] says 1"):
        load_split(spec(shape=(1, None, None)), "train")


def test_deep_photographs_are_refused(files, spec, tmp_path: Path) -> None:
    deep = files.encode(np.full((6, 6), 40_000, dtype=np.uint16))
    files.parquet(tmp_path / "toy/train.parquet", [deep], [0])
    with pytest.raises(UserError, match=r"row 0: the image has mode I(;16)?, not 8 bits a channel"):
        load_split(spec(shape=(3, None, None)), "train")


def test_transparent_and_deep_images_are_refused(files, spec, tmp_path: Path) -> None:
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(files.pictures(1, mode="RGBA")[0])], [0])
    with pytest.raises(UserError, match=r"row 0: the image has 4 channel\(s\)"):
        load_split(spec(shape=(3, 6, 6)), "train")
    deep = files.encode(np.full((6, 6), 40_000, dtype=np.uint16))
    files.parquet(tmp_path / "toy/test.parquet", [deep], [0])
    with pytest.raises(UserError, match=r"test\.parquet, row 0: .* mode I(;16)?\b"):
        load_split(spec(), "test")


def test_size_differs(files, spec, tmp_path: Path) -> None:
    pictures = [*files.pictures(1), *files.pictures(1, size=(6, 7))]
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(p) for p in pictures], [0, 1])
    with pytest.raises(UserError, match=r"row 1: the image is 6x7, data\.shape=\[1,6,6\] says 6x6.*\[1,null,null\]"):
        load_split(spec(), "train")


def test_empty_split(files, spec, tmp_path: Path) -> None:
    file = files.parquet(tmp_path / "toy/train.parquet", [], [])
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: the train split is empty"):
        load_split(spec(), "train")


@pytest.mark.parametrize("damage", ["noise", "head", "tail", "none", "zero"])
def test_image_that_does_not_decode(files, spec, tmp_path: Path, damage: str) -> None:
    good = files.encode(files.pictures(1, size=(60, 60))[0])
    bad = {"noise": b"no image at all", "head": good[:20], "tail": good[:-900], "none": None, "zero": b""}[damage]
    file = files.parquet(tmp_path / "toy/train.parquet", [good, good, bad], [0, 1, 2])
    reason = "no image bytes" if not bad else "the image does not decode"
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}, row 2: {reason}"):
        load_split(spec(shape=(1, 60, 60)), "train")


def test_file_of_a_class_folder_that_does_not_decode(spec, folders: Path) -> None:
    file = folders / "train/bee/3.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: .* decode .*remove the image"):
        load_split(spec(), "train")


def test_digits_that_are_called_something_else(spec) -> None:
    with pytest.raises(UserError, match=r"the digits are \[1,8,8\] images of 10 classes, data\.shape=\[1, 6, 6\]"):
        load_split(spec(kind="digits"), "train")
