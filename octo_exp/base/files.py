"""Files that are whole or not there: one writer for everything that a run, a search, an export or a cache leaves."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from octo_exp.base.errors import UserError

# The end of a temporary name, as `temporary_name` makes it, of what nobody needs when its process is gone.
PARTIAL = ".partial"
# What other hosts left may still be written by them.
_OLD_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def whole_file(path: str | Path, *, remedy: str = "choose another folder") -> Iterator[BinaryIO]:
    """A binary file to write into; at the end of the block it stands at `path`, whole, and until then nothing does.

    Written beside `path`, on the same file system, then fsync, rename and fsync of the folder: a reader, a kill and a
    power cut see the file as it was before or as it is after. Where the block raises, `path` is as it was.

    Raises:
        UserError: the file cannot be written, or what stands there is a device or a pipe, which the rename would
            replace; one line with the system's reason and `remedy`.

    """
    path = Path(path)
    if (path.exists() and not path.is_file() and not path.is_dir()) or path.parent.resolve() == Path("/dev"):
        raise UserError(f"{path} is a device or a pipe, and only files are written whole; {remedy}")
    partial = path.with_name(temporary_name(path.name))
    try:
        # O_EXCL and 0666: nobody else's file, with the permissions that the user's umask gives to new ones.
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, remedy) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def make_folder_of(path: str | Path, *, remedy: str = "choose another folder") -> None:
    """Make the folder that a file lies in, where it is missing. UserError as for `whole_file`."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, remedy) from error


def write_bytes(path: str | Path, data: bytes, *, remedy: str = "choose another folder") -> None:
    """Write a file, whole or not at all. UserError as for `whole_file`."""
    with whole_file(path, remedy=remedy) as file:
        file.write(data)


def write_text(path: str | Path, text: str, *, remedy: str = "choose another folder") -> None:
    """Write text in UTF-8, whole or not at all. UserError as for `whole_file`."""
    write_bytes(path, text.encode(), remedy=remedy)


def write_json(path: str | Path, content: Any, *, remedy: str = "choose another folder") -> None:
    """Write strict JSON (RFC 8259: no NaN, no infinity), whole or not at all.

    Raises:
        UserError: as for `whole_file`; a number that is not finite, named by its key.

    """
    write_text(path, strict_json(content), remedy=remedy)


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]], *, remedy: str = "choose another folder") -> None:
    """Write a table, the columns' names first, whole or not at all. UserError as for `whole_file`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue(), remedy=remedy)


def strict_json(content: Any) -> str:
    """Return JSON text that every reader takes; UserError naming the first key whose number is not finite."""
    where = _not_finite(content, "")
    if where is not None:
        raise UserError(f"{where}; JSON has no such number, so nothing was written")
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def unwritable(path: str | Path, error: OSError, remedy: str) -> UserError:
    """Return the one line for a file that the system refuses to write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"make room there, or {remedy}"
    return UserError(f"{path} cannot be written: {error.strerror or error}; {remedy}")


def expanded(path: str | Path) -> Path:
    """Return the path with ~ read as the user's home; as it was typed where the system knows none."""
    # `Path.expanduser` raises there.
    return Path(os.path.expanduser(path))


def temporary_name(name: str, end: str = PARTIAL) -> str:
    """Return a name of its own for what becomes `name`, which says whose it is: `.<name>.<host>~<process>~<random>`."""
    return f".{name}.{_host()}~{os.getpid()}~{secrets.token_hex(4)}{end}"


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def is_leftover(name: str) -> bool:
    """Whether a name is that of a temporary file or folder of this project."""
    return name.startswith(".") and name.endswith(PARTIAL)


def clean(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Remove what killed processes left unfinished in a folder (not below it); return what was removed.

    What is temporary stays while the process that makes it lives; of another host, or on Windows, for a day.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(folder).glob(pattern)):
            if is_leftover(path.name) and abandoned(path):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                    removed.append(path)
    return removed


def abandoned(path: Path) -> bool:
    """Whether nobody works on what has a temporary name any more."""
    host, _, rest = path.stem.rpartition(".")[2].partition("~")
    owner = rest.partition("~")[0]
    if not owner.isdigit():
        # Older versions of this project named no process.
        return True
    # On Windows a signal of number 0 is Ctrl-C: nobody can be asked.
    if host == _host() and sys.platform != "win32":
        return not alive(int(owner))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    return False


def alive(pid: int) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make the renaming last; where folders cannot be opened (Windows, some network drives) the system decides."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _not_finite(value: Any, key: str) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key or 'the value'} is {value}"
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        pairs = iter(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        pairs = iter(enumerate(value))
    found = (_not_finite(inner, f"{key}.{name}" if key else str(name)) for name, inner in pairs)
    return next((text for text in found if text is not None), None)
