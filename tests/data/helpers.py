"""Small fits that keep their batches, and pixels of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from octo_exp.data import ImageDataModule

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


def stack(pictures: list[np.ndarray]) -> torch.Tensor:
    images = torch.from_numpy(np.stack(pictures))
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
