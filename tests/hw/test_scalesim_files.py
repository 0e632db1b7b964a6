from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import HardwareProfile
from octo_exp.hw.scalesim import read_config, read_topology, write_config, write_topology
from tests.hw.scalesim_helpers import HEADER, config_text, gemm, machine, step, write
from tests.refusals import assert_names

# Topologies


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


def test_a_depthwise_layer_is_one_product_for_each_channel(tmp_path):
    gemms = read_topology(
        write(tmp_path / "t.csv", f"{HEADER}DPw,6,6,3,3,3,2,1,\nfc,1,1,1,1,9,4,1, # last\n\n"), "conv"
    )
    assert [(gemm.layer, gemm.count) for gemm in gemms] == [("DPw", 3), ("fc", 1)]
    assert (gemms[0].m, gemms[0].n, gemms[0].k, gemms[0].elements_a) == (16, 2, 9, 36)
    assert {(gemm.role, gemm.bits_a, gemm.bits_b, gemm.bits_out) for gemm in gemms} == {("output", 8, 8, 8)}


# How SCALE-Sim 2.0.2 or 3.0.0 reads a row, tried with both.
@pytest.mark.parametrize(
    ("kind", "rows", "wanted"),
    [
        ("conv", "a,8,8,3,3,1,4,1,\na,8,8,3,3,1,4,1,\n", [("a", 36, 4, 9)] * 2),
        ("gemm", "a,8,9,3,\na,8,9,3,\n", [("a", 8, 9, 3)] * 2),
        ("conv", "a,8,8,3,3,1,4,1,1:1,\n", [("a", 36, 4, 9)]),
        ("conv", "a,8,8,3,3,1,4,1, 4 : 4 ,\n", [("a", 36, 4, 9)]),
        ("gemm", "a,8,9,3,1:1,\n", [("a", 8, 9, 3)]),
        ("gemm", "a,8,9,3,,\nb,8,9,3,\t,,\n", [("a", 8, 9, 3), ("b", 8, 9, 3)]),
        ("conv", "\ta,\t8,8\t,3,3,1,4,1,\t\n\t\n", [("a", 36, 4, 9)]),
        ("conv", "a;b,8,8,3,3,1,4,1,\n", [("a;b", 36, 4, 9)]),
    ],
)
def test_a_row_is_read_as_scalesim_reads_it(tmp_path, kind, rows, wanted):
    gemms = read_topology(write(tmp_path / "t.csv", f"header,\n{rows}"), kind)
    assert [(gemm.layer, gemm.m, gemm.n, gemm.k) for gemm in gemms] == wanted


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
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,\n,,,,,,,,\n", "t.csv:3: the row has no cell with a value, at which SCALE-"),
        (
            "conv",
            f"{HEADER} , ,\t,\n",
            "t.csv:2: the row has no cell with a value, at which SCALE-Sim stops: delete it",
        ),
        (
            "conv",
            f"{HEADER}a,8,8,3,3,1,4,1,,\n",
            "t.csv:2: the row's last cell is empty, at which SCALE-Sim stops: del",
        ),
        ("conv", f"{HEADER}a\t8\t8\t3\t3\t1\t4\t1\n", "t.csv:2: the cells are parted by tabs, SCALE-Sim parts them by"),
        ("gemm", "Layer;M;N;K;\na;8;8;3;\n", "t.csv:2: the cells are parted by semicolons, SCALE-Sim parts them by co"),
        ("conv", f"{HEADER}a,8,8,3,3,1,4,1,2,1:1,\n", "t.csv:2: SCALE-Sim reads one stride beside a sparsity"),
        ("gemm", "Layer,M,N,K,\na,8,8,3,2:4,\n", "t.csv:2: sparsity is not modelled, got '2:4': write 1:1"),
        ("gemm", f"Layer,M,N,K,\na,8,8,{'9' * 5000},\n", "t.csv:2: layer 'a': a number of 5000 digits is no size of"),
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
    assert_names(caught.value, message)


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
        (config_text(ArrayHeight="8.5"), "c.cfg:5: ArrayHeight ... a whole number ... got '8.5'"),
        (config_text(IfmapSramSzkB="9" * 400), "c.cfg:7: IfmapSramSzkB must be at most 1099511627776, got 9999999"),
        (config_text(IfmapSramSzkB="9" * 5000), "c.cfg:7: IfmapSramSzkB must be at most 1099511627776, got 9999999"),
        (config_text(ArrayHeight="65537"), "c.cfg:5: ArrayHeight must be at most 65536, got 65537"),
        (config_text(Bandwidth="1e-300"), "c.cfg:10: Bandwidth must lie in 1e-09..1e+09 words a cycle, got '1e-300'"),
        (config_text(Bandwidth="inf"), "c.cfg:10: Bandwidth must lie in 1e-09..1e+09 words a cycle, got 'inf'"),
        (config_text(IfmapSramSzkB="0"), "c.cfg:7: IfmapSramSzkB ... got '0'"),
        (config_text(Bandwidth="fast"), "c.cfg:10: Bandwidth must be a number of words a cycle"),
        (config_text(Bandwidth="-1"), "c.cfg:10: Bandwidth must be a number of words a cycle"),
        (config_text(Dataflow="rs"), "c.cfg:11: Dataflow must be one of os, ws, is, got 'rs'"),
        (config_text(mode="calc"), "InterfaceBandwidth must be one of CALC, USER, got 'calc'"),
        (config_text(run_name="a/b"), "c.cfg:2: run_name ... letters"),
        (config_text(run_name=".."), "c.cfg:2: run_name ... letters"),
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
    assert_names(caught.value, message)


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
