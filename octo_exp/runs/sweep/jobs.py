"""Reads run folders: results.json of jobs that finished, failed.json of those that did not."""

import json
from pathlib import Path
from typing import Any

import yaml

from octo_exp.base.errors import UserError
from octo_exp.config import FAILURE_FILE

RESULTS_FILE = "results.json"
# What a run is told apart by, in the order of a table's columns.
NAMES = ("data", "source", "model", "quant", "update", "seed")
# Before the key of any other setting of the command line.
SETTING = "set/"
# In a run's folder: what is no job of its own.
_EVALUATIONS = "evaluations"
_CONFIG_FILE = "config.yaml"
_OVERRIDES_FILE = Path(".hydra", "overrides.yaml")


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the flat results of every finished job below `folder`, in the order of the jobs.

    Each row is its results.json, plus `job` (the run's folder, relative) and what the job that ran was started with:
    `set/<key>` for each of its settings. Folders that start with '_' or '.' are caches and left out, so are evaluations
    inside of a run; so is a job that failed after an earlier success in the same folder, and what cannot be read.
    """
    root = _existing(folder)
    rows = []
    for path in _find(root, RESULTS_FILE):
        if not (path.parent / FAILURE_FILE).exists():
            content = _read_json(path)
            # All of its config, once more.
            content.pop("identity", None)
            if not _is_torn(content):
                rows.append({"job": _relative(path, root), **_settings(path.parent, content), **content})
    return rows


def read_failures(folder: str | Path) -> list[dict[str, Any]]:
    """Returns `job`, `error` and `overrides` of every failed job below `folder`, and of results that cannot be read."""
    root = _existing(folder)
    failed = [{"job": _relative(path, root), **_read_json(path)} for path in _find(root, FAILURE_FILE)]
    kept = [path for path in _find(root, RESULTS_FILE) if not (path.parent / FAILURE_FILE).exists()]
    read = [{"job": _relative(path, root), **_read_json(path)} for path in kept]
    torn = [content for content in read if _is_torn(content)]
    return [*failed, *torn]


def read_unfinished(folder: str | Path) -> list[str]:
    """Returns the jobs below `folder` that began and have neither results nor a failure: stopped or killed ones."""
    root = _existing(folder)
    ended = (RESULTS_FILE, FAILURE_FILE)
    found = [path for path in _find(root, _CONFIG_FILE) if not any((path.parent / name).exists() for name in ended)]
    return [_relative(path, root) for path in found]


def _existing(folder: str | Path) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder of a sweep or of a run")
    return root


def _find(root: Path, name: str) -> list[Path]:
    found = []
    for path in root.rglob(name):
        parts = path.relative_to(root).parts[:-1]
        if not any(part.startswith(("_", ".")) or part == _EVALUATIONS for part in parts):
            found.append(path)
    return sorted(found, key=lambda path: _natural(_relative(path, root)))


def _natural(job: str) -> list[tuple[int, int, str]]:
    """Sorts 2 before 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in job.split("/")]


def _relative(path: Path, root: Path) -> str:
    return path.parent.relative_to(root).as_posix()


def _read_json(path: Path) -> dict[str, Any]:
    """Returns a file's mapping; one that is torn, as a full disk left it, is told as the failure of its job."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"error": f"{path} cannot be read: {error}; delete it to leave the job out"}
    if not isinstance(content, dict):
        return {"error": f"{path} holds no mapping; delete it to leave the job out"}
    return content


def _is_torn(content: dict[str, Any]) -> bool:
    return set(content) - {"job"} == {"error"}


def _settings(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Returns what the job that ran was started with, by key.

    Results of older versions do not say it; there, what Hydra noted last is taken, empty where it noted nothing.
    """
    lines = content.pop("overrides", None)
    path = folder / _OVERRIDES_FILE
    if lines is None and path.exists():
        lines = yaml.safe_load(path.read_text())
    settings = {}
    for line in lines or []:
        key, equals, value = line.lstrip("+").partition("=")
        name = "source" if key == "data@source" else key
        if equals:
            settings[name if name in NAMES else SETTING + name] = yaml.safe_load(value)
    return settings
