"""One LightningDataModule for every image classification set; a set is a yaml in conf/data."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded
from octo_exp.data.augment import augmentation
from octo_exp.data.checks import at_least, fraction, kept_size, native_shape, one_of, side, split_names
from octo_exp.data.content import content_of
from octo_exp.data.decode import decode_alone
from octo_exp.data.own import OwnTransforms
from octo_exp.data.pixels import Rows, Target, chosen_pixels
from octo_exp.data.sampler import Batch, BatchLoader, EpochSampler, Stream, keyed_generator, stratified_indices
from octo_exp.data.set_spec import KINDS, Spec, Split
from octo_exp.data.sources import load_splits
from octo_exp.data.transforms import center_crop, normalize, statistics

log = logging.getLogger(__name__)


class ImageDataModule(LightningDataModule):
    """An image classification set: uint8 images of the model's size, made into float batches on the device.

    They lie in memory, or, where that would take more than `mapped.IN_MEMORY_BYTES`, in a mapped file of the cache.

    Images are kept as [N, C, K, K], K the model's side S or, with `eval_crop`, ceil(S / eval_crop). A training batch
    leaves the loader as (images [B, C, K, K] uint8, labels [B] int64, (epoch, step)), an evaluation batch without the
    key; after the transfer every batch is (images [B, C, S, S] float32, normalized, labels).

    Args:
        name: of the set, for messages and results.
        source: parquet | imagefolder | hub | digits | auto (digits; else the local folder; else the hub).
        root: folder of data sets, or None.
        folder: the set's folder under `root`, or None for `root` itself.
        hub: id on the Hugging Face hub, or None.
        image_column: column of encoded images, or several, of which the first that exists is read.
        label_column: column of integer labels.
        train_split: its name at the source, or several joined by "+"; the validation split is taken from it.
        test_split: as `train_split`; the two share no name.
        shape: native [C, H, W]; H and W None where sizes vary: brought to the kept size by `fit`.
        channels: 1 or 3, what the model gets: gray is repeated to RGB, RGB becomes luma.
        classes: number of classes; labels are in [0, classes).
        mean: per channel (native or converted), of pixels in [0, 1]; repeated or averaged where channels are converted.
        std: as `mean`, > 0.
        image_size: side S of the model's images in pixels; a fact of the model.
        fit: resize (short side, long side cropped) | stretch (both sides) | pad (centered on black).
        eval_crop: None, or the central share of a side, in (0, 1), that evaluation sees; with fit=resize.
        batch_size: images per batch.
        val_fraction: of the training split, in (0, 1); stratified by class, drawn by `seed`.
        seed: of the validation split, `limit_train`, the order of batches and augmentation; >= 0.
        augment: the fields of `Augmentation`, applied in training only; None for none.
        transforms: name -> module for training images, after `augment` (`octo_exp.data.own`).
        limit_train: None, or that many images of the training split, stratified by class, drawn by `seed`; the
            validation split is taken from them.
        limit_test: None, or that many test images, stratified by class, the same for every seed.
        drop_last: leave out a last, smaller training batch, where there is more than one batch.
        epochs: recommended length of a training, for the trainer's configuration to interpolate.
        origin: where a set is from that the hub does not have, for the message of one that is not there; or None.

    Attributes:
        those of `protocol.DataModule`; train_size is before `drop_last`.

    Raises:
        UserError: any of the above out of its range; in `setup`, what `load_split` raises.

    """

    name: str

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
        train_split: str,
        test_split: str,
        shape: Sequence[int | None],
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None,
        fit: str,
        eval_crop: float | None,
        batch_size: int,
        val_fraction: float,
        seed: int,
        augment: Mapping[str, Any] | None,
        limit_train: int | None,
        limit_test: int | None,
        drop_last: bool,
        epochs: int,
        transforms: Mapping[str, Any] | None = None,
        origin: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.channels = one_of("channels", channels, (1, 3))
        self.classes = at_least("classes", classes, 2)
        self.image_size = side("image_size", image_size, name)
        self.fit = one_of("fit", fit, ("resize", "stretch", "pad"))
        self.kept_size = kept_size(self.image_size, eval_crop, self.fit)
        self.train_names, self.test_names = split_names(train_split, test_split)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.val_fraction = fraction("val_fraction", val_fraction)
        self.seed = at_least("seed", seed, 0)
        self.limit_train = None if limit_train is None else at_least("limit_train", limit_train, 2)
        self.limit_test = None if limit_test is None else at_least("limit_test", limit_test, 1)
        self.drop_last = one_of("drop_last", drop_last, (True, False))
        self.epochs = at_least("epochs", epochs, 1)
        self.augmentation = augmentation(augment)
        self.own_transforms = OwnTransforms(transforms)
        self.input_shape = (self.channels, self.image_size, self.image_size)
        self.spec = Spec(
            name=name,
            kind=one_of("source", source, KINDS),
            folder=expanded(root) / (folder or "") if root else None,
            hub=hub,
            image_columns=(image_column,) if isinstance(image_column, str) else tuple(image_column),
            label_column=label_column,
            shape=native_shape(shape, self.fit),
            classes=classes,
            size=self.kept_size,
            stretch=self.fit == "stretch",
            class_split=self.train_names[0],
            origin=origin,
        )
        self.mean, self.std = (
            torch.tensor(statistics(key, values, channels=self.channels, native=self.spec.shape[0]))
            for key, values in (("mean", mean), ("std", std))
        )
        if not bool((self.std > 0).all()):
            raise UserError(f"data.std={list(std)}: every value must be above 0")
        self.class_names: tuple[str, ...] = ()
        self.train_size = 0
        self._splits: dict[str, tuple[Tensor | Rows, Tensor]] = {}
        self._train_loader: BatchLoader | None = None
        self._resume: tuple[int, int] | None = None

    def content(self) -> str:
        """A hash of what the splits are made of; nothing is decoded. UserError where a split is not there."""
        names = dict.fromkeys([*self.train_names, *self.test_names])
        return hashlib.sha256(repr([(name, content_of(self.spec, name)) for name in names]).encode()).hexdigest()

    def setup(self, stage: str | None = None) -> None:
        """Read what `stage` needs, once; `fit` reads the test split too, so that no training ends in a missing file."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UserError("one process reads the data: set trainer.devices=1")
        if stage in ("fit", "validate", None) and "train" not in self._splits:
            self._setup_train()
        if stage in ("fit", "test", None) and "test" not in self._splits:
            self._setup_test()

    def _setup_train(self) -> None:
        parts = load_splits(self.spec, self.train_names, self.class_names)
        self.class_names = parts[0].class_names
        labels = torch.cat([part.labels for part in parts])
        rows = torch.arange(len(labels))
        if self.limit_train is not None and self.limit_train < len(labels):
            rows = stratified_indices(labels, self.limit_train, keyed_generator(Stream.LIMIT, self.seed))
            labels = labels[rows]
        count = round(self.val_fraction * len(labels))
        if not 0 < count < len(labels):
            raise UserError(
                f"data set {self.name}: data.val_fraction={self.val_fraction} of {len(labels)} training images leaves "
                f"a split empty: change it or data.limit_train"
            )
        held_out = stratified_indices(labels, count, keyed_generator(Stream.VALIDATION_SPLIT, self.seed))
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held_out] = False
        self._splits["train"] = self._pixels(parts, self.train_names, rows[kept]), labels[kept]
        self._splits["val"] = self._pixels(parts, self.train_names, rows[held_out]), labels[held_out]
        self.train_size = len(labels) - count
        # What the modules cannot take is told now.
        self.own_transforms(center_crop(self._splits["train"][0][torch.arange(2)], self.image_size), seed=0)

    def _setup_test(self) -> None:
        parts = load_splits(self.spec, self.test_names, self.class_names)
        self.class_names = parts[0].class_names
        labels = torch.cat([part.labels for part in parts])
        rows = torch.arange(len(labels))
        if self.limit_test is not None and self.limit_test < len(labels):
            rows = stratified_indices(labels, self.limit_test, keyed_generator(Stream.LIMIT))
        self._splits["test"] = self._pixels(parts, self.test_names, rows), labels[rows]

    def _pixels(self, parts: Sequence[Split], names: Sequence[str], rows: Tensor) -> Tensor | Rows:
        target = Target(size=self.kept_size, fit=self.fit, channels=self.channels)
        place = hashlib.sha256(f"{self.spec.folder}|{self.spec.hub}".encode("utf-8", "surrogateescape")).hexdigest()
        end = f"{target.channels}x{target.size}px-{place[:12]}"
        return chosen_pixels(parts, rows, target, lambda i: f"{self.name}-{names[i]}-{end}")

    def train_dataloader(self) -> BatchLoader:
        """Batches in an order keyed by (seed, epoch); in file order under the trainer's overfit_batches."""
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        loader = self._train_loader = self._loader("train", shuffle=not overfit, drop_last=self.drop_last, keyed=True)
        if self._resume is not None:
            loader.go_on(*self._resume)
        return loader

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its training batches were handed out; Lightning keeps it in checkpoints."""
        epoch, step = (0, 0) if self._train_loader is None else self._train_loader.place
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that were handed out, if the next epoch is the one that they were of."""
        self._resume = (int(state_dict["epoch"]), int(state_dict["step"]))
        # Whoever asks for the number of batches has made the loader already.
        if self._train_loader is not None:
            self._train_loader.go_on(*self._resume)

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
        if key and self.trainer is not None and self.trainer.training:
            generator = keyed_generator(Stream.AUGMENT, self.seed, *key[0])
            images = self.augmentation(images, size=self.image_size, generator=generator)
            images = self.own_transforms(images, keyed_generator(Stream.OWN, self.seed, *key[0]).initial_seed())
        return self._normalized(images), labels

    def calibration_batches(self, images: int) -> Iterator[Tensor]:
        """Training images as evaluation would see them, for post-training quantisation; after `setup`.

        Args:
            images: how many, stratified by class, drawn by `seed`.

        Returns:
            batches [B, C, S, S] float32 of `batch_size`, the last one smaller.

        Raises:
            UserError: more images than there are, or none.

        """
        pixels, labels = self._splits["train"]
        if not 1 <= images <= len(labels):
            raise UserError(
                f"data set {self.name}: {images} images to calibrate with: there are {len(labels)} to train on; "
                f"ask for 1 to {len(labels)}"
            )
        chosen = stratified_indices(labels, images, keyed_generator(Stream.CALIBRATION, self.seed))
        starts = range(0, images, self.batch_size)
        return (self._normalized(pixels[chosen[start : start + self.batch_size]]) for start in starts)

    def prepared(self, encoded: bytes, where: str) -> Tensor:
        """Anybody's image as evaluation would see it, had it been one of the set's.

        Args:
            encoded: a file's content.
            where: names it in an error.

        Returns:
            [1, C, S, S] float32.

        Raises:
            UserError: what does not decode, or cannot be brought to the size.

        """
        varies = None in self.spec.shape
        pixels = decode_alone(encoded, size=self.kept_size if varies else None, stretch=self.spec.stretch, where=where)
        target = Target(size=self.kept_size, fit=self.fit, channels=self.channels)
        try:
            return self._normalized(target.of(torch.from_numpy(pixels)[None]))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(center_crop(images, self.image_size), mean=self.mean, std=self.std)
