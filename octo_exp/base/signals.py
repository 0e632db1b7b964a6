"""Signals that end a run: told at once where nothing is lost by it, at the end of a step where something would be."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# Slurm warns before it kills: by USR2 as submitit asks for it, by USR1 where `--signal` says so. Both end a run as TERM
# does. Not on Windows.
_WARNINGS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Stopped(BaseException):
    """Somebody asked the process to end; like KeyboardInterrupt it passes whoever catches Exception.

    Attributes:
        name: of the signal.
        exit_code: 128 + its number; a warning counts as SIGTERM.

    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + (signal.SIGTERM if number in _WARNINGS else number)
        super().__init__(f"stopped by {self.name}")


class _Asked:
    """What was asked for and not told yet."""

    number: int | None = None
    deferred = 0
    installed = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    again = _Asked.number is not None
    _Asked.number = number
    # Who asks twice does not want to wait for the step.
    if again or not _Asked.deferred:
        raise Stopped(number)


def end_at_once() -> None:
    """Let SIGINT end the process in one line until `handled`: while modules are imported nothing is begun."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # An exception would come out of the middle of an import, which may catch it.
    os.write(sys.stderr.fileno(), b"interrupted; nothing was begun\n")
    os._exit(128 + number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and Slurm's warnings into `Stopped` for the length of the block.

    Handlers of another program stay (submitit requeues a job by a warning, and passes over SIGTERM meanwhile), those of
    an outer block too. Outside of the main thread nothing changes.
    """
    if _Asked.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = (signal.SIGTERM, signal.SIGINT, *_WARNINGS)
    free = [number for number in wanted if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    before = {number: signal.signal(number, _on_signal) for number in free}
    _Asked.installed, _Asked.number = True, None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Asked.installed, _Asked.number = False, None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keep what is asked for until `check`, or until the end of the block."""
    _Asked.deferred += 1
    try:
        yield
    finally:
        _Asked.deferred -= 1
    if not _Asked.deferred:
        check()


def asked() -> bool:
    """Whether the process was asked to end."""
    return _Asked.number is not None


def check() -> None:
    """Raise `Stopped` where the process was asked to end."""
    if _Asked.number is not None:
        raise Stopped(_Asked.number)
