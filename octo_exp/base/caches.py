"""The one cache folder, and JSON files in it that several runs add to at once."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import clean, expanded, write_json
from octo_exp.base.lock import hold

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`OCTO_CACHE_DIR`, else `$XDG_CACHE_HOME/octo_exp`, else `~/.cache/octo_exp`; it may be missing or read-only."""
    chosen = os.environ.get("OCTO_CACHE_DIR")
    if chosen:
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "octo_exp"
    home = expanded("~")
    # Where the system knows no home, ~ would be a folder of that name: here nothing can be made.
    return (home / ".cache" if home.is_absolute() else Path(os.devnull)) / "octo_exp"


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell for root or for a read-only disk: try.
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a cache's file; nothing where there is none, or where it is damaged, which is logged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        cannot_keep(path.parent, error)
        return {}
    # What lies too deep for the reader raises RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        say_once(path, "%s is not readable (%s) and is made anew", path, error)
        return {}
    return content


def add_json(path: Path, entries: Mapping[str, Any]) -> bool:
    """Add entries to a cache's file, keeping what other processes added; False where it cannot be written.

    Read, merged and replaced under a lock of the folder. What cannot be kept is logged once, in one line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(path.parent, what="cache", wait=lambda owner: None):
            clean(path.parent)
            write_json(path, {**read_json(path), **entries})
    except (OSError, UserError) as error:
        cannot_keep(path.parent, error)
        return False
    _told.discard(path)
    return True


def cannot_keep(folder: Path, error: Exception) -> None:
    """Log, once a folder and in one line, that a cache cannot be written there."""
    reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    remedy = "set OCTO_CACHE_DIR to a folder that can be written"
    say_once(folder, "nothing can be remembered in %s (%s); %s", folder, text, remedy)


def say_once(about: Path | str, message: str, *arguments: object, level: int = logging.WARNING) -> None:
    """Log a line, unless one about the same thing was logged by this process."""
    if about not in _told:
        _told.add(about)
        log.log(level, message, *arguments)


_told: set[Path | str] = set()
