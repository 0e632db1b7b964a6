"""What a failed job leaves: failed.json, one line that says why, and the settings that it was started with."""

from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.files import write_json
from octo_exp.errors import UserError

FILE = "failed.json"


def user_error(error: BaseException | None) -> UserError | None:
    """Find a user's mistake, also where a library wrapped it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def message_of(error: BaseException) -> str:
    """Return one line for an error: a user's mistake by its own words, a bug with its type."""
    mistake = user_error(error)
    text = f"{type(error).__name__}: {error}" if mistake is None else str(mistake)
    return " ".join(text.split())


def write_failure(folder: Path, error: BaseException, settings: Sequence[str]) -> str | None:
    """Write failed.json; return one line where that is impossible too, on a full disk say."""
    try:
        write_json(folder / FILE, {"error": message_of(error), "overrides": list(settings)})
    except UserError as failure:
        return str(failure)
    return None
