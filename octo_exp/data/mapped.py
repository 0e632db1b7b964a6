"""Splits too large for memory: decoded once into a file that is mapped, of which the system keeps what fits.

One folder per set, split and size in `base.caches.cache_folder`: pixels.npy [N, C, H, W] uint8, and facts.json, which
is written last and names what the pixels were made from. Both are whole or not there; whoever comes second waits for
who makes them. Nothing in them is needed: they may be deleted at any time.
"""

import json
import logging
import math
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.caches import cache_folder
from octo_exp.base.errors import UserError
from octo_exp.base.files import clean, whole_file, write_json
from octo_exp.base.lock import hold
from octo_exp.base.progress import with_progress
from octo_exp.data.set_spec import Split

log = logging.getLogger(__name__)

# More pixels than these are mapped; a copy or two of these fit into memory anywhere.
IN_MEMORY_BYTES = 512 << 20
_BLOCK_BYTES = 16 << 20
_PIXELS, _FACTS = "pixels.npy", "facts.json"
_REMEDY = "set OCTO_CACHE_DIR to a folder on a disk with that much room"


def too_large(pixels: int) -> bool:
    """Whether so many bytes of pixels are mapped rather than held in memory."""
    return pixels > IN_MEMORY_BYTES


def find_mapped(name: str, key: str) -> Split | None:
    """The split that was made from `key`; None where there is none, or a damaged one, which the log says.

    Every byte is looked at once.
    """
    folder = cache_folder() / name
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts["key"] != key:
            return None
        images = _mapped(folder / _PIXELS)
        labels = torch.tensor(facts["labels"], dtype=torch.int64)
        if list(images.shape) != facts["shape"] or len(labels) != len(images):
            raise ValueError("shape")
        if _checksum(folder / _PIXELS, f"checking {name}") != facts["checksum"]:
            raise ValueError("checksum")
        return Split(images=images, labels=labels, class_names=tuple(facts["class_names"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    # What a broken header or text raises: whatever it is, the files are made anew.
    except Exception as error:
        log.warning("cache %s is broken (%s) and is made anew", folder, type(error).__name__)
        return None


def keep_mapped(
    name: str, key: str, images: Iterable[np.ndarray], shape: tuple[int, ...], *, labels: Tensor, names: tuple[str, ...]
) -> Split:
    """Write the images to the cache, one after another, and map them; those of another process where it was first.

    Args:
        name: of the set, split and size: its folder's.
        key: what the pixels depend on.
        images: parts of the pixels, uint8, in order; left where another process made them.
        shape: [N, C, H, W] of all.
        labels: [N] int64.
        names: of the classes.

    Raises:
        UserError: no place for them; what `images` raises.

    """
    folder = cache_folder() / name
    _make(folder, math.prod(shape))
    with hold(folder, what="cache", wait=lambda owner: log.info("%s: waiting for %s, which makes it", folder, owner)):
        made = find_mapped(name, key)
        if made is not None:
            return made
        clean(folder)
        log.info("%s: %.1f GB of pixels are kept on disk, in %s", name, math.prod(shape) / 1e9, folder)
        with whole_file(folder / _PIXELS, remedy=_REMEDY) as file:
            checksum = _write(file, images, shape)
        facts = {
            "key": key,
            "shape": list(shape),
            "checksum": checksum,
            "class_names": list(names),
            "labels": labels.tolist(),
        }
        write_json(folder / _FACTS, facts, remedy=_REMEDY)
    return Split(images=_mapped(folder / _PIXELS), labels=labels, class_names=names)


def _make(folder: Path, needed: int) -> None:
    """Make the folder, if it can hold the pixels; what it holds already is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = folder / _PIXELS
        free = shutil.disk_usage(folder).free
        free += old.stat().st_size if old.exists() else 0
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}): {needed / 1e9:.1f} GB of decoded pixels are too many for "
            f"memory; {_REMEDY}"
        ) from error
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB of decoded pixels do not fit on this disk ({free / 1e9:.1f} GB free); "
            f"{_REMEDY}"
        )


def _write(file: BinaryIO, images: Iterable[np.ndarray], shape: tuple[int, ...]) -> int:
    """The file's content; CRC-32 of all of it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    file.seek(0)
    checksum = zlib.crc32(file.read())
    written = 0
    for part in images:
        content = np.ascontiguousarray(part).data
        file.write(content)
        checksum = zlib.crc32(content, checksum)
        written += content.nbytes
    if written != math.prod(shape):
        raise ValueError(f"{written} bytes of pixels, where {shape} was said")
    return checksum


def _checksum(path: Path, title: str) -> int:
    """CRC-32 of a file, read past the mapping, whose pages would stay with the process."""
    checksum = 0
    blocks = math.ceil(path.stat().st_size / _BLOCK_BYTES)
    for block in with_progress(_blocks(path), title, blocks):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _mapped(path: Path) -> Tensor:
    """The pixels as a tensor; read-only, since a mapping that can be written counts as memory."""
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError("no pixels")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)
