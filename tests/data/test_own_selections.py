"""Sets that are on no hub: who lacks one is told where it is from, and docs/data_sets.md makes such sets."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from octo_exp.base.errors import UserError
from tests.configs import composed, options

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data_sets.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.split("\n")
]


def settings_for(name: str) -> list[str]:
    """The page's settings for a set, but the counts."""
    (words,) = [words[2:] for words in COMMANDS if f"data={name}" in words]
    return [word for word in words if not word.startswith("data.limit")]


def picture(place: Path, rng: np.random.Generator, *, side: int = 40) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)).save(place)


def loaded(name: str) -> tuple[int, int]:
    """Images of training and validation, and of the test, as the page's command reads them."""
    data = instantiate(composed(*settings_for(name), "data.batch_size=2").data)
    data.setup()
    assert len(data.class_names) == data.classes
    return sum(len(data._splits[split][1]) for split in ("train", "val")), len(data._splits["test"][1])


@pytest.mark.parametrize("name", [name for name in options("data") if name not in ("digits", "folder")])
def test_a_set_that_is_not_there_is_answered_with_where_it_is_from(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("octo_exp.data.hub._probe", lambda hub: "no network")
    cfg = composed(f"data={name}").data
    with pytest.raises(UserError) as caught:
        instantiate(cfg, image_size=32).setup()
    line = str(caught.value)
    assert "\n" not in line
    assert cfg.hub in line if cfg.hub else re.search(r", made of .*, as (docs|conf)/\S+ says$", line)


def test_the_page_says_of_each_set_where_it_is_from():
    rows = [line.split("|")[1::2] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name: origin for names, origin in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(named) <= set(options("data"))
    for name, origin in named.items():
        assert (composed(f"data={name}").data.hub or "") in origin
    sends = [name for name in options("data") if "docs/data_sets.md" in (composed(f"data={name}").data.origin or "")]
    assert sends
    assert set(sends) <= set(named)


def test_flowers_are_made_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("daisy", "dandelion", "rose", "sunflower", "tulip"):
        for number in range(10):
            picture(Path("flowers", name, f"{number}.jpg"), rng)
    exec(PYTHON[1], {})
    assert loaded("flowers5_32") == (40, 10)


@pytest.mark.slow
def test_twenty_classes_are_made_as_the_page_says(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    names = re.search(r'CLASSES = \(\n\s+"(.*?)"\n\)', PYTHON[2], re.DOTALL)[1].replace('"\n    "', "").split()
    assert len(names) == 20
    rng = np.random.default_rng(0)

    def load_dataset(hub: str, *, split: str) -> object:
        assert hub == "uoft-cs/cifar100"
        features = datasets.Features(
            {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["road", *names])}
        )
        labels = [label for label in range(21) for _ in range(3)]
        images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in labels]
        return datasets.Dataset.from_dict({"img": images, "fine_label": labels}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    exec(PYTHON[2], {})
    assert loaded("cifar100_20c") == (60, 60)


def folders(name: str, classes: int) -> None:
    """Class folders as they are published: train and val, four and two images of each class."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 4), ("val", 2)):
        for label in range(classes):
            for number in range(images):
                picture(Path(name, split, f"n{label}", f"{number}.JPEG"), rng, side=130)


def test_imagenette_is_made_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders("imagenette2-160", 10)
    exec(PYTHON[0], {})
    assert loaded("imagenette112") == (40, 20)


def test_ants_and_bees_are_read_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders("hymenoptera_data", 2)
    assert loaded("hymenoptera128") == (8, 4)
