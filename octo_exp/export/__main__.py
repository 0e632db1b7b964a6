"""Export a run: python -m octo_exp.export format=mcu run=<folder> [output=FILE].

The file goes to <folder>/export/ unless output= says otherwise, with a manifest beside it: what it was made from, its
hash, versions, and what the verification found. A file that does not verify is not kept. A wrong call ends with code
2, what cannot be exported with 1; either says why in one line.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octo_exp import results
from octo_exp.errors import ConfigError, UserError
from octo_exp.export import mcu
from octo_exp.export.source import Source, read_run

FORMATS = {"mcu": mcu}
_KEYS = ("format", "run", "output")


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for line in arguments:
        key, equals, value = line.partition("=")
        if key not in _KEYS or not equals or not value:
            raise ConfigError(
                f"{line!r} is not understood; write format=<{'|'.join(FORMATS)}> run=<folder> [output=FILE]"
            )
        settings[key] = value
    for key in ("format", "run"):
        if key not in settings:
            raise ConfigError(f"{key}= is missing; write format=<{'|'.join(FORMATS)}> run=<folder> [output=FILE]")
    if settings["format"] not in FORMATS:
        raise ConfigError(f"format={settings['format']} is unknown; choose one of {', '.join(FORMATS)}")
    return settings


def destination(settings: dict[str, str], suffix: str) -> Path:
    """Return the file to write; UserError where output= can be none."""
    run = Path(settings["run"]).expanduser()
    name = f"{run.resolve().name}{suffix}"
    if "output" not in settings:
        return run / "export" / name
    path = Path(settings["output"]).expanduser()
    if path.is_dir() or settings["output"].endswith("/"):
        raise UserError(f"output={path} is a folder; give a file, such as output={path / name}")
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UserError(f"output={path} cannot be made: {above} is no folder; give another output=FILE")
    return path


def manifest(source: Source, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a file was made from and what is known of it."""
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "run": str(source.folder.resolve()),
        "checkpoint_sha256": hashlib.sha256(source.checkpoint.read_bytes()).hexdigest(),
        "data": source.cfg.data.name,
        # What turns pixels in [0, 1] into the graph's input.
        "mean": source.datamodule.mean.tolist(),
        "std": source.datamodule.std.tolist(),
        "versions": results.versions(),
        **facts,
    }


def _show(path: Path, content: dict[str, Any]) -> None:
    table = Table(title=f"{path.name}: verified")
    table.add_column("what")
    table.add_column("value", justify="right")
    for key in ("bytes", "parameters", "macs", "test_images"):
        table.add_row(key.replace("_", " "), f"{content[key]:,}")
    table.add_row("logits identical to the run's", "yes" if content["logits_identical_to_run"] else "rounded")
    images = content["test_images"]
    same = round(content["same_class_as_run"] * images)
    table.add_row("test images, class of the run's", f"{same:,} of {images:,}")
    table.add_row("test accuracy, run", f"{content['accuracy_of_run']:.4f}")
    table.add_row("test accuracy, file", f"{content['accuracy']:.4f}")
    console = Console()
    console.print(table)
    console.print(f"written: {path}", soft_wrap=True, highlight=False)


def _export(form: Any, source: Source, path: Path) -> dict[str, Any]:
    """Write the file and its manifest; return the manifest."""
    try:
        content = manifest(source, path, form.export(source, path))
        results.write(path.parent, content, file=f"{path.name}.json")
    except OSError as error:
        raise UserError(
            f"{error.filename2 or error.filename or path} cannot be written: {error.strerror}; give another output=FILE"
        ) from error
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["-h"], ["--help"]):
        Console().print(__doc__, markup=False, highlight=False)
        return 0
    try:
        settings = _settings(given)
        form = FORMATS[settings["format"]]
        path = destination(settings, form.SUFFIX)
        content = _export(form, read_run(settings["run"]), path)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    _show(path, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
