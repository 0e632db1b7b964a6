"""One LightningDataModule for every image classification set; a set is a yaml in conf/data."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from octo_exp.data.sampler import Batch, BatchLoader, EpochSampler, Stream, keyed_generator, stratified_indices
from octo_exp.data.sources import load_split
from octo_exp.data.spec import KINDS, Spec, Split
from octo_exp.data.transforms import convert_channels, crop_flip, fit_images, match_channels, normalize
from octo_exp.errors import UserError

log = logging.getLogger(__name__)


class ImageDataModule(LightningDataModule):
    """An image classification set in memory: uint8 tensors of the model's size, made into float batches on the device.

    A training batch leaves the loader as (images [B, C, S, S] uint8, labels [B] int64, (epoch, step)), an evaluation
    batch without the key; after the transfer every batch is (images float32, normalized, labels).

    Args:
        name: of the set, for messages and results.
        source: parquet | imagefolder | hub | digits | auto (digits; else the local folder; else the hub).
        root: folder of data sets, or None.
        folder: the set's folder under `root`, or None for `root` itself.
        hub: id on the Hugging Face hub, or None.
        image_column: column of encoded images, or several, of which the first that exists is read.
        label_column: column of integer labels.
        shape: native [C, H, W]; H and W None where sizes vary: short side resized to `image_size`, center cropped.
        channels: 1 or 3, what the model gets: gray is repeated to RGB, RGB becomes luma.
        classes: number of classes; labels are in [0, classes).
        mean: per channel (native or converted), of pixels in [0, 1]; repeated or averaged where channels are converted.
        std: as `mean`, > 0.
        image_size: side in pixels that images are brought to; a fact of the model.
        fit: resize | pad (centered on black), from the native size to `image_size`.
        batch_size: images per batch.
        val_fraction: of the training split, in (0, 1); stratified by class, drawn by `seed`.
        seed: of the validation split, `limit_train`, the order of batches and augmentation; >= 0.
        augment: {crop_padding: pixels, hflip: bool}, applied in training only; None for neither.
        limit_train: None, or that many images of the training split, stratified by class, drawn by `seed`; the
            validation split is taken from them.
        limit_test: None, or that many test images, stratified by class, the same for every seed.
        drop_last: leave out a last, smaller training batch, where there is more than one batch.
        epochs: recommended length of a training, for the trainer's configuration to interpolate.

    Attributes:
        input_shape: (channels, image_size, image_size).
        class_names: one per class, after `setup`.
        train_size: images trained on per epoch, before `drop_last`, after `setup`.

    Raises:
        UserError: any of the above out of its range; in `setup`, what `load_split` raises.

    """

    def __init__(
        self,
        *,
        name: str,
        source: str,
        root: str | None,
        folder: str | None,
        hub: str | None,
        image_column: str | Sequence[str],
        label_column: str,
        shape: Sequence[int | None],
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        fit: str,
        batch_size: int,
        val_fraction: float,
        seed: int,
        augment: Mapping[str, Any] | None,
        limit_train: int | None,
        limit_test: int | None,
        drop_last: bool,
        epochs: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.channels = _one_of("channels", channels, (1, 3))
        self.classes = _at_least("classes", classes, 2)
        self.image_size = _at_least("image_size", image_size, 1)
        self.fit = _one_of("fit", fit, ("resize", "pad"))
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.val_fraction = _fraction("val_fraction", val_fraction)
        self.seed = _at_least("seed", seed, 0)
        self.limit_train = None if limit_train is None else _at_least("limit_train", limit_train, 2)
        self.limit_test = None if limit_test is None else _at_least("limit_test", limit_test, 1)
        self.drop_last = _one_of("drop_last", drop_last, (True, False))
        self.epochs = _at_least("epochs", epochs, 1)
        self.crop_padding, self.hflip = _augmentation(augment)
        self.input_shape = (self.channels, self.image_size, self.image_size)
        self.spec = Spec(
            name=name,
            kind=_one_of("source", source, KINDS),
            folder=Path(root).expanduser() / (folder or "") if root else None,
            hub=hub,
            image_columns=(image_column,) if isinstance(image_column, str) else tuple(image_column),
            label_column=label_column,
            shape=_shape(shape, self.fit),
            classes=classes,
            size=image_size,
        )
        self.mean = torch.tensor(self._statistics("mean", mean))
        self.std = torch.tensor(self._statistics("std", std))
        if not bool((self.std > 0).all()):
            raise UserError(f"data.std={list(std)}: every value must be above 0")
        self.class_names: tuple[str, ...] = ()
        self.train_size = 0
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    def _statistics(self, key: str, values: Sequence[float]) -> tuple[float, ...]:
        if len(values) not in (self.channels, self.spec.shape[0]):
            raise UserError(
                f"data.{key}={list(values)} has {len(values)} value(s): it needs one per channel, {self.spec.shape[0]} "
                f"(data.shape) or {self.channels} (data.channels)"
            )
        return match_channels([float(value) for value in values], self.channels)

    def setup(self, stage: str | None = None) -> None:
        """Read what `stage` needs, once; `fit` reads the test split too, so that no training ends in a missing file."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UserError("the data is in memory, one process reads it: set trainer.devices=1")
        if stage in ("fit", "validate", None) and "train" not in self._splits:
            self._setup_train()
        if stage in ("fit", "test", None) and "test" not in self._splits:
            self._setup_test()

    def _setup_train(self) -> None:
        split = self._load("train")
        images, labels = split.images, split.labels
        if self.limit_train is not None and self.limit_train < len(labels):
            chosen = stratified_indices(labels, self.limit_train, keyed_generator(Stream.LIMIT, self.seed))
            images, labels = images[chosen], labels[chosen]
        count = round(self.val_fraction * len(labels))
        if not 0 < count < len(labels):
            raise UserError(
                f"data set {self.name}: data.val_fraction={self.val_fraction} of {len(labels)} training images leaves "
                f"a split empty: change it or data.limit_train"
            )
        held_out = stratified_indices(labels, count, keyed_generator(Stream.VALIDATION_SPLIT, self.seed))
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held_out] = False
        self._splits["train"] = self._fit(images[kept], labels[kept])
        self._splits["val"] = self._fit(images[held_out], labels[held_out])
        self.train_size = len(labels) - count

    def _setup_test(self) -> None:
        split = self._load("test")
        images, labels = split.images, split.labels
        if self.limit_test is not None and self.limit_test < len(labels):
            chosen = stratified_indices(labels, self.limit_test, keyed_generator(Stream.LIMIT))
            images, labels = images[chosen], labels[chosen]
        self._splits["test"] = self._fit(images, labels)

    def _load(self, name: str) -> Split:
        split = load_split(self.spec, name)
        if self.class_names and split.class_names != self.class_names:
            raise UserError(
                f"data set {self.name}: the {name} split's class names differ from the other split's: they do not "
                f"belong together, download both again"
            )
        self.class_names = split.class_names
        return split

    def _fit(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return convert_channels(fit_images(images, size=self.image_size, fit=self.fit), self.channels), labels

    def train_dataloader(self) -> BatchLoader:
        """Batches in an order keyed by (seed, epoch); in file order under the trainer's overfit_batches."""
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        return self._loader("train", shuffle=not overfit, drop_last=self.drop_last, keyed=True)

    def val_dataloader(self) -> BatchLoader:
        """Every validation image once."""
        return self._loader("val", shuffle=False, drop_last=False, keyed=False)

    def test_dataloader(self) -> BatchLoader:
        """Every test image once."""
        return self._loader("test", shuffle=False, drop_last=False, keyed=False)

    def _loader(self, split: str, *, shuffle: bool, drop_last: bool, keyed: bool) -> BatchLoader:
        images, labels = self._splits[split]
        order = EpochSampler(
            size=len(labels), batch_size=self.batch_size, seed=self.seed, shuffle=shuffle, drop_last=drop_last
        )
        return BatchLoader(images=images, labels=labels, order=order, keyed=keyed)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augment (a keyed batch, while training) and normalize, on the device that the batch is on.

        Returns:
            images [B, C, S, S] float32, labels [B] int64.

        """
        images, labels, *key = batch
        augmented = self.crop_padding > 0 or self.hflip
        if augmented and key and self.trainer is not None and self.trainer.training:
            epoch, step = key[0]
            generator = keyed_generator(Stream.AUGMENT, self.seed, epoch, step)
            images = crop_flip(images, crop_padding=self.crop_padding, hflip=self.hflip, generator=generator)
        return normalize(images, mean=self.mean, std=self.std), labels


def _at_least(key: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"data.{key}={value}: it must be a whole number of at least {least}")
    return value


def _one_of(key: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise UserError(f"data.{key}={value}: it must be one of {', '.join(map(str, allowed))}")
    return value


def _fraction(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"data.{key}={value}: it must lie between 0 and 1, both excluded")
    return float(value)


def _shape(shape: Sequence[int | None], fit: str) -> tuple[int, int | None, int | None]:
    sides = list(shape)
    if len(sides) == 3 and sides[0] in (1, 3):
        channels, height, width = int(sides[0]), sides[1], sides[2]
        if height is None and width is None and fit == "resize":
            return channels, None, None
        if height is not None and width is not None:
            return channels, _at_least("shape", height, 1), _at_least("shape", width, 1)
    raise UserError(
        f"data.shape={sides}: it must be [C, H, W] with C 1 or 3; H and W null where sizes vary, with data.fit=resize"
    )


def _augmentation(augment: Mapping[str, Any] | None) -> tuple[int, bool]:
    if augment is None:
        return 0, False
    if set(augment) != {"crop_padding", "hflip"} or not isinstance(augment["hflip"], bool):
        raise UserError(f"data.augment={dict(augment)}: it must be null or {{crop_padding: pixels, hflip: true|false}}")
    return _at_least("augment.crop_padding", augment["crop_padding"], 0), augment["hflip"]
