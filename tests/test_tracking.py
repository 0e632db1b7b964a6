"""W&B with every fault it can have: the run goes on, one line says so, and no process is left."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octo_exp.runs.tracking import WandbRun
from octo_exp.runs.tracking.session import Session
from tests.run_helpers import SMALL, go
from tests.test_run_logs import inspect_wandb


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with one status, or never (None)."""

    daemon_threads = True

    def __init__(self, status: int | None) -> None:
        self.released = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if status is None:
                    server.released.wait()
                else:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # No key of whoever runs the tests.
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    found = Server(request.param)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield
    found.released.set()
    found.shutdown()
    found.server_close()


def logger(folder: Path, **changes: Any) -> WandbRun:
    settings = {"mode": "offline", "id": None, "resumed_from": None, "wait_s": 60.0, "online_s": 1.0, **changes}
    nothing = dict.fromkeys(("entity", "name", "group", "tags", "job_type"))
    return WandbRun(project="p", save_dir=str(folder), log_model=False, **nothing, **settings)


def use(run: WandbRun) -> None:
    run.log_hyperparams({"rate": 0.1})
    for step in range(3):
        run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    run.log_table(key="table", columns=["a"], data=[[1]])
    run.experiment.summary.update({"final": 7})


def started(run: WandbRun) -> int:
    """Wait until W&B has started; return its process's id."""
    session = run._started()
    while session._folder is None:
        assert session._thread.is_alive()
        time.sleep(0.01)
    return session._service.pid


def children() -> list[str]:
    """W&B's processes that belong to this one, ended ones that nobody has waited for included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if name.startswith("wandb") and int(rest.split()[1]) == os.getpid():
            found.append(name)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("octo_exp")]


def logged(folder: Path, pattern: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"wandb/{pattern}/*.wandb")
    return inspect_wandb(file)


def assert_goes_on_offline(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    run = logger(folder, mode="online")
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert reason in line
    assert "goes on offline" in line
    records = logged(folder, f"offline-run-*-{run.run_id}")
    assert sum(record["type"] == "history" for record in records) == 4
    assert line.split("`wandb sync ")[1].split("`")[0] == str(next(folder.glob("wandb/offline-run-*")))
    assert children() == []


@pytest.mark.parametrize(
    "server",
    [None, pytest.param(401, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.usefixtures("server")
def test_a_server_that_fails_makes_the_run_offline(tmp_path, caplog):
    assert_goes_on_offline(tmp_path, caplog, "http://127.0.0.1")


@pytest.mark.slow
def test_a_refused_port_makes_the_run_offline(tmp_path, caplog, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        assert_goes_on_offline(tmp_path, caplog, "http://127.0.0.1")


def test_online_without_a_key_neither_asks_nor_stops(tmp_path, caplog):
    assert_goes_on_offline(tmp_path, caplog, "no API key")


@pytest.mark.slow
@pytest.mark.parametrize("server", [None], indirect=True)
@pytest.mark.usefixtures("server")
def test_a_run_that_ends_before_the_server_answers_is_written_offline(tmp_path, caplog):
    run = logger(tmp_path, mode="online", online_s=600.0, wait_s=20.0)
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert "no answer from http://127.0.0.1" in line
    assert any(record["type"] == "history" for record in logged(tmp_path, "offline-run-*"))


def test_a_stopped_process_is_not_waited_for_and_is_ended(tmp_path, caplog):
    run = logger(tmp_path, wait_s=1.0)
    os.kill(started(run), signal.SIGSTOP)
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert "did not end within 1 s" in line
    assert "goes on without it" in line
    assert children() == []


def test_what_wandb_does_not_take_is_dropped_at_last(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("octo_exp.runs.tracking.session._QUEUE", 5)
    run = logger(tmp_path, wait_s=1.0)
    os.kill(started(run), signal.SIGSTOP)
    # More than the pipe and the queue hold.
    for step in range(200):
        run.log_metrics({f"{name}": float(step) for name in range(1000)}, step=step)
    run.close()
    (line,) = warnings(caplog)
    assert "takes nothing" in line
    assert children() == []


def test_a_folder_that_cannot_be_made_leaves_the_run_without_wandb(tmp_path, caplog):
    (tmp_path / "wandb").touch()
    run = logger(tmp_path)
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert "Not a directory" in line
    assert "goes on without it" in line
    assert children() == []


def test_a_full_folder_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "wandb").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path / "wandb")]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tiny file system")
    try:
        run = logger(tmp_path)
        # No file of its own: only W&B's process writes, and it tells nobody.
        run.log_metrics({"loss": 1.0}, step=0)
        run.close()
        (line,) = warnings(caplog)
        assert "No space left" in line
    finally:
        subprocess.run(["umount", str(tmp_path / "wandb")], check=True)


def test_a_process_that_does_not_start_leaves_the_run_without_wandb(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("wandb.sdk.lib.service.service_process.get_core_path", lambda: "/bin/false")
    run = logger(tmp_path)
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert "exited with code 1" in line
    assert "goes on without it" in line


def test_a_home_that_cannot_be_written_is_replaced(tmp_path, caplog, monkeypatch):
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null/x")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        # Restored afterwards.
        monkeypatch.setenv(name, "/dev/null/x")
    run = logger(tmp_path)
    use(run)
    run.close()
    assert warnings(caplog) == []
    assert any(record["type"] == "history" for record in logged(tmp_path, "offline-run-*"))


def test_a_run_that_goes_on_has_the_same_id_and_says_from_what(tmp_path):
    first = logger(tmp_path / "1")
    assert first._session is None
    assert first.run_id == first.version
    second = logger(tmp_path / "2", id=first.run_id, resumed_from="outputs/1")
    for run in (first, second):
        use(run)
        run.close()
        assert run._session is None
    assert first.run_id == second.run_id
    records = logged(tmp_path / "2", f"offline-run-*-{first.run_id}")
    config: dict[str, Any] = {}
    for record in records:
        config |= record.get("config", {}).get("update", {})
    assert config["resumed_from"] == "outputs/1"
    assert config["rate"] == 0.1
    assert logger(tmp_path).run_id != first.run_id


def test_one_bad_value_loses_neither_the_run_nor_the_rest(tmp_path, caplog):
    run = logger(tmp_path)
    run.experiment.log("not a mapping")
    run.log_image(key="picture", images=[str(tmp_path / "missing.png")])
    use(run)
    run.close()
    assert len(warnings(caplog)) == 1
    records = logged(tmp_path, "offline-run-*")
    assert sum(record["type"] == "history" for record in records) == 4


def test_a_second_run_is_not_written_into_the_first(tmp_path):
    runs = [logger(tmp_path / job) for job in ("0", "1")]
    for run in runs:
        started(run)
    assert len({run._session._folder for run in runs}) == 2
    for run in runs:
        run.close()


def test_sys_exit_is_as_it_was(tmp_path):
    before = (sys.exit, sys.excepthook)
    for job in ("0", "1"):
        run = logger(tmp_path / job)
        use(run)
        run.close()
    assert (sys.exit, sys.excepthook) == before


@pytest.mark.parametrize("call", ["init", "define_metric", "log"])
def test_wandbs_process_killed_at_any_call_is_one_line(call, tmp_path, caplog, monkeypatch):
    import wandb

    sessions = []
    start_service = Session._start_service

    def remembered(self: Session, mode: str) -> None:
        start_service(self, mode)
        sessions.append(self)

    owner = wandb if call == "init" else wandb.Run
    method = getattr(owner, call)

    def killed(*args: Any, **kwargs: Any) -> Any:
        # Not waited for: its socket is closed some time before or after the call.
        os.kill(sessions[-1]._service.pid, signal.SIGKILL)
        return method(*args, **kwargs)

    monkeypatch.setattr(Session, "_start_service", remembered)
    monkeypatch.setattr(owner, call, killed)
    run = logger(tmp_path, mode="offline")
    use(run)
    run.close()
    (line,) = warnings(caplog)
    assert "its process has ended" in line
    assert children() == []


def test_wandbs_process_killed_in_the_middle_changes_no_number_of_the_run(tmp_path, caplog, monkeypatch):
    shared = [override for override in SMALL if override != "logger=csv"]
    go(tmp_path / "csv", *shared, "logger=csv")
    log_metrics = WandbRun.log_metrics
    calls = []

    def log_and_kill(self: WandbRun, metrics: Any, step: int | None = None) -> None:
        calls.append(step)
        if len(calls) == 3:
            os.kill(started(self), signal.SIGKILL)
        log_metrics(self, metrics, step)

    monkeypatch.setattr(WandbRun, "log_metrics", log_and_kill)
    go(tmp_path / "wandb", *shared, "logger=wandb")
    assert len(calls) > 4
    (line,) = [line for line in warnings(caplog) if "W&B" in line]
    assert "its process has ended" in line
    assert children() == []
    results = [json.loads((tmp_path / job / "results.json").read_text()) for job in ("csv", "wandb")]
    assert results[0].keys() == results[1].keys()
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    metrics = [(tmp_path / job / "metrics.csv").read_text().splitlines() for job in ("csv", "wandb")]
    assert metrics[0] == metrics[1]
