"""SIGKILL and SIGTERM at random moments: a run that goes on is the one that never stopped."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def killing(*arguments: str) -> list[dict]:
    """Kill in a program of its own: it makes processes by fork, which this one, full of threads, must not."""
    command = [sys.executable, "-m", "tests.killing", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_three_kills_lose_nothing():
    (told,) = killing("--kills", "3", "--cases", "accumulate", "--seed", "1")
    assert told["kills"] == 3


def test_a_kill_inside_a_write_loses_nothing():
    (told,) = killing("--inside", "40", "--cases", "accumulate")
    assert told["kills inside a write"] >= 1


@pytest.mark.slow
def test_a_kill_inside_any_write_loses_nothing():
    told = killing("--inside", "1")
    assert [case["kills inside a write"] > 20 for case in told] == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_thirty_kills_of_each_kind_of_run_lose_nothing(number):
    told = killing("--kills", "30", "--signal", number)
    assert [case["kills"] for case in told] == [30] * 4
