"""Reads run folders: results.json of jobs that finished, failed.json of those that did not."""

import json
from pathlib import Path
from typing import Any

import yaml

from octo_exp.cli import FAILURE_FILE
from octo_exp.errors import UserError

RESULTS_FILE = "results.json"
# What a run is told apart by, in the order of a table's columns.
NAMES = ("data", "source", "model", "quant", "update", "seed")
# Before the key of any other setting of the command line.
SETTING = "set/"
_OVERRIDES_FILE = Path(".hydra", "overrides.yaml")


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the flat results of every finished job below `folder`, in the order of the jobs.

    Each row is its results.json, plus `job` (the run's folder, relative) and what the job was started with:
    `set/<key>` for each of its settings. Folders that start with '_' or '.' are caches and left out; so is a job that
    failed after an earlier success in the same folder.
    """
    root = _existing(folder)
    rows = []
    for path in _find(root, RESULTS_FILE):
        if not (path.parent / FAILURE_FILE).exists():
            rows.append({"job": _relative(path, root), **_settings(path.parent), **_read_json(path)})
    return rows


def read_failures(folder: str | Path) -> list[dict[str, Any]]:
    """Returns `job`, `error` and `overrides` of every failed job below `folder`."""
    root = _existing(folder)
    return [{"job": _relative(path, root), **_read_json(path)} for path in _find(root, FAILURE_FILE)]


def _existing(folder: str | Path) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the folder of a sweep or of a run")
    return root


def _find(root: Path, name: str) -> list[Path]:
    found = []
    for path in root.rglob(name):
        parts = path.relative_to(root).parts[:-1]
        if not any(part.startswith(("_", ".")) for part in parts):
            found.append(path)
    return sorted(found, key=lambda path: _natural(_relative(path, root)))


def _natural(job: str) -> list[tuple[int, int, str]]:
    """Sorts 2 before 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in job.split("/")]


def _relative(path: Path, root: Path) -> str:
    return path.parent.relative_to(root).as_posix()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to leave the job out") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping; delete it to leave the job out")
    return content


def _settings(folder: Path) -> dict[str, Any]:
    """Returns the overrides that Hydra noted, by key; empty where it noted none."""
    path = folder / _OVERRIDES_FILE
    if not path.exists():
        return {}
    settings = {}
    for line in yaml.safe_load(path.read_text()) or []:
        key, equals, value = line.lstrip("+").partition("=")
        name = "source" if key == "data@source" else key
        if equals:
            settings[name if name in NAMES else SETTING + name] = yaml.safe_load(value)
    return settings
