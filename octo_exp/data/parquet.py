"""Splits in parquet files, in the Hugging Face layout.

Read with pyarrow, which `datasets` stands on, and class folders by walking them, rather than with
`datasets.load_dataset`: that copies every set to an arrow cache of its own, costs a second of imports, and its errors
name a builder where the user needs the file.
"""

import bisect
import contextlib
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octo_exp.base.errors import UserError
from octo_exp.data.decode import first_line
from octo_exp.data.labels import BOOLEAN_NAMES, is_boolean, is_text, label_values, numbered
from octo_exp.data.set_spec import Encoded, Spec, check_labels, check_names, choose_image_column, row_name
from octo_exp.data.shards import parquet_files

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows at once, and bytes read ahead of them: photographs may have megabytes.
_ROWS = 32
_BUFFER_BYTES = 1 << 20


def read_parquet_split(spec: Spec, folder: Path, split: str) -> Encoded:
    """Read and check the labels of the shards, in order; images are read when they are walked through.

    Classes are what the schema names, else the texts of the class split in alphabetical order, else 0, 1, ...
    """
    files = parquet_files(spec, folder, split)
    names = _class_names(spec, folder, files)
    labels = [_labels(spec, path, names) for path in files]
    if not sum(map(len, labels)):
        raise UserError(f"{files[0]}: the {split} split is empty: download the file again")
    ends = list(accumulate(map(len, labels)))

    def where(i: int) -> str:
        shard = bisect.bisect_right(ends, i)
        return row_name(files[shard], i - (ends[shard - 1] if shard else 0))

    return Encoded(labels=torch.cat(labels), class_names=names, images=lambda: _encoded(spec, files, ends), where=where)


def _class_names(spec: Spec, folder: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Names of the classes; every shard must have the same."""
    names = [_stated_names(spec, path) for path in files]
    for path, others in zip(files, names, strict=True):
        if others != names[0]:
            raise UserError(f"{path}: its class names differ from {files[0].name}'s: keep shards of one data set only")
    if names_classes_by_text(spec, files[0]):
        shards = parquet_files(spec, folder, spec.class_split)
        texts = {text for path in shards for text in _label_column(spec, path).tolist()}
        return check_names(sorted(map(str, texts)), spec, f"{shards[0]}, column {spec.label_column}")
    return check_names(names[0], spec, str(files[0]))


def names_classes_by_text(spec: Spec, path: Path) -> bool:
    """Whether a file's labels are texts and nothing else names the classes."""
    return _stated_names(spec, path) is None and is_text(_label_type(spec, path))


def _stated_names(spec: Spec, path: Path) -> tuple[str, ...] | None:
    """Class names from the `huggingface` entry of a schema, False and True of booleans, else None."""
    with _opened(path) as file:
        schema = file.schema_arrow
    choose_image_column(spec, schema.names, str(path))
    try:
        feature: dict[str, Any] = json.loads(schema.metadata[b"huggingface"])["info"]["features"][spec.label_column]
        # A list of one label has its feature inside.
        names = feature["names"] if "names" in feature else feature["feature"]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    if isinstance(names, list):
        return tuple(map(str, names))
    return BOOLEAN_NAMES if is_boolean(_label_type(spec, path)) else None


def _label_type(spec: Spec, path: Path) -> "pa.DataType":
    with _opened(path) as file:
        return file.schema_arrow.field(spec.label_column).type


def _label_column(spec: Spec, path: Path) -> np.ndarray:
    with _opened(path) as file:
        column = file.read(columns=[spec.label_column]).column(spec.label_column)
    return label_values(column, spec, str(path))


def _labels(spec: Spec, path: Path, names: Sequence[str]) -> torch.Tensor:
    return check_labels(numbered(_label_column(spec, path), names, spec, str(path)), spec, str(path))


def _encoded(spec: Spec, files: Sequence[Path], ends: Sequence[int]) -> Iterator[bytes | None]:
    """The files' images, one after another."""
    import pyarrow.types as types

    for path in files:
        with _opened(path) as file:
            column = choose_image_column(spec, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(_ROWS, columns=[column]):
                content = batch.column(0)
                if _has_bytes(content.type):
                    content = content.field("bytes")
                if not (types.is_binary(content.type) or types.is_large_binary(content.type)):
                    raise UserError(
                        f"{path}: column {column} holds {content.type}: set data.image_column= to the images'"
                    )
                yield from content.to_pylist()


@contextlib.contextmanager
def _opened(path: Path) -> "Iterator[pq.ParquetFile]":
    """A parquet file; what pyarrow raises in the block becomes one line."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except UserError:
        raise
    # pyarrow raises ArrowInvalid, OSError or others, according to where a truncated file breaks off.
    except Exception as error:
        raise UserError(
            f"{path} does not read as parquet ({first_line(error)}): it is truncated or damaged, download it again"
        ) from error


def _has_bytes(kind: "pa.DataType") -> bool:
    """Whether an arrow type is the struct {bytes, path} of Hugging Face's images."""
    import pyarrow.types as types

    return bool(types.is_struct(kind)) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
