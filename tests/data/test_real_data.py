import inspect
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from octo_exp.data import ImageDataModule

pytestmark = pytest.mark.data

CONF = Path(__file__).resolve().parents[2] / "conf/data"
# Native size where it is fixed; images of the training split that are there, test images.
SETS = {
    "mnist": (28, (60_000,), 10_000),
    "fashion_mnist": (28, (60_000,), 10_000),
    "cifar10": (32, (25_000, 50_000), 10_000),
    "cifar100_20c": (32, (4_000,), 1_000),
    "flowers5_32": (32, (3_441,), 857),
    "hymenoptera128": (128, (244,), 153),
    "imagenette112": (112, (3_000,), 1_000),
}


def module(name: str, data_dir: Path, size: int) -> ImageDataModule:
    if not (data_dir / name).is_dir():
        pytest.skip(f"OCTO_DATA_DIR has no folder {name}")
    cfg = OmegaConf.create({"seed": 0, "model": {"image_size": size}, "data": OmegaConf.load(CONF / f"{name}.yaml")})
    facts = OmegaConf.to_container(cfg, resolve=True)["data"]
    facts["root"] = str(data_dir)
    return ImageDataModule(**{key: facts.get(key) for key in inspect.signature(ImageDataModule).parameters})


def pil_images(file: Path, rows: list[int]) -> list[np.ndarray]:
    column = pq.ParquetFile(file).read(columns=["image"]).column(0)
    return [np.array(Image.open(BytesIO(column[row].as_py()["bytes"]))) for row in rows]


# These take longest to decode; mnist and the small ones stand for them.
_LARGE = ("cifar10", "fashion_mnist", "imagenette112")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _LARGE else n for n in SETS])
def test_counts_statistics_and_pixels(name: str, data_dir: Path) -> None:
    size, train_counts, test_count = SETS[name]
    data = module(name, data_dir, size)
    data.setup("fit")
    train, val, test = (getattr(data, f"{split}_dataloader")() for split in ("train", "val", "test"))
    assert len(train.labels) + len(val.labels) in train_counts
    assert len(test.labels) == test_count
    assert data.train_size == len(train.labels)
    both = torch.cat([train.images, val.images])
    # Four digits are written; CIFAR-10's are of its first half.
    tolerance = 2e-3 if name == "cifar10" else 6e-5
    sums = both.sum(dim=(0, 2, 3)).double() / 255
    count = both.shape[0] * both.shape[2] * both.shape[3]
    squares = torch.stack([both[:, c].int().pow(2).sum() for c in range(both.shape[1])]).double() / 255**2
    mean = sums / count
    torch.testing.assert_close(mean.float(), data.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close((squares / count - mean**2).sqrt().float(), data.std, rtol=0, atol=tolerance)
    if name != "hymenoptera128":
        rows = [0, 1, test_count // 2, test_count - 1]
        (file,) = (data_dir / name).glob("test*.parquet")
        for row, picture in zip(rows, pil_images(file, rows), strict=True):
            assert int(test.images[row].sum()) == int(picture.sum())
            pixels = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
            assert torch.equal(test.images[row], torch.from_numpy(np.ascontiguousarray(pixels)))


def test_mnist_is_padded_to_32(data_dir: Path) -> None:
    data = module("mnist", data_dir, 32)
    data.setup("test")
    (picture,) = pil_images(data_dir / "mnist/test.parquet", [0])
    image = data.test_dataloader().images[0, 0]
    assert torch.equal(image[2:30, 2:30], torch.from_numpy(picture))
    assert int(image.sum()) == int(picture.sum())


def test_hymenoptera_is_cropped_about_its_center(data_dir: Path) -> None:
    data = module("hymenoptera128", data_dir, 128)
    data.setup("test")
    rows = [0, 1, 100]
    for row, picture in zip(rows, pil_images(data_dir / "hymenoptera128/test.parquet", rows), strict=True):
        height, width = picture.shape[:2]
        top, left = (height - 128) // 2, (width - 128) // 2
        cut = torch.from_numpy(picture[top : top + 128, left : left + 128].transpose(2, 0, 1).copy())
        assert torch.equal(data.test_dataloader().images[row], cut)
