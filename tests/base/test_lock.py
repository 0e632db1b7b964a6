"""One owner of a folder."""

import os
import signal
import subprocess
import sys

import pytest

from octo_exp.base.errors import UserError
from octo_exp.base.lock import HeldError, hold

HOLDER = (
    "import sys, time; from octo_exp.base.lock import hold\n"
    "with hold(sys.argv[1]): print('held', flush=True); time.sleep(float(sys.argv[2]))"
)


def holder(folder, seconds=600.0):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_changes_nothing(tmp_path):
    process = holder(tmp_path)
    try:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(HeldError, match=f"in use by process {process.pid} on "), hold(tmp_path):
            pass
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        process.kill()
        process.communicate()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with hold(tmp_path):
        pass


def test_a_waiter_gets_it_afterwards(tmp_path):
    process, told = holder(tmp_path, 0.2), []
    with hold(tmp_path, wait=told.append):
        assert process.wait() == 0
    process.communicate()
    assert told == [f"process {process.pid} on {os.uname().nodename}"]


def test_a_folder_that_is_none_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\.lock cannot be written: "), hold(tmp_path / "file"):
        pass
