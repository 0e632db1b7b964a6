"""`octo predict IMAGES run=RUN`: class and probability of each image.

IMAGES is an image file, or a folder in which every image is read, at any depth. RUN is the folder of a finished run:
its network, its image size and its normalisation. Images are brought to that size as the run's test images were.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded, write_csv
from octo_exp.base.homes import settle_matplotlib
from octo_exp.cli.words import Words

if TYPE_CHECKING:
    from octo_exp.exports.source import Source

Row = tuple[str, str, float]


def main(words: Words) -> int:
    """Predict, print a table or write the csv; return the exit code."""
    given = words.values
    if "out" in given:
        check_place(expanded(given["out"]))
    return _predict(list(image_files(expanded(words.given_path))), given)


def check_place(out: Path) -> None:
    """UserError where no file can be written there: found before the images are read, not after."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"out={out} is a folder, or lies in one that cannot be written; give another out=FILE.csv")


def image_files(path: Path) -> Iterator[Path]:
    """Yield a file, or what has an image's suffix in a folder; UserError where there is none."""
    from octo_exp.data.folders import image_suffixes, is_hidden

    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder; give an image, or a folder of images")
    found = 0
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        hidden = any(is_hidden(part, True) for part in parts[:-1]) or is_hidden(parts[-1], False)
        if file.is_file() and not hidden and file.suffix.lower() in image_suffixes():
            found += 1
            yield file
    if not found:
        raise UserError(f"{path}: the folder holds no image; give one with .png, .jpg, .webp or other images")


def _predict(files: Sequence[Path], given: Mapping[str, str]) -> int:
    # Torchmetrics imports matplotlib.
    settle_matplotlib()
    from octo_exp.base.progress import with_progress
    from octo_exp.exports.source import read_run

    source = read_run(given["run"], trust=[name for name in given.get("trust", "").strip("[]").split(",") if name])
    rows = [row_of(source, file) for file in with_progress(files, title="predict")]
    if "out" in given:
        write_csv(expanded(given["out"]), [("file", "class", "probability"), *rows], remedy="give another out=FILE.csv")
        sys.stdout.write(f"written: {given['out']}\n")
    else:
        _show(rows)
    return 0


def row_of(source: "Source", file: Path) -> Row:
    """Return (file, class, its probability) of one image; UserError where it does not decode."""
    import torch

    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): change its permissions or leave it out") from error
    with torch.no_grad():
        probabilities = source.net(source.datamodule.prepared(encoded, str(file))).softmax(1)[0]
    best = int(probabilities.argmax())
    names = source.datamodule.class_names
    return str(file), names[best] if names else str(best), float(probabilities[best])


def _show(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class")
    table.add_column("probability", justify="right")
    for file, name, probability in rows:
        table.add_row(file, name, f"{probability:.3f}")
    options: dict[str, Any] = {} if sys.stdout.isatty() else {"width": 200}
    Console(markup=False, **options).print(table, soft_wrap=True)
