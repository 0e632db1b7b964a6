"""Files and folders of images become the pixels that another reader finds in them."""

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from octo_exp.base.errors import UserError
from octo_exp.data.sources import load_split
from tests.data.helpers import stack


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
    monkeypatch.setattr("octo_exp.base.progress._SECONDS_BEFORE_BAR", 0.0)
    assert len(load_split(spec(), "train").labels) == 24
    captured = capsys.readouterr()
    assert "decoding toy/train" in captured.err
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
