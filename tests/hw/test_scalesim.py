import csv
import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import DATAFLOWS, training_step_cost
from octo_exp.hw.scalesim import read_config, read_topology, reports, simulate, write_config
from octo_exp.hw.scalesim.__main__ import main
from octo_exp.workload import Workload
from tests.hw.helpers import GOLDEN
from tests.hw.scalesim_helpers import config_text, gemm, machine, write
from tests.refusals import assert_names

ROOT = Path(__file__).resolve().parent.parent.parent
REPORTS = ("COMPUTE_REPORT.csv", "BANDWIDTH_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")


def rows_of(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file, skipinitialspace=True)
    return header, rows


def check_equal_reports(ours, theirs):
    for name in REPORTS:
        assert (ours / name).read_text().splitlines()[0] == (theirs / name).read_text().splitlines()[0]
        (header, mine), (_, expected) = rows_of(ours / name), rows_of(theirs / name)
        assert len(mine) == len(expected)
        for row, wanted in zip(mine, expected, strict=True):
            for column, cell, value in zip(header, row, wanted, strict=True):
                if cell != value:
                    assert float(cell) == pytest.approx(float(value), rel=1e-12), (name, wanted[0], column)


@functools.cache
def golden_layers(topology):
    kind = "gemm" if topology.endswith("_gemm") else "conv"
    return read_topology(GOLDEN / f"{topology}.csv", kind)


@functools.cache
def golden_run(topology, rows, cols, dataflow, folder):
    run = simulate(
        golden_layers(topology),
        machine(folder, ArrayHeight=rows, ArrayWidth=cols, Dataflow=dataflow),
    )
    texts = {
        name: list(csv.DictReader(text.splitlines(), skipinitialspace=True)) for name, text in reports(run).items()
    }
    names = [gemm.layer for gemm in run.gemms]
    return {name: (run, i, {report: rows[i] for report, rows in texts.items()}) for i, name in enumerate(names)}


def golden_rows():
    with (GOLDEN / "goldens.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_golden_row_through_the_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    rows, exact_dram = golden_rows(), 0
    assert len(rows) == 720
    for row in rows:
        layers = golden_run(row["topology"], row["rows"], row["cols"], row["dataflow"], folder)
        run, index, report = layers[row["layer"]]
        gemm = run.gemms[index]
        assert (gemm.m, gemm.n, gemm.k) == tuple(int(row[name]) for name in "MNK")
        compute, detailed = report["COMPUTE_REPORT.csv"], report["DETAILED_ACCESS_REPORT.csv"]
        assert (compute["Total Cycles"], compute["Stall Cycles"]) == (row["total_cycles"], "0")
        for column, golden in (
            ("Overall Util %", "overall_util_pct"),
            ("Mapping Efficiency %", "mapping_eff_pct"),
            ("Compute Util %", "compute_util_pct"),
        ):
            assert float(compute[column]) == pytest.approx(float(row[golden]), rel=1e-6)
        for (column, golden), operand in zip(
            (("IFMAP Reads", "ifmap_reads"), ("Filter Reads", "filter_reads"), ("OFMAP Writes", "ofmap_writes")),
            run.operands,
            strict=True,
        ):
            assert detailed[f"SRAM {column}"] == row[f"sram_{golden}"]
            if operand.fits[index]:
                assert detailed[f"DRAM {column}"] == row[f"dram_{golden}"]
                exact_dram += 1
    assert exact_dram > 1900


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_every_report_equals_scalesim_on_odd_layers(tmp_path, dataflow):
    config = write(tmp_path / "machine.cfg", config_text(Dataflow=dataflow))
    assert main(["-c", str(config), "-t", str(GOLDEN / "odd.csv"), "-p", str(tmp_path)]) == 0
    check_equal_reports(tmp_path / "run", GOLDEN / f"odd_8x5_{dataflow}")


# The command line


def command(*arguments, module="octo_exp.hw.scalesim"):
    words = [sys.executable, "-m", module, *(str(word) for word in arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_line_from_end_to_end(tmp_path):
    config = write(tmp_path / "machine.cfg", config_text("side", ArrayHeight=32, ArrayWidth=32))
    done = command(
        "-c", config, "-t", GOLDEN / "vgg11_cifar_padded.csv", "-p", tmp_path / "new" / "out", "-s", "N", "-l", "x"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["layer", "M", "N", "K"]
    assert lines[1].split() == ["Conv1", "1024", "64", "27", "5695", "0", "30.34", "100.00"]
    assert lines[10].split() == ["total", "345973", "0"]
    assert lines[11].startswith("filter exceeds half its memory, DRAM columns are approximate: Conv2, Conv3,")
    assert lines[12:14] == [
        "ofmap exceeds half its memory, DRAM columns are approximate: Conv1",
        "not read: x, for custom layouts are off",
    ]
    assert sorted(path.name for path in (tmp_path / "new" / "out" / "side").iterdir()) == sorted(REPORTS)


def test_what_does_not_fit_is_left_empty(tmp_path):
    profile = machine(tmp_path, IfmapSramSzkB=1, FilterSramSzkB=1, OfmapSramSzkB=1)
    # 500 elements are not fewer than 50 * floor(1024 / 100); 512 words are all that half of a kB holds.
    shapes = {"a500": (20, 10, 25), "a499": (499, 1, 1), "b500": (10, 20, 25), "o512": (32, 16, 3), "o513": (27, 19, 3)}
    run = simulate([gemm(layer=name, m=m, n=n, k=k) for name, (m, n, k) in shapes.items()], profile)
    assert [operand.fits.tolist() for operand in run.operands] == [
        [False, True, True, True, True],
        [True, True, False, True, True],
        [True, True, True, True, False],
    ]
    texts = reports(run)
    first = next(csv.DictReader(texts["DETAILED_ACCESS_REPORT.csv"].splitlines(), skipinitialspace=True))
    assert [first[f"DRAM IFMAP {name}"] for name in ("Start Cycle", "Stop Cycle", "Reads")] == ["", "", "500"]
    assert first["DRAM Filter Stop Cycle"] == "-1.0"
    first = next(csv.DictReader(texts["BANDWIDTH_REPORT.csv"].splitlines(), skipinitialspace=True))
    assert float(first["Avg IFMAP DRAM BW"]) == 500 / int(run.cost.cycles[0])


def test_a_given_bandwidth_stalls_by_this_projects_own_model(tmp_path, capsys):
    gemms = read_topology(GOLDEN / "lenet5.csv", "conv")
    totals = []
    for bandwidth in (1, 10, 10**9):
        path = write(tmp_path / "user.cfg", config_text(mode="USER", Bandwidth=bandwidth))
        config = read_config(path)
        workload = Workload(gemms=gemms, batch_size=1, grad_input_form="col2im")
        stalls = [row.stall_cycles for row in training_step_cost(workload, config.profile, convention="exact").rows]
        run = simulate(gemms, config.profile, config.interface_bandwidth)
        assert run.stalls.tolist() == stalls
        rows = list(csv.DictReader(reports(run)["COMPUTE_REPORT.csv"].splitlines(), skipinitialspace=True))
        assert [int(row["Stall Cycles"]) for row in rows] == stalls
        assert [int(row["Total Cycles"]) for row in rows] == (run.cost.cycles + stalls).tolist()
        for row, layer in zip(rows, gemms, strict=True):
            pes = config.profile.processing_elements
            assert float(row["Overall Util %"]) == pytest.approx(100 * layer.macs / int(row["Total Cycles"]) / pes)
        totals.append(sum(stalls))
    assert totals[0] > totals[1] > totals[2] > 0
    assert main(["-c", str(path), "-t", str(GOLDEN / "lenet5.csv"), "-p", str(tmp_path)]) == 0
    assert "stalls are those of octo_exp.hw.traffic, not SCALE-Sim's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"-c": "missing.cfg"}, "cannot read missing.cfg: No such file or directory"),
        ({"-t": "missing.csv"}, "cannot read missing.csv: No such file or directory"),
        ({"-c": "huge.cfg"}, "huge.cfg:5: ArrayHeight must be at most 65536, got 1048576"),
        ({"-i": "gemm"}, "lenet5.csv:2: 8 fields ... -i conv"),
        ({"-s": "Y"}, "-s Y: traces are not written"),
        ({"-t": "binary.csv"}, "cannot read binary.csv: it is not a text file"),
        ({"-p": "machine.cfg"}, "machine.cfg/run/COMPUTE_REPORT.csv cannot be written: "),
    ],
)
def test_a_mistake_is_one_line_and_no_report(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "machine.cfg", config_text())
    write(tmp_path / "huge.cfg", config_text(ArrayHeight=2**20))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.rglob("*"))
    given = {"-c": "machine.cfg", "-t": str(GOLDEN / "lenet5.csv"), "-p": "out"} | change
    assert main([word for pair in given.items() for word in pair]) == UserError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert_names(err, message)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_that_cannot_be_written_leaves_no_draft(tmp_path, capsys):
    config = write(tmp_path / "machine.cfg", config_text())
    (tmp_path / "run" / "DETAILED_ACCESS_REPORT.csv").mkdir(parents=True)
    assert main(["-c", str(config), "-t", str(GOLDEN / "lenet5.csv"), "-p", str(tmp_path)]) == 2
    assert "DETAILED_ACCESS_REPORT.csv" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.optional
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("side", [8, 16])
def test_every_report_equals_the_real_scalesim(tmp_path, side, dataflow):
    pytest.importorskip("scalesim", reason="needs SCALE-Sim: pip install scalesim==2.0.2")
    if importlib.metadata.version("scalesim") != "2.0.2":
        pytest.skip("the reports of version 3 have another form: pip install scalesim==2.0.2")
    # 128 kB hold every filter of LeNet-5, so that every column is claimed.
    profile = machine(tmp_path, ArrayHeight=side, ArrayWidth=side, Dataflow=dataflow, FilterSramSzkB=128)
    write_config(profile, tmp_path / "written.cfg")
    for module in ("octo_exp.hw.scalesim", "scalesim.scale"):
        folder = tmp_path / module
        folder.mkdir()
        done = command("-c", tmp_path / "written.cfg", "-t", GOLDEN / "lenet5.csv", "-p", folder, module=module)
        assert done.returncode == 0, done.stderr
    check_equal_reports(tmp_path / "octo_exp.hw.scalesim" / "run", tmp_path / "scalesim.scale" / "run")
