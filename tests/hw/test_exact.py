"""No number of the cost model wraps: each is what Python's own integers and fractions give, or refused in one line."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import DATAFLOWS, Machines, gemm_cost, gemm_cycles, step_memory, training_step_cost
from octo_exp.hw.exact import LIMIT, ceil_quotient, ceil_ratio, product, sum_rows
from octo_exp.hw.price import price_vector
from octo_exp.hw.scalesim.__main__ import main
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.space import Space
from octo_exp.workload import Buffer, VectorWork
from tests.hw.helpers import gemm, machine, table, workload
from tests.hw.scalesim_helpers import config_text, write
from tests.refusals import assert_names

EXTENT = st.one_of(st.integers(1, 300), st.integers(1, 2**14), st.integers(0, 40).map(lambda power: 2**power))
SIDE = st.one_of(st.integers(1, 40), st.integers(1, 2**16))
KIB = st.one_of(st.floats(2**-9, 4), st.floats(2**-9, 2**40), st.sampled_from([2**-9, 0.3, 16, 64.0, 2**40]))
BANDWIDTH = st.one_of(st.floats(1e-9, 1e9), st.sampled_from([1e-9, 0.1, 1, 6.4, 10, 16.0, 75.3, 1e9]))
RATE = st.one_of(st.none(), st.floats(1e-6, 1), st.sampled_from([1, 0.5, 0.1, 1e-6]))


def ceil(value):
    return -(-value.numerator // value.denominator) if isinstance(value, Fraction) else value


def fewest_bytes(a, b, out, halves, folds, shares, through, *, by_output):
    """Bytes of the best of the loop orders that `hw.traffic` lists, without the results themselves."""
    (half_a, half_b, half_out), (row_folds, col_folds), (rows, cols) = halves, folds, shares

    def pieces(size, half):
        return max(1, ceil(Fraction(size) / half))

    again_a, again_b = col_folds * a if a > half_a else a, row_folds * b if b > half_b else b

    def leaving(count, share):
        return 0 if share * out <= half_out else 2 * (count - 1) * out

    if by_output:
        strips = pieces(rows * a, half_a), pieces(cols * b, half_b)
        outer = min(max(pieces(b, half_b), strips[0]), max(pieces(a, half_a), strips[1]))
        found = [(col_folds * a if rows * a > half_a else a) + again_b]
        found.append(again_a + (row_folds * b if cols * b > half_b else b))
        found += [a + again_b + leaving(strips[0], rows)] if strips[0] <= through else []
        found += [again_a + b + leaving(strips[1], cols)] if strips[1] <= through else []
        return min(found + ([a + b + leaving(outer, 1)] if outer <= through else []))
    found = [again_a + b + leaving(row_folds, cols)]
    found.append((col_folds * a if rows * a > half_a else a) + b + leaving(row_folds, 1))
    for read, count in ((col_folds * a, 1), (a, pieces(a, half_a))):
        count = max(count, pieces(cols * out, half_out))
        found += [read + (b if b <= half_b else count * b)] if count <= through else []
    return min(found)


def by_hand(item, profile):
    """Cycles, stalls and off-chip bytes of one product, and the largest number on the way to them."""
    m, n, k = item.m, item.n, item.k
    rate = {"int8": 1, "bf16": profile.bf16_macs_per_pe_cycle, "fp32": profile.fp32_macs_per_pe_cycle}[item.width]
    dataflow, rows, cols = profile.dataflow, profile.rows, profile.cols
    if rate is None:
        dataflow, rows, cols = "os", 1, profile.vector_lanes
    down, across, through = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]
    folds = -(-down // rows), -(-across // cols)
    if rate is None:
        cycles = -(-m * n * k // cols)
    else:
        lines = through + rows + cols - 2 + (0 if dataflow == "os" else rows)
        cycles = folds[0] * folds[1] * ceil(lines / Fraction(rate))
    a, b, out = (
        size * -(-bits // 8) for size, bits in ((m * k, item.bits_a), (k * n, item.bits_b), (m * n, item.bits_out))
    )
    kib = [profile.sram_ifmap_kib, profile.sram_filter_kib, profile.sram_ofmap_kib]
    halves = [int(Fraction(size) * 512) for size in kib]
    shares = Fraction(min(rows, down), down), Fraction(min(cols, across), across)
    if dataflow == "is":
        a, b, halves = b, a, [halves[1], halves[0], halves[2]]
    moved = fewest_bytes(a, b, out, halves, folds, shares, through, by_output=dataflow == "os") + out
    transfer = moved / Fraction(profile.dram_bytes_per_cycle)
    stalls = ceil(max(transfer / (folds[0] * folds[1]), transfer - cycles))
    return cycles, stalls, moved, max(m * n * k, cycles, moved, ceil(transfer), stalls)


@given(
    extents=st.tuples(EXTENT, EXTENT, EXTENT),
    bits=st.tuples(*[st.sampled_from([4, 8, 16, 32, 64])] * 3),
    count=st.one_of(st.just(1), st.integers(1, 2**20)),
    array=st.tuples(SIDE, SIDE, st.sampled_from(DATAFLOWS)),
    memories=st.tuples(KIB, KIB, KIB),
    bandwidth=BANDWIDTH,
    lanes=st.one_of(st.integers(1, 64), st.integers(1, 2**20)),
    rates=st.tuples(RATE, RATE),
)
def test_a_price_is_that_of_pythons_own_numbers_or_refused(
    extents, bits, count, array, memories, bandwidth, lanes, rates
):
    item = gemm(*extents, count=count, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    profile = machine(
        rows=array[0],
        cols=array[1],
        dataflow=array[2],
        sram_ifmap_kib=memories[0],
        sram_filter_kib=memories[1],
        sram_ofmap_kib=memories[2],
        dram_bytes_per_cycle=bandwidth,
        vector_lanes=lanes,
        bf16_macs_per_pe_cycle=rates[0],
        fp32_macs_per_pe_cycle=rates[1],
    )
    cycles, stalls, moved, largest = by_hand(item, profile)
    largest = max(largest, count * cycles, count * stalls, count * moved)
    if largest >= LIMIT:
        with pytest.raises(UserError, match=r"^.* more than 2\^53 .* check .*$"):
            training_step_cost(workload(item), profile, convention="exact", energy=table())
        return
    report = training_step_cost(workload(item), profile, convention="exact", energy=table())
    (row,) = report.rows
    assert (row.cycles, row.stall_cycles, row.dram_bytes) == (count * cycles, count * stalls, count * moved)
    assert all(type(number) is int for number in (row.cycles, row.stall_cycles, row.dram_bytes, report.total_cycles))
    assert row.cycles > 0
    assert 0 < row.utilization <= 1 + 1e-12
    assert row.energy_uj is not None
    assert 0 < row.energy_uj < math.inf


@given(
    top=st.integers(0, LIMIT - 1),
    bottom=BANDWIDTH,
    near=st.one_of(st.none(), st.tuples(st.integers(1, 2**40), st.integers(-1, 1))),
)
def test_a_quotient_is_rounded_up_as_a_fraction_is(top, bottom, near):
    # Half of the examples lie where rounding would tell a whole number from the next one.
    top = top if near is None else min(LIMIT - 1, max(0, round(near[0] * bottom) + near[1]))
    wanted = ceil(top / Fraction(bottom))
    arguments = np.array([top]), np.array([float(bottom)]), "cycles", "dram_bytes_per_cycle"
    if wanted >= LIMIT:
        with pytest.raises(UserError, match="check dram_bytes_per_cycle"):
            ceil_quotient(*arguments)
    else:
        assert ceil_quotient(*arguments).tolist() == [wanted]


@given(st.lists(st.one_of(st.integers(1, 2**20), st.integers(1, LIMIT - 1)), min_size=1, max_size=4))
def test_a_product_and_a_sum_are_exact_or_refused(numbers):
    columns = [np.array([number]) for number in numbers]
    for wanted, found in (
        (math.prod(numbers), lambda: product("cycles", "batch_size", *columns)),
        (sum(numbers), lambda: sum_rows(np.array([numbers]), "cycles", "batch_size")),
    ):
        if wanted < LIMIT:
            assert found().tolist() == [wanted]
        else:
            with pytest.raises(UserError, match=r"more than 2\^53 .* check batch_size$"):
                found()


LARGE = 10**400


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: machine(fp32_macs_per_pe_cycle=1e-20), "fp32_macs_per_pe_cycle must be at least 1e-06, got 1e-20"),
        (lambda: machine(dram_bytes_per_cycle=1e-300), "dram_bytes_per_cycle must be at least 1e-09, got 1e-300"),
        (lambda: machine(dram_bytes_per_cycle=1e10), "dram_bytes_per_cycle must be at most 1000000000, got 1"),
        (lambda: machine(sram_ifmap_kib=LARGE), "sram_ifmap_kib must be at most 1099511627776, got 1e400"),
        (lambda: machine(sram_ifmap_kib=-LARGE), "sram_ifmap_kib ... got -1e400"),
        (lambda: machine(sram_ofmap_kib=1e-4), "sram_ofmap_kib ... at least 0.00195312, got 0.0001"),
        (lambda: machine(rows=65_537), "rows must be at most 65536, got 65537"),
        (lambda: machine(frequency_mhz=1e-12), "frequency_mhz must be at least 0.001, got 1e-12"),
        (lambda: machine(vector_lanes=2**62), "vector_lanes must be at most 1048576, got 4.6e18"),
        (lambda: table(int8_mac_pj=1e300), "int8_mac_pj must be at most 1000000000, got 1e+300"),
        (lambda: table(sram=[{"kib": 1, "read_pj_per_byte": 1e-320, "write_pj_per_byte": 1}]), "sram.read_pj_per_byte"),
        (lambda: Machines.vary(machine(), {"sram_ifmap_kib": [LARGE]}), "sram_ifmap_kib must be at most 1099511627776"),
        (lambda: Machines.vary(machine(), {"rows": [2**62]}), "rows must be at most 65536, got 4.6"),
        (lambda: Machines.vary(machine(), {"rows": [LARGE]}), "rows ... got 1e400"),
        (lambda: Machines.vary(machine(), {"dram_bytes_per_cycle": [1e-300]}), "dram_bytes_per_cycle must be at least"),
        (lambda: Space(machine(), {"dram_bytes_per_cycle": [1e-300]}, {}), "space: dram_bytes_per_cycle must be at le"),
        (lambda: Space(machine(), {"sram_ifmap_kib": [LARGE]}, {}), "space: sram_ifmap_kib must be at most 109951162"),
        (lambda: Space(machine(), {"rows": {"from": 1, "to": LARGE}}, {}), "space.rows: to must be at most 1099511"),
        (lambda: Space(machine(), {"rows": {"from": 1, "to": 9, "step": 1e-300}}, {}), "space.rows: step must be at"),
        (lambda: Space(machine(), {"rows": {"powers_of_two": [1, LARGE]}}, {}), "powers_of_two must be at most 1099"),
        (lambda: Space(machine(), {"rows": [8]}, {"sram_kib": LARGE}), "sram_kib must be at most"),
        (lambda: gemm(bits_a=LARGE), "bits_a must be at most 64, got 1e400"),
        (lambda: gemm_cycles(LARGE, 1, 1, rows=1, cols=1, dataflow="os", convention="exact"), "m must lie in 1..1099"),
    ],
)
def test_what_no_machine_has_is_one_line(make, line):
    with pytest.raises(UserError) as caught:
        make()
    assert_names(caught.value, line)


@pytest.mark.parametrize("convention", ["exact", "scalesim"])
@pytest.mark.parametrize(
    ("item", "line"),
    [
        (
            gemm(2**40, 2**40, 2**40),
            "1.3e36 MACs in layer 'conv': more than 2^53 cannot be counted exactly; check batch",
        ),
        (gemm(LARGE, 1, 1), "1e400 MACs in layer 'conv': more than 2^53"),
        (gemm(2**18, 2**18, 2**10, count=2**20), "7.4e19 cycles on this machine: more than 2^53"),
        (gemm(1, 1, 1, elements_a=2**60), "1.2e18 MACs in layer 'conv'"),
    ],
)
def test_a_layer_that_is_too_large_is_one_line(item, line, convention):
    profile = machine(rows=1, cols=1)
    with pytest.raises(UserError) as caught:
        training_step_cost(workload(item), profile, convention=convention)
    assert_names(caught.value, line)


def test_a_machine_that_is_too_slow_is_one_line_that_names_the_field():
    profile, item = machine(dram_bytes_per_cycle=1e-9, vector_lanes=1), gemm(2**14, 2**14, 2**10)
    line = r"^\d.\de\d\d cycles on this machine: more than 2\^53 .* check dram_bytes_per_cycle$"
    with pytest.raises(UserError, match=line):
        training_step_cost(workload(item), profile, convention="exact")
    slow = machine(fp32_macs_per_pe_cycle=1e-6, rows=1, cols=1)
    wide = gemm(2**14, 2**14, 2**10, bits_a=32)
    with pytest.raises(UserError, match=r"cycles on this machine: .* fp32_macs_per_pe_cycle$"):
        training_step_cost(workload(wide), slow, convention="exact")
    for names in (["cycles"], ["total_cycles"], ["energy", "utilization"]):
        objectives = Objectives(names, workload(*[gemm(2**17, 2**17, 2**17)] * 9), convention="exact", energy=table())
        with pytest.raises(UserError, match=r"more than 2\^53"):
            objectives(Machines.vary(machine(), {"rows": [1, 1], "cols": [1, 1]}))


def test_vector_work_and_memory_are_exact_or_refused():
    each = {
        "layer": "a",
        "role": "output",
        "kind": "pool",
        "operations": 1,
        "bytes_read": 2**62,
        "bytes_written": 2**62,
    }
    with pytest.raises(UserError, match=r"9.2e18 bytes in layer 'a': more than 2\^53"):
        price_vector(workload(vector=(VectorWork(**each),)), Machines.of([machine(vector_lanes=4)]))
    buffers = [Buffer(layer="a", kind="weight", bytes=2**62, first=0, last=2) for _ in range(3)]
    report = step_memory(buffers)
    assert (report.peak_bytes, report.live_bytes) == (3 * 2**62, (3 * 2**62,) * 3)


def test_the_utilization_of_a_huge_array_does_not_wrap():
    cost = gemm_cost(2**20, 2**20, 2**12, rows=2**16, cols=2**16, dataflow="os", convention="exact")
    cycles = 16 * 16 * (2**12 + 2**17 - 2)
    assert int(cost.cycles) == cycles
    assert float(cost.overall_utilization) == pytest.approx(2**52 / (cycles * 2**32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost = gemm_cost(1, 1, 2**40, rows=2**16, cols=2**16, dataflow="os", convention="exact")
    assert 0 < float(cost.overall_utilization) < 1e-9


def test_a_topology_whose_sum_passes_64_bits_is_added_exactly(tmp_path, capsys):
    config = write(tmp_path / "c.cfg", config_text(ArrayHeight=1, ArrayWidth=1))
    rows = "".join(f"l{layer},{2**18},{2**18},{2**16},\n" for layer in range(3000))
    topology = write(tmp_path / "t.csv", f"Layer,M,N,K,\n{rows}")
    assert main(["-c", str(config), "-t", str(topology), "-i", "gemm", "-p", str(tmp_path)]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("total"))
    assert total.split() == ["total", str(3000 * (2**52 - 1)), "0"]


@given(top=st.integers(0, LIMIT - 1), bottom=st.integers(1, LIMIT - 1), near=st.one_of(st.none(), st.integers(-1, 1)))
def test_a_ratio_of_whole_numbers_is_rounded_up_as_integers_are(top, bottom, near):
    # Half of the examples lie next to a whole quotient.
    top = top if near is None else min(LIMIT - 1, max(0, top // bottom * bottom + near))
    assert ceil_ratio(np.array([top]), np.array([bottom])).tolist() == [-(-top // bottom)]
