import csv
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import CHOICES, CONVENTIONS, DATAFLOWS, gemm_cost, gemm_cycles
from tests.hw.helpers import GOLDEN

EXTENT = st.integers(1, 5000)
SIDE = st.integers(1, 256)
RATE = st.sampled_from([1.0, 0.5, 0.25]) | st.floats(0.01, 1)
SRAM_WORDS = ("sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_reads", "sram_ofmap_writes")


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


def test_exact_cycles_are_one_more_per_gemm():
    np.testing.assert_array_equal(golden_cost("exact").cycles, golden("total_cycles") + 1)


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


def test_exact_convention_writes_each_os_result_once_and_reads_partial_sums():
    upstream, true = golden_cost("scalesim"), golden_cost("exact")
    stationary = golden("dataflow", str) == "os"
    results = golden("M") * golden("N")
    np.testing.assert_array_equal(true.sram_ofmap_writes[stationary], results[stationary])
    # A sum that is written again was read before; SCALE-Sim counts no such reads.
    np.testing.assert_array_equal(true.sram_ofmap_reads, true.sram_ofmap_writes - results)
    assert not upstream.sram_ofmap_reads.any()
    np.testing.assert_array_equal(true.sram_ofmap_writes[~stationary], upstream.sram_ofmap_writes[~stationary])
    np.testing.assert_array_equal(true.sram_ifmap_reads, upstream.sram_ifmap_reads)
    np.testing.assert_array_equal(true.sram_filter_reads, upstream.sram_filter_reads)


def test_exact_compute_utilization_is_the_overall_one():
    cost = golden_cost("exact")
    np.testing.assert_allclose(cost.compute_utilization, cost.overall_utilization, rtol=1e-12)


def words_of(cost, *, swapped=False):
    """SRAM words of operand a, operand b, and the result read and written; a and b changed over where asked."""
    ifmap, filters, *results = (int(getattr(cost, name)) for name in SRAM_WORDS)
    return [filters, ifmap, *results] if swapped else [ifmap, filters, *results]


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, convention=st.sampled_from(CONVENTIONS))
def test_os_does_not_change_when_product_and_array_are_transposed(m, n, k, rows, cols, convention):
    straight = gemm_cost(m, n, k, rows=rows, cols=cols, dataflow="os", convention=convention)
    turned = gemm_cost(n, m, k, rows=cols, cols=rows, dataflow="os", convention=convention)
    assert straight.cycles == turned.cycles
    assert words_of(straight) == words_of(turned, swapped=True)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, rate=RATE, convention=st.sampled_from(CONVENTIONS))
def test_input_stationary_is_weight_stationary_of_the_transposed_product(m, n, k, rows, cols, rate, convention):
    array = {"rows": rows, "cols": cols, "rate": rate, "convention": convention}
    held_input, held_weight = gemm_cost(m, n, k, dataflow="is", **array), gemm_cost(n, m, k, dataflow="ws", **array)
    assert held_input.cycles == held_weight.cycles
    assert words_of(held_input) == words_of(held_weight, swapped=True)
    assert held_input.compute_utilization == held_weight.compute_utilization


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, rate=RATE, convention=st.sampled_from(CONVENTIONS))
def test_the_choice_for_each_gemm_is_the_fastest_dataflow(m, n, k, rows, cols, rate, convention):
    array = {"rows": rows, "cols": cols, "rate": rate, "convention": convention}
    each = gemm_cost(m, n, k, dataflow=list(DATAFLOWS), **array)
    best = gemm_cost(m, n, k, dataflow="per_gemm", **array)
    assert best.cycles == each.cycles.min() == gemm_cycles(m, n, k, dataflow="per_gemm", **array)
    # The first of equals, and all of it.
    first = int(np.argmin(each.cycles))
    assert best.dataflow == first
    named = gemm_cost(m, n, k, dataflow=DATAFLOWS[first], **array)
    for item in fields(named):
        assert getattr(best, item.name) == getattr(named, item.name)


def test_equal_dataflows_are_output_stationary():
    array = {"rows": 1, "cols": 2, "convention": "exact"}
    assert gemm_cycles(6, 4, 3, dataflow=list(DATAFLOWS), **array).tolist() == [48, 48, 54]
    assert gemm_cost(6, 4, 3, dataflow="per_gemm", **array).dataflow == 0


def test_machines_may_choose_beside_machines_that_do_not():
    m = np.array([1, 1000])
    dataflow = np.array(CHOICES)[:, None]
    cost = gemm_cost(m, 16, 150, rows=16, cols=8, dataflow=dataflow, convention="exact")
    np.testing.assert_array_equal(cost.cycles[3], cost.cycles[:3].min(axis=0))
    np.testing.assert_array_equal(cost.dataflow, [[0, 0], [1, 1], [2, 2], cost.cycles[:3].argmin(axis=0)])
    by_index = gemm_cost(m, 16, 150, rows=16, cols=8, dataflow=np.arange(4)[:, None], convention="exact")
    np.testing.assert_array_equal(by_index.cycles, cost.cycles)


@pytest.mark.parametrize(("dataflow", "folds"), [("os", (13, 2)), ("ws", (19, 2)), ("is", (19, 13))])
def test_folds_by_hand(dataflow, folds):
    cost = gemm_cost(100, 16, 150, rows=8, cols=8, dataflow=dataflow, convention="exact")
    assert (int(cost.row_folds), int(cost.col_folds)) == folds


@pytest.mark.parametrize(
    ("dataflow", "rate", "cycles"),
    [
        # 26 folds of 164 lines, 38 of 122, 247 of 38.
        ("os", 1, 26 * 164),
        ("os", 0.5, 26 * 328),
        ("os", 0.9, 26 * 183),
        ("ws", 0.25, 38 * 488),
        ("is", 0.125, 247 * 304),
    ],
)
def test_slower_elements_take_longer_for_every_line(dataflow, rate, cycles):
    array = {"rows": 8, "cols": 8, "dataflow": dataflow}
    cost = gemm_cost(100, 16, 150, **array, convention="exact", rate=rate)
    assert int(cost.cycles) == cycles
    assert float(cost.compute_utilization) == pytest.approx(100 * 16 * 150 / (cycles * 64), rel=1e-12)
    assert float(cost.overall_utilization) == pytest.approx(100 * 16 * 150 / (cycles * 64), rel=1e-12)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, rate=RATE, dataflow=st.sampled_from(CHOICES))
# At this rate another dataflow would be the fastest.
@example(m=12, n=10, k=3, rows=6, cols=6, rate=0.4, dataflow="per_gemm")
def test_the_scalesim_convention_knows_no_rates(m, n, k, rows, cols, rate, dataflow):
    array = {"rows": rows, "cols": cols, "dataflow": dataflow, "convention": "scalesim"}
    slow, fast = gemm_cost(m, n, k, **array, rate=rate), gemm_cost(m, n, k, **array)
    for item in fields(fast):
        assert getattr(slow, item.name) == getattr(fast, item.name)


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, dataflow=st.sampled_from(DATAFLOWS))
def test_no_array_does_more_macs_than_it_has_elements(m, n, k, rows, cols, dataflow):
    cost = gemm_cost(m, n, k, rows=rows, cols=cols, dataflow=dataflow, convention="exact")
    assert int(cost.cycles) * rows * cols >= m * n * k
    assert 0 < float(cost.overall_utilization) <= float(cost.mapping_utilization) <= 1


def test_extents_arrays_and_dataflows_broadcast():
    m = np.array([784, 100, 1])
    rows = np.array([8, 16])[:, None]
    dataflow = np.array(DATAFLOWS)[:, None, None]
    cost = gemm_cost(m, 16, 150, rows=rows, cols=8, dataflow=dataflow, convention="exact")
    assert {getattr(cost, item.name).shape for item in fields(cost)} == {(3, 2, 3)}
    one = gemm_cycles(100, 16, 150, rows=16, cols=8, dataflow="ws", convention="exact")
    assert cost.cycles[1, 1, 1] == one


def test_one_mac_on_one_element_is_full_use_in_both_conventions():
    for convention, cycles in (("scalesim", 0), ("exact", 1)):
        cost = gemm_cost(1, 1, 1, rows=1, cols=1, dataflow="os", convention=convention)
        assert (int(cost.cycles), float(cost.overall_utilization)) == (cycles, 1.0)


def test_a_step_of_a_large_network_does_not_wrap():
    m, n, k = 2**24, 2**14, 2**14
    lines = k + 16 + 16 - 2
    cycles = gemm_cycles(m, n, k, rows=16, cols=16, dataflow="os", convention="exact")
    assert int(cycles) == (m // 16) * (n // 16) * lines > 2**42


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, "m must lie in 1.."),
        ({"k": 2.0}, "k must be a whole number"),
        ({"rows": -8}, "rows must lie in 1.."),
        ({"cols": 2**20}, "cols must lie in 1.."),
        ({"dataflow": "rs"}, "unknown dataflow 'rs'"),
        ({"dataflow": 4}, "a dataflow's index must lie in 0..3, got 4..4"),
        ({"dataflow": [0, -1]}, "a dataflow's index must lie in 0..3, got -1..0"),
        ({"rate": 0}, "rate must lie in 0..1 MACs a cycle, got 0.0..0.0"),
        ({"rate": [0.5, 2.0]}, "rate must lie in 0..1 MACs a cycle, got 0.5..2.0"),
        ({"rate": np.nan}, "rate must lie in 0..1 MACs a cycle, got nan"),
        ({"convention": "upstream"}, "unknown cycle convention 'upstream'"),
        ({"convention": "true"}, "unknown cycle convention 'true': choose one of exact, scalesim"),
        ({"m": 2**20, "n": 2**20, "k": 2**20}, "2\\*\\*53"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    good = {"m": 4, "n": 4, "k": 4, "rows": 8, "cols": 8, "dataflow": "os", "convention": "exact"}
    with pytest.raises(UserError, match=message) as caught:
        gemm_cycles(**(good | change))
    assert "\n" not in str(caught.value)
