"""The thread that talks to W&B: calls in their order, failures in one line, an end that is never waited for long."""

import atexit
import contextlib
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from octo_exp.base.caches import writable

log = logging.getLogger(__name__)

# Calls that wait while W&B starts or stalls.
_QUEUE = 10_000
_ENDED = "its process has ended"
Mode = Literal["online", "offline", "disabled"]
_OFFLINE = ("offline", "dryrun", "disabled")


class Later:
    """Stands for an object of W&B's: attributes are followed, calls and items are sent, and nothing comes back."""

    def __init__(self, send: Callable[..., None], *path: str) -> None:
        self._send = send
        self._path = path

    def __getattr__(self, name: str) -> "Later":
        if name.startswith("__"):
            raise AttributeError(name)
        return Later(self._send, *self._path, name)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Send the call."""
        self._send(self._path, args, kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        self._send((*self._path, "__setitem__"), (key, value), {})


class Session:
    """One run of W&B's, from its start to its end.

    Args:
        init: arguments of `wandb.init`.
        mode: online | offline | disabled.
        wait_s: seconds that the caller waits, at most, in all calls together.
        online_s: seconds for the server's first answer.

    """

    def __init__(self, init: Mapping[str, Any], *, mode: Mode, wait_s: float, online_s: float) -> None:
        self._init = dict(init)
        self._mode = mode
        self._wait_s = self._left_s = wait_s
        self._online_s = online_s
        self._calls: queue.Queue[Callable[[Any], Any] | None] = queue.Queue(_QUEUE)
        self._service: subprocess.Popen[bytes] | None = None
        self._connecting = mode not in _OFFLINE
        self._lost = self._told = self._too_slow = False
        self._folder: str | None = None
        self._server = "the server"
        self._exit_code = 0
        self._hooks = (sys.exit, sys.excepthook)
        atexit.register(self.close, exit_code=1)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def send(self, path: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Call the method of W&B's run at `path`, later; mappings are copied, for callers go on using them."""
        if self._lost:
            return
        copies = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)

        def call(run: Any) -> None:
            for name in path:
                run = getattr(run, name)
            run(*copies, **kwargs)

        try:
            self._calls.put_nowait(call)
        except queue.Full:
            try:
                self._wait(lambda seconds: self._calls.put(call, timeout=seconds), self._left_s)
            except queue.Full:
                self._lose("it takes nothing any more")

    def failed(self, error: BaseException) -> None:
        """Log the first failure; give up where W&B's process is gone, else the next call is tried."""
        if self._ended(error):
            self._lose(_ENDED)
        else:
            self._tell(_reason(error), "what it could not take is missing there")

    def _ended(self, error: BaseException) -> bool:
        """Return whether `error` comes of W&B's process being gone: its socket closes before it can be waited for."""
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        gone = self._service is not None and self._service.poll() is not None
        return gone or isinstance(error, (ConnectionError, HandleAbandonedError, MailboxClosedError))

    def close(self, exit_code: int) -> None:
        """Finish the run, or give it up after what is left of `wait_s`; end W&B's process either way."""
        atexit.unregister(self.close)
        self._exit_code = exit_code
        try:
            with contextlib.suppress(queue.Full):
                self._wait(lambda seconds: self._calls.put(None, timeout=seconds), self._left_s)
            self._join(self._left_s / 2)
            if self._thread.is_alive() and self._connecting:
                # What is left is for writing it offline.
                self._too_slow = True
                self._kill()
            self._join(self._left_s)
        finally:
            if self._thread.is_alive():
                self._lose(f"it did not end within {self._wait_s:g} s")
                self._thread.join(1)
            self._restore_hooks()

    def _wait(self, what: Callable[[float], Any], seconds: float) -> None:
        started = time.monotonic()
        try:
            what(max(seconds, 0.0))
        finally:
            self._left_s -= time.monotonic() - started

    def _join(self, seconds: float) -> None:
        """Wait for the thread. What it computes does not count: on a busy machine W&B starts slowly, but well."""
        end = time.monotonic() + 6 * self._wait_s
        while self._thread.is_alive() and seconds > 0 and time.monotonic() < end:
            wall, cpu = time.monotonic(), time.process_time()
            self._thread.join(min(0.2, seconds))
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            if cpu < 0.05 * wall:
                seconds -= wall
                self._left_s -= wall

    def _tell(self, reason: str, outcome: str) -> None:
        if not self._told:
            self._told = True
            log.warning("W&B: %s; %s", reason, outcome)

    def _lose(self, reason: str) -> None:
        self._lost = True
        kept = f"; {self._sync()} uploads what it kept" if self._folder else ""
        self._tell(reason, f"the run goes on without it{kept}")
        self._kill()

    def _sync(self) -> str:
        folder = Path(self._folder or "")
        online = "" if folder.name.startswith("offline-") else "--include-online "
        return f"`wandb sync {online}{folder}`"

    def _kill(self) -> None:
        if self._service is not None:
            self._service.kill()

    def _restore_hooks(self) -> None:
        # Each start of W&B's process wraps them once more.
        if type(getattr(sys.exit, "__self__", None)).__module__.startswith("wandb."):
            sys.exit, sys.excepthook = self._hooks

    # What follows runs in the thread.

    def _work(self) -> None:
        try:
            run = self._opened()
            while (call := self._calls.get()) is not None:
                if not self._lost:
                    self._try(call, run)
            if not self._lost:
                self._try(self._finish, run)
        finally:
            self._end_service()

    def _try(self, call: Callable[[Any], Any], run: Any) -> None:
        try:
            call(run)
        except Exception as error:
            self.failed(error)

    def _finish(self, run: Any) -> None:
        try:
            run.finish(exit_code=self._exit_code)
        except TimeoutError:
            self._tell("the last upload took too long", f"{self._sync()} uploads the rest")
        if self._mode != "disabled":
            # W&B's process does not tell of what it could not write.
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(bytes(2**16))

    def _opened(self) -> Any:
        """Return W&B's run, offline where online is impossible; None where neither is possible."""
        reason = ""
        if self._connecting:
            try:
                return self._start(self._mode)
            except Exception as error:
                reason = f"no answer from {self._server}" if self._too_slow else f"{self._server}: {_reason(error)}"
            finally:
                self._connecting = False
            self._end_service()
        try:
            run = self._start("offline" if reason else self._mode)
        except Exception as error:
            why = _ENDED if self._ended(error) else _reason(error)
            self._lose(f"{reason}; offline: {why}" if reason else why)
            return None
        if reason:
            log.warning("W&B: %s; the run goes on offline, %s uploads it later", reason, self._sync())
        return run

    def _start(self, mode: Mode) -> Any:
        import wandb
        from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

        _make_homes(Path(self._init["dir"]))
        self._start_service(mode)
        if mode not in _OFFLINE and not wandb.login(prompt=False, verify=False):
            raise ValueError("no API key (set WANDB_API_KEY, or `wandb login`)")
        run = wandb.init(**self._init, mode=mode)
        self._folder = run.settings.sync_dir
        # They would talk to W&B's process inside the run's own imports.
        unregister_all_post_import_hooks()
        # Lightning's axis.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def _start_service(self, mode: Mode) -> None:
        import wandb
        from wandb.sdk import wandb_setup

        half_s = self._wait_s / 2
        settings = wandb.Settings(
            mode=mode,
            silent=True,
            # Else every print of the run would go through W&B's pipe.
            console="off",
            # Else a second run in this process would be the first.
            reinit="create_new",
            init_timeout=self._online_s,
            finish_timeout=half_s,
            finish_timeout_raises=True,
            x_service_wait=half_s,
            # Seconds; a process that is killed leaves what it wrote.
            x_transaction_log_flush_interval=1.0,
        )
        # Not `wandb.setup`, which waits for ever for a lock of its own where its process does not start.
        library = wandb_setup._setup(settings, start_service=False)
        self._server = library.settings.base_url
        if mode != "disabled":
            # None where W&B's process belongs to another program.
            self._service = getattr(library.ensure_service()._proc, "_process", None)
        # Before W&B's own, which waits for its process for ever: the last registered is called first.
        atexit.unregister(self.close)
        atexit.register(self.close, exit_code=1)

    def _end_service(self) -> None:
        import wandb

        with contextlib.suppress(Exception, SystemExit):
            # Waits for the process; raises where it has died.
            wandb.teardown()
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _make_homes(folder: Path) -> None:
    """Give W&B folders beside the run where those in the user's home cannot be written: some logging needs them."""
    from wandb import env

    homes = {"WANDB_CACHE_DIR": str(env.get_cache_dir()), "WANDB_DATA_DIR": str(env.get_data_dir())}
    for name, home in homes.items():
        if not writable(Path(home)):
            os.environ[name] = str(folder / "wandb" / "home" / name.lower())
