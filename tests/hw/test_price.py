import math
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import CHOICES, DATAFLOWS, Machines, check_arithmetic, gemm_arrays, price_gemms, training_step_cost
from octo_exp.hw.price import price_vector
from octo_exp.workload import VectorWork
from tests.hw.helpers import gemm, halves, machine, moved, priced, table, workload

EXTENT = st.integers(1, 300)
SIDE = st.integers(1, 40)
HALVES = st.tuples(*[st.integers(1, 20000)] * 3)
HALF = {"bf16_macs_per_pe_cycle": 0.5, "fp32_macs_per_pe_cycle": 0.25}
FLOAT = {"bits_a": 32, "bits_b": 32}


def cycles(item, base, convention="exact"):
    return int(priced(item, base, convention=convention).cycles[0, 0])


@pytest.mark.parametrize(
    ("bits", "rate", "wanted"),
    [
        # 4 folds of 14 + 8 lines.
        ((8, 8), 0.5, 4 * 22),
        ((1, 8), 0.5, 4 * 22),
        ((16, 16), 0.5, 4 * 44),
        ((8, 9), 0.5, 4 * 44),
        ((16, 8), 0.5, 4 * 44),
        ((16, 16), 1, 4 * 22),
        ((16, 16), 0.3, 4 * 74),
        ((8, 17), 0.5, 4 * 88),
        ((32, 32), 0.3, 4 * 88),
    ],
)
def test_a_fold_of_wider_operands_takes_longer(bits, rate, wanted):
    base = machine(**HALF | {"bf16_macs_per_pe_cycle": rate})
    item = gemm(16, 16, 8, bits_a=bits[0], bits_b=bits[1])
    assert cycles(item, base) == wanted
    assert cycles(item, base, "scalesim") == 4 * 22 - 1


def test_fp32_costs_more_than_int8_on_the_same_array():
    base = machine(**HALF)
    narrow, wide = priced(gemm(), base), priced(gemm(**FLOAT), base)
    assert wide.cycles > narrow.cycles
    assert wide.stall_cycles > narrow.stall_cycles
    assert moved(wide)[:2] == tuple(4 * count for count in moved(narrow)[:2])
    for name in ("cycles", "stall_cycles"):
        found = [getattr(priced(item, base, convention="scalesim"), name) for item in (gemm(), gemm(**FLOAT))]
        assert found[0] == found[1]


@given(m=EXTENT, n=EXTENT, k=EXTENT, lanes=st.integers(1, 100), count=st.integers(1, 5), bits=st.sampled_from([16, 32]))
def test_a_float_gemm_that_the_array_cannot_do_is_the_vector_units(m, n, k, lanes, count, bits):
    item = gemm(m, n, k, bits_a=bits, bits_b=8, count=count, elements_a=m)
    unlimited = {"vector_lanes": lanes, "dram_bytes_per_cycle": 2, **halves(1e9, 1e9, 1e9)}
    prices = priced(item, machine(**unlimited))
    macs = m * n * k
    alone = -(-macs // lanes)
    traffic = (m * bits // 8, k * n, 0, 4 * m * n)
    assert prices.on_vector.all()
    assert int(prices.cycles[0, 0]) == alone * count
    assert moved(prices) == tuple(count * moves for moves in traffic)
    # A fold is so many results as there are lanes, in one row.
    ends = Fraction(sum(traffic), 2 * m * -(-n // lanes))
    wait = math.ceil(ends + max(0, Fraction(sum(traffic), 2) - ends - alone))
    assert int(prices.stall_cycles[0, 0]) == wait * count
    cost = prices.cost
    words = (cost.sram_ifmap_reads, cost.sram_filter_reads, cost.sram_ofmap_reads, cost.sram_ofmap_writes)
    assert [int(count[0, 0]) for count in words] == [macs, macs, 0, m * n]


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, memories=HALVES, bandwidth=st.floats(0.1, 100),
    bits=st.sampled_from([8, 16]),
)  # fmt: skip
def test_the_choice_for_each_gemm_waits_and_computes_least(m, n, k, rows, cols, memories, bandwidth, bits):
    array = {"rows": rows, "cols": cols, "dram_bytes_per_cycle": bandwidth, **HALF, **halves(*memories)}
    item = gemm(m, n, k, bits_a=bits)
    each = priced(item, machine(**array), dataflow=DATAFLOWS, energy=table())
    best = priced(item, machine(**array), dataflow=["per_gemm"], energy=table())
    total = (each.cycles + each.stall_cycles)[:, 0]
    # Of equals that of fewest compute cycles, the first of those, and all of it.
    first = min(range(len(DATAFLOWS)), key=lambda code: (total[code], each.cycles[code, 0]))
    assert best.cycles[0, 0] + best.stall_cycles[0, 0] == total.min()
    wanted, found = figures(each), figures(best)
    for name in wanted:
        assert found[name][0, 0] == wanted[name][first, 0], name
    simulated = {name: priced(item, machine(**array), dataflow=[name], convention="scalesim") for name in CHOICES}
    least = min(int(simulated[name].cycles[0, 0]) for name in DATAFLOWS)
    assert int(simulated["per_gemm"].cycles[0, 0]) == least


def test_machines_that_may_choose_stand_beside_machines_that_may_not():
    prices = priced(gemm(100, 16, 150), machine(**halves(100, 100, 100)), dataflow=["ws", "per_gemm", "is", "os"])
    total = (prices.cycles + prices.stall_cycles)[:, 0]
    assert prices.cost.dataflow[:, 0].tolist() == [1, int(prices.cost.dataflow[1, 0]), 2, 0]
    assert len(set(total)) == 3
    assert total[1] == total.min()


def test_each_machine_does_a_float_gemm_where_it_can():
    axes = {"bf16_macs_per_pe_cycle": [1, None, 0.5], "vector_lanes": [8, 4, None]}
    prices = priced(gemm(16, 16, 8, bits_a=16), **axes)
    assert prices.on_vector.tolist() == [[False], [True], [False]]
    assert prices.cycles.tolist() == [[4 * 22], [16 * 16 * 8 // 4], [4 * 44]]
    assert not priced(gemm(bits_a=16), convention="scalesim", **axes).on_vector.any()


def step(*, first=16, second=32):
    """Four GEMMs of 1, 2, 3 and 4 parts of ten of the MACs."""
    return workload(
        gemm(10, 10, 10, layer="conv1"),
        gemm(20, 10, 10, layer="conv2", bits_a=first),
        gemm(30, 10, 10, layer="fc", bits_b=first),
        gemm(40, 10, 10, layer="fc", role="grad_weight", bits_a=second),
    )


@pytest.mark.parametrize(
    ("work", "change", "energy", "message"),
    [
        (step(second=8), {}, {}, "'test' multiplies no bf16, which layer 'conv2' and 1 more (50.0 % of the MACs)"),
        (step(first=8), {}, {}, "hardware profile 'test' multiplies no fp32, which layer 'fc' (40.0 % of the MACs)"),
        (step(), {"bf16_macs_per_pe_cycle": 1}, {}, "'test' multiplies no fp32, which layer 'fc' (40.0 %"),
        (
            step(second=16),
            HALF,
            {"bf16_mac_pj": None},
            "table 'test' has no bf16_mac_pj, which layer 'conv2' and 1 more (90",
        ),
        (
            step(),
            {"vector_lanes": 1},
            {"fp32_mac_pj": None},
            "energy table 'test' has no fp32_mac_pj, which layer 'fc'",
        ),
    ],
)
def test_arithmetic_that_is_not_there_is_refused_by_layer_and_share(work, change, energy, message):
    base = machine(**change)
    for refused in (check_arithmetic, training_step_cost):
        with pytest.raises(UserError) as caught:
            refused(work, base, convention="exact", energy=table(**energy))
        assert message in str(caught.value)
        assert "make it int8" in str(caught.value)
        assert "\n" not in str(caught.value)
    check_arithmetic(work, base, convention="scalesim", energy=table(**energy))


def test_arithmetic_that_is_not_needed_may_be_missing():
    check_arithmetic(step(first=8, second=8), machine(), convention="exact", energy=table(bf16_mac_pj=None))
    check_arithmetic(step(), machine(vector_lanes=1), convention="exact", energy=table())
    check_arithmetic(step(), machine(**HALF), convention="exact", energy=None)


def test_vector_work_takes_a_lane_and_cycle_each_or_waits():
    def work(operations, bytes_read, bytes_written):
        return VectorWork(
            layer="a",
            role="output",
            kind="norm",
            operations=operations,
            bytes_read=bytes_read,
            bytes_written=bytes_written,
        )

    items = (work(16, 1, 1), work(17, 20, 9), work(1, 40, 25), work(0, 0, 0))
    axes = {"vector_lanes": [8, 16, None, 1], "dram_bytes_per_cycle": [10, 10, 10, math.inf]}
    prices = price_vector(workload(vector=items), Machines.vary(machine(), axes))
    assert prices.cycles.tolist() == [[2, 3, 1, 0], [1, 2, 1, 0], [0] * 4, [16, 17, 1, 0]]
    assert prices.stall_cycles.tolist() == [[0, 0, 6, 0], [0, 1, 6, 0], [0] * 4, [0] * 4]
    assert prices.energy_pj is None


def test_no_work_has_no_price():
    machines = Machines.vary(machine(), {"rows": [4, 8]})
    prices = price_gemms(gemm_arrays(workload()), machines, convention="exact", energy=table())
    assert prices.cycles.shape == prices.energy_pj.shape == prices.traffic.total.shape == (2, 0)
    assert price_vector(workload(), machines).cycles.shape == (2, 0)


def random_profiles(rng, count):
    """Machines of all sizes and dataflows, with and without floats; all have some way to do them."""
    for _ in range(count):
        kib = [float(2 ** rng.uniform(-6, 6)) for _ in range(3)]
        floats = [rng.choice([None, 0.125, 0.3, 1.0]) for _ in range(2)]
        yield machine(
            rows=int(rng.integers(1, 70)),
            cols=int(rng.integers(1, 70)),
            dataflow=str(rng.choice(CHOICES)),
            sram_ifmap_kib=kib[0],
            sram_filter_kib=kib[1],
            sram_ofmap_kib=kib[2],
            dram_bytes_per_cycle=float(rng.uniform(0.1, 40)),
            vector_lanes=int(rng.integers(1, 64)) if None in floats or rng.random() < 0.5 else None,
            bf16_macs_per_pe_cycle=floats[0],
            fp32_macs_per_pe_cycle=floats[1],
        )


def random_gemms(rng, count):
    for index in range(count):
        m, n, k = (int(rng.choice([1, 7, 16, 63, 65, 300])) for _ in range(3))
        bits = [int(rng.choice([4, 8, 16, 32])) for _ in range(3)]
        elements = {"elements_a": max(1, m * k // 3), "elements_b": k * n}
        widths = {"bits_a": bits[0], "bits_b": bits[1], "bits_out": bits[2]}
        yield gemm(m, n, k, layer=f"layer{index}", count=int(rng.integers(1, 4)), **widths, **elements)


def figures(prices):
    """Every array in the prices, by name."""
    found = {}
    for title, part in (("", prices), ("cost.", prices.cost), ("traffic.", prices.traffic)):
        found |= {f"{title}{item.name}": getattr(part, item.name) for item in fields(part)}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("convention", ["exact", "scalesim"])
def test_many_machines_and_gemms_at_once_are_one_by_one(convention):
    rng = np.random.default_rng(0)
    profiles, gemms = list(random_profiles(rng, 50)), list(random_gemms(rng, 10))
    every = Machines.of(profiles)
    together = figures(price_gemms(gemm_arrays(workload(*gemms)), every, convention=convention, energy=table()))
    assert {value.shape for value in together.values()} == {(50, 10)}
    assert ("energy_pj" in together) == (convention == "exact")
    assert together["on_vector"].any() == (convention == "exact")
    assert not together["on_vector"].all()
    for p, profile in enumerate(profiles):
        for g, item in enumerate(gemms):
            # Equal to the last bit, floats too: the same operations on the same numbers.
            for name, value in figures(priced(item, profile, convention=convention, energy=table())).items():
                assert together[name][p, g] == value[0, 0], name
