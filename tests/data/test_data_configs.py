import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.data import ImageDataModule
from octo_exp.data.augment import Augmentation, ResizedCrop, augmentation

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTO_DATA_DIR", raising=False)


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+data={name}", "+model.image_size=32", "+seed=7", *overrides])


def test_the_sets_of_the_readme_are_there() -> None:
    assert {"digits", "mnist", "fashion_mnist", "cifar10"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructor_s(name: str) -> None:
    keys = set(OmegaConf.load(CONF / f"data/{name}.yaml"))
    assert keys == {"_target_", *inspect.signature(ImageDataModule).parameters}


@pytest.mark.parametrize("name", NAMES)
def test_config_makes_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTO_DATA_DIR", "somewhere")
    data = instantiate(composed(name).data)
    assert isinstance(data, ImageDataModule)
    assert data.name == name
    assert data.seed == 7
    assert data.input_shape == (data.spec.shape[0], 32, 32)
    assert data.spec.folder == (None if name == "digits" else Path("somewhere") / name)


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
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
