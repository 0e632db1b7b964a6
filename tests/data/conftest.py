import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from octo_exp.data import ImageDataModule
from octo_exp.data.set_spec import Spec

# 6x6 gray images, three classes: the set that most tests write.
FACTS: dict[str, Any] = {
    "name": "toy",
    "source": "auto",
    "root": None,
    "folder": None,
    "hub": None,
    "image_column": "image",
    "label_column": "label",
    "train_split": "train",
    "test_split": "test",
    "shape": [1, 6, 6],
    "channels": 1,
    "classes": 3,
    "mean": [0.5],
    "std": [0.25],
    "image_size": 6,
    "fit": "resize",
    "eval_crop": None,
    "batch_size": 4,
    "val_fraction": 0.25,
    "seed": 0,
    "augment": None,
    "limit_train": None,
    "limit_test": None,
    "drop_last": False,
    "epochs": 1,
}
DIGITS: dict[str, Any] = FACTS | {
    "name": "digits",
    "source": "digits",
    "shape": [1, 8, 8],
    "classes": 10,
    "image_size": 8,
    "val_fraction": 0.1,
    "batch_size": 64,
}


@pytest.fixture(autouse=True)
def _no_cache_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "cache"))


class Files:
    """Writes small data sets."""

    @staticmethod
    def pictures(count: int, *, mode: str = "L", size: tuple[int, int] = (6, 6), seed: int = 0) -> list[np.ndarray]:
        """[H, W] or [H, W, 3] uint8, random; `size` is (height, width)."""
        shape = size if mode == "L" else (*size, len(mode))
        return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))

    @staticmethod
    def encode(picture: np.ndarray, kind: str = "PNG") -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format=kind)
        return stream.getvalue()

    @staticmethod
    def parquet(
        path: Path,
        images: Sequence[bytes | None],
        labels: Sequence[Any],
        *,
        names: Sequence[str] | None = ("a", "b", "c"),
        columns: tuple[str, str] = ("image", "label"),
    ) -> Path:
        """A shard in the Hugging Face layout; its class names go into the schema."""
        rows = pa.array(
            [{"bytes": image, "path": None} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        table = pa.table({columns[0]: rows, columns[1]: pa.array(labels, None if labels else pa.int64())})
        if names is not None:
            feature = {"names": list(names), "_type": "ClassLabel"}
            info = {"info": {"features": {columns[0]: {"_type": "Image"}, columns[1]: feature}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path


@pytest.fixture
def files() -> type[Files]:
    return Files


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """root/toy with 24 training and 6 test images, classes in turn."""
    for split, count in (("train", 24), ("test", 6)):
        encoded = [Files.encode(picture) for picture in Files.pictures(count)]
        Files.parquet(tmp_path / f"toy/{split}.parquet", encoded, [i % 3 for i in range(count)])
    return tmp_path / "toy"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """root/toy/{train,test}/<class>/*.png: 8 and 2 images a class."""
    for split, count in (("train", 8), ("test", 2)):
        for seed, name in enumerate(("ant", "bee", "cat")):
            top = tmp_path / "toy" / split / name
            top.mkdir(parents=True)
            for i, picture in enumerate(Files.pictures(count, seed=seed)):
                (top / f"{i}.png").write_bytes(Files.encode(picture))
    return tmp_path / "toy"


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Spec]:
    def make(**changes: Any) -> Spec:
        facts: dict[str, Any] = {
            "name": "toy",
            "kind": "auto",
            "folder": tmp_path / "toy",
            "hub": None,
            "image_columns": ("image",),
            "label_column": "label",
            "shape": (1, 6, 6),
            "classes": 3,
            "size": 6,
            "stretch": False,
            "class_split": "train",
        }
        return Spec(**(facts | changes))

    return make


@pytest.fixture
def datamodule(tmp_path: Path) -> Callable[..., ImageDataModule]:
    """The toy set's module; its files are written by `toy` or `folders`."""
    return lambda **changes: ImageDataModule(**(FACTS | {"root": str(tmp_path), "folder": "toy"} | changes))


@pytest.fixture
def digits() -> Callable[..., ImageDataModule]:
    return lambda **changes: ImageDataModule(**(DIGITS | changes))
