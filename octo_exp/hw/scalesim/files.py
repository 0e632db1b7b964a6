"""Text files read whole and written whole, each failure one line."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from octo_exp.errors import UserError


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
    """Write each text to its path, under temporary names first, so that a failure leaves no file half-written.

    Raises:
        UserError: a path that cannot be written.

    """
    drafts = {path: path.with_name(f"{path.name}.part") for path in texts}
    path = Path()
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path].write_text(text, encoding="utf-8", newline="\n")
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as error:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
