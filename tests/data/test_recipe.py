"""The transfer recipe's data: what evaluation sees, what training crops from, calibration, pixel codes, split names."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.data import ImageDataModule
from octo_exp.data.augment import augmentation
from octo_exp.data.sampler import Stream, keyed_generator, stratified_indices
from octo_exp.data.transforms import center_crop, fit_images, normalize
from tests.graph.update.helpers import golden_file

Make = Callable[..., ImageDataModule]
RECIPE = {
    "crop_padding": 0,
    "hflip": True,
    "random_resized_crop": {"scale": [0.08, 1], "ratio": [3 / 4, 4 / 3]},
    "jitter": 0.4,
}


def training(data: ImageDataModule) -> ImageDataModule:
    data.trainer = SimpleNamespace(training=True, world_size=1, overfit_batches=0)  # type: ignore[assignment]
    return data


def evaluated(data: ImageDataModule, split: str) -> torch.Tensor:
    loader = getattr(data, f"{split}_dataloader")()
    return torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in loader])


@pytest.mark.parametrize(("size", "kept"), [(128, 147), (112, 128), (7, 8), (16, 19), (63, 72), (1, 2)])
def test_images_are_kept_large_enough_for_the_crop(digits: Make, size: int, kept: int) -> None:
    data = digits(image_size=size, eval_crop=0.875, limit_train=20, limit_test=10)
    data.setup()
    assert data.input_shape == (1, size, size)
    for split in ("train", "val", "test"):
        batch = next(iter(getattr(data, f"{split}_dataloader")()))
        assert batch[0].shape[1:] == (1, kept, kept)
        assert data.on_after_batch_transfer(batch, 0)[0].shape[1:] == (1, size, size)


def test_evaluation_takes_the_center(files, datamodule: Make, toy: Path) -> None:
    data = datamodule(image_size=7, eval_crop=0.7)
    data.setup()
    native = torch.from_numpy(np.stack(files.pictures(6)))[:, None]
    # Ten pixels, of which 1.5 on either side are cut: half to even.
    expected = fit_images(native, size=10, fit="resize")[:, :, 2:9, 2:9]
    assert torch.equal(evaluated(data, "test"), normalize(expected, mean=data.mean, std=data.std))


def test_photographs_are_resized_once(files, datamodule: Make, tmp_path: Path) -> None:
    pictures = files.pictures(12, mode="RGB", size=(20, 30))
    for split in ("train", "test"):
        encoded = [files.encode(p) for p in pictures]
        files.parquet(tmp_path / f"toy/{split}.parquet", encoded, [i % 3 for i in range(12)])
    facts = {"shape": [3, None, None], "channels": 3, "mean": [0.5] * 3, "std": [1.0] * 3}
    data = datamodule(image_size=14, eval_crop=0.875, **facts)
    data.setup("test")
    # 14 / 0.875 = 16.
    (images, _), *_ = data.test_dataloader()
    large = datamodule(image_size=16, **facts)
    large.setup("test")
    (expected, _), *_ = large.test_dataloader()
    assert torch.equal(images, expected)
    assert torch.equal(evaluated(data, "test"), center_crop(evaluated(large, "test"), 14))


@pytest.mark.parametrize("augment", [None, RECIPE, RECIPE | {"random_resized_crop": None}])
def test_training_crops_from_the_kept_image(digits: Make, augment: dict[str, Any] | None) -> None:
    data = training(digits(image_size=21, eval_crop=0.875, augment=augment, limit_train=100))
    data.setup()
    raw, labels, key = next(iter(data.train_dataloader()))
    assert raw.shape[-1] == 24
    images, same = data.on_after_batch_transfer((raw, labels, key), 0)
    changed = augmentation(augment)(raw, size=21, generator=keyed_generator(Stream.AUGMENT, 0, *key))
    assert torch.equal(images, normalize(changed, mean=data.mean, std=data.std))
    assert torch.equal(same, labels)
    assert torch.equal(changed, center_crop(raw, 21)) == (augment is None)
    # What the network is given are pixel codes.
    codes = (images * data.std + data.mean) * 255
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("images", [1, 7, 63, 65, 90])
def test_calibration_batches(digits: Make, images: int) -> None:
    data = training(digits(image_size=7, eval_crop=0.875, augment=RECIPE, limit_train=100, seed=3))
    data.setup()
    batches = list(data.calibration_batches(images))
    assert [len(batch) for batch in batches] == [64] * (images // 64) + [images % 64] * (images % 64 > 0)
    loader = data.train_dataloader()
    chosen = stratified_indices(loader.labels, images, keyed_generator(Stream.CALIBRATION, 3))
    expected = normalize(center_crop(loader.images[chosen], 7), mean=data.mean, std=data.std)
    assert torch.equal(torch.cat(batches), expected)
    again, other = digits(image_size=7, eval_crop=0.875, limit_train=100, seed=3), digits(image_size=7, seed=4)
    again.setup()
    other.setup()
    assert torch.equal(torch.cat(list(again.calibration_batches(images))), expected)
    assert not torch.equal(torch.cat(list(other.calibration_batches(images))), expected)


def test_calibration_is_stratified(digits: Make) -> None:
    data = digits(limit_train=200, mean=[0.0], std=[1.0])
    data.setup()
    loader = data.train_dataloader()
    label_of = {(image / 255).numpy().tobytes(): int(k) for image, k in zip(loader.images, loader.labels, strict=True)}
    labels = [label_of[image.numpy().tobytes()] for batch in data.calibration_batches(60) for image in batch]
    assert all(5 <= n <= 7 for n in np.bincount(labels))


@pytest.mark.parametrize("images", [0, -1, 91])
def test_calibration_refuses_what_is_not_there(digits: Make, images: int) -> None:
    data = digits(limit_train=100)
    data.setup()
    with pytest.raises(UserError, match=rf"digits: {images} images to calibrate with: there are 90 .* ask for 1 to 90"):
        data.calibration_batches(images)


@pytest.mark.data
def test_pixel_codes_are_those_of_the_released_graphs(files, datamodule: Make, tmp_path: Path) -> None:
    golden = np.load(golden_file("input_rounding.npz"))
    picture = np.repeat(golden["pixel"].astype(np.uint8).reshape(16, 16, 1), 3, axis=2)
    for split in ("train", "test"):
        files.parquet(tmp_path / f"toy/{split}.parquet", [files.encode(picture)] * 6, [0, 1, 2] * 2)
    facts = {"shape": [3, 16, 16], "channels": 3, "image_size": 16}
    data = datamodule(**facts, mean=[0.5] * 3, std=[0.00392156862745098] * 3, val_fraction=0.5)
    data.setup()
    expected = torch.from_numpy(golden["normalized_f32"]).view(1, 1, 16, 16)
    codes = torch.from_numpy(golden["rounded"].astype(np.float32)).view(1, 1, 16, 16)
    assert (int(codes.min()), int(codes.max())) == (-127, 127)
    for images in (*(evaluated(data, split) for split in ("train", "val", "test")), *data.calibration_batches(3)):
        assert torch.equal(images, expected.expand_as(images))
        assert torch.equal(images.round(), codes.expand_as(images))


def test_splits_under_other_names_are_joined(files, datamodule: Make, tmp_path: Path) -> None:
    pictures = files.pictures(18)
    labels = [0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 0, 0] + [0] * 6
    for split, part in (("train", slice(6)), ("validation", slice(6, 12)), ("held", slice(12, None))):
        files.parquet(tmp_path / f"toy/{split}.parquet", [files.encode(p) for p in pictures[part]], labels[part])
    data = datamodule(train_split="train+validation", test_split="held")
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader())
    seen = [(i.numpy().tobytes(), int(k)) for at in loaders for i, k in zip(at.images, at.labels, strict=True)]
    assert sorted(seen) == sorted((p.tobytes(), k) for p, k in zip(pictures[:12], labels[:12], strict=True))
    assert [image.numpy().tobytes() for image in data.test_dataloader().images] == [p.tobytes() for p in pictures[12:]]


def test_joined_splits_must_be_of_one_set(files, datamodule: Make, toy: Path) -> None:
    files.parquet(toy / "more.parquet", [files.encode(files.pictures(1)[0])], [0], names=["x", "y", "z"])
    with pytest.raises(UserError, match=r"toy: the more split's class names differ"):
        datamodule(train_split="train+more").setup("fit")
