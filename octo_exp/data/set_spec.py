"""What a data set's yaml says of it, and the checks that files agree with that."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.data.decode import Shape

KINDS = ("auto", "digits", "parquet", "imagefolder", "hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One split, decoded.

    images [N, C, H, W] uint8, in memory or mapped from a file, which is read-only; labels [N] int64 in
    [0, len(class_names)); N >= 1.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One split before it is decoded.

    Args:
        labels: [N] int64 in [0, len(class_names)).
        class_names: one a class.
        images: walks through the N files' contents, holding few of them at once.
        where: names the i-th image in an error.

    """

    labels: Tensor
    class_names: tuple[str, ...]
    images: Callable[[], Iterable[bytes | None]]
    where: Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a split is read from and must agree with.

    Args:
        name: of the set, for messages.
        kind: one of `KINDS`.
        folder: the set's local folder, or None where none is set.
        hub: id on the hub, or None.
        image_columns: candidates; the first that exists is read.
        label_column: integers in [0, classes), or what `labels.label_values` makes such integers of.
        shape: native (C, H, W); H and W None where sizes vary.
        classes: number of classes.
        size: the side that images of varying size are brought to, in pixels.
        stretch: bring both sides there, rather than the short one with the long one cropped.
        class_split: the split whose folders or texts name the classes, where they do.
        origin: what the local files are made of, in words that follow "the folder that holds <name>/, "; or None.

    """

    name: str
    kind: str
    folder: Path | None
    hub: str | None
    image_columns: tuple[str, ...]
    label_column: str
    shape: Shape
    classes: int
    size: int
    stretch: bool
    class_split: str
    origin: str | None = None

    def decode_key(self) -> str:
        """What the decoded tensors depend on besides the files."""
        varying = (f"stretched {self.size}" if self.stretch else self.size) if None in self.shape else None
        return f"{self.image_columns}|{self.label_column}|{self.shape}|{self.classes}|{varying}"

    def looked_for(self) -> str:
        """The first half of an error about a set that is not there."""
        where = "no data folder is set" if self.folder is None else f"there is no folder {self.folder.absolute()}"
        return f"data set {self.name}: {where}"

    def remedy(self) -> str:
        """The second half of it."""
        if self.kind == "imagefolder" and self.folder is None:
            return "set data.root= to the folder that holds train/ and test/"
        folder = self.folder.name if self.folder else self.name
        remedy = f"set OCTO_DATA_DIR or data.root= to the folder that holds {folder}/"
        remedy = remedy if self.origin is None else f"{remedy}, {self.origin}"
        return (
            remedy if self.hub is None else f"{remedy}, or connect to the network to download {self.hub} from the hub"
        )


def shown(name: Path | str) -> str:
    """A name of somebody's file or class as one line of text that every terminal and log takes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error, the first ones of many."""
    text = ", ".join(map(shown, names[:most]))
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def row_name(where: Path | str, row: int) -> str:
    """How an error names one image of a table."""
    return f"{where}, row {row}"


def choose_image_column(spec: Spec, columns: Sequence[str], where: str) -> str:
    """The image column that is there; raises for a missing image or label column."""
    found = [column for column in spec.image_columns if column in columns]
    for wanted, key, present in (
        (" or ".join(spec.image_columns), "image_column", bool(found)),
        (spec.label_column, "label_column", spec.label_column in columns),
    ):
        if not present:
            raise UserError(f"{where} has no column {wanted}: set data.{key}= to one of {', '.join(columns)}")
    return found[0]


def check_names(names: Sequence[str] | None, spec: Spec, where: str) -> tuple[str, ...]:
    """Class names as the file has them, "0", "1", ... where it has none; their number must be `classes`."""
    if names is None:
        return tuple(str(i) for i in range(spec.classes))
    if len(names) != spec.classes:
        raise UserError(
            f"{where} has {len(names)} classes ({listed(names)}), data.classes says {spec.classes}: "
            f"set data.classes={len(names)} if these are the classes"
        )
    return tuple(names)


def check_labels(labels: np.ndarray, spec: Spec, where: str) -> Tensor:
    """Labels [N] as int64, all integers in [0, classes)."""
    if len(labels) and labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: label column {spec.label_column} holds {labels.dtype}: it must hold an integer in every row"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= spec.classes)) if len(labels) else labels
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{row_name(where, row)}: label {int(labels[row])} is outside [0, {spec.classes}) "
            f"({len(wrong)} such rows): correct the labels or data.classes"
        )
    return torch.from_numpy(labels.astype(np.int64))
