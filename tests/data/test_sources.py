import io
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from octo_exp.data.sources import load_split
from octo_exp.errors import UserError


def stack(pictures: list[np.ndarray]) -> torch.Tensor:
    images = torch.from_numpy(np.stack(pictures))
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_parquet_gives_the_pixels(files, spec, tmp_path: Path, mode: str, kind: str) -> None:
    pictures = files.pictures(7, mode=mode, size=(6, 9))
    labels = [2, 0, 1, 1, 0, 2, 2]
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(p, kind) for p in pictures], labels)
    split = load_split(spec(shape=(len(mode), 6, 9)), "train")
    assert torch.equal(split.images, stack(pictures))
    assert split.labels.tolist() == labels
    assert split.labels.dtype == torch.int64
    assert split.class_names == ("a", "b", "c")


def test_shards_are_joined_in_order(files, spec, tmp_path: Path) -> None:
    pictures = files.pictures(9)
    for i in (2, 0, 1):
        part = [files.encode(p) for p in pictures[3 * i : 3 * i + 3]]
        files.parquet(tmp_path / f"toy/train-{i:05d}-of-00003.parquet", part, [i] * 3)
    # Neither is a shard of the training split.
    (tmp_path / "toy/training_notes.parquet").write_bytes(b"no parquet")
    (tmp_path / "toy/test.parquet").write_bytes(b"no parquet")
    split = load_split(spec(), "train")
    assert torch.equal(split.images, stack(pictures))
    assert split.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_missing_shards_are_named_in_the_log(files, spec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = files.pictures(3)
    files.parquet(tmp_path / "toy/train-00001-of-00003.parquet", [files.encode(p) for p in pictures], [0, 1, 2])
    with caplog.at_level(logging.WARNING):
        split = load_split(spec(), "train")
    assert torch.equal(split.images, stack(pictures))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "1 of 3 shards" in message
    assert "train-00000-of-00003.parquet, train-00002-of-00003.parquet" in message


def test_plain_binary_column_and_no_names(files, spec, tmp_path: Path) -> None:
    pictures = files.pictures(3)
    table = pa.table({"png": [files.encode(p) for p in pictures], "y": pa.array([0, 2, 1], pa.uint8())})
    (tmp_path / "toy").mkdir()
    pq.write_table(table, tmp_path / "toy/train.parquet")
    split = load_split(spec(image_columns=("image", "png"), label_column="y"), "train")
    assert torch.equal(split.images, stack(pictures))
    assert split.labels.tolist() == [0, 2, 1]
    assert split.class_names == ("0", "1", "2")


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (6, 6), (3, 5)])
def test_varying_sizes_are_resized_and_cropped(files, spec, tmp_path: Path, height: int, width: int) -> None:
    pictures = [*files.pictures(1, mode="RGB", size=(height, width)), *files.pictures(1, mode="RGB", size=(7, 7))]
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(p) for p in pictures], [0, 1])
    split = load_split(spec(shape=(3, None, None), size=6), "train")
    assert split.images.shape == (2, 3, 6, 6)
    scale = 6 / min(height, width)
    new = (round(width * scale), round(height * scale))
    resized = np.array(Image.fromarray(pictures[0]).resize(new, Image.Resampling.BILINEAR))
    top, left = (new[1] - 6) // 2, (new[0] - 6) // 2
    assert torch.equal(split.images[0], stack([resized[top : top + 6, left : left + 6]])[0])


def test_palette_counts_as_rgb_and_bitmap_as_gray(files, spec, tmp_path: Path) -> None:
    picture = files.pictures(1, mode="RGB")[0] // 86 * 86
    palette, bitmap = tmp_path / "p.png", tmp_path / "b.png"
    Image.fromarray(picture).quantize(64).save(palette)
    Image.fromarray(picture[..., 0]).convert("1").save(bitmap)
    expected = np.array(Image.open(palette).convert("RGB"))
    files.parquet(tmp_path / "toy/train.parquet", [palette.read_bytes()], [0])
    assert torch.equal(load_split(spec(shape=(3, 6, 6)), "train").images, stack([expected]))
    files.parquet(tmp_path / "toy/test.parquet", [bitmap.read_bytes()], [0])
    assert set(load_split(spec(), "test").images.unique().tolist()) == {0, 255}


def test_a_slow_set_shows_its_progress(spec, toy: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    load_split(spec(), "test")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("octo_exp.data.decode._SECONDS_BEFORE_BAR", 0.0)
    assert len(load_split(spec(), "train").labels) == 24
    captured = capsys.readouterr()
    assert "decoding toy/train.parquet" in captured.err
    assert captured.out == ""


def test_image_folder(files, spec, folders: Path) -> None:
    (folders / "train/ant/notes.txt").write_text("no image")
    train, test = load_split(spec(), "train"), load_split(spec(), "test")
    assert train.class_names == test.class_names == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    expected = [picture for seed in range(3) for picture in files.pictures(8, seed=seed)]
    assert torch.equal(train.images, stack(expected))
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_image_folder_test_split_may_lack_a_class(spec, folders: Path) -> None:
    for path in (folders / "test/bee").iterdir():
        path.unlink()
    assert load_split(spec(), "test").labels.tolist() == [0, 0, 2, 2]


def test_digits_split_is_a_stratified_fifth_and_fixed(spec) -> None:
    from sklearn.datasets import load_digits

    chosen = spec(kind="digits", shape=(1, 8, 8), classes=10)
    train, test = load_split(chosen, "train"), load_split(chosen, "test")
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    bundled = load_digits()
    counts = np.bincount(bundled.target)
    assert all(abs(int(n) - 0.2 * whole) < 1 for n, whole in zip(torch.bincount(test.labels), counts, strict=True))
    assert {int(v) for v in train.images.unique()} == {round(v * 255 / 16) for v in range(17)}
    # Together they are the whole set, each image once.
    both = torch.cat([train.images, test.images]).flatten(1)
    whole = torch.from_numpy(np.rint(bundled.images * 255 / 16).astype(np.uint8)).flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, whole.numpy()))
    # Another draw would make published accuracies incomparable.
    assert test.labels[:12].tolist() == [0, 6, 8, 1, 3, 7, 9, 5, 7, 2, 3, 6]
    assert int(test.images.sum()) == 1_791_582


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


@pytest.mark.parametrize("labels", [["a", "b"], [0.0, 1.0], [0, None]])
def test_labels_that_are_no_integers(files, spec, tmp_path: Path, labels: list) -> None:
    file = files.parquet(tmp_path / "toy/train.parquet", [files.encode(p) for p in files.pictures(2)], labels)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: label column label holds .*an integer in every row"):
        load_split(spec(), "train")


def test_class_count_differs(spec, toy: Path) -> None:
    file = re.escape(str(toy / "train.parquet"))
    with pytest.raises(UserError, match=rf"{file} has 3 classes, data\.classes says 4: set data\.classes=3"):
        load_split(spec(classes=4), "train")


def test_class_folder_count_differs(spec, folders: Path) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(str(folders / 'train'))} has 3 classes, data\.classes says 2"):
        load_split(spec(classes=2), "test")


def test_class_folder_unknown_to_training(files, spec, folders: Path) -> None:
    (folders / "test/dog").mkdir()
    (folders / "test/dog/0.png").write_bytes(files.encode(files.pictures(1)[0]))
    with pytest.raises(
        UserError, match=rf"{re.escape(str(folders / 'test/dog'))}: the training split has no such class"
    ):
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


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "P"])
def test_photographs_of_other_modes_become_rgb(files, spec, tmp_path: Path, mode: str) -> None:
    (pixels,) = files.pictures(1, mode="RGB")
    picture = Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, format="TIFF")
    expected = np.array(Image.open(stream).convert("RGB"))
    files.parquet(tmp_path / "toy/train.parquet", [stream.getvalue(), files.encode(pixels)], [0, 1])
    split = load_split(spec(shape=(3, None, None)), "train")
    assert torch.equal(split.images, stack([expected, pixels]))
    if mode != "P":
        with pytest.raises(UserError, match=r"row 0: the image has \d channel\(s\), data\.shape=\[3,6,6\] says 3"):
            load_split(spec(shape=(3, 6, 6)), "train")


def test_deep_photographs_are_refused(files, spec, tmp_path: Path) -> None:
    deep = files.encode(np.full((6, 6), 40_000, dtype=np.uint16))
    files.parquet(tmp_path / "toy/train.parquet", [deep], [0])
    with pytest.raises(UserError, match=r"row 0: the image has mode I;16, not 8 bits a channel"):
        load_split(spec(shape=(3, None, None)), "train")


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (6, 6), (3, 5)])
def test_varying_sizes_are_stretched(files, spec, tmp_path: Path, height: int, width: int) -> None:
    (picture,) = files.pictures(1, mode="RGB", size=(height, width))
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(picture)], [0])
    expected = np.array(Image.fromarray(picture).resize((6, 6), Image.Resampling.BILINEAR))
    # The cache knows one from the other.
    cropped = load_split(spec(shape=(3, None, None)), "train").images
    split = load_split(spec(shape=(3, None, None), stretch=True), "train")
    assert torch.equal(split.images, stack([expected]))
    assert torch.equal(split.images, cropped) == (height == width)


def test_classes_are_the_folders_of_the_class_split(spec, folders: Path) -> None:
    (folders / "train").rename(folders / "learn")
    (folders / "test").rename(folders / "val")
    assert load_split(spec(class_split="learn"), "val").labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match=r"neither train\*\.parquet nor train/<class>/ folders"):
        load_split(spec(), "val")


def test_transparent_and_deep_images_are_refused(files, spec, tmp_path: Path) -> None:
    files.parquet(tmp_path / "toy/train.parquet", [files.encode(files.pictures(1, mode="RGBA")[0])], [0])
    with pytest.raises(UserError, match=r"row 0: the image has 4 channel\(s\)"):
        load_split(spec(shape=(3, 6, 6)), "train")
    deep = files.encode(np.full((6, 6), 40_000, dtype=np.uint16))
    files.parquet(tmp_path / "toy/test.parquet", [deep], [0])
    with pytest.raises(UserError, match=r"row 0: the image has mode I;16, not 8 bits a channel"):
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
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: the image does not decode"):
        load_split(spec(), "train")


def test_digits_that_are_called_something_else(spec) -> None:
    with pytest.raises(UserError, match=r"the digits are \[1,8,8\] images of 10 classes, data\.shape=\[1, 6, 6\]"):
        load_split(spec(kind="digits"), "train")
