import csv
import functools
import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.errors import UserError
from octo_exp.hw import DATAFLOWS, Gemm, HardwareProfile, Workload, training_step_cost
from octo_exp.hw.scalesim import (
    read_config,
    read_topology,
    reports,
    simulate,
    write_config,
    write_topology,
)
from octo_exp.hw.scalesim.__main__ import main

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "scalesim"
REPORTS = ("COMPUTE_REPORT.csv", "BANDWIDTH_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
ARCHITECTURE = {
    "ArrayHeight": 8,
    "ArrayWidth": 5,
    "IfmapSramSzkB": 64,
    "FilterSramSzkB": 64,
    "OfmapSramSzkB": 64,
    "Bandwidth": 10,
    "Dataflow": "os",
}
HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"
# The reads of a window that hangs over the edge are skipped by SCALE-Sim: its one column that is not ours.
HANGING = {("DETAILED_ACCESS_REPORT.csv", "SRAM IFMAP Stop Cycle", layer) for layer in ("1", "3")}


def config_text(run_name="run", mode="CALC", extra="", **change):
    keys = "".join(f"{key}: {value}\n" for key, value in (ARCHITECTURE | change).items() if value is not None)
    offsets = "IfmapOffset: 0\nFilterOffset: 10000000\nOfmapOffset: 20000000\n"
    sections = f"[architecture_presets]\n{keys}{offsets}\n{extra}\n[run_presets]\nInterfaceBandwidth: {mode}\n"
    return f"[general]\nrun_name = {run_name}\n\n{sections}"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def machine(tmp_path, **change):
    return read_config(write(tmp_path / "machine.cfg", config_text(**change))).profile


def rows_of(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file, skipinitialspace=True)
    return header, rows


def check_equal_reports(ours, theirs, *, unlike=frozenset()):
    for name in REPORTS:
        assert (ours / name).read_text().splitlines()[0] == (theirs / name).read_text().splitlines()[0]
        (header, mine), (_, expected) = rows_of(ours / name), rows_of(theirs / name)
        assert len(mine) == len(expected)
        for row, wanted in zip(mine, expected, strict=True):
            for column, cell, value in zip(header, row, wanted, strict=True):
                if (name, column, wanted[0]) not in unlike and cell != value:
                    assert float(cell) == pytest.approx(float(value), rel=1e-12), (name, wanted[0], column)


# Topologies


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
    check_equal_reports(tmp_path / "run", GOLDEN / f"odd_8x5_{dataflow}", unlike=HANGING)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_touched_elements_are_counted(tmp_path_factory, ifmap, window, strides):
    window = tuple(min(size, extent) for size, extent in zip(window, ifmap, strict=True))
    shape = ",".join(str(value) for value in (*ifmap, *window, 3, 2, *strides))
    path = write(tmp_path_factory.getbasetemp() / "touched.csv", f"{HEADER}a,{shape},\n")
    (gemm,) = read_topology(path, "conv")
    axes = []
    for extent, size, stride in zip(ifmap, window, strides, strict=True):
        starts = range(0, extent - size + stride, stride)
        axes.append((len(starts), len({i for start in starts for i in range(start, start + size) if i < extent})))
    assert gemm.elements_a == axes[0][1] * axes[1][1] * 3
    assert (gemm.m, gemm.n, gemm.k) == (axes[0][0] * axes[1][0], 2, window[0] * window[1] * 3)


def test_a_depthwise_layer_is_one_layer_a_channel(tmp_path):
    gemms = read_topology(
        write(tmp_path / "t.csv", f"{HEADER}DPw,6,6,3,3,3,2,1,\nfc,1,1,1,1,9,4,1, # last\n\n"), "conv"
    )
    assert [gemm.layer for gemm in gemms] == ["DPwChannel_0", "DPwChannel_1", "DPwChannel_2", "fc"]
    assert {(gemm.m, gemm.n, gemm.k, gemm.elements_a) for gemm in gemms[:3]} == {(16, 2, 9, 36)}
    assert {(gemm.role, gemm.count, gemm.bits_a, gemm.bits_b, gemm.bits_out) for gemm in gemms} == {
        ("output", 1, 8, 8, 8)
    }


def step(*gemms):
    return Workload(gemms=gemms, batch_size=4, grad_input_form="col2im")


def gemm(**change):
    good = {"layer": "conv", "role": "output", "m": 63, "n": 16, "k": 65, "count": 1, "bits_a": 8, "bits_b": 8}
    return Gemm(**(good | change))


def test_a_workload_survives_its_topology(tmp_path):
    workload = step(gemm(), gemm(role="grad_weight", m=7, count=2), gemm(layer="net.fc", n=1))
    write_topology(workload, tmp_path / "new" / "step.csv")
    read = read_topology(tmp_path / "new" / "step.csv", "gemm")
    names = ["conv_output", "conv_grad_weight_0", "conv_grad_weight_1", "net.fc_output"]
    assert [layer.layer for layer in read] == names
    assert [(layer.m, layer.n, layer.k) for layer in read] == [(63, 16, 65), (7, 16, 65), (7, 16, 65), (63, 1, 65)]
    assert sum(layer.macs for layer in read) == workload.macs


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("conv", "", "no layer"),
        ("conv", HEADER, "no layer"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,\n", "t.csv:2: the row is too short, it has 7 fields"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,1,5,\n", "t.csv:2: the row is too long, it has 10 fields"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1\n", "t.csv:2: SCALE-Sim drops what follows a row's last comma, here '1'"),
        ("conv", f"{HEADER}\na,8,8,3,3,x,4,1,\n", "t.csv:3: layer 'a': 'x' must be a whole number"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,0,\n", "t.csv:2: layer 'a': '0' must be a whole number"),
        ("conv", f"{HEADER}a,8,8,9,3,1,4,1,\n", "t.csv:2: layer 'a': a filter of 9x3 is larger than its ifmap of 8x8"),
        ("conv", f"{HEADER}a,8,8,3,9,1,4,1,\n", "t.csv:2: layer 'a': a filter of 3x9 is larger than its ifmap of 8x8"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,\n" * 2, "t.csv:3: layer 'Layer name': 'IFMAP Height' must be"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,\na,8,8,3,3,1,4,1,\n", "t.csv:3: layer 'a' is there twice"),
        ("conv", f"{HEADER},8,8,3,3,1,4,1,\n", "t.csv:2: the layer has no name"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,2:4,\n", "t.csv:2: sparsity is not modelled, got '2:4'"),
        ("conv", "a,8,8,3,3,1,4,1,\n", "t.csv:1: the first line is skipped as a header"),
        ("conv", "Layer,M,N,K,\na,8,8,3,\n", "t.csv:2: 4 fields are a row of kind gemm: choose -i gemm"),
        ("gemm", f"{HEADER}a,8,8,3,3,1,4,1,\n", "t.csv:2: 8 fields are a row of kind conv: choose -i conv"),
        ("gemm", "Layer,M,N,K,\na,8,8,\n", "t.csv:2: the row is too short, it has 3 fields"),
        ("gemm", "Layer,M,N,K,\na,8,8,3,5,\n", "t.csv:2: the row is too long, it has 5 fields"),
        ("gemm", "Layer,M,N,K\na,8,8,3\n", "t.csv:2: SCALE-Sim drops what follows a row's last comma, here '3'"),
        ("gemm", "Layer,M,N,K,\na,8,8,1.5,\n", "t.csv:2: layer 'a': '1.5' must be a whole number"),
        ("rnn", "Layer,M,N,K,\na,8,8,1,\n", "unknown kind of topology 'rnn'"),
    ],
)
def test_a_wrong_topology_is_one_line(tmp_path, kind, text, message):
    with pytest.raises(UserError) as caught:
        read_topology(write(tmp_path / "t.csv", text), kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gemms", "message"),
    [
        ((), "no GEMM"),
        ((gemm(), gemm()), "cannot be a row"),
        ((gemm(layer="a,b"),), "cannot be a row"),
        ((gemm(count=2), gemm(layer="conv_output_0", role="output"), gemm(layer="conv", count=2)), "cannot be a row"),
    ],
)
def test_a_workload_that_no_topology_holds_is_refused(tmp_path, gemms, message):
    with pytest.raises(UserError, match=message):
        write_topology(step(*gemms), tmp_path / "step.csv")
    assert not list(tmp_path.iterdir())


# Configurations


def test_a_config_of_version_2_is_a_profile(tmp_path):
    config = read_config(write(tmp_path / "google.cfg", config_text("tpu_v1-ws", Dataflow="ws", Bandwidth="20,10,10")))
    profile = config.profile
    assert (config.run_name, config.interface_bandwidth) == ("tpu_v1-ws", "CALC")
    assert (profile.name, profile.rows, profile.cols, profile.dataflow) == ("tpu_v1-ws", 8, 5, "ws")
    assert (profile.sram_ifmap_kib, profile.sram_filter_kib, profile.sram_ofmap_kib) == (64, 64, 64)
    assert (profile.dram_bytes_per_cycle, profile.frequency_mhz, profile.vector_lanes) == (20, 1000, None)
    assert profile.sources["frequency_mhz"] == {"source": "assumed: SCALE-Sim's config has none", "status": "assumed"}
    assert profile.sources["rows"]["status"] == "verified"


def test_a_config_of_version_3_is_read(tmp_path):
    extra = (
        "ReadRequestBuffer: 32\n[layout]\nIfmapCustomLayout: False\nFilterCustomLayout = false\n"
        "[sparsity]\nSparsitySupport : false\nSparseRep : ellpack_block\n"
    )
    config = read_config(write(tmp_path / "v3.cfg", config_text(mode="USER", extra=extra)))
    assert config.interface_bandwidth == "USER"


def machine_as_read(config, profile):
    """The profile that was read, with what a config does not hold as it was in `profile`."""
    lost = ("frequency_mhz", "vector_lanes", "bf16_macs_per_pe_cycle", "fp32_macs_per_pe_cycle", "quoted_tops")
    return replace(
        config.profile, sources=profile.sources, notes=profile.notes, **{name: getattr(profile, name) for name in lost}
    )


@pytest.mark.parametrize("bandwidth", [10.0, 75.3, 1e-07])
def test_a_profile_survives_its_config(tmp_path, bandwidth):
    numbers = {"rows": 7, "cols": 63, "dataflow": "is", "frequency_mhz": 200.0, "vector_lanes": 16}
    numbers |= {"sram_ifmap_kib": 1, "sram_filter_kib": 64.0, "sram_ofmap_kib": 65, "dram_bytes_per_cycle": bandwidth}
    sources = {name: {"source": "test", "status": "assumed"} for name in numbers}
    none = {"bf16_macs_per_pe_cycle": None, "fp32_macs_per_pe_cycle": None, "quoted_tops": None}
    profile = HardwareProfile(name="x-1", sources=sources, notes="n", **none, **numbers)
    write_config(profile, tmp_path / "x.cfg")
    config = read_config(tmp_path / "x.cfg")
    assert config.interface_bandwidth == "CALC"
    assert machine_as_read(config, profile) == profile
    assert "Bandwidth: 10.0" not in (tmp_path / "x.cfg").read_text()
    again = tmp_path / "again.cfg"
    write_config(config.profile, again)
    assert again.read_text() == (tmp_path / "x.cfg").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "section [architecture_presets] is missing"),
        ("[general]\nrun_name = x\n", "section [architecture_presets] is missing"),
        (config_text(ArrayWidth=None), "key ArrayWidth is missing: add it to section [architecture_presets]"),
        (config_text(Bandwidth=None), "key Bandwidth is missing"),
        (config_text(ArrayHeight="8.5"), "c.cfg:5: ArrayHeight must be a whole number greater than zero, got '8.5'"),
        (config_text(IfmapSramSzkB="0"), "c.cfg:7: IfmapSramSzkB must be a whole number greater than zero"),
        (config_text(Bandwidth="fast"), "c.cfg:10: Bandwidth must be a number of words a cycle"),
        (config_text(Bandwidth="-1"), "c.cfg:10: Bandwidth must be a number of words a cycle"),
        (config_text(Dataflow="rs"), "c.cfg:11: Dataflow must be one of os, ws, is, got 'rs'"),
        (config_text(mode="calc"), "InterfaceBandwidth must be one of CALC, USER, got 'calc'"),
        (config_text(run_name="a/b"), "c.cfg:2: run_name must be made of letters"),
        (config_text(run_name=".."), "c.cfg:2: run_name must be made of letters"),
        (config_text(extra="[sparsity]\nSparsitySupport : true"), "SparsitySupport is not modelled, got 'true'"),
        (config_text(extra="IfmapCustomLayout: True"), "c.cfg:16: IfmapCustomLayout is not modelled"),
        (config_text(extra="UseRamulatorTrace: True"), "UseRamulatorTrace is not modelled"),
        (config_text(extra="ArrayHeight: 9"), "c.cfg:16: not a config"),
        (config_text(extra="what is this"), "c.cfg:16: not a config"),
        ("ArrayHeight: 9\n", "c.cfg:1: not a config"),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path / "c.cfg", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_that_no_config_holds_is_refused(tmp_path):
    profile = machine(tmp_path / "read")
    for change, mode, message in (
        ({"dataflow": "per_gemm"}, "CALC", "one dataflow"),
        ({"sram_ofmap_kib": 0.5}, "CALC", "sram_ofmap_kib=0.5"),
        ({"dram_bytes_per_cycle": 75.3}, "USER", "dram_bytes_per_cycle=75.3"),
        ({}, "calc", "must be one of CALC, USER, got 'calc'"),
    ):
        with pytest.raises(UserError, match=message):
            write_config(replace(profile, **change), tmp_path / "x.cfg", interface_bandwidth=mode)
    assert not (tmp_path / "x.cfg").exists()


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
        for row, gemm in zip(rows, gemms, strict=True):
            pes = config.profile.processing_elements
            assert float(row["Overall Util %"]) == pytest.approx(100 * gemm.macs / int(row["Total Cycles"]) / pes)
        totals.append(sum(stalls))
    assert totals[0] > totals[1] > totals[2] > 0
    assert main(["-c", str(path), "-t", str(GOLDEN / "lenet5.csv"), "-p", str(tmp_path)]) == 0
    assert "stalls are those of octo_exp.hw.traffic, not SCALE-Sim's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"-c": "missing.cfg"}, "cannot read missing.cfg: No such file or directory"),
        ({"-t": "missing.csv"}, "cannot read missing.csv: No such file or directory"),
        ({"-c": "huge.cfg"}, "rows must lie in 1..65536"),
        ({"-i": "gemm"}, "8 fields are a row of kind conv"),
        ({"-s": "Y"}, "-s Y: traces are not written"),
        ({"-t": "binary.csv"}, "cannot read binary.csv: it is not a text file"),
        ({"-p": "machine.cfg"}, "cannot write machine.cfg/run/COMPUTE_REPORT.csv"),
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
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_that_cannot_be_written_leaves_no_draft(tmp_path, capsys):
    config = write(tmp_path / "machine.cfg", config_text())
    (tmp_path / "run" / "DETAILED_ACCESS_REPORT.csv").mkdir(parents=True)
    assert main(["-c", str(config), "-t", str(GOLDEN / "lenet5.csv"), "-p", str(tmp_path)]) == 1
    assert "DETAILED_ACCESS_REPORT.csv" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))


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
