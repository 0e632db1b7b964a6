"""Pixels as the loader takes them: brought to the model's size, in memory, or mapped where they are too many."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octo_exp.data.mapped import find_mapped, keep_mapped, too_large
from octo_exp.data.set_spec import Split
from octo_exp.data.transforms import convert_channels, fit_images

# Images at once: their floats are some ten MB for photographs.
_CHUNK = 64


class Rows:
    """Some images of parts that lie one behind another, which are read when they are asked for.

    Args:
        parts: [N_i, C, K, K] uint8 each.
        rows: [M] int64, places in all of them.

    """

    def __init__(self, parts: Sequence[Tensor], rows: Tensor) -> None:
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self._rows = rows

    def __len__(self) -> int:
        """M."""
        return len(self._rows)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Chosen [B] int64 -> [B, C, K, K] uint8, a copy in memory."""
        rows = self._rows[chosen]
        images = torch.empty((len(rows), *self._parts[0].shape[1:]), dtype=torch.uint8)
        of = torch.bucketize(rows, self._ends, right=True)
        for i, part in enumerate(self._parts):
            here = of == i
            images[here] = part[rows[here] - (self._ends[i] - len(part))]
        return images


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the pixels of a set are brought to.

    Args:
        size: side in pixels.
        fit: pad | resize | stretch.
        channels: 1 or 3.

    """

    size: int
    fit: str
    channels: int

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.channels * self.size**2

    def of(self, images: Tensor) -> Tensor:
        """[N, 1 or 3, H, W] uint8 -> [N, channels, size, size] uint8; the same tensor where nothing is to be done."""
        return convert_channels(fit_images(images, size=self.size, fit=self.fit), self.channels)


def chosen_pixels(parts: Sequence[Split], rows: Tensor, target: Target, name: Callable[[int], str]) -> Tensor | Rows:
    """The images `rows` of splits that lie one behind another, brought to the target.

    In memory, where they fit there before and after. Else each part is brought to the target whole, once, and kept on
    disk; the images are read from there, batch by batch.

    Args:
        parts: the splits.
        rows: [M] int64.
        target: what they become.
        name: of the i-th part, for the files on disk.

    Raises:
        UserError: what `fit_images` and `keep_mapped` raise.

    """
    images = [part.images for part in parts]
    native = images[0][0].numel()
    if not too_large(len(rows) * max(native, target.bytes)):
        picked = images[0][rows] if len(images) == 1 else Rows(images, rows)[torch.arange(len(rows))]
        return target.of(picked)
    return Rows([_whole(part, target, name(i)) for i, part in enumerate(parts)], rows)


def _whole(part: Split, target: Target, name: str) -> Tensor:
    shape = (len(part.labels), target.channels, target.size, target.size)
    if tuple(part.images.shape) == shape:
        return part.images
    key = _content(part.images, target)
    made = find_mapped(name, key)
    if made is None:
        chunks = _chunks(part.images, target)
        made = keep_mapped(name, key, chunks, shape, labels=part.labels, names=part.class_names)
    return made.images


def _content(images: Tensor, target: Target) -> str:
    """A hash of what the pixels at the target are made from."""
    digest = hashlib.sha256(repr((tuple(images.shape), target)).encode())
    for start in range(0, len(images), _CHUNK):
        digest.update(np.ascontiguousarray(images[start : start + _CHUNK].numpy()).data)
    return digest.hexdigest()


def _chunks(images: Tensor, target: Target) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _CHUNK):
        yield target.of(images[start : start + _CHUNK]).numpy()
