"""Photographs lie as their cameras were held: the same pixels as `datasets` gives, wherever they come from."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from octo_exp.data import hub
from octo_exp.data.content import content_of
from octo_exp.data.sources import load_split

ORIENTATION = 0x0112


def photograph(pixels: np.ndarray, orientation: int | None, kind: str) -> bytes:
    image, stream = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    exif[0x010F] = "camera"
    image.save(stream, format=kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def as_datasets_reads(content: bytes) -> torch.Tensor:
    from datasets import Image as Feature

    image = Feature().decode_example({"bytes": content, "path": None})
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture(params=["parquet", "imagefolder", "hub"])
def load(request, files, spec, tmp_path: Path, monkeypatch):
    """Puts three photographs where a source finds them, and loads them."""

    def write_and_load(contents: list[bytes], **changes: Any) -> torch.Tensor:
        top = tmp_path / "toy/train"
        if request.param == "parquet":
            files.parquet(tmp_path / "toy/train.parquet", contents, [0] * len(contents))
        elif request.param == "imagefolder":
            for i, content in enumerate(contents):
                (top / str(i)).mkdir(parents=True)
                (top / f"{i}/photograph.jpg").write_bytes(content)
        else:
            from datasets import Dataset, Features, Value
            from datasets import Image as Feature

            rows = {"image": [{"bytes": c, "path": None} for c in contents], "label": [0] * len(contents)}
            features = Features({"image": Feature(), "label": Value("int64")})
            monkeypatch.setattr(hub, "_probe", lambda name: None)
            monkeypatch.setattr(hub, "_load", lambda name: {"train": Dataset.from_dict(rows, features=features)})
        chosen = spec(kind=request.param, hub="owner/toy", **changes)
        return load_split(chosen, "train").images

    return write_and_load


def test_every_source_turns_photographs(files, load) -> None:
    (pixels,) = files.pictures(1, mode="RGB", size=(6, 9))
    contents = [photograph(pixels, 6, "PNG"), photograph(pixels, 8, "PNG"), photograph(pixels, 5, "JPEG")]
    images = load(contents, shape=(3, 9, 6))
    assert torch.equal(images, torch.stack([as_datasets_reads(content) for content in contents]))
    upright = torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1)
    assert torch.equal(images[0], upright)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_every_orientation_in_every_format(files, spec, tmp_path: Path, kind: str, orientation: int | None) -> None:
    (pixels,) = files.pictures(1, mode="RGB", size=(5, 7))
    content = photograph(pixels, orientation, kind)
    expected = as_datasets_reads(content)
    turned = orientation is not None and 5 <= orientation <= 8
    assert tuple(expected.shape) == ((3, 7, 5) if turned else (3, 5, 7))
    files.parquet(tmp_path / "toy/train.parquet", [content], [0])
    assert torch.equal(load_split(spec(shape=tuple(expected.shape)), "train").images[0], expected)


def test_varying_sizes_are_turned_before_they_are_cropped(files, spec, tmp_path: Path) -> None:
    (pixels,) = files.pictures(1, mode="RGB", size=(6, 12))
    files.parquet(tmp_path / "toy/train.parquet", [photograph(pixels, 6, "PNG")], [0])
    split = load_split(spec(shape=(3, None, None), size=6), "train")
    assert torch.equal(split.images[0], torch.from_numpy(np.rot90(pixels, -1)[3:9].copy()).permute(2, 0, 1))


def test_what_decoding_makes_of_the_bytes_is_part_of_their_content(spec, toy: Path, monkeypatch) -> None:
    from octo_exp.data import cache, content, decode

    before, images = content_of(spec(), "train"), load_split(spec(), "train").images
    monkeypatch.setattr(content, "DECODING", decode.DECODING + 1)
    assert content_of(spec(), "train") != before
    monkeypatch.setattr(cache, "DECODING", decode.DECODING + 1)
    monkeypatch.setattr(decode, "_upright", lambda image: image.rotate(180))
    assert torch.equal(load_split(spec(), "train").images, images.flip(2, 3))
