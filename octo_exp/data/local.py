"""Splits on the local disk: parquet files in the Hugging Face layout, and folders of images by class.

Parquet is read with pyarrow, which `datasets` stands on, and class folders by walking them, rather than with
`datasets.load_dataset`: that copies every set to an arrow cache of its own, costs a second of imports, and its errors
name a builder where the user needs the file.
"""

import json
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octo_exp.data.decode import decode_images, first_line
from octo_exp.data.spec import Spec, Split, check_labels, check_names, choose_image_column, row_name
from octo_exp.errors import UserError

log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def parquet_files(spec: Spec, folder: Path, split: str) -> list[Path]:
    """The split's shards in order; those that their names say are missing are named in the log."""
    # `train.parquet`, `train-00000-of-00002.parquet`, `train_1.parquet`; not `training_notes.parquet`.
    files = sorted(path for path in folder.glob(f"{split}*.parquet") if re.match(rf"{split}[^a-z]", path.name))
    if not files:
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} has no {split}*.parquet: put the {split} split there "
            f"or name another folder with data.root= and data.folder="
        )
    found: dict[str, set[int]] = {}
    for path in files:
        numbered = re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name)
        found.setdefault(numbered[2] if numbered else "", set()).add(int(numbered[1]) if numbered else 0)
    if len(found) > 1:
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} mixes several copies of the {split} split "
            f"({', '.join(path.name for path in files)}): keep one"
        )
    (total, numbers), *_ = found.items()
    missing = [f"{split}-{i:05d}-of-{total}.parquet" for i in range(int(total or 0)) if i not in numbers]
    if missing:
        log.warning("%s: %d of %d shards are there; without %s", folder, len(numbers), int(total), ", ".join(missing))
    return files


def read_parquet_split(spec: Spec, files: Sequence[Path], split: str) -> Split:
    """Read, check and decode the shards, one after another, so that an error names its shard and row."""
    images, labels, names = [], [], None
    for path in files:
        encoded, shard_labels, shard_names = _read_shard(spec, path)
        names = shard_names if names is None else names
        if names != shard_names:
            raise UserError(f"{path}: its class names differ from {files[0].name}'s: keep shards of one data set only")
        labels.append(check_labels(shard_labels, spec, str(path)))
        if encoded:
            images.append(
                decode_images(
                    encoded,
                    shape=spec.shape,
                    size=spec.size,
                    stretch=spec.stretch,
                    where=partial(row_name, path),
                    title=f"decoding {spec.name}/{path.name}",
                )
            )
    if not images:
        raise UserError(f"{files[0]}: the {split} split is empty: download the file again")
    return Split(images=torch.cat(images), labels=torch.cat(labels), class_names=names or ())


def _read_shard(spec: Spec, path: Path) -> tuple[list[bytes | None], np.ndarray, tuple[str, ...]]:
    """Encoded images, labels [N] and class names of one shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image_column = choose_image_column(spec, schema.names, str(path))
            table = file.read(columns=[image_column, spec.label_column])
    except UserError:
        raise
    # pyarrow raises ArrowInvalid, OSError or others, according to where a truncated file breaks off.
    except Exception as error:
        raise UserError(
            f"{path} does not read as parquet ({first_line(error)}): it is truncated or damaged, download it again"
        ) from error
    encoded: list[bytes | None] = []
    for chunk in table.column(image_column).chunks:
        content = chunk.field("bytes") if _has_bytes(chunk.type) else chunk
        if not (pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type)):
            raise UserError(f"{path}: column {image_column} holds {chunk.type}: set data.image_column= to the images'")
        encoded.extend(content.to_pylist())
    names = check_names(_schema_names(schema.metadata, spec.label_column), spec, str(path))
    return encoded, table.column(spec.label_column).to_numpy(), names


def _has_bytes(kind: Any) -> bool:
    """Whether an arrow type is the struct {bytes, path} of Hugging Face's images."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _schema_names(metadata: dict[bytes, bytes] | None, label_column: str) -> Sequence[str] | None:
    """Class names from the `huggingface` entry of a parquet schema, None where it has none."""
    try:
        features: dict[str, Any] = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def class_files(spec: Spec, folder: Path, split: str) -> list[Path]:
    """folder/split/<class>/*.png|jpg..., sorted by class and name."""
    top = folder / split
    if not top.is_dir():
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} has neither {split}*.parquet nor {split}/<class>/ folders: "
            f"put the {split} split there or name another folder with data.root= and data.folder="
        )
    files = sorted(path for path in top.glob("*/*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise UserError(
            f"{top.absolute()}: the {split} split is empty: put images ({', '.join(_IMAGE_SUFFIXES)}) into one folder "
            f"per class"
        )
    return files


def read_folder_split(spec: Spec, files: Sequence[Path], training_files: Sequence[Path], split: str) -> Split:
    """Classes are the folders of the training split, in alphabetical order, for both splits."""
    classes = sorted({path.parent.name for path in training_files})
    names = check_names(classes, spec, str(training_files[0].parents[1]))
    for path in files:
        if path.parent.name not in names:
            raise UserError(
                f"{path.parent}: the training split has no such class, only {', '.join(names)}: rename or remove it"
            )
    images = decode_images(
        [path.read_bytes() for path in files],
        shape=spec.shape,
        size=spec.size,
        stretch=spec.stretch,
        where=lambda i: str(files[i]),
        title=f"decoding {spec.name}/{split}",
    )
    labels = torch.tensor([names.index(path.parent.name) for path in files])
    return Split(images=images, labels=labels, class_names=names)
