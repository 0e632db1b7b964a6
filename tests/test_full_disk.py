"""Whatever writes a file that stays: on a full disk it says so in one line, and the earlier file is as it was."""

import errno
import os
from typing import Any

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_bytes
from octo_exp.bench.command import keep
from octo_exp.cli.dse import outcome as dse_report
from octo_exp.exports.text import run_numpy
from octo_exp.hw.scalesim.texts import write_all
from octo_exp.hw.search.state import Store
from octo_exp.runs.callbacks.cost import _write_csv
from octo_exp.runs.callbacks.kept_memory import MemoryCallback
from octo_exp.runs.cost_plots import save_compression_figure
from tests.hw.search_helpers import problem, scan
from tests.refusals import assert_names

ROW = {"layer": "a", "macs": 1, "size_bytes_before": 2, "size_bytes_after": 1}


def _kept(path):
    if keep(path, {"a": 1}):
        raise UserError("; told by `keep`")


def _memory(path):
    MemoryCallback()._write(path)


def _report(path):
    given = problem({"rows": [1, 2]})
    search = scan(given)
    search.step()
    config: dict[str, Any] = {"top": 1, "search": {"method": "exhaustive", "seed": 0}, "convention": "exact"}
    dse_report.write(path.parent, given, search.archive, config=config, names={}, seconds=0.0)


WRITERS = {
    "model.pkl": lambda path: write_bytes(path, b"new"),
    "logits.npy": lambda path: run_numpy._write(path, np.zeros(3, np.int8)),
    "search.npz": lambda path: Store(path, every_s=0, facts={}).save({"a": np.zeros(3)}),
    "REPORT.csv": lambda path: write_all({path: "new", path.with_name("OTHER.csv"): "new"}),
    "report.png": lambda path: save_compression_figure(path, [ROW, ROW], ["size_bytes"], title=""),
    "cost.csv": lambda path: _write_csv(path, ["a"], [[1]]),
    "memory.csv": _memory,
    "bench.json": _kept,
    **dict.fromkeys(("points.csv", "pareto.csv", "best.cfg", "gemms.csv", "pareto.png", "dse.json"), _report),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_the_earlier_file_is_as_it_was(tmp_path, monkeypatch, capsys, name):
    path = tmp_path / name
    path.write_text("old")
    # Where several files are written one after another, the disk is full at this one.
    sync, names = os.fsync, []

    def full(descriptor):
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        if names[-1].startswith(f".{name}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        WRITERS[name](path)
    line = f"{caught.value}{capsys.readouterr().err}"
    assert_names(line.replace("\n", ""), f"{name} cannot be written: No space left on device; ... or ")
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*"))
    if name == "REPORT.csv":
        assert not (tmp_path / "OTHER.csv").exists()
