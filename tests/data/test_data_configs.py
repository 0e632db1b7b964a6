import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.config import check_arguments
from octo_exp.data import ImageDataModule
from octo_exp.data.augment import Augmentation, ResizedCrop, augmentation
from tests.configs import CONF, compose_copy

NAMES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
# `folder` is any set: how many classes it has is the user's to say.
SETS = [name for name in NAMES if name != "folder"]


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTO_DATA_DIR", raising=False)


def composed(name: str, *overrides: str) -> Any:
    return compose_copy(None, f"+data={name}", "+model.image_size=32", "+seed=7", *overrides)


def test_the_sets_of_the_readme_are_there() -> None:
    assert {"digits", "mnist", "fashion_mnist", "cifar10"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructor_s(name: str) -> None:
    keys = set(composed(name).data)
    assert keys == {"_target_", *inspect.signature(ImageDataModule).parameters}


@pytest.mark.parametrize("name", SETS)
def test_config_makes_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTO_DATA_DIR", "somewhere")
    data = instantiate(composed(name).data)
    assert isinstance(data, ImageDataModule)
    assert data.name == name
    assert data.seed == 7
    assert data.input_shape == (data.spec.shape[0], 32, 32)
    assert data.spec.folder == (None if name == "digits" else Path("somewhere") / name)


@pytest.mark.parametrize("name", SETS)
def test_config_as_transfer_source(name: str) -> None:
    cfg = composed("mnist", f"+data@source={name}", "source.channels=3", "source.batch_size=5")
    assert (cfg.data.name, cfg.source.name) == ("mnist", name)
    source, target = instantiate(cfg.source), instantiate(cfg.data)
    assert source.input_shape == (3, 32, 32)
    assert source.batch_size == 5
    assert target.input_shape == (1, 32, 32)
    assert composed("mnist", f"+data@source={name}").source.channels == source.spec.shape[0]


def test_augmentation_is_set_by_one_override() -> None:
    data = instantiate(composed("mnist", "data.augment.hflip=true", "data.augment.crop_padding=2").data)
    assert data.augmentation == Augmentation(crop_padding=2, hflip=True, random_resized_crop=None, jitter=None)
    assert instantiate(composed("cifar10", "data.augment=null").data).augmentation == augmentation(None)
    crop = "data.augment.random_resized_crop={scale:[0.08,1],ratio:[0.75,1.25]}"
    data = instantiate(composed("cifar10", "data.augment.crop_padding=0", crop, "data.augment.jitter=0.4").data)
    expected = ResizedCrop(scale=(0.08, 1.0), ratio=(0.75, 1.25))
    assert data.augmentation == Augmentation(crop_padding=0, hflip=True, random_resized_crop=expected, jitter=0.4)


@pytest.mark.parametrize("name", SETS)
def test_a_model_may_say_how_pixels_are_coded(name: str) -> None:
    cfg = composed(name, f"+data@source={name}")
    # Also as `--cfg job --resolve` shows it.
    own = OmegaConf.to_container(cfg, resolve=True)
    OmegaConf.resolve(cfg)
    assert cfg == own
    channels = cfg.data.shape[0]
    assert own["data"]["channels"] == channels
    assert own["data"] == own["source"]
    assert len(own["data"]["mean"]) == len(own["data"]["std"]) == channels
    # Another number of channels than the set's: gray for photographs, RGB for digits.
    facts = {
        "channels": 4 - channels,
        "mean": [0.5, 0.25, 0.125][: 4 - channels],
        "std": [2.0, 3.0, 4.0][: 4 - channels],
    }
    pixels = f"+model.pixels={str(facts).replace(chr(39), '')}"
    coded = OmegaConf.to_container(composed(name, f"+data@source={name}", pixels), resolve=True)
    for node in ("data", "source"):
        assert coded[node] == own[node] | facts
    data = instantiate(composed(name, pixels, "data.std=[1]").data if channels == 3 else composed(name, pixels).data)
    assert data.input_shape == (4 - channels, 32, 32)
    assert data.mean.tolist() == facts["mean"]
    assert data.std.tolist() == ([1] if channels == 3 else facts["std"])


def test_digits_train_from_their_config() -> None:
    data = instantiate(composed("digits").data)
    data.setup()
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (64, 1, 32, 32)
    assert labels.shape == (64,)
    train = data.train_dataloader().images.float() / 255
    # Of the native images, before they are enlarged and a validation split is taken.
    assert float(train.mean()) == pytest.approx(data.mean.item(), abs=0.01)


def test_a_folder_of_one_s_own_trains_from_its_config(tmp_path: Path, files: Any) -> None:
    red, blue = (np.full((9, 12, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    for split, count in (("train", 8), ("test", 3)):
        for name, picture in (("red", red), ("blue", blue)):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "mine" / split / name / f"{i}.png").write_bytes(files.encode(picture))
    data = instantiate(composed("folder", f"data.root={tmp_path / 'mine'}", "data.classes=2").data)
    data.setup()
    assert data.class_names == ("blue", "red")
    assert (data.train_size, len(data.test_dataloader().labels)) == (14, 6)
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert images.shape == (6, 3, 32, 32)
    # ImageNet's statistics; blue is class 0.
    for channel, bright in ((0, 1), (2, 0)):
        value = (float(labels[0] == bright) - data.mean[channel]) / data.std[channel]
        torch.testing.assert_close(images[0, channel], value.expand(32, 32))
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_a_folder_s_classes_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^data.classes must be given: write data.classes=<value>$"):
        check_arguments(["data=folder"], config_dir=CONF)
    check_arguments(["data=folder", "data.classes=2"], config_dir=CONF)
    with pytest.raises(UserError, match=r"^data set folder: .*data.root="):
        instantiate(composed("folder", "data.classes=2").data).setup()


def test_a_model_s_pixels_go_for_a_folder_too() -> None:
    pixels = "+model.pixels={channels:1,mean:[0.5],std:[2]}"
    data = instantiate(composed("folder", "data.classes=2", pixels).data)
    assert (data.input_shape, data.mean.tolist(), data.std.tolist()) == ((1, 32, 32), [0.5], [2.0])
