"""A search of machines from its config to its files."""

import json

import pytest

from octo_exp.base.errors import ConfigError
from octo_exp.cli.dse import outcome as dse_report
from octo_exp.cli.dse import search as dse
from octo_exp.workload import ROLES
from tests.refusals import assert_names
from tests.sweeps.dse_helpers import BASE, SMALL, composed, rows, searched


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["search.method=annealing"],
            "unknown search.method 'annealing': choose one of exhaustive, genetic, random, nsga2",
        ),
        (["constraints.processing_elements=257"], "none of the space's 768 designs has"),
        (["objectives=[latency]"], "unknown objective 'latency'"),
        (["search.budget=9"], "search.budget=9 ... 768 points"),
        (["search.method=genetic", "search.budget=0"], "search.budget ... got 0"),
        (["search.method=genetic", "search.seed=-1"], "search.seed must not be negative, got -1"),
        (["hw=[gemmini,tpu_v1]"], "hw names gemmini, tpu_v1: a search varies one machine, write hw=<option>"),
        (["roles=[forward]"], "unknown role 'forward' in roles: choose among output, grad_input, grad_weight"),
        (["roles=[]"], "roles ... output, grad_input, grad_weight"),
        (["top=0"], "top ... at least 1, got 0"),
        (["~energy", "objectives=[energy]"], "objective 'energy' ... energy="),
        (["convention=fast"], "unknown cycle convention 'fast'"),
        (["convention=scalesim", "objectives=[energy]"], "objective 'energy': the convention scalesim"),
        (["convention=scalesim", "objectives=[total_cycles]"], "objective 'total_cycles': the convention scalesim"),
        (
            [f"hw.{BASE}.vector_lanes=null", f"~hw.{BASE}.sources.vector_lanes", "objectives=[total_cycles]"],
            f"objective 'total_cycles': hardware profile '{BASE}' has no vector unit",
        ),
        (["hw.systolic_32x32.rows=0"], "systolic_32x32 ... rows ... got 0"),
        (
            ["hw=gemmini", "quant=fp32", "hw.gemmini.vector_lanes=null", "~hw.gemmini.sources.vector_lanes"],
            "'gemmini' multiplies no fp32",
        ),
        (["grad_input_form=x"], "grad_input_form ... col2im, im2col"),
        (["data.batch_size=0"], "data.batch_size=0"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(overrides, line, tmp_path):
    with pytest.raises(ConfigError) as caught:
        searched(tmp_path, *overrides)
    assert_names(caught.value, line)
    assert caught.value.exit_code == 2


def test_no_constraints_at_all_limit_nothing(tmp_path):
    space = dse.build_problem(composed(tmp_path, SMALL, "constraints=null")).space
    assert (len(space), space.limits) == (3 * 16 * 16, {})


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


def test_a_long_front_is_shown_from_end_to_end():
    assert dse_report._spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert dse_report._spread([5], 4) == [5]
