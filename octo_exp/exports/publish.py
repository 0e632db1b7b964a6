"""Files appear whole or not at all: written and verified in a folder beside their place, then moved there."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import PARTIAL, abandoned, sync_folder, temporary_name, unwritable
from octo_exp.exports.source import Given, Source
from octo_exp.exports.subject import Graph, clamped_weights
from octo_exp.runs import results
from octo_exp.runs.posttraining import GRAPH_FILE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The end of the name of what stays until the new one stands; not PARTIAL, which anyone may remove.
_OLD = ".old"
_DAY_S = 24 * 3600.0

Write = Callable[[Path, str], dict[str, Any]]


def publish(path: Path, suffix: str, write: Write) -> dict[str, Any]:
    """Let `write(folder, name)` fill a folder and return the manifest, then move all of it to where `path` lies.

    What killed exports left there is removed first, and what they had taken away is put back.

    UserError where something cannot be written, or would replace what no export has made; nothing is changed then.
    """
    staging = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.parent):
            _recover(path.parent)
            _check_target(path, suffix)
        staging = path.with_name(temporary_name(f"unverified-{path.name}"))
        staging.mkdir()
        content = write(staging, path.name.removesuffix(suffix) if suffix else path.name)
        results.write(staging, content, file=_record(path).name)
        _sync(staging)
        entries = sorted(staging.iterdir())
        with _alone_in(path.parent):
            for entry in entries:
                _check_place(path, path.parent / entry.name, is_folder=entry.is_dir())
            for entry in entries:
                _move(entry, path.parent / entry.name)
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(error.filename2 or error.filename or path, error, "give another out=FILE") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return content


def _recover(folder: Path) -> None:
    """Put back a folder that a killed export had taken away, and remove what others left unfinished.

    Raises:
        OSError: what was taken away cannot be put back.

    """
    for keep in sorted(path for path in folder.iterdir() if path.name.startswith(".old-")):
        if not _is_left(keep, _OLD):
            continue
        for old in keep.iterdir():
            if not os.path.lexists(folder / old.name):
                old.replace(folder / old.name)
        shutil.rmtree(keep, ignore_errors=True)
    for staging in folder.glob(".unverified-*"):
        if _is_left(staging, PARTIAL):
            shutil.rmtree(staging, ignore_errors=True)


def _is_left(path: Path, end: str) -> bool:
    """Whether no export works in this folder; earlier versions named no process: theirs are left after a day."""
    if path.name.endswith(end):
        return abandoned(path)
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _DAY_S
    return False


def _sync(folder: Path) -> None:
    """Have all files of a folder on the disk: what is moved into place is whole after a power cut too."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder while files move into it: of two exports of one name, all files must be the later one's."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network drives cannot lock a folder: there, only the manifest's hashes tell whose files they are.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_target(path: Path, suffix: str) -> None:
    """Refuse before the work what would be in its way after it."""
    _check_place(path, _record(path), is_folder=False)
    _check_place(path, path, is_folder=not suffix)


def _check_place(path: Path, place: Path, *, is_folder: bool) -> None:
    """Refuse a place among the files of `path` that holds what no export has made."""
    kind = "FOLDER" if is_folder else "FILE"
    if place.is_symlink() and place.is_dir():
        raise UserError(f"{place} is a link to a folder; give out={place.resolve()}, or another out={kind}")
    if not is_folder and place.is_dir():
        raise UserError(f"{place} cannot be written: Is a directory; give another out={kind}")
    is_empty_folder = is_folder and place.is_dir() and not any(place.iterdir())
    is_of_export = _record(path).is_file() and place.is_dir() == is_folder
    if os.path.lexists(place) and not is_of_export and not is_empty_folder:
        raise UserError(f"out={place} is there already and is no export; give another out={kind}")


def _record(path: Path) -> Path:
    """Return where the manifest of an export at `path` lies."""
    return path.with_name(f"{path.name}.json")


def _move(source: Path, target: Path) -> None:
    if not target.is_dir():
        source.replace(target)
        return
    # No folder replaces another in one step: the old one is kept, in a folder of its own, until the new one stands.
    keep = target.with_name(temporary_name(f"old-{target.name}", _OLD))
    keep.mkdir()
    old = keep / target.name
    try:
        target.replace(old)
        source.replace(target)
    except BaseException:
        if old.is_dir():
            old.replace(target)
        keep.rmdir()
        raise
    shutil.rmtree(keep, ignore_errors=True)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(graph: Graph, form: str, facts: dict[str, Any], folder: Path, main: str) -> dict[str, Any]:
    """Return what the files in `folder` were made from and what is known of them."""
    spec = graph.spec
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    whole = folder / main
    return {
        "format": form,
        "file": main,
        "files": {name: {"sha256": _hash(path), "bytes": path.stat().st_size} for name, path in files.items()},
        "sha256": _hash(whole) if whole.is_file() else None,
        "bytes": sum(path.stat().st_size for path in files.values()),
        **({"graph": graph.origin} if isinstance(graph.source, Given) else _of_run(graph.source, graph.origin)),
        "input_scale": spec.input.scale,
        "input_zero": spec.input.zero,
        "logit_scale": spec.classifier.y_scale,
        "logit_zero": spec.classifier.y_zero,
        "parameters": spec.params + spec.classifier.params,
        "macs": spec.macs + spec.classifier.macs,
        "dead_channels": spec.dead_channels,
        "versions": results.versions(),
        **facts,
    }


def _of_run(source: Source, origin: str) -> dict[str, Any]:
    return {
        "run": str(source.folder.resolve()),
        "checkpoint_sha256": _hash(source.checkpoint),
        "graph": origin,
        "graph_sha256": _hash(source.folder / GRAPH_FILE) if origin == "ptq" else None,
        "clamped_weights": clamped_weights(source.net),
        "data": source.cfg.data.name,
        # What turns pixels in [0, 1] into the graph's input, and that into codes.
        "mean": source.datamodule.mean.tolist(),
        "std": source.datamodule.std.tolist(),
    }
