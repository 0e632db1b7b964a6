"""Where images come from: local parquet files or class folders, the Hugging Face hub, scikit-learn's digits."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch

from octo_exp.data.cache import cached, file_key
from octo_exp.data.decode import decode_images
from octo_exp.data.hub import load_hub_split
from octo_exp.data.local import class_files, parquet_files, read_folder_split, read_parquet_split
from octo_exp.data.sampler import Stream, keyed_generator, stratified_indices
from octo_exp.data.spec import Spec, Split, check_labels, check_names, choose_image_column, row_name
from octo_exp.errors import UserError

log = logging.getLogger(__name__)

# A fifth of scikit-learn's 1,797 digits; the same images for every seed, so that test accuracies compare.
_DIGITS_TEST_IMAGES = 359


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
    if kind == "hub":
        # No revision in the key: what was downloaded once stays the same set, with or without a network.
        place = f"hub|{spec.hub}"
        return cached(
            lambda: _from_hub(spec, split),
            title=f"{spec.name}-{split}",
            place=place,
            key=f"{place}|{spec.decode_key()}",
        )
    if spec.folder is None or not spec.folder.is_dir():
        raise UserError(f"{spec.looked_for()}; {spec.remedy()}")
    return _from_disk(spec, kind, spec.folder, split)


def _resolve(spec: Spec) -> str:
    """The kind that `auto` stands for: digits are embedded, a local folder goes before the hub."""
    if spec.kind != "auto":
        return spec.kind
    if spec.name == "digits":
        return "digits"
    if spec.folder is not None and spec.folder.is_dir():
        return "parquet" if any(spec.folder.glob("*.parquet")) else "imagefolder"
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
    if spec.folder is None or not spec.folder.is_dir():
        raise UserError(f"{spec.looked_for()}; {spec.remedy()}")
    if kind == "parquet":
        return kind, parquet_files(spec, spec.folder, split)
    # The test split's labels depend on the training split's folders too.
    return kind, class_files(spec, spec.folder, split) + class_files(spec, spec.folder, spec.class_split)


def _from_disk(spec: Spec, kind: str, folder: Path, split: str) -> Split:
    depends_on = source_files(spec, split)[1]
    files = depends_on if kind == "parquet" else class_files(spec, folder, split)
    training_files = [] if kind == "parquet" else class_files(spec, folder, spec.class_split)

    def build() -> Split:
        if kind == "parquet":
            return read_parquet_split(spec, files, split)
        return read_folder_split(spec, files, training_files, split)

    return cached(
        build,
        title=f"{spec.name}-{split}",
        place=f"{kind}|{folder.resolve()}",
        key=f"{file_key(depends_on)}|{spec.decode_key()}",
    )


def _from_hub(spec: Spec, split: str) -> Split:
    if spec.hub is None:
        raise UserError(f"data set {spec.name}: data.source=hub needs data.hub=, an id such as ylecun/mnist")
    content = load_hub_split(spec.hub, split, problem=spec.looked_for(), remedy=spec.remedy())
    where = f"hub data set {spec.hub}, split {split}"
    encoded, labels, names = content.columns(choose_image_column(spec, content.names, where), spec.label_column)
    if not encoded:
        raise UserError(f"{where} is empty: set data.hub= to another data set")
    class_names = check_names(names, spec, where)
    checked = check_labels(np.asarray(labels), spec, where)
    images = decode_images(
        encoded,
        shape=spec.shape,
        size=spec.size,
        stretch=spec.stretch,
        where=partial(row_name, where),
        title=f"decoding {spec.name}/{split}",
    )
    return Split(images=images, labels=checked, class_names=class_names)


def _digits(spec: Spec, split: str) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8x8, their values 0..16 scaled to 0..255.

    The test split is a fifth of them, stratified by class, the same for every seed.
    """
    from sklearn.datasets import load_digits

    if spec.shape != (1, 8, 8) or spec.classes != 10:
        raise UserError(
            f"the digits are [1,8,8] images of 10 classes, data.shape={list(spec.shape)} and "
            f"data.classes={spec.classes} say otherwise: correct them or data.source"
        )
    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified_indices(labels, _DIGITS_TEST_IMAGES, keyed_generator(Stream.DIGITS_TEST_SPLIT))] = True
    chosen = test if split == "test" else ~test
    return Split(images=images[chosen], labels=labels[chosen], class_names=tuple("0123456789"))
