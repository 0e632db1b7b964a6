import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.errors import UserError
from octo_exp.hw import CONVENTIONS, DATAFLOWS, gemm_cost, gemm_cycles

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "scalesim"
EXTENT = st.integers(1, 5000)
SIDE = st.integers(1, 256)


def golden(column: str, dtype: type = np.int64) -> np.ndarray:
    with (GOLDEN / "goldens.csv").open(newline="") as file:
        return np.array([row[column] for row in csv.DictReader(file)]).astype(dtype)


def golden_cost(convention: str):
    m, n, k, rows, cols = (golden(name) for name in ("M", "N", "K", "rows", "cols"))
    return gemm_cost(m, n, k, rows=rows, cols=cols, dataflow=golden("dataflow", str), convention=convention)


def test_golden_file_is_whole():
    assert golden("total_cycles").size == 720
    assert set(golden("dataflow", str)) == set(DATAFLOWS)
    assert not golden("stall_cycles").any()


def test_cycles_equal_scalesim_on_every_golden_row():
    np.testing.assert_array_equal(golden_cost("scalesim").cycles, golden("total_cycles"))


def test_true_cycles_are_one_more_per_gemm():
    np.testing.assert_array_equal(golden_cost("true").cycles, golden("total_cycles") + 1)


def test_scalar_and_array_calls_agree():
    m, n, k, rows, cols = (golden(name).tolist() for name in ("M", "N", "K", "rows", "cols"))
    dataflow = golden("dataflow", str).tolist()
    one_by_one = [
        int(gemm_cycles(m[i], n[i], k[i], rows=rows[i], cols=cols[i], dataflow=dataflow[i], convention="scalesim"))
        for i in range(0, 720, 7)
    ]
    assert one_by_one == golden("total_cycles")[::7].tolist()


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("overall_utilization", "overall_util_pct"),
        ("mapping_utilization", "mapping_eff_pct"),
        ("compute_utilization", "compute_util_pct"),
    ],
)
def test_utilization_equals_scalesim(field, column):
    np.testing.assert_allclose(100 * getattr(golden_cost("scalesim"), field), golden(column, float), rtol=1e-6)


@pytest.mark.parametrize("field", ["sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_writes"])
def test_sram_words_equal_scalesim(field):
    np.testing.assert_array_equal(getattr(golden_cost("scalesim"), field), golden(field))


def test_true_convention_writes_each_os_result_once_and_changes_no_other_sram_count():
    upstream, true = golden_cost("scalesim"), golden_cost("true")
    stationary = golden("dataflow", str) == "os"
    results = golden("M") * golden("N")
    np.testing.assert_array_equal(true.sram_ofmap_writes[stationary], results[stationary])
    np.testing.assert_array_equal(true.sram_ofmap_writes[~stationary], upstream.sram_ofmap_writes[~stationary])
    np.testing.assert_array_equal(true.sram_ifmap_reads, upstream.sram_ifmap_reads)
    np.testing.assert_array_equal(true.sram_filter_reads, upstream.sram_filter_reads)


def test_true_compute_utilization_is_the_overall_one():
    cost = golden_cost("true")
    np.testing.assert_allclose(cost.compute_utilization, cost.overall_utilization, rtol=1e-12)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, convention=st.sampled_from(CONVENTIONS))
def test_os_does_not_change_when_product_and_array_are_transposed(m, n, k, rows, cols, convention):
    straight = gemm_cycles(m, n, k, rows=rows, cols=cols, dataflow="os", convention=convention)
    turned = gemm_cycles(n, m, k, rows=cols, cols=rows, dataflow="os", convention=convention)
    assert int(straight) == int(turned)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, convention=st.sampled_from(CONVENTIONS))
def test_input_stationary_is_weight_stationary_of_the_transposed_product(m, n, k, rows, cols, convention):
    held_input = gemm_cycles(m, n, k, rows=rows, cols=cols, dataflow="is", convention=convention)
    held_weight = gemm_cycles(n, m, k, rows=rows, cols=cols, dataflow="ws", convention=convention)
    assert int(held_input) == int(held_weight)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, dataflow=st.sampled_from(DATAFLOWS))
def test_no_array_does_more_macs_than_it_has_elements(m, n, k, rows, cols, dataflow):
    cost = gemm_cost(m, n, k, rows=rows, cols=cols, dataflow=dataflow, convention="true")
    assert int(cost.cycles) * rows * cols >= m * n * k
    assert 0 < float(cost.overall_utilization) <= float(cost.mapping_utilization) <= 1


def test_extents_arrays_and_dataflows_broadcast():
    m = np.array([784, 100, 1])
    rows = np.array([8, 16])[:, None]
    dataflow = np.array(DATAFLOWS)[:, None, None]
    cost = gemm_cost(m, 16, 150, rows=rows, cols=8, dataflow=dataflow, convention="true")
    assert cost.cycles.shape == cost.overall_utilization.shape == cost.sram_ofmap_writes.shape == (3, 2, 3)
    one = gemm_cycles(100, 16, 150, rows=16, cols=8, dataflow="ws", convention="true")
    assert cost.cycles[1, 1, 1] == one


def test_one_mac_on_one_element_is_full_use_in_both_conventions():
    for convention, cycles in (("scalesim", 0), ("true", 1)):
        cost = gemm_cost(1, 1, 1, rows=1, cols=1, dataflow="os", convention=convention)
        assert (int(cost.cycles), float(cost.overall_utilization)) == (cycles, 1.0)


def test_a_step_of_a_large_network_does_not_wrap():
    m, n, k = 2**24, 2**14, 2**14
    lines = k + 16 + 16 - 2
    cycles = gemm_cycles(m, n, k, rows=16, cols=16, dataflow="os", convention="true")
    assert int(cycles) == (m // 16) * (n // 16) * lines > 2**42


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, "m must lie in 1.."),
        ({"k": 2.0}, "k must be a whole number"),
        ({"rows": -8}, "rows must lie in 1.."),
        ({"cols": 2**20}, "cols must lie in 1.."),
        ({"dataflow": "rs"}, "unknown dataflow 'rs'"),
        ({"convention": "upstream"}, "unknown cycle convention 'upstream'"),
        ({"m": 2**20, "n": 2**20, "k": 2**20}, "2\\*\\*53"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    good = {"m": 4, "n": 4, "k": 4, "rows": 8, "cols": 8, "dataflow": "os", "convention": "true"}
    with pytest.raises(UserError, match=message) as caught:
        gemm_cycles(**(good | change))
    assert "\n" not in str(caught.value)
