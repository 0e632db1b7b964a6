"""A search of machines as a command, and interrupted on the way."""

import csv
import json
import shlex
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from octo_exp.base.errors import ConfigError
from octo_exp.cli.dse import search as dse
from octo_exp.hw.scalesim import read_config, read_topology
from octo_exp.hw.search.scan import Problem
from octo_exp.hw.search.state import Store
from tests.configs import CONF
from tests.hw.helpers import GOLDEN
from tests.refusals import assert_names
from tests.sweeps.dse_helpers import FILES, LENET, command, ran, rows, searched


def test_the_command_of_the_help_prints_the_21_points_of_scalesims_own_search(tmp_path):
    examples = OmegaConf.load(CONF / "dse.yaml").hydra.help.template.splitlines()
    (example,) = [line for line in examples if "convention=scalesim" in line]
    program, *arguments = shlex.split(example)
    assert program == "$PROGRAM"
    code, out, err = ran(tmp_path, *arguments)
    assert (code, err) == (0, "")
    with (GOLDEN / "dse_lenet5_pe64_exhaustive.csv").open(newline="") as file:
        golden = [
            [*row["array"].split("x"), row["dataflow"], row["scalesim_total_cycles"]] for row in csv.DictReader(file)
        ]
    shown = [line.strip("│ ").replace(",", "").split("│") for line in out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in cells] for cells in shown] == golden
    assert [list(row.values()) for row in rows(tmp_path / "points.csv")] == golden
    # SCALE-Sim is given the same machine and the same GEMMs.
    profile = read_config(tmp_path / "best.cfg").profile
    assert (profile.rows, profile.cols, profile.dataflow) == (8, 8, "os")
    ours, theirs = (read_topology(*f) for f in ((tmp_path / "gemms.csv", "gemm"), (GOLDEN / "lenet5.csv", "conv")))
    assert [(g.m, g.n, g.k) for g in ours] == [(g.m, g.n, g.k) for g in theirs]
    assert f"{tmp_path} holds points.csv, pareto.csv, dse.json, pareto.png, best.cfg, gemms.csv" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["space.rows=[0]"], "rows ... got 0"),
        (["search.metod=genetic"], "'search.metod' ... 'search.method'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, line, tmp_path):
    code, out, err = ran(tmp_path, *LENET, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert_names(err, line)


METHODS = ("exhaustive", "genetic", "random", "nsga2")


class Interrupted:
    """A progress bar that the user interrupts after so many steps."""

    after = 1

    def __enter__(self):
        self.steps = 0
        return self

    def __exit__(self, *failure):
        pass

    def __call__(self, search):
        self.steps += 1
        if self.steps >= self.after:
            raise KeyboardInterrupt


def stable(folder):
    """What must not differ between two runs of the same search: all but the seconds."""
    content = {key: value for key, value in json.loads((folder / "dse.json").read_text()).items() if key != "seconds"}
    return content, {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_search_goes_on_in_its_folder_to_the_same_files(method, tmp_path, monkeypatch, capsys):
    settings = [f"search.method={method}", "objectives=[cycles,processing_elements]", "search.seed=3"]
    settings += [] if method == "exhaustive" else ["search.budget=300"]
    monkeypatch.setattr(Problem, "chunk", 64)
    searched(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        patch.setattr(dse, "_Bar", Interrupted)
        for _ in range(2):
            with pytest.raises(SystemExit) as stop:
                searched(tmp_path / "halves", *settings)
            assert stop.value.code == 130
            # `launch` takes an exit within an interrupt's handling for one that nobody has told yet.
            assert stop.value.__context__ is None
            err = capsys.readouterr().err
            assert err.startswith("interrupted; to go on: python sweeps/dse.py ")
            assert err.endswith(f"hydra.run.dir={tmp_path / 'halves'}\n")
            assert err.count("\n") == 1
            assert (tmp_path / "halves" / dse.STATE_FILE).exists()
    searched(tmp_path / "halves", *settings)
    assert "going on after" in capsys.readouterr().out
    assert stable(tmp_path / "halves") == stable(tmp_path / "whole")
    assert not (tmp_path / "halves" / dse.STATE_FILE).exists()


def test_a_folder_belongs_to_one_search(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Problem, "chunk", 64)
        patch.setattr(dse, "_Bar", Interrupted)
        with pytest.raises(SystemExit):
            searched(tmp_path)
    with pytest.raises(
        ConfigError, match=r"holds another search \(seed is 0 there and 1 here\).*hydra.run.dir=<folder>"
    ):
        searched(tmp_path, "seed=1")
    content = searched(tmp_path)
    before = (tmp_path / "dse.json").stat().st_mtime_ns
    (tmp_path / f".{dse.STATE_FILE}.partial").touch()
    assert searched(tmp_path) == content
    assert f"already finished: {tmp_path}" in capsys.readouterr().out
    assert (tmp_path / "dse.json").stat().st_mtime_ns == before
    # What a killed search had begun to write.
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ConfigError, match=r"\(constraints.processing_elements is None there and 64 here\)"):
        searched(tmp_path, "constraints.processing_elements=64")


@pytest.mark.slow
def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(tmp_path):
    settings = [
        "space={rows:{from:1,to:128},cols:{from:1,to:128},dataflow:[os,ws,is,per_gemm],"
        "sram_ifmap_kib:[1,2,4,8,16],sram_filter_kib:[1,2,4,8,16]}",
        "objectives=[total_cycles]",
    ]
    # A job in the background of a shell ignores the signal, and so do its children.
    process = command(tmp_path, *LENET, *settings, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    for _ in range(600):
        if (tmp_path / dse.STATE_FILE).exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; to go on: python sweeps/dse.py model=lenet5" in err
    assert f"hydra.run.dir={tmp_path}" in err
    assert Store(tmp_path / dse.STATE_FILE, every_s=1, facts={}).load()["evaluated"] > 0


def test_the_path_of_the_config_folder_is_right():
    assert Path(dse.CONF) == CONF
