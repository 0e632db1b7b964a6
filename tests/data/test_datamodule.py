"""Splits of a set, their limits, and how batches reach the loader."""

from pathlib import Path

import pytest
import torch

from tests.data.helpers import Make, images_of


def test_facts(digits: Make) -> None:
    data = digits(image_size=32, channels=3)
    assert data.input_shape == (3, 32, 32)
    assert (data.batch_size, data.classes, data.epochs) == (64, 10, 1)
    data.setup("fit")
    assert data.class_names == tuple("0123456789")
    # 1,438 training images, of which a tenth is held out.
    assert data.train_size == 1438 - 144
    batches = {name: list(getattr(data, f"{name}_dataloader")()) for name in ("train", "val", "test")}
    assert {name: sum(len(labels) for _, labels, *_ in content) for name, content in batches.items()} == {
        "train": 1294,
        "val": 144,
        "test": 359,
    }
    for content in batches.values():
        for images, labels, *_ in content:
            assert images.shape == (len(labels), 3, 32, 32)
            assert images.dtype == torch.uint8


def test_validation_split_is_disjoint_stratified_and_keyed_by_seed(digits: Make) -> None:
    held_out = []
    for seed in (0, 0, 1):
        data = digits(seed=seed)
        data.setup()
        train, val = images_of(data.train_dataloader()), images_of(data.val_dataloader())
        assert len(train) + len(val) == 1438
        assert len(set(train) & set(val)) <= 1
        labels = torch.cat([labels for _, labels in data.val_dataloader()])
        assert all(13 <= int(n) <= 15 for n in torch.bincount(labels))
        held_out.append((val, images_of(data.test_dataloader())))
    assert held_out[0] == held_out[1]
    assert held_out[0][0] != held_out[2][0]
    assert held_out[0][1] == held_out[2][1]


def test_limits_are_stratified_and_the_test_draw_is_the_same_for_every_seed(digits: Make) -> None:
    drawn = []
    for seed in (0, 1):
        data = digits(limit_train=200, limit_test=50, seed=seed)
        data.setup()
        assert data.train_size == 180
        assert sum(len(labels) for _, labels in data.val_dataloader()) == 20
        labels = torch.cat([labels for _, labels in data.test_dataloader()])
        assert all(4 <= int(n) <= 6 for n in torch.bincount(labels))
        drawn.append((images_of(data.test_dataloader()), sorted(images_of(data.train_dataloader()))))
    assert drawn[0][0] == drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
    generous = digits(limit_train=10_000, limit_test=359)
    generous.setup()
    assert generous.train_size == 1294


@pytest.mark.parametrize(("drop_last", "batches"), [(True, 4), (False, 5)])
def test_drop_last_is_for_training_only(datamodule: Make, toy: Path, drop_last: bool, batches: int) -> None:
    data = datamodule(drop_last=drop_last)
    data.setup()
    assert data.train_size == 18
    assert len(data.train_dataloader()) == batches
    assert (len(data.val_dataloader()), len(data.test_dataloader())) == (2, 2)


def test_local_files_reach_the_loader(files, datamodule: Make, toy: Path) -> None:
    data = datamodule()
    data.setup("test")
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert images.squeeze(1).tolist() == [picture.tolist() for picture in files.pictures(6)]
    assert data.class_names == ("a", "b", "c")


def test_pad_and_channels(datamodule: Make, toy: Path) -> None:
    data, plain = datamodule(image_size=10, fit="pad", channels=3, mean=[0.1, 0.2, 0.3], std=[1.0] * 3), datamodule()
    data.setup()
    plain.setup()
    (images, _), *_ = data.test_dataloader()
    (native, _), *_ = plain.test_dataloader()
    assert torch.equal(images, torch.nn.functional.pad(native, (2, 2, 2, 2)).expand(-1, 3, -1, -1))
    assert data.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert datamodule(channels=3, mean=[0.1]).mean.tolist() == pytest.approx([0.1] * 3)
    assert datamodule(shape=[3, 6, 6], mean=[0.1, 0.2, 0.3], std=[1.0] * 3).mean.tolist() == pytest.approx([0.2])


def test_evaluation_needs_its_own_split_only(datamodule: Make, toy: Path) -> None:
    (toy / "train.parquet").unlink()
    data = datamodule()
    data.setup("test")
    assert len(data.test_dataloader()) == 2
