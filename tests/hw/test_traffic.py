import csv
import functools
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.hw import CHOICES, DATAFLOWS
from tests.hw.helpers import GOLDEN, gemm, halves, machine, moved, priced

EXTENT = st.integers(1, 300)
SIDE = st.integers(1, 40)
HALVES = st.tuples(*[st.integers(1, 20000)] * 3)
BITS = st.tuples(*[st.sampled_from([4, 8, 16, 32])] * 3)
# The extent of a GEMM down the rows, that along the columns, and that through time.
LAYOUTS = {"os": "mnk", "ws": "knm", "is": "kmn"}
FLOATS = {"bf16_macs_per_pe_cycle": 1, "fp32_macs_per_pe_cycle": 1}


@functools.cache
def distinct_elements(topology):
    """Layer -> elements of the input that windows touch; empty for a topology of GEMMs."""
    with (GOLDEN / f"{topology}.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) > 5][1:]
    found = {}
    for name, *numbers in rows:
        height, width, tall, wide, channels, _, stride = (int(number) for number in numbers[:7])
        touched = [
            len({start + step for start in range(0, side - window + 1, stride) for step in range(window)})
            for side, window in ((height, tall), (width, wide))
        ]
        found[name] = touched[0] * touched[1] * channels
    return found


def test_dram_words_equal_scalesim():
    half = 64 * 512
    compared = Counter()
    with (GOLDEN / "goldens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        m, n, k = (int(row[name]) for name in "MNK")
        item = gemm(m, n, k, elements_a=distinct_elements(row["topology"]).get(row["layer"]))
        array = {"rows": int(row["rows"]), "cols": int(row["cols"]), "dataflow": row["dataflow"]}
        ifmap, filters, sums, results = moved(priced(item, machine(**array), convention="scalesim"))
        assert sums == 0
        # What SCALE-Sim calls a half of its memory for operands is a little less than half.
        for name, words, most in (
            ("ifmap_reads", ifmap, 50 * (2 * half // 100)),
            ("filter_reads", filters, 50 * (2 * half // 100)),
            ("ofmap_writes", results, half),
        ):
            if words <= most:
                assert int(row[f"dram_{name}"]) == words, row
                compared[name] += 1
    assert compared == {"ifmap_reads": 696, "filter_reads": 594, "ofmap_writes": 637}


# 4 x 3 folds on 8 x 8 PEs. Quarters of a (os, ws) or of b (is) are strips, thirds of b (os) or of the results.
OS, WS, IS = ("os", 32, 24, 10), ("ws", 10, 24, 32), ("is", 24, 10, 32)
SPILLED = (2880, 3840)


@pytest.mark.parametrize(
    ("case", "memories", "wanted"),
    [
        (OS, (320, 240, 1), (320, 240, 0, 3072)),
        (OS, (80, 240, 1), (320, 240, 0, 3072)),
        (OS, (79, 240, 1), (960, 240, 0, 3072)),
        (OS, (320, 80, 1), (320, 240, 0, 3072)),
        (OS, (320, 79, 1), (320, 960, 0, 3072)),
        (OS, (80, 79, 1), (320, 960, 0, 3072)),
        (OS, (79, 80, 1), (960, 240, 0, 3072)),
        (OS, (80, 80, 1), (960, 240, 0, 3072)),
        (OS, (79, 79, 1), (960, 960, 0, 3072)),
        # Both orders move as much: rows outer, which keeps a.
        (("os", 32, 32, 10), (80, 80, 1), (320, 1280, 0, 4096)),
        (WS, (320, 1, 320), (320, 768, 0, 960)),
        (WS, (319, 1, 320), (960, 768, 0, 960)),
        (WS, (80, 1, 960), (320, 768, 0, 960)),
        (WS, (80, 1, 959), (960, 768, 0, 960)),
        (WS, (79, 1, 960), (960, 768, 0, 960)),
        (WS, (320, 1, 319), (320, 768, *SPILLED)),
        (WS, (80, 1, 319), (320, 768, *SPILLED)),
        (WS, (79, 1, 319), (960, 768, *SPILLED)),
        (IS, (1, 320, 320), (768, 320, 0, 960)),
        (IS, (1, 319, 320), (768, 960, 0, 960)),
        (IS, (1, 80, 960), (768, 320, 0, 960)),
        (IS, (1, 80, 959), (768, 960, 0, 960)),
        (IS, (1, 79, 960), (768, 960, 0, 960)),
        (IS, (1, 320, 319), (768, 320, *SPILLED)),
        (IS, (1, 80, 319), (768, 320, *SPILLED)),
        (IS, (1, 79, 319), (768, 960, *SPILLED)),
    ],
)
def test_loop_orders_by_hand(case, memories, wanted):
    dataflow, m, n, k = case
    assert moved(priced(gemm(m, n, k), machine(dataflow=dataflow, **halves(*memories)))) == wanted


def test_partial_sums_leave_the_chip_where_that_moves_fewer_bytes():
    # 2 x 4 folds: to keep each strip of 20 results, all 640 bytes of a would be read four times.
    profile = machine(rows=32, cols=2, dataflow="ws", **halves(320, 1, 20))
    assert moved(priced(gemm(10, 8, 64, bits_out=8), profile)) == (640, 512, 80, 160)


def arrivals(visits, piece, half):
    """How often a piece comes into a half memory that holds all of them, or else the latest, or else none."""
    distinct = len(set(visits))
    if distinct * piece <= half:
        return distinct
    if piece > half:
        return len(visits)
    return 1 + sum(before != now for before, now in itertools.pairwise(visits))


def walk(folds, sides, layout, widths, memories):
    """Bytes that move if the GEMM is done fold by fold in the given order; as `moved`."""
    side = dict(zip(layout, sides, strict=True))
    found = []
    for (i, j), width, half in zip(("mk", "kn", "mn"), widths, memories, strict=True):
        at = [dict(zip(layout, (*fold, 0), strict=True)) for fold in folds]
        visits, piece = [(fold[i], fold[j]) for fold in at], side[i] * side[j] * width
        found.append((arrivals(visits, piece, half) * piece, len(set(visits)) * piece))
    (ifmap, _), (filters, _), (results, distinct) = found
    # A result that comes in leaves again; the first time, there is nothing to bring in.
    return ifmap, filters, results - distinct, results


@given(
    dataflow=st.sampled_from(DATAFLOWS),
    counts=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)),
    bits=BITS,
    memories=st.tuples(*[st.integers(1, 150)] * 3),
)
def test_a_walk_over_the_folds_moves_as_much(dataflow, counts, sides, bits, memories):
    layout, widths = LAYOUTS[dataflow], [-(-width // 8) for width in bits]
    rows_outer = list(itertools.product(range(counts[0]), range(counts[1])))
    cols_outer = sorted(rows_outer, key=lambda fold: fold[::-1])
    wanted = min((walk(order, sides, layout, widths, memories) for order in (rows_outer, cols_outer)), key=sum)
    extents = dict(zip(layout, (counts[0] * sides[0], counts[1] * sides[1], sides[2]), strict=True))
    item = gemm(**extents, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    profile = machine(rows=sides[0], cols=sides[1], dataflow=dataflow, **FLOATS, **halves(*memories))
    assert moved(priced(item, profile)) == wanted


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, small=HALVES, more=HALVES,
    dataflow=st.sampled_from(CHOICES),
)  # fmt: skip
def test_more_memory_never_moves_more_bytes(m, n, k, rows, cols, bits, small, more, dataflow):
    item = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    array = {"rows": rows, "cols": cols, "dataflow": dataflow, **FLOATS}
    before = priced(item, machine(**array, **halves(*small)))
    for place, extra in enumerate(more):
        larger = [half + extra * (place == other) for other, half in enumerate(small)]
        after = priced(item, machine(**array, **halves(*larger)))
        assert sum(moved(after)) <= sum(moved(before))
        assert after.stall_cycles <= before.stall_cycles


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, memories=HALVES, dataflow=st.sampled_from(CHOICES),
    share=st.integers(1, 9),
)  # fmt: skip
def test_everything_moves_once_at_least_and_what_fits_half_no_more(
    m, n, k, rows, cols, bits, memories, dataflow, share
):
    # Windows of a convolution overlap: fewer elements lie in memory than the GEMM reads.
    elements = (max(1, m * k // share), max(1, k * n // share))
    widths = [-(-width // 8) for width in bits]
    item = gemm(
        m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2], elements_a=elements[0], elements_b=elements[1]
    )
    array = {"rows": rows, "cols": cols, "dataflow": dataflow, **FLOATS}
    ifmap, filters, sums, results = moved(priced(item, machine(**array, **halves(*memories))))
    distinct = (elements[0] * widths[0], elements[1] * widths[1], m * n * widths[2])
    for found, once, half in zip((ifmap, filters, results), distinct, memories, strict=True):
        assert found >= once
        assert found % once == 0
        assert found == once or once > half
    assert sums == results - distinct[2]


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, memories=HALVES)
def test_os_moves_as_much_when_product_array_and_memories_are_transposed(m, n, k, rows, cols, bits, memories):
    straight = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    turned = gemm(n, m, k, bits_a=bits[1], bits_b=bits[0], bits_out=bits[2])
    here = priced(straight, machine(rows=rows, cols=cols, **FLOATS, **halves(*memories)))
    swapped = (memories[1], memories[0], memories[2])
    there = priced(turned, machine(rows=cols, cols=rows, **FLOATS, **halves(*swapped)))
    # Where both loop orders move as many bytes, another one is taken.
    assert sum(moved(here)) == sum(moved(there))
    assert here.stall_cycles == there.stall_cycles


@given(m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, memories=HALVES)
def test_input_stationary_moves_as_weight_stationary_of_the_transposed_product(m, n, k, rows, cols, bits, memories):
    straight = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    turned = gemm(n, m, k, bits_a=bits[1], bits_b=bits[0], bits_out=bits[2])
    array = {"rows": rows, "cols": cols, **FLOATS}
    held_input = moved(priced(straight, machine(**array, dataflow="is", **halves(*memories))))
    swapped = (memories[1], memories[0], memories[2])
    held_weight = moved(priced(turned, machine(**array, dataflow="ws", **halves(*swapped))))
    assert held_input == (held_weight[1], held_weight[0], *held_weight[2:])


def test_the_scalesim_convention_knows_no_widths():
    wide = gemm(bits_a=32, bits_b=16, bits_out=32, elements_a=1000)
    assert moved(priced(wide, convention="scalesim")) == (1000, 150 * 16, 0, 100 * 16)


def test_a_strip_is_that_of_a_whole_fold():
    # 9 rows of 100 bytes on 8 PEs: strips of 800 and of 100 bytes, and a half that holds their mean but not the first.
    item = gemm(9, 16, 100)
    for half, times in ((799, 2), (800, 1)):
        found = priced(item, **halves(half, 1, 1e9))
        assert int(found.traffic.ifmap_reads[0, 0]) == times * 900
