"""What a DataModule refuses, in one line."""

from pathlib import Path
from typing import Any

import pytest

from octo_exp.base.errors import UserError
from tests.data.helpers import AUGMENT, CROP, RECIPE, Make


def test_training_looks_for_the_test_split_first(datamodule: Make, toy: Path) -> None:
    (toy / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"no test\*\.parquet"):
        datamodule().setup("fit")


def test_splits_of_different_sets(files, datamodule: Make, toy: Path) -> None:
    files.parquet(toy / "test.parquet", [files.encode(files.pictures(1)[0])], [0], names=["x", "y", "z"])
    with pytest.raises(UserError, match=r"toy: the test split's class names differ"):
        datamodule().setup("fit")


def test_several_processes_are_refused(digits: Make) -> None:
    data = digits()
    data.trainer = type("Two", (), {"world_size": 2})()
    with pytest.raises(UserError, match=r"trainer\.devices=1"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0: it must be a whole number of at least 1"),
        ({"batch_size": -3}, r"data\.batch_size=-3"),
        ({"batch_size": 2.5}, r"data\.batch_size=2\.5"),
        ({"batch_size": True}, r"data\.batch_size=True"),
        ({"batch_size": "8"}, r"data\.batch_size=8"),
        ({"seed": -1}, r"data\.seed=-1"),
        ({"classes": 1}, r"data\.classes=1"),
        ({"epochs": 0}, r"data\.epochs=0"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"limit_train": 1}, r"data\.limit_train=1"),
        ({"limit_test": 0}, r"data\.limit_test=0"),
        ({"channels": 2}, r"data\.channels=2: it must be one of 1, 3"),
        ({"fit": "crop"}, r"data\.fit=crop: it must be one of resize, stretch, pad"),
        ({"source": "csv"}, r"data\.source=csv: it must be one of auto, digits, parquet, imagefolder, hub"),
        ({"drop_last": "yes"}, r"data\.drop_last=yes"),
        ({"val_fraction": 0}, r"data\.val_fraction=0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0"),
        ({"mean": [0.1, 0.2]}, r"data\.mean=\[0\.1, 0\.2\] has 2 value\(s\): it needs one per channel, 1 .* or 1"),
        ({"std": []}, r"data\.std=\[\] has 0 value\(s\)"),
        ({"std": [0.0]}, r"data\.std=\[0\.0\]: every value must be above 0"),
        ({"channels": 3, "mean": [0.1] * 2}, r"it needs one per channel, 1 \(data\.shape\) or 3 \(data\.channels\)"),
        ({"shape": [8, 8]}, r"data\.shape=\[8, 8\]: it must be \[C, H, W\]"),
        ({"shape": [2, 8, 8]}, r"data\.shape=\[2, 8, 8\]"),
        ({"shape": [1, 8, None]}, r"data\.shape=\[1, 8, None\]"),
        ({"shape": [1, 0, 8]}, r"data\.shape=0"),
        ({"shape": [1, None, None], "fit": "pad"}, r"with data\.fit=resize"),
        ({"augment": {"hflip": True}}, r"data\.augment=.*it must be null or \{crop_padding: pixels, hflip"),
        ({"augment": AUGMENT | {"rotate": 1}}, r"data\.augment="),
        ({"augment": AUGMENT | {"crop_padding": -1}}, r"data\.augment\.crop_padding=-1"),
        ({"augment": AUGMENT | {"hflip": 1}}, r"data\.augment="),
        ({"augment": RECIPE | {"crop_padding": 2}}, r"data\.augment\.crop_padding=2 beside random_resized_crop"),
        *(
            ({"augment": RECIPE | {"random_resized_crop": crop}}, r"data\.augment\.random_resized_crop=.*it must be")
            for crop in (
                True,
                {"scale": [0.1, 1]},
                CROP | {"size": 3},
                CROP | {"scale": [0, 1]},
                CROP | {"scale": [0.5, 1.5]},
                CROP | {"scale": 0.5},
                CROP | {"scale": "ab"},
                CROP | {"ratio": [2, 1]},
                CROP | {"ratio": [1, 2, 3]},
                CROP | {"ratio": [True, 2]},
            )
        ),
        *(({"augment": RECIPE | {"jitter": j}}, r"data\.augment\.jitter=") for j in (0, -0.1, 1.5, True, "0.4")),
        ({"eval_crop": 0}, r"data\.eval_crop=0: it must lie between 0 and 1"),
        ({"eval_crop": 1.0}, r"data\.eval_crop=1\.0"),
        ({"eval_crop": 0.875, "fit": "pad"}, r"data\.eval_crop=0\.875 with data\.fit=pad: set data\.fit=resize"),
        ({"eval_crop": 0.875, "fit": "stretch"}, r"with data\.fit=stretch"),
        *(
            (names, r"data\.train_split=.*, data\.test_split=.*: each must name a split")
            for names in ({"test_split": "train"}, {"train_split": "a+test"}, {"train_split": ""}, {"test_split": None})
        ),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_constructor_refuses(datamodule: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        datamodule(**changes)


def test_misspelt_key_is_refused(datamodule: Make) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        datamodule(batchsize=3)


@pytest.mark.parametrize(("changes", "train", "val"), [({"val_fraction": 0.01}, 24, 0), ({"limit_train": 2}, 2, 0)])
def test_fraction_that_leaves_a_split_empty(datamodule: Make, toy: Path, changes: dict, train: int, val: int) -> None:
    del val
    with pytest.raises(UserError, match=rf"toy: data\.val_fraction=.* of {train} training images leaves a split empty"):
        datamodule(**changes).setup()
