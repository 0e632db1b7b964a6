from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from octo_exp.data import ImageDataModule
from octo_exp.data.augment import crop_flip
from octo_exp.data.sampler import Stream, keyed_generator
from octo_exp.data.transforms import normalize
from octo_exp.errors import UserError

Make = Callable[..., ImageDataModule]
AUGMENT = {"crop_padding": 2, "hflip": True, "random_resized_crop": None, "jitter": None}
CROP = {"scale": [0.08, 1], "ratio": [0.75, 4 / 3]}
RECIPE = {"crop_padding": 0, "hflip": True, "random_resized_crop": CROP, "jitter": 0.4}


class Net(LightningModule):
    """A linear classifier that keeps every batch it is given."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def _loss(self, batch: Any, stage: str, step: int) -> torch.Tensor:
        images, labels = batch
        self.seen[stage].append((self.current_epoch, step, images.clone(), labels.clone()))
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._loss(batch, "train", batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "test", batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Save(Callback):
    """A checkpoint per call of one hook, at the places where ModelCheckpoint saves."""

    def __init__(self, folder: Path, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_: trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt"))


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 2,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | options))


def fit(data: ImageDataModule, folder: Path, *callbacks: Callback, ckpt: str | None = None, **options: Any) -> Net:
    net = Net(data.input_shape, data.classes)
    trainer(folder, *callbacks, **options).fit(net, datamodule=data, ckpt_path=ckpt)
    return net


def assert_same_batches(first: list[Any], second: list[Any]) -> None:
    assert [(epoch, step) for epoch, step, *_ in first] == [(epoch, step) for epoch, step, *_ in second]
    for (*_, images, labels), (*_, others, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def images_of(loader: Any) -> list[bytes]:
    return [image.numpy().tobytes() for images, *_ in loader for image in images]


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


def test_training_looks_for_the_test_split_first(datamodule: Make, toy: Path) -> None:
    (toy / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"no test\*\.parquet"):
        datamodule().setup("fit")


def test_splits_of_different_sets(files, datamodule: Make, toy: Path) -> None:
    files.parquet(toy / "test.parquet", [files.encode(files.pictures(1)[0])], [0], names=["x", "y", "z"])
    with pytest.raises(UserError, match=r"toy: the test split's class names differ"):
        datamodule().setup("fit")


def test_set_epoch_is_called_and_orders_differ(digits: Make, tmp_path: Path) -> None:
    net = fit(digits(limit_train=200), tmp_path, max_epochs=3)
    orders = [[labels for at, _, _, labels in net.seen["train"] if at == epoch] for epoch in range(3)]
    assert [len(order) for order in orders] == [3, 3, 3]
    flat = [torch.cat(order).tolist() for order in orders]
    assert sorted(flat[0]) == sorted(flat[1]) == sorted(flat[2])
    assert len({tuple(order) for order in flat}) == 3
    # What Lightning trains on is what the loader of that epoch gives.
    data = digits(limit_train=200)
    data.setup()
    loader = data.train_dataloader()
    for epoch, order in enumerate(flat):
        loader.sampler.set_epoch(epoch)
        assert torch.cat([labels for _, labels, _ in loader]).tolist() == order


def test_augmentation_is_keyed_and_for_training_only(digits: Make, tmp_path: Path) -> None:
    data = digits(augment=AUGMENT, limit_train=200)
    net = fit(data, tmp_path, max_epochs=2)
    loader = data.train_dataloader()
    for epoch, step, images, labels in net.seen["train"]:
        loader.sampler.set_epoch(epoch)
        raw, expected_labels, key = list(loader)[step]
        assert key == (epoch, step)
        generator = keyed_generator(Stream.AUGMENT, 0, epoch, step)
        augmented = crop_flip(raw, crop_padding=2, hflip=True, generator=generator)
        assert not torch.equal(augmented, raw)
        assert torch.equal(images, normalize(augmented, mean=data.mean, std=data.std))
        assert torch.equal(labels, expected_labels)
    trainer(tmp_path).test(net, datamodule=data, verbose=False)
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = [normalize(images, mean=data.mean, std=data.std) for images, _ in loader]
        seen = [images for _, _, images, _ in net.seen[name]]
        assert all(torch.equal(a, b) for a, b in zip(seen[-len(batches) :], batches, strict=True))


def test_training_batches_are_not_augmented_outside_training(digits: Make) -> None:
    data = digits(augment=AUGMENT)
    data.setup()
    raw = next(iter(data.train_dataloader()))
    images, labels = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(images, normalize(raw[0], mean=data.mean, std=data.std))
    assert torch.equal(labels, raw[1])


@pytest.mark.parametrize("augment", [AUGMENT, RECIPE])
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_resumed_run_equals_an_uninterrupted_one(digits: Make, tmp_path: Path, hook: str, augment: dict) -> None:
    facts = {"augment": augment, "eval_crop": 0.875, "limit_train": 300}
    whole = fit(digits(**facts), tmp_path, max_epochs=4)
    first = fit(digits(**facts), tmp_path, Save(tmp_path, hook), max_epochs=2)
    assert len(first.seen["train"]) == 10
    torch.rand(5)
    second = fit(digits(**facts), tmp_path, ckpt=str(tmp_path / "10.ckpt"), max_epochs=4)
    assert {epoch for epoch, *_ in second.seen["train"]} == {2, 3}
    assert_same_batches(whole.seen["train"], first.seen["train"] + second.seen["train"])
    assert torch.equal(whole.layer.weight, second.layer.weight)
    # The batches of the epochs differ, or the comparison above would show nothing.
    assert not torch.equal(whole.seen["train"][0][2], second.seen["train"][0][2])


# With five batches an epoch: inside an epoch, and at the end of one but before its validation.
@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 14])
def test_resume_inside_an_epoch(digits: Make, tmp_path: Path, step: int) -> None:
    facts = {"augment": RECIPE if step == 6 else AUGMENT, "limit_train": 285}
    whole = fit(digits(**facts), tmp_path, Save(tmp_path, "on_train_batch_end"), max_epochs=3)
    assert len(whole.seen["train"]) == 15
    second = fit(digits(**facts), tmp_path, ckpt=str(tmp_path / f"{step}.ckpt"), max_epochs=3)
    assert_same_batches(whole.seen["train"][step:], second.seen["train"])
    assert torch.equal(whole.layer.weight, second.layer.weight)


def test_overfitting_a_batch_repeats_it(digits: Make, tmp_path: Path) -> None:
    net = fit(digits(), tmp_path, overfit_batches=1, max_epochs=3)
    assert [(epoch, step) for epoch, step, *_ in net.seen["train"]] == [(0, 0), (1, 0), (2, 0)]
    assert all(torch.equal(net.seen["train"][0][2], images) for _, _, images, _ in net.seen["train"])


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
