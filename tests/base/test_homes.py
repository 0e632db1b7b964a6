"""Programs that keep things in the user's home, where there is none that can be written."""

import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from octo_exp.base import caches, homes
from octo_exp.base.caches import add_json, cache_folder
from octo_exp.base.files import expanded

MAKE = "import os, sys; from octo_exp.base.homes import temporary_folder; folder = temporary_folder()\n"
# A child that was forked off ends; the folder is its parent's.
FORK = "os.fork() or sys.exit(); os.wait(); (folder / 'x').touch(); sys.stdout.write(str(folder))"


def started(code: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(place)}
    return subprocess.run(
        [sys.executable, "-c", MAKE + code], env=environment, capture_output=True, text=True, check=False
    )


def test_a_temporary_folder_ends_with_its_process(tmp_path):
    done = started(FORK, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout).parent == tmp_path
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    assert started("os.kill(os.getpid(), 9)", tmp_path).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.stat().st_mode & 0o777 == 0o700
    (tmp_path / ".someone.else.partial").touch()
    assert started("", tmp_path).returncode == 0
    assert os.listdir(tmp_path) == [".someone.else.partial"]


def test_without_a_folder_for_temporary_files_the_runs_own_serves(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(caches, "_told", set())
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.environ["TMPDIR"], "/dev/null/none"])
    monkeypatch.setenv("TMPDIR", "/dev/null/none")
    homes.settle_temporary(tmp_path)
    homes.settle_temporary(tmp_path / "other")
    assert tempfile.gettempdir() == str(tmp_path)
    assert len(caplog.records) == 1


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_told", set())
    monkeypatch.setattr(homes, "temporary_folder", lambda: tmp_path / "temporary")
    for name in ("MPLCONFIGDIR", "HF_HOME", "TRITON_CACHE_DIR", "TRITON_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        # Set first, so that what the code sets is taken back after the test.
        monkeypatch.setenv(name, "")
    return tmp_path / "temporary"


PROGRAMS = [
    ("MPLCONFIGDIR", homes.settle_matplotlib),
    ("TRITON_CACHE_DIR", homes.settle_triton),
    ("HF_HOME", homes.settle_hugging_face),
]


@pytest.mark.parametrize(("variable", "settle"), PROGRAMS)
def test_without_a_home_a_program_has_a_temporary_one(temporary, monkeypatch, caplog, variable, settle):
    monkeypatch.setenv("HOME", "/dev/null/none")
    settle()
    settle()
    assert Path(os.environ[variable]).parent == temporary
    assert len(caplog.records) == 1
    assert re.search(
        rf"go to a temporary cache, and are made anew .* no other can be written; set {variable}",
        caplog.records[0].getMessage(),
    )


@pytest.mark.parametrize(("variable", "settle"), PROGRAMS)
def test_a_home_that_can_be_written_is_left(temporary, monkeypatch, tmp_path, caplog, variable, settle):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settle()
    assert os.environ[variable] == ""
    monkeypatch.setenv("HOME", "/dev/null/none")
    monkeypatch.setenv(variable, str(tmp_path / "chosen"))
    settle()
    assert os.environ[variable] == str(tmp_path / "chosen")
    assert not caplog.records


def test_downloads_that_are_there_stay_in_sight(temporary, monkeypatch, tmp_path):
    (tmp_path / "huggingface").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(homes, "writable", lambda folder: False)
    homes.settle_hugging_face()
    assert os.environ["HF_HOME"] == ""


def test_without_any_folder_one_line_says_that_nothing_is_kept(monkeypatch, temporary, caplog):
    monkeypatch.setattr(homes, "temporary_folder", lambda: None)
    assert [homes.temporary_home("x", what="things", remedy="set X") for _ in range(2)] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "things are not kept, and made anew in every run: no folder for them can be written; set X"
    ]


def test_a_system_without_a_home_raises_nothing_and_makes_no_folder_of_that_name(temporary, tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "OCTO_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert expanded("~/x") == Path("~/x")
    assert not add_json(cache_folder() / "a.json", {})
    homes.settle_matplotlib()
    assert Path(os.environ["MPLCONFIGDIR"]).parent == temporary
    assert os.listdir(tmp_path) == ["temporary"]
