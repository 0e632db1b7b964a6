import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.data import ImageDataModule

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
    assert (data.crop_padding, data.hflip) == (2, True)
    assert instantiate(composed("cifar10", "data.augment=null").data).hflip is False


def test_digits_train_from_their_config() -> None:
    data = instantiate(composed("digits").data)
    data.setup()
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (64, 1, 32, 32)
    assert labels.shape == (64,)
    train = data.train_dataloader().images.float() / 255
    # Of the native images, before they are enlarged and a validation split is taken.
    assert float(train.mean()) == pytest.approx(data.mean.item(), abs=0.01)
