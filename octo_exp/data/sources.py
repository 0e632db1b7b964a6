"""Where images come from: local parquet files or class folders, the Hugging Face hub, scikit-learn's digits."""

import functools
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.progress import with_progress
from octo_exp.data.cache import cached, file_key
from octo_exp.data.decode import decode_images
from octo_exp.data.folders import class_files, read_folder_split
from octo_exp.data.hub import read_hub_split
from octo_exp.data.parquet import names_classes_by_text, read_parquet_split
from octo_exp.data.sampler import Stream, keyed_generator, stratified_indices
from octo_exp.data.set_spec import Encoded, Spec, Split
from octo_exp.data.shards import parquet_files

log = logging.getLogger(__name__)

# A fifth of scikit-learn's 1,797 digits; the same images for every seed, so that test accuracies compare.
_DIGITS_TEST_IMAGES = 359


def load_splits(spec: Spec, names: Sequence[str], class_names: tuple[str, ...]) -> list[Split]:
    """Read splits that belong together; `class_names`: those of splits read before, empty where there are none.

    Raises:
        UserError: see `load_split`; or the names of classes differ.

    """
    parts: list[Split] = []
    for name in names:
        parts.append(load_split(spec, name))
        if class_names and parts[-1].class_names != class_names:
            raise UserError(
                f"data set {spec.name}: the {name} split's class names differ from the other split's: they do not "
                f"belong together, download both again"
            )
        class_names = parts[-1].class_names
    return parts


def load_split(spec: Spec, split: str) -> Split:
    """Read one split by its name at the source, from the cache where nothing has changed.

    Raises:
        UserError: no such folder, split or column, an unreadable file or image, a label or class count or image shape
            that disagrees with `spec`, or no image at all. The message names the file and the remedy.

    """
    kind = _resolve(spec)
    origin = {"digits": "scikit-learn", "hub": f"the hub ({spec.hub})"}.get(kind, str(spec.folder))
    log.info("%s: reading the %s split from %s", spec.name, split, origin)
    if kind == "digits":
        return _digits(spec, split)
    title = f"{spec.name}-{split}"
    if kind == "hub":
        # No revision in the key: what was downloaded once stays the same set, with or without a network.
        place = f"hub|{spec.hub}"
        return cached(
            lambda: read_hub_split(spec, split),
            partial(_decoded, spec, split),
            title=title,
            place=place,
            files=place,
            decoding=spec.decode_key(),
        )
    folder, depends_on = _folder(spec), source_files(spec, split)[1]
    read = read_parquet_split if kind == "parquet" else read_folder_split
    return cached(
        lambda: read(spec, folder, split),
        partial(_decoded, spec, split),
        title=title,
        place=f"{kind}|{folder.resolve()}",
        files=file_key(depends_on),
        decoding=spec.decode_key(),
    )


def _decoded(spec: Spec, split: str, encoded: Encoded) -> Iterator[np.ndarray]:
    images = with_progress(encoded.images(), f"decoding {spec.name}/{split}", len(encoded.labels))
    return decode_images(images, shape=spec.shape, size=spec.size, stretch=spec.stretch, where=encoded.where)


def _folder(spec: Spec) -> Path:
    if spec.folder is None or not spec.folder.is_dir():
        raise UserError(f"{spec.looked_for()}; {spec.remedy()}")
    return spec.folder


def _resolve(spec: Spec) -> str:
    """The kind that `auto` stands for: digits are embedded, a local folder goes before the hub."""
    if spec.kind != "auto":
        return spec.kind
    if spec.name == "digits":
        return "digits"
    if spec.folder is not None and spec.folder.is_dir():
        return "parquet" if any(path.name[0] != "." for path in spec.folder.glob("*.parquet")) else "imagefolder"
    if spec.hub is not None:
        return "hub"
    raise UserError(f"{spec.looked_for()}; {spec.remedy()}")


def source_files(spec: Spec, split: str) -> tuple[str, list[Path]]:
    """The kind of a set, and the files that a split of it depends on, none where it is no local one.

    Raises:
        UserError: no such folder or split.

    """
    kind = _resolve(spec)
    if kind in ("digits", "hub"):
        return kind, []
    folder = _folder(spec)
    files = parquet_files if kind == "parquet" else class_files
    own = files(spec, folder, split)
    # The numbers of classes that are named by folders or texts depend on the class split too.
    named = kind != "parquet" or names_classes_by_text(spec, own[0])
    return kind, own + files(spec, folder, spec.class_split) if named and split != spec.class_split else own


@functools.cache
def _all_digits() -> tuple[Tensor, Tensor]:
    """[1797, 1, 8, 8] uint8, [1797] int64; read once a process: a text file of numbers takes a third of a second."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return images, torch.from_numpy(digits.target.astype(np.int64))


def _digits(spec: Spec, split: str) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8x8, their values 0..16 scaled to 0..255.

    The test split is a fifth of them, stratified by class, the same for every seed.
    """
    if spec.shape != (1, 8, 8) or spec.classes != 10:
        raise UserError(
            f"the digits are [1,8,8] images of 10 classes, data.shape={list(spec.shape)} and "
            f"data.classes={spec.classes} say otherwise: correct them or data.source"
        )
    images, labels = _all_digits()
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified_indices(labels, _DIGITS_TEST_IMAGES, keyed_generator(Stream.DIGITS_TEST_SPLIT))] = True
    chosen = test if split == "test" else ~test
    return Split(images=images[chosen], labels=labels[chosen], class_names=tuple("0123456789"))
