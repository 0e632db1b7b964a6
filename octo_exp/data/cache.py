"""Decoded splits on disk, so that a second run of a set starts at once.

One file per set, split and folder, in `base.caches.cache_folder`; what is too large for memory lies in a folder of its
own (`mapped`). The file carries the key it was made from
(names, sizes and modification times of the source files, and what decoding depends on): another key is another data
set, and the file is written anew. Nothing in it is needed: it may be deleted at any time.
"""

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.caches import cache_folder, cannot_keep
from octo_exp.base.errors import UserError
from octo_exp.base.files import clean, whole_file
from octo_exp.data.decode import DECODING
from octo_exp.data.mapped import find_mapped, keep_mapped, too_large
from octo_exp.data.set_spec import Encoded, Split

log = logging.getLogger(__name__)

# Raised when the file holds something else.
_FORMAT = 2


def file_key(files: Sequence[Path]) -> str:
    """Names, sizes and modification times of the files, as one string."""
    stats = ((path, path.stat()) for path in files)
    return "|".join(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def cached(
    read: Callable[[], Encoded],
    decode: Callable[[Encoded], Iterator[np.ndarray]],
    *,
    title: str,
    place: str,
    files: str,
    decoding: str,
) -> Split:
    """The split from the cache where that has the same key, else read and decoded, then kept.

    Args:
        read: reads and checks all but the images.
        decode: makes N images [C, H, W] uint8 of one shape of it.
        title: start of the file's name, for people.
        place: what identifies the set whatever its present content; its hash is the rest of the file's name.
        files: what the set's present content is known by.
        decoding: what the pixels depend on besides. Of what is mapped, the pixels of several sizes are kept.

    """
    file = cache_folder() / f"{title}-{_hash(f'{title}|{place}')[:12]}.pt"
    name = f"{title}-{_hash(f'{title}|{place}|{decoding}')[:12]}"
    key = _hash(f"{_FORMAT}|{DECODING}|{files}|{decoding}")
    split = _load(file, key) or find_mapped(name, key)
    if split is None:
        encoded = read()
        images = decode(encoded)
        first = next(images)
        shape = (len(encoded.labels), *first.shape)
        images = chain([first], images)
        names = encoded.class_names
        if too_large(math.prod(shape)):
            return keep_mapped(name, key, images, shape, labels=encoded.labels, names=names)
        split = Split(images=_in_memory(images, shape), labels=encoded.labels, class_names=names)
        _store(file, key, split)
    return split


def _in_memory(images: Iterable[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    pixels = torch.empty(shape, dtype=torch.uint8)
    target = pixels.numpy()
    for i, image in enumerate(images):
        target[i] = image
    return pixels


def _hash(text: str) -> str:
    # A file's name may hold bytes that are no text.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _load(file: Path, key: str) -> Split | None:
    if not file.exists():
        return None
    try:
        stored = torch.load(file, weights_only=True)
        if stored["key"] != key:
            return None
        split = Split(
            images=stored["images"], labels=stored["labels"], class_names=tuple(json.loads(stored["class_names"]))
        )
        if stored["checksum"] != _checksum(split):
            raise ValueError("checksum")
    # A broken archive raises from the zip reader, the unpickler or the lines above: whatever it is, it is rebuilt.
    except Exception as error:
        log.warning("cache file %s is broken (%s) and is made anew", file, type(error).__name__)
        return None
    return split


def _checksum(split: Split) -> int:
    """CRC-32 of images and labels: torch.load does not notice a flipped bit."""
    return zlib.crc32(split.labels.numpy().data, zlib.crc32(split.images.numpy().data))


def _store(file: Path, key: str, split: Split) -> None:
    """Keep a split where that is possible; the whole file appears at once, also with several jobs."""
    content = {
        "key": key,
        "checksum": _checksum(split),
        "images": split.images,
        "labels": split.labels,
        # As text that takes every name, also one whose bytes are none.
        "class_names": json.dumps(split.class_names),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        clean(file.parent)
        with whole_file(file) as stream:
            torch.save(content, stream)
    # torch's writer raises RuntimeError where its file does.
    except (OSError, RuntimeError, UserError) as error:
        cannot_keep(file.parent, error)
