"""Folders in which other programs' caches begin anew where their own home cannot be written."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.caches import say_once, writable
from octo_exp.base.files import clean, expanded, temporary_name

_NAME = "octo_exp"


@functools.cache
def temporary_folder() -> Path | None:
    """Return a folder of this process, removed when it ends; None where the system has no place for one.

    What processes left here that were killed is removed.
    """
    try:
        place = Path(tempfile.gettempdir())
        clean(place, f".{_NAME}.*")
        folder = place / temporary_name(_NAME)
        # The owner's alone, and an error where it is there already: what is read from it is run.
        folder.mkdir(mode=0o700)
    except OSError:
        return None
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    # A child that was forked off ends with its parent's folder still in use.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_home(name: str, *, what: str, remedy: str) -> Path | None:
    """Return a folder for what a program keeps, lost at the end; None where there can be none. Said once, in one line.

    Args:
        name: of the folder, in `temporary_folder`.
        what: is kept there, in words, for the line.
        remedy: what the user may set, for the line.

    """
    above = temporary_folder()
    folder = None if above is None else above / name
    if folder is None or not writable(folder):
        say_once(
            name, "%s are not kept, and made anew in every run: no folder for them can be written; %s", what, remedy
        )
        return None
    say_once(
        name, "%s go to a temporary cache, and are made anew in every run: no other can be written; %s", what, remedy
    )
    return folder


def settle_temporary(folder: Path) -> None:
    """Let a folder serve as the system's for temporary files where that has none; before torch, which wants one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = str(folder)
        say_once("TMPDIR", "no folder for temporary files can be written: they go to %s; set TMPDIR to another", folder)


def settle_matplotlib() -> None:
    """Let matplotlib run where its folders cannot be written; before it is imported."""
    config, cache = "~/.matplotlib", "~/.matplotlib"
    if sys.platform.startswith(("linux", "freebsd")):
        config = f"{os.environ.get('XDG_CONFIG_HOME') or '~/.config'}/matplotlib"
        cache = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/matplotlib"
    _settle("MPLCONFIGDIR", (config, cache), what="matplotlib's fonts")


def settle_triton() -> None:
    """Let Triton run where its cache cannot be written; before its first kernel."""
    home = os.environ.get("TRITON_HOME") or "~"
    _settle("TRITON_CACHE_DIR", (f"{home}/.triton/cache",), what="Triton's kernels")


def settle_hugging_face() -> None:
    """Let downloads from the Hugging Face hub run where there is no folder for them; before its libraries are imported.

    A folder that is there and cannot be written stays: what was downloaded, and the user's token, may lie in it.
    """
    folder = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    if not expanded(os.environ.get("HF_HOME") or folder).is_dir():
        _settle("HF_HOME", (folder,), what="downloads from the Hugging Face hub")


def _settle(variable: str, defaults: Sequence[str], *, what: str) -> None:
    """Set a variable of the environment to a temporary folder where what it names, or else a default, is unwritable."""
    chosen = os.environ.get(variable)
    folders = [expanded(folder) for folder in ([chosen] if chosen else defaults)]
    # Where the system knows no home, ~ would be a folder of that name.
    if all((folder.is_absolute() or chosen) and writable(folder) for folder in folders):
        return
    home = temporary_home(variable, what=what, remedy=f"set {variable} to a folder that can be written")
    if home is not None:
        os.environ[variable] = str(home)
