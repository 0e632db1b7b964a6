"""What a run asks of the LightningDataModule that `data=` names, ours or anybody's."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor


class DataModule(Protocol):
    """Images [B, C, S, S] float32 and labels [B] int64, in three splits.

    A method `content() -> str`, the hash of what the splits are made of, counts in a run's identity where there is one.

    Attributes:
        name: of the set, for messages and results.
        input_shape: (C, S, S), of one image.
        classes: labels are in [0, classes).
        class_names: one a class, after `setup`.
        batch_size: images a training batch.
        train_size: images trained on per epoch, after `setup`.
        mean: what was taken from pixels in [0, 1], one a channel of the data or one for all; for exports.
        std: what they were divided by then.

    """

    name: str
    classes: int
    batch_size: int
    train_size: int
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See above."""

    def setup(self, stage: Any = None) -> None:
        """Read what `stage` (fit, validate or test) needs; everything where it is None."""

    def train_dataloader(self) -> Iterable[Any]:
        """Batches for `on_after_batch_transfer`."""

    def val_dataloader(self) -> Iterable[Any]:
        """As `train_dataloader`."""

    def test_dataloader(self) -> Iterable[Any]:
        """As `train_dataloader`."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a loader's batch."""

    def calibration_batches(self, images: int) -> Iterator[Tensor]:
        """That many training images as evaluation would see them; where a float net becomes an int8 graph."""

    def prepared(self, encoded: bytes, where: str) -> Tensor:
        """Return a file's image as evaluation would see it, [1, C, S, S]; where single images are classified."""
