"""One owner: a folder is held by one process at a time, and whoever comes second learns who holds it."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from octo_exp.base.errors import UserError
from octo_exp.base.files import unwritable, write_json

LOCK_FILE = ".lock"
OWNER_FILE = ".owner.json"


class HeldError(UserError):
    """Another process holds the folder; nothing in it was changed."""


@contextlib.contextmanager
def hold(folder: str | Path, *, what: str = "run", wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold an existing folder for the length of the block.

    The system lets go of the lock of a process that dies, however it dies: the next one takes it over.

    Args:
        folder: it holds the lock, a file of its own.
        what: that lies in it, for the message.
        wait: called once with who holds it, then the folder is waited for. None: it is refused.

    Raises:
        HeldError: another process holds it; one line with its host and process id.
        UserError: the folder cannot be written.

    """
    folder = Path(folder)
    lock = FileLock(str(folder / LOCK_FILE), timeout=0)
    try:
        _acquire(lock, folder, what, wait)
        owner = folder / OWNER_FILE
        try:
            write_json(owner, {"host": socket.gethostname(), "pid": os.getpid()})
            yield
        finally:
            with contextlib.suppress(OSError):
                owner.unlink()
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, what: str, wait: Callable[[str], None] | None) -> None:
    try:
        try:
            lock.acquire()
        except Timeout:
            if wait is None:
                raise HeldError(
                    f"{folder}: this {what} is in use by {owner_of(folder)}; wait for it, stop it, or choose another "
                    "folder"
                ) from None
            wait(owner_of(folder))
            lock.acquire(timeout=-1)
    except OSError as error:
        raise unwritable(folder / LOCK_FILE, error, "choose another folder") from error


def owner_of(folder: Path) -> str:
    """Who holds a folder, in words."""
    try:
        owner = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        # Between the lock and the note of its owner.
        return "another process"
