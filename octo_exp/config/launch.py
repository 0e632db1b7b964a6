"""Starts Hydra, guards each job, and turns what went wrong into lines and an exit code."""

import contextlib
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from octo_exp.base import signals
from octo_exp.base.errors import FAILED, UserError
from octo_exp.base.failures import FILE as FAILURE_FILE
from octo_exp.base.failures import message_of, user_error, write_failure
from octo_exp.config.arguments import check_arguments
from octo_exp.config.wording import one_line
from octo_exp.config.yaml_reader import use_libyaml

INTERRUPTED = 130
# A run that has begun has it.
_CONFIG_FILE = "config.yaml"

# Jobs run inside Hydra, which returns nothing: exit codes of those that failed, the folder of the latest, the folder of
# the sweep, and what is told when a sweep is stopped.
_exit_codes: list[int] = []
_folders: list[Path] = []
_sweeps: list[Path] = []
_last_words: list[Callable[[], Any]] = []


def launch(main: Callable[[], Any], *, config_dir: str | Path, config_name: str = "train") -> NoReturn:
    """Checks sys.argv, runs Hydra's `main` and exits.

    0: all jobs succeeded; else the largest of their codes, 2: the command line, a setting or what it names was refused,
    1: a run failed that had begun, or a bug (`UserError`); 130 and 143: stopped by SIGINT and SIGTERM.
    """
    for kept in (_exit_codes, _folders, _sweeps, _last_words):
        kept.clear()
    use_libyaml()
    try:
        with signals.handled():
            sys.argv[1:] = check_arguments(sys.argv[1:], config_dir=config_dir, config_name=config_name)
            main()
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except signals.Stopped as stop:
        _exit_stopped(stop)
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

    A user's mistake becomes one line, a bug its traceback; both leave FAILURE_FILE in the job's folder, unless that is
    another run's. The job runs where the command was typed, also with hydra.job.chdir: so relative paths mean the same.
    Nothing is raised but Stopped, so that the other jobs of a sweep and the table at its end still come.
    """
    state = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    _folders.append(folder)
    multirun = state.mode == RunMode.MULTIRUN
    if multirun:
        _sweeps.append(Path(str(state.sweep.dir)))
    fresh = _is_fresh(folder)
    if fresh:
        (folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        # hydra.job.chdir has moved into the folder; what a relative path means, a setting does not change.
        with signals.handled(), contextlib.chdir(state.runtime.cwd):
            return job(cfg)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            traceback.print_exc()
        message = message_of(error)
        _say(f"job {state.job.num}: {message}" if multirun else message)
        _exit_codes.append(FAILED if mistake is None else mistake.exit_code)
        # A job that has begun has told it itself.
        if fresh and not (folder / _CONFIG_FILE).exists():
            failure = write_failure(folder, error, list(state.overrides.task))
            if failure is not None:
                _say(failure)
        return None


def _is_fresh(folder: Path) -> bool:
    """Whether a folder holds nothing but what a command leaves before it begins: what else is in it, is not ours."""
    ours = (FAILURE_FILE, ".hydra", ".lock", ".owner.json")
    return all(path.name in ours or path.suffix == ".log" for path in folder.iterdir())


def report_failures(number: int) -> None:
    """Tells that jobs failed which ran in other processes, where a launcher put them."""
    _exit_codes.extend([FAILED] * number)


def at_stop(tell: Callable[[], Any]) -> None:
    """Calls `tell` where a signal ends the sweep."""
    _last_words.append(tell)


def _say(message: str) -> None:
    sys.stderr.write(f"error: {one_line(message)}\n")


def _exit_stopped(stop: signals.Stopped) -> NoReturn:
    """Says how to go on, after the table of what is done where it was a sweep."""
    for tell in _last_words:
        tell()
    sys.stderr.write(f"{stop}{_how_to_go_on()}\n")
    sys.exit(stop.exit_code)


def _how_to_go_on() -> str:
    name = Path(sys.argv[0]).name
    program = ["python", name] if name.endswith(".py") else name.split()
    if _sweeps:
        words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
        command = shlex.join([*program, *words, f"hydra.sweep.dir={_sweeps[-1]}"])
        return f" in job {len(_folders) - 1}; to go on: {command}"
    if _folders and (_folders[-1] / _CONFIG_FILE).exists():
        command = shlex.join([*program, f"resume={_folders[-1]}"])
        return f"; what was done lies in {_folders[-1]}; to go on: {command}"
    return "; nothing was begun"


def _exit_interrupted() -> NoReturn:
    where = f": what was written lies in {_folders[-1]}" if _folders else ""
    sys.stderr.write(f"interrupted{where}\n")
    sys.exit(INTERRUPTED)
