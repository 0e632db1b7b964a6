"""The one cache folder, and JSON files in it that several runs add to at once."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octo_exp.base.files import write_json
from octo_exp.base.lock import hold
from octo_exp.errors import UserError

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`OCTO_CACHE_DIR`, else `$XDG_CACHE_HOME/octo_exp`, else `~/.cache/octo_exp`; it may be missing or read-only."""
    chosen = os.environ.get("OCTO_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".cache") / "octo_exp"


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
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is not readable (%s) and is made anew", path, error)
        return {}
    if not isinstance(content, dict):
        log.warning("%s holds no mapping and is made anew", path)
        return {}
    return content


def add_json(path: Path, entries: Mapping[str, Any]) -> bool:
    """Add entries to a cache's file, keeping what other processes added; False where it cannot be written.

    Read, merged and replaced under a lock of the folder. What cannot be kept is logged once, in one line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(path.parent, what="cache", wait=lambda owner: None):
            write_json(path, {**read_json(path), **entries})
    except (OSError, UserError) as error:
        _say_once(path.parent, str(error))
        return False
    return True


_told: set[Path] = set()


def _say_once(folder: Path, reason: str) -> None:
    if folder not in _told:
        _told.add(folder)
        log.warning(
            "nothing can be remembered in %s (%s); set OCTO_CACHE_DIR to a folder that can be written", folder, reason
        )
