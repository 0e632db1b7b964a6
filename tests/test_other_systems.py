"""What would break beside Linux on x86, as far as it can be tried there."""

import ast
import os
import sys
import time

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from octo_exp.base import files
from octo_exp.base.errors import UserError
from octo_exp.runs.assemble.module import _device_type
from octo_exp.runs.assemble.trainer import _trainer
from octo_exp.runs.callbacks import kept_memory
from octo_exp.runs.run import _quiet
from tests.configs import composed
from tests.conftest import ROOT

# Python's own modules that Windows has not.
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}


def test_nothing_that_windows_lacks_is_imported_unguarded():
    for path in (ROOT / "train.py", *(ROOT / "octo_exp").rglob("*.py"), *(ROOT / "sweeps").glob("*.py")):
        tree = ast.parse(path.read_text())
        guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        names = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in guarded
            for alias in ([ast.alias(node.module)] if isinstance(node, ast.ImportFrom) and node.module else node.names)
        }
        assert not names & POSIX, path


def test_a_peak_that_the_system_does_not_tell_is_none(monkeypatch):
    class NoFile:
        def __init__(self, name: str) -> None:
            pass

        def read_text(self) -> str:
            raise FileNotFoundError

    monkeypatch.setattr(kept_memory, "Path", NoFile)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert kept_memory.peak_mib() == 0
    assert kept_memory.MemoryCallback().results["memory/peak_mib"] is None


def test_no_process_of_windows_is_sent_a_signal(monkeypatch, tmp_path):
    def kill(pid: int, number: int) -> None:
        raise AssertionError("0 is Ctrl-C there")

    monkeypatch.setattr(files.os, "kill", kill)
    monkeypatch.setattr(files.sys, "platform", "win32")
    path = tmp_path / files.temporary_name("results.json")
    path.touch()
    assert not files.abandoned(path)
    os.utime(path, (0, time.time() - 3 * 24 * 3600))
    assert files.abandoned(path)


def test_apple_s_gpu_is_not_taken_by_itself_and_refused_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    with _quiet():
        assert isinstance(_trainer(composed(save_dir=tmp_path), [], []).accelerator, CPUAccelerator)
    for wanted in ("mps", "gpu"):
        with pytest.raises(UserError, match=rf"trainer\.accelerator={wanted}: Apple's GPU is not supported"):
            _device_type(composed(f"trainer.accelerator={wanted}"))
