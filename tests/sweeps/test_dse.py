"""A search of machines from the command line to its files, and interrupted on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from octo_exp.errors import ConfigError
from octo_exp.hw import ROLES
from octo_exp.hw.scalesim import read_config, read_topology
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.scan import Problem, drive
from octo_exp.hw.search.space import Space
from octo_exp.hw.search.state import Store
from sweeps import dse, dse_report
from sweeps.nsga2 import JOURNAL, Nsga2
from tests.configs import CONF
from tests.hw.helpers import GOLDEN, gemm, machine, workload

ROOT = CONF.parent
LENET = ("model=lenet5", "data.batch_size=1", "quant.skip=[]")
BASE = "systolic_32x32"
SMALL = "++space={rows:{from:1,to:16},cols:{from:1,to:16},dataflow:[os,ws,is]}"
FILES = ("points.csv", "pareto.csv", "pareto.png", "best.cfg", "gemms.csv")


def composed(folder, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("dse", overrides=[*LENET, f"save_dir={folder}", *overrides])


def searched(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return dse.search_machines(composed(folder, SMALL, *overrides))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(folder, *arguments, **options):
    line = [sys.executable, "sweeps/dse.py", *LENET, *arguments, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ran(folder, *arguments):
    process = command(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_the_command_prints_what_scalesims_own_search_found(tmp_path):
    code, out, err = ran(
        tmp_path,
        "roles=[output]",
        "convention=scalesim",
        "space={rows:{powers_of_two:[1,64]},cols:{powers_of_two:[1,64]},dataflow:[os,ws,is]}",
        "constraints.processing_elements=64",
    )
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
        (["space.rows=[0]"], "rows must be a whole number greater than zero, got 0"),
        (["space={rows:[8]}", "constraints.processing_elements=7"], "none of the space's 1 designs has"),
        (["objectives=[latency]"], "unknown objective 'latency'"),
        (["search.metod=genetic"], "did you mean 'search.method'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, line, tmp_path):
    code, out, err = ran(tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["search.method=annealing"],
            "unknown search.method 'annealing': choose one of exhaustive, genetic, random, nsga2",
        ),
        (["search.budget=9"], "an exhaustive search prices all 768 points"),
        (["search.method=genetic", "search.budget=0"], "search.budget must be a whole number greater than zero"),
        (["search.method=genetic", "search.seed=-1"], "search.seed must not be negative, got -1"),
        (["hw=[gemmini,tpu_v1]"], "hw names gemmini, tpu_v1: a search varies one machine, write hw=<option>"),
        (["roles=[forward]"], "unknown role 'forward' in roles: choose among output, grad_input, grad_weight"),
        (["roles=[]"], "roles is empty: choose one or more of output, grad_input, grad_weight"),
        (["top=0"], "top must be at least 1, got 0"),
        (["~energy", "objectives=[energy]"], "objective 'energy' needs an energy table"),
        (["convention=fast"], "unknown cycle convention 'fast'"),
        (["convention=scalesim", "objectives=[energy]"], "objective 'energy': the convention scalesim knows neither"),
        (["convention=scalesim", "objectives=[total_cycles]"], "objective 'total_cycles': the convention scalesim"),
        (
            [f"hw.{BASE}.vector_lanes=null", f"~hw.{BASE}.sources.vector_lanes", "objectives=[total_cycles]"],
            f"objective 'total_cycles': hardware profile '{BASE}' has no vector unit for the work beside the GEMMs",
        ),
        (["hw.systolic_32x32.rows=0"], "rows must be a whole number greater than zero"),
        (
            ["hw=gemmini", "quant=fp32", "hw.gemmini.vector_lanes=null", "~hw.gemmini.sources.vector_lanes"],
            "'gemmini' multiplies no fp32",
        ),
        (["grad_input_form=x"], "grad_input_form must be one of col2im, im2col"),
        (["data.batch_size=0"], "data.batch_size=0: it must be a whole number of at least 1"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(overrides, line, tmp_path):
    with pytest.raises(ConfigError) as caught:
        searched(tmp_path, *overrides)
    assert line in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("objectives", [["cycles"], ["total_cycles", "energy"], ["cycles", "memory", "utilization"]])
def test_the_files_hold_every_design_and_the_front(objectives, tmp_path, capsys):
    content = searched(tmp_path, f"objectives=[{','.join(objectives)}]", "space.dataflow=[os,per_gemm]", "top=9")
    points, front = rows(tmp_path / "points.csv"), rows(tmp_path / "pareto.csv")
    assert len(points) == content["priced"] == content["feasible"] == content["designs"] == 2 * 16 * 16
    assert [list(map(str, row.values())) for row in content["front"]] == [list(row.values()) for row in front]
    first = [float(row[list(row)[3]]) for row in points]
    assert first == sorted(first)
    assert content["best"][0] == content["front"][0]
    assert json.loads((tmp_path / "dse.json").read_text()) == content
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.count("│\n") == (min(9, len(front)) if len(objectives) > 1 else 9)
    # SCALE-Sim has one dataflow for all GEMMs; whatever is left out is told.
    assert ("no best.cfg: " in out) == (not (tmp_path / "best.cfg").exists())
    assert not (tmp_path / dse.STATE_FILE).exists()


def test_a_huge_search_writes_the_best_and_the_front(tmp_path, monkeypatch):
    monkeypatch.setattr(dse, "_MOST_POINTS", 100)
    content = searched(tmp_path, "top=7", "objectives=[cycles,processing_elements]")
    assert content["priced"] == 768
    assert rows(tmp_path / "points.csv")[:7] == [{k: str(v) for k, v in row.items()} for row in content["best"]]
    assert len(rows(tmp_path / "points.csv")) == 7


def test_roles_choose_the_passes_that_are_priced(tmp_path):
    def cycles(*roles):
        folder = tmp_path / "".join(roles)
        folder.mkdir()
        one = composed(folder, "++space={rows:[8],cols:[8],dataflow:[os]}", f"roles=[{','.join(roles)}]")
        return dse.search_machines(one)["best"][0]["cycles"]

    each = [cycles(role) for role in ROLES]
    assert min(each) > 0
    assert cycles(*ROLES) == sum(each)


def test_a_memory_need_not_be_a_whole_number(tmp_path):
    axes = "++space={sram_ifmap_kib:[12.8,64],rows:[8]}"
    content = dse.search_machines(composed(tmp_path, axes, f"hw.{BASE}.sram_filter_kib=12.8", "objectives=[memory]"))
    ofmap = composed(tmp_path).hw[BASE].sram_ofmap_kib
    assert [row["memory_kib"] for row in content["best"]] == [12.8 + 12.8 + ofmap, 64 + 12.8 + ofmap]


def test_widths_are_those_of_the_scheme(tmp_path):
    def cycles(quant):
        (tmp_path / quant).mkdir()
        one = composed(tmp_path / quant, "++space={rows:[8],cols:[8],dataflow:[os]}", f"quant={quant}")
        return dse.search_machines(one)["best"][0]["cycles"]

    assert cycles("fp32") == 2 * cycles("bf16") == 4 * cycles("int8")


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
    assert searched(tmp_path) == content
    assert f"already finished: {tmp_path}" in capsys.readouterr().out
    assert (tmp_path / "dse.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"\(constraints.processing_elements is None there and 64 here\)"):
        searched(tmp_path, "constraints.processing_elements=64")


def test_ctrl_c_keeps_the_state_and_says_how_to_go_on(tmp_path):
    settings = [
        "space={rows:{from:1,to:128},cols:{from:1,to:128},dataflow:[os,ws,is,per_gemm],"
        "sram_ifmap_kib:[1,2,4,8,16],sram_filter_kib:[1,2,4,8,16]}",
        "objectives=[total_cycles]",
    ]
    process = command(tmp_path, *settings)
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


def nsga2(tmp_path, *, names=("cycles",), budget=230, seed=0, **constraints):
    axes = {"rows": {"from": 1, "to": 64}, "cols": {"from": 1, "to": 64}, "dataflow": ["os", "ws", "is"]}
    step = Objectives(names, workload(gemm(), gemm(63, 65, 16)), convention="exact", energy=None)
    return Nsga2(Problem(Space(machine(), axes, constraints), step), budget=budget, seed=seed, folder=tmp_path)


def test_nsga2_is_decided_by_its_seed_and_prices_feasible_designs(tmp_path):
    found = [drive(nsga2(tmp_path, seed=seed, processing_elements={"max": 256})) for seed in (0, 0, 1)]
    assert np.array_equal(found[0].points, found[1].points)
    assert not np.array_equal(found[0].points, found[2].points)
    assert 50 < len(set(found[0].points)) == found[0].evaluated <= 230
    assert found[0].points.min() >= 0


def test_every_generation_of_nsga2_has_a_seed_of_its_own(tmp_path, monkeypatch):
    import optuna

    right, seeds = optuna.samplers.NSGAIISampler, []

    def sampler(*, seed, **given):
        seeds.append(seed)
        return right(seed=seed, **given)

    monkeypatch.setattr(optuna.samplers, "NSGAIISampler", sampler)
    drive(nsga2(tmp_path, seed=0))
    drive(nsga2(tmp_path, seed=1))
    # 230 trials in generations of 50.
    assert len(set(seeds)) == len(seeds) == 2 * 5


def test_nsga2s_journal_is_optunas_own(tmp_path):
    import optuna

    search = nsga2(tmp_path, names=("cycles", "processing_elements"), processing_elements={"max": 256})
    archive = drive(search)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name="design space", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == list(range(230))
    # Its front holds feasible designs alone, and those are ours.
    theirs = {tuple(trial.values) for trial in study.best_trials}
    assert theirs == set(map(tuple, archive.front().costs))


def test_nsga2_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install 'octo-exp\[search\]'"):
        searched(tmp_path, "search.method=nsga2")


def test_a_long_front_is_shown_from_end_to_end():
    assert dse_report._spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert dse_report._spread([5], 4) == [5]


def test_the_path_of_the_config_folder_is_right():
    assert Path(dse.CONF) == CONF
