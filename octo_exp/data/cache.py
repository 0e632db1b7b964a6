"""Decoded splits on disk, so that a second run of a set starts at once.

One file per set, split and folder, in `base.caches.cache_folder`. It carries the key it was made from
(names, sizes and modification times of the source files, and what decoding depends on): another key is another data
set, and the file is written anew. Nothing in it is needed: it may be deleted at any time.
"""

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from octo_exp.base.caches import cache_folder, cannot_keep
from octo_exp.base.files import clean, whole_file
from octo_exp.data.spec import Split
from octo_exp.errors import UserError

log = logging.getLogger(__name__)

# Raised when what decoding makes of the same bytes changes.
_FORMAT = 1


def file_key(files: Sequence[Path]) -> str:
    """Names, sizes and modification times of the files, as one string."""
    stats = ((path, path.stat()) for path in files)
    return "|".join(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def cached(build: Callable[[], Split], *, title: str, place: str, key: str) -> Split:
    """The split from its cache file where that has the same key, else from `build`, then kept.

    Args:
        build: reads, checks and decodes.
        title: start of the file's name, for people.
        place: what identifies the set whatever its present content; its hash is the rest of the file's name.
        key: what the content depends on.

    """
    digest = hashlib.sha256(f"{title}|{place}".encode()).hexdigest()[:12]
    file = cache_folder() / f"{title}-{digest}.pt"
    key = hashlib.sha256(f"{_FORMAT}|{key}".encode()).hexdigest()
    split = _load(file, key)
    if split is None:
        split = build()
        _store(file, key, split)
    return split


def _load(file: Path, key: str) -> Split | None:
    if not file.exists():
        return None
    try:
        stored = torch.load(file, weights_only=True)
        if stored["key"] != key:
            return None
        split = Split(
            images=stored["images"], labels=stored["labels"], class_names=tuple(map(str, stored["class_names"]))
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
        "class_names": list(split.class_names),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        clean(file.parent)
        with whole_file(file) as stream:
            torch.save(content, stream)
    # torch's writer raises RuntimeError where its file does.
    except (OSError, RuntimeError, UserError) as error:
        cannot_keep(file.parent, error)
