"""Starts Hydra, guards each job, and turns what went wrong into lines and an exit code."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from octo_exp.cli.arguments import check_arguments
from octo_exp.cli.wording import one_line
from octo_exp.errors import UserError

FAILURE_FILE = "failed.json"
INTERRUPTED = 130

# Jobs run inside Hydra, which returns nothing: exit codes of those that failed, and the folder of the latest.
_exit_codes: list[int] = []
_folders: list[Path] = []


def launch(main: Callable[[], Any], *, config_dir: str | Path, config_name: str = "train") -> NoReturn:
    """Checks sys.argv, runs Hydra's `main` and exits.

    0: all jobs succeeded; 1: one failed (in a single run, the error's own code); 2: wrong configuration; 130:
    interrupted.
    """
    _exit_codes.clear()
    _folders.clear()
    try:
        sys.argv[1:] = check_arguments(sys.argv[1:], config_dir=config_dir, config_name=config_name)
        main()
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as stop:
        # Lightning ends an interrupted fit by exiting with 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            _exit_interrupted()
        raise
    sys.exit(max(_exit_codes, default=0))


def guarded(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Runs one job of Hydra's and returns its result, or None where it failed.

    A user's mistake becomes one line, a bug its traceback; both leave FAILURE_FILE in the job's folder. Nothing is
    raised, so that the other jobs of a sweep and the table at its end still come.
    """
    state = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    _folders.append(folder)
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    multirun = state.mode == RunMode.MULTIRUN
    try:
        return job(cfg)
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None:
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}" if mistake is None else str(mistake)
        _say(f"job {state.job.num}: {message}" if multirun else message)
        _exit_codes.append(1 if multirun or mistake is None else mistake.exit_code)
        _write_failure(folder, message, list(state.overrides.task))
        return None


def report_failures(number: int) -> None:
    """Tells that jobs failed which ran in other processes, where a launcher put them."""
    _exit_codes.extend([1] * number)


def _user_error(error: BaseException | None) -> UserError | None:
    """Finds a user's mistake, also where hydra.utils.instantiate wrapped it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _write_failure(folder: Path, message: str, overrides: Sequence[str]) -> None:
    content = {"error": one_line(message), "overrides": list(overrides)}
    try:
        (folder / FAILURE_FILE).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        _say(f"{FAILURE_FILE} could not be written: {error.strerror}")


def _say(message: str) -> None:
    sys.stderr.write(f"error: {one_line(message)}\n")


def _exit_interrupted() -> NoReturn:
    where = f": what was written lies in {_folders[-1]}" if _folders else ""
    sys.stderr.write(f"interrupted{where}\n")
    sys.exit(INTERRUPTED)
