"""A run's folder: what it holds, and what a new command may do with that. Reads; changes only where it says so."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import clean, expanded
from octo_exp.base.lock import LOCK_FILE, OWNER_FILE
from octo_exp.config import identity
from octo_exp.runs import checkpoint

CONFIG = "config.yaml"
RESULTS = "results.json"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
PREVIOUS = "_previous"
LAST = "last.ckpt"
# What a command leaves before a run owns its folder.
_NO_RUN = (LOCK_FILE, OWNER_FILE, ".hydra", "train.log", "failed.json", PREVIOUS)


class RefusedError(UserError):
    """The folder or the checkpoint does not fit the command; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A whole checkpoint: its file, what it says of its run (see `octo_exp.config.identity`), and where it stands."""

    path: Path
    run: Mapping[str, Any]
    epoch: int
    step: int


def results_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's results.json, None where there is none that can be read."""
    try:
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the results in a folder where they are those of the wanted run, by its fingerprint."""
    content = results_of(folder)
    return content if content is not None and content.get("fingerprint") == wanted["fingerprint"] else None


def read(path: Path, key: str) -> Found:
    """Return what a checkpoint says of itself.

    Raises:
        UserError: what `checkpoint.read` raises; it says nothing of its run, or holds no state to go on from.

    """
    content = checkpoint.read(path, key)
    told = checkpoint.run_of(content)
    if not told:
        raise RefusedError(
            f"{key}: {path} does not say which run it is of: it was written by another program or an older version; "
            "init_from= starts from its weights"
        )
    if "loops" not in content or "optimizer_states" not in content:
        raise RefusedError(f"{key}: {path} holds weights alone, nothing can go on from it; init_from= starts from them")
    return Found(path=path, run=told, epoch=int(content["epoch"]), step=int(content["global_step"]))


def newest(folder: Path, key: str) -> tuple[Found | None, list[str]]:
    """Return the whole checkpoint of a folder that stands furthest, and a line for each that is damaged.

    Raises:
        RefusedError: there are checkpoints and none is whole.

    """
    found: list[Found] = []
    damaged: list[str] = []
    for path in sorted((folder / CHECKPOINTS).glob("*.ckpt"), key=lambda path: path.name != LAST):
        try:
            found.append(read(path, key))
        except RefusedError:
            # Whole, and of no run that could go on: a user's own callback may write such files.
            continue
        except UserError as error:
            damaged.append(str(error))
    if damaged and not found:
        raise RefusedError(f"{damaged[0]}; no other checkpoint of {folder} is whole: move them away to start anew")
    return max(found, key=lambda one: one.step, default=None), damaged


def checkpoint_path(key: str, value: str) -> Path:
    """A checkpoint file, or a run folder -> the checkpoint file; UserError naming `key` where there is none."""
    path = expanded(value)
    if path.is_dir():
        found = [p for p in (path / CHECKPOINTS / LAST, path / LAST) if p.is_file()]
        if not found:
            raise UserError(f"{key}={value}: the folder holds no {CHECKPOINTS}/{LAST}; give a finished run's folder")
        return found[0]
    if not path.is_file():
        raise UserError(f"{key}={value}: no such file or folder; give a run's folder or one of its checkpoints")
    return path


def holds_training(folder: Path) -> bool:
    """Whether a run that trains has its place here: what only evaluates must not take it."""
    return any((folder / CHECKPOINTS).glob("*.ckpt")) or bool((results_of(folder) or {}).get("config", {}).get("train"))


def going_on(folder: Path, wanted: Mapping[str, Any], *, resume: bool, sweep: bool) -> tuple[Found | None, list[str]]:
    """Decide what a run that trains does with what its folder holds.

    Args:
        folder: it need not exist.
        wanted: the identity of the run.
        resume: whether the command asks to go on.
        sweep: whether the run is a job of a sweep, which goes on with what is half done of the same job.

    Returns:
        The checkpoint to go on from, or None: begin anew; and lines to tell. What has to be moved away then is what
        `occupant` names.

    Raises:
        RefusedError: to go on is asked for and impossible; or it is possible and not asked for.

    """
    key = "resume" if resume else "hydra.run.dir"
    try:
        found, told = newest(folder, key)
    except RefusedError:
        if resume:
            raise
        return None, []
    if found is None:
        return None, []
    obstacle = identity.obstacle(found.run, wanted)
    same = found.run.get("fingerprint") == wanted["fingerprint"]
    if resume and obstacle is not None:
        raise RefusedError(
            f"{folder} cannot be gone on with: {obstacle}; give the run's own settings, or start anew in another "
            "folder (init_from= starts from its weights)"
        )
    if resume or (sweep and same):
        return found, told
    if same:
        raise RefusedError(
            f"{folder} holds this run, half done (epoch {found.epoch}, step {found.step}); resume=auto goes on with "
            "it, another hydra.run.dir= starts anew"
        )
    return None, []


def check_places(folder: Path) -> None:
    """Refuse a folder in which files stand where folders must, or folders where files must."""
    for name in (CONFIG, RESULTS, "metrics.csv", "failed.json"):
        if (folder / name).is_dir():
            raise RefusedError(f"{folder / name} is a folder, and must be a file; move it away")
    for name in (CHECKPOINTS, EVALUATIONS, PREVIOUS):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise RefusedError(f"{folder / name} is no folder; move it away")


def check_is_run(folder: Path) -> None:
    """Refuse to write into a folder of somebody else's."""
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return
    foreign = next((path.name for path in sorted(folder.iterdir()) if path.name not in _NO_RUN), None)
    if foreign is not None:
        raise RefusedError(f"resume: {folder} is no run's folder: it has no {CONFIG}, and holds {foreign}")


def occupant(folder: Path, wanted: Mapping[str, Any]) -> str | None:
    """Say what of another run stands in the way of one that begins anew; None where nothing does."""
    if not (folder / RESULTS).exists() and not any((folder / CHECKPOINTS).glob("*.ckpt")):
        return None
    content = results_of(folder) or {}
    told = content.get("identity")
    why = identity.difference(told, wanted) if isinstance(told, dict) else None
    return why or "it was another run"


def make_room(folder: Path) -> Path:
    """Move what a folder holds into a new one inside of it, out of the way of tables; return that one."""
    names = [path.name for path in folder.iterdir() if path.name not in (PREVIOUS, LOCK_FILE, OWNER_FILE)]
    return set_aside(folder, names)


def set_aside(folder: Path, names: Sequence[str]) -> Path:
    """Move some of what a folder holds into a new one inside of it; return that one."""
    number = 1
    while (folder / PREVIOUS / str(number)).exists():
        number += 1
    target = folder / PREVIOUS / str(number)
    target.mkdir(parents=True)
    # Last what makes it a run: where this is cut off, the next start sees it and moves the rest.
    for name in sorted(names, key=lambda name: name in (RESULTS, CHECKPOINTS)):
        shutil.move(folder / name, target / name)
    return target


def tidy(folder: Path) -> None:
    """Remove what a killed run left unfinished."""
    for place in (folder, folder / CHECKPOINTS):
        clean(place)
