"""Folders of images by class: which files below a split are its images, of which class, and what is left out."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from octo_exp.base.caches import say_once
from octo_exp.base.errors import UserError
from octo_exp.data.set_spec import Encoded, Spec, check_names, listed, shown

# What desktops, NAS boxes and file systems leave between a user's files; beside it all that begins with a dot.
_SYSTEM = {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
_SYSTEM |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "network trash folder", "temporary items"}
# Pillow knows these by name and decodes none of them: containers of measurements, and films.
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}


@cache
def image_suffixes() -> frozenset[str]:
    """Every suffix whose files the decoder reads, in lower case."""
    from PIL import Image

    Image.init()
    known = Image.EXTENSION.items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED)


@dataclass(slots=True)
class _Found:
    """Images below a split, and what else lies there."""

    files: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def empty(self, top: Path) -> list[str]:
        """Folders of classes that hold no image."""
        return sorted(set(self.classes) - {class_of(path, top) for path in self.files})

    def left_out(self, top: Path) -> str:
        """What is no image, in words; empty where there is nothing of the kind."""
        parts = []
        if self.others:
            most = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))[:8]
            kinds = ", ".join(f"{shown(suffix) or 'no suffix'} {count}" for suffix, count in most)
            parts.append(f"{self.others.total()} file(s) that are no images ({kinds})")
        if self.hidden:
            parts.append(f"{self.hidden} hidden or system file(s) or folder(s)")
        if empty := self.empty(top):
            parts.append(f"{len(empty)} folder(s) without images ({listed(empty)})")
        return "; ".join(parts)


def class_of(path: Path, top: Path) -> str:
    """The first folder below the split."""
    return path.parts[len(top.parts)]


def class_files(spec: Spec, folder: Path, split: str) -> list[Path]:
    """The images below folder/split/<class>/ at any depth, sorted by class and name.

    What is left out is said once, with its count.

    Raises:
        UserError: no such folder; no image; an image in no class's folder; what has an image's name and is none: a
            folder, a pipe, a device; a link that leads nowhere or back to where it lies; a folder that cannot be read.

    """
    top = folder / split
    if not top.is_dir():
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} has neither {split}*.parquet nor {split}/<class>/ folders: "
            f"put the {split} split there or name another folder with data.root= and data.folder="
        )
    found = _find(top)
    text = found.left_out(top)
    if text:
        # Hidden files are everywhere: they alone are no reason to warn.
        level = logging.WARNING if found.others or found.empty(top) else logging.INFO
        say_once(f"{top}: {text}", "%s: left out: %s", shown(top), text, level=level)
    if not found.files:
        raise UserError(
            f"{top.absolute()}: the {split} split is empty: put images (.png, .jpg, .webp, .tif, ...) into one folder "
            f"per class"
        )
    return sorted(found.files)


def _find(top: Path) -> _Found:
    found = _Found()
    # A folder, and the folders that it lies in, by device and number.
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{shown(folder)}: a link that leads back to a folder that it lies in: remove it")
        for entry in _entries(folder):
            path = folder / entry.name
            is_folder = not is_hidden(entry.name, False) and _is_folder(entry, path)
            if is_hidden(entry.name, is_folder):
                found.hidden += 1
            elif is_folder:
                if folder == top:
                    found.classes.append(entry.name)
                waiting.append((path, (*above, here)))
            elif path.suffix.lower() in image_suffixes():
                found.files.append(_image(entry, path, top))
            else:
                found.others[path.suffix.lower()] += 1
    return found


def is_hidden(name: str, is_folder: bool) -> bool:
    """Whether a name is no user's: hidden, a system's, or, of a folder, between double underscores as __MACOSX."""
    return name.startswith(".") or (is_folder and name.startswith("__")) or name.casefold() in _SYSTEM


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{shown(folder)} cannot be read ({error.strerror}): change its permissions or remove it"
        ) from error


def _is_folder(entry: "os.DirEntry[str]", path: Path) -> bool:
    """Whether an entry is a folder, or a link to one; a link that leads nowhere is refused."""
    try:
        if entry.is_symlink():
            entry.stat()
        is_folder = entry.is_dir()
    except OSError as error:
        raise UserError(
            f"{shown(path)}: a link that leads nowhere ({error.strerror}): put back what it names or remove it"
        ) from error
    if is_folder and path.suffix.lower() in image_suffixes() and not is_hidden(entry.name, True):
        raise UserError(f"{shown(path)} is a folder with an image's name: rename or remove it")
    return is_folder


def _image(entry: "os.DirEntry[str]", path: Path, top: Path) -> Path:
    if not entry.is_file():
        kind = "a pipe" if stat.S_ISFIFO(entry.stat().st_mode) else "a device or a socket"
        raise UserError(f"{shown(path)} is {kind}, not a file, and has an image's name: remove it")
    if path.parent == top:
        raise UserError(f"{shown(path)} lies in no class's folder: move it into {shown(top)}/<class>/ or remove it")
    return path


def read_folder_split(spec: Spec, folder: Path, split: str) -> Encoded:
    """Classes are the folders of the class split, in alphabetical order, for every split."""
    files, class_split = class_files(spec, folder, split), folder / spec.class_split
    classes = sorted({class_of(path, class_split) for path in class_files(spec, folder, spec.class_split)})
    names = check_names(classes, spec, str(class_split))
    number = {name: i for i, name in enumerate(names)}
    top = folder / split
    for path in files:
        if class_of(path, top) not in number:
            raise UserError(
                f"{shown(top / class_of(path, top))}: the {spec.class_split} split has no such class, only "
                f"{listed(names)}: rename or remove it"
            )
    return Encoded(
        labels=torch.tensor([number[class_of(path, top)] for path in files]),
        class_names=names,
        images=lambda: _contents(files),
        where=lambda i: shown(files[i]),
    )


def _contents(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            yield path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{shown(path)} cannot be read ({error.strerror}): change its permissions or remove it"
            ) from error
