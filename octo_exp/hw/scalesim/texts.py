"""Text files read whole and written whole, each failure one line."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from octo_exp.base.errors import UserError
from octo_exp.base.files import make_folder_of, whole_file


def read_text(path: Path) -> str:
    """Text of a file in UTF-8.

    Raises:
        UserError: it cannot be read, or is no text.

    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not a text file in UTF-8") from error


def write_all(texts: Mapping[Path, str]) -> None:
    """Write each text to its path, all on the disk before the first is put in place.

    Raises:
        UserError: a path that cannot be written.

    """
    remedy = "choose a folder that can be written"
    with contextlib.ExitStack() as stack:
        for path, text in texts.items():
            make_folder_of(path, remedy=remedy)
            file = stack.enter_context(whole_file(path, remedy=remedy))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
