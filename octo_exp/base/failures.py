"""What a failed job leaves: failed.json, one line that says why, and the settings that it was started with."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from octo_exp.base.errors import FAILED, ConfigError, UserError

FILE = "failed.json"
# Whose settings a run gives them.
_LIBRARIES = ("lightning.", "torch.optim.", "torchmetrics.")


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


@contextlib.contextmanager
def told(began: Callable[[], bool]) -> Iterator[None]:
    """Give a user's mistake its exit code, by whether the run has begun when it is raised.

    Raises:
        ConfigError: what a library refuses before that, in one line: settings are all that it has seen.

    """
    try:
        yield
    except Exception as error:
        mistake, late = user_error(error), began()
        if mistake is not None and late:
            mistake.exit_code = FAILED
        if mistake is None and not late and _raised_in(error).startswith(_LIBRARIES):
            raise ConfigError(f"{message_of(error)}; correct the setting") from error
        raise


def _raised_in(error: BaseException) -> str:
    """Return the module whose line raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def write_failure(folder: Path, error: BaseException, settings: Sequence[str]) -> str | None:
    """Write failed.json; return one line where that is impossible too, on a full disk say."""
    # Who refuses a command line writes nothing.
    from octo_exp.base.files import write_json

    try:
        write_json(folder / FILE, {"error": message_of(error), "overrides": list(settings)})
    except UserError as failure:
        return str(failure)
    return None
