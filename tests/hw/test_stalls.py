import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octo_exp.hw import CHOICES, gemm_cycles
from octo_exp.hw.traffic import stall_cycles
from tests.hw.helpers import gemm, machine, priced

EXTENT = st.integers(1, 300)
SIDE = st.integers(1, 40)
BANDWIDTH = st.sampled_from([0.1, 0.75, 1.0, 3.0, 7.5, 10.0, 64.0]) | st.floats(0.01, 1000)


def stalls(traffic, folds, bandwidth, compute):
    return int(stall_cycles(np.array(compute), np.array(traffic), np.array(folds), np.array(float(bandwidth))))


@pytest.mark.parametrize(
    ("bandwidth", "wanted"),
    [
        # 4 folds of 22 lines, 128 + 128 + 1024 bytes. All takes 256, 64 of it a fold: 64 + (256 - 64 - 88).
        (5, 168),
        # 128 cycles, 32 a fold: 32 + (128 - 32 - 88).
        (10, 40),
        # 64 cycles, 16 a fold, and 48 that 88 hide.
        (20, 16),
        # A third of a cycle is waited for as one.
        (960, 1),
        (math.inf, 0),
    ],
)
def test_folds_hide_what_they_can_but_the_ends(bandwidth, wanted):
    prices = priced(gemm(16, 16, 8), dram_bytes_per_cycle=[bandwidth])
    assert (int(prices.cycles[0, 0]), int(prices.stall_cycles[0, 0])) == (88, wanted)


def test_one_fold_hides_nothing():
    # 64 + 64 + 256 bytes at 10 a cycle.
    prices = priced(gemm(8, 8, 8), machine(dram_bytes_per_cycle=10))
    assert (int(prices.cycles[0, 0]), int(prices.stall_cycles[0, 0])) == (22, 39)


def test_every_product_waits():
    one, many = (priced(gemm(16, 16, 8, count=count)) for count in (1, 7))
    assert int(many.stall_cycles[0, 0]) == 7 * int(one.stall_cycles[0, 0]) == 7 * 40
    assert int(many.traffic.total[0, 0]) == 7 * int(one.traffic.total[0, 0])


@given(
    traffic=st.integers(1, 100000),
    folds=st.integers(1, 500),
    bandwidth=st.sampled_from([1, 2.5, 3, 10]),
    compute=st.integers(1, 20000),
)
@example(traffic=53076, folds=471, bandwidth=3, compute=15618)
def test_whole_stalls_are_not_rounded_up(traffic, folds, bandwidth, compute):
    transfer = Fraction(traffic) / Fraction(bandwidth)
    ends = transfer / folds
    wanted = math.ceil(ends + max(0, transfer - ends - compute))
    assert stalls(traffic, folds, bandwidth, compute) == wanted


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, dataflow=st.sampled_from(CHOICES), memory=st.floats(0.01, 64)
)
def test_without_a_limit_to_the_bandwidth_there_is_the_closed_form_alone(m, n, k, rows, cols, dataflow, memory):
    array = {"rows": rows, "cols": cols, "dataflow": dataflow}
    memories = dict.fromkeys(("sram_ifmap_kib", "sram_filter_kib", "sram_ofmap_kib"), memory)
    unlimited = priced(gemm(m, n, k), **array, **memories, dram_bytes_per_cycle=math.inf)
    assert int(unlimited.stall_cycles[0, 0]) == 0
    assert int(unlimited.cycles[0, 0]) == int(gemm_cycles(m, n, k, **array, convention="exact"))


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, dataflow=st.sampled_from(CHOICES),
    bandwidths=st.lists(BANDWIDTH, min_size=2, max_size=5),
)  # fmt: skip
def test_more_bandwidth_never_waits_longer(m, n, k, rows, cols, dataflow, bandwidths):
    found = priced(
        gemm(m, n, k), machine(rows=rows, cols=cols, dataflow=dataflow), dram_bytes_per_cycle=sorted(bandwidths)
    )
    waits = found.stall_cycles[:, 0]
    assert (np.diff(waits) <= 0).all()
    # However slow, the memory moves everything in the end.
    least = found.traffic.total[:, 0] / np.array(sorted(bandwidths))
    assert (waits + found.cycles[:, 0] >= least).all()
    assert (waits >= 1).all()


def test_the_scalesim_convention_never_waits():
    assert int(priced(gemm(), machine(dram_bytes_per_cycle=1e-6), convention="scalesim").stall_cycles[0, 0]) == 0
