"""Which loop order moves the fewest bytes: by hand, and against a walk over all orders and numbers of pieces."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.hw import DATAFLOWS
from tests.hw.helpers import gemm, halves, machine, moved, priced

FLOATS = {"bf16_macs_per_pe_cycle": 1, "fp32_macs_per_pe_cycle": 1}
BITS = st.tuples(*[st.sampled_from([4, 8, 16, 32])] * 3)
# The extent of a GEMM down the rows, that along the columns, and that through time.
LAYOUTS = {"os": "mnk", "ws": "knm", "is": "kmn"}

# 4 x 3 folds on 8 x 8 PEs, of 10 lines: A, B, O are 320, 240, 3072 bytes; a strip of a or of b is 80, of O 768 or 1024.
OS = ("os", 32, 24, 10)
# A, B, O are 320, 768, 960 bytes; a strip of a is 80, of O 320, in lines of 32.
WS, IS = ("ws", 10, 24, 32), ("is", 24, 10, 32)
# As WS, of 100 lines: A, B, O are 3200, 768, 9600 bytes, a strip of O is 3200.
LONG = ("ws", 100, 24, 32)


@pytest.mark.parametrize(
    ("case", "memories", "wanted"),
    [
        # Rows outer keeps a strip of a, columns outer one of b.
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
        # K in pieces, where a strip of sums stays: one of the rows, one of the columns.
        (OS, (79, 79, 767), (960, 960, 0, 3072)),
        (OS, (79, 79, 768), (320, 960, 0, 3072)),
        (OS, (79, 79, 1024), (960, 240, 0, 3072)),
        # A piece is a line at least: 8 bytes of a strip of a, 24 of b.
        (OS, (8, 79, 768), (320, 960, 0, 3072)),
        (OS, (7, 79, 768), (960, 960, 0, 3072)),
        # K outer, where all sums stay.
        (OS, (8, 24, 3072), (320, 240, 0, 3072)),
        (OS, (32, 8, 3072), (320, 240, 0, 3072)),
        (OS, (8, 24, 3071), (960, 240, 0, 3072)),
        (OS, (31, 23, 3072), (960, 240, 0, 3072)),
        # Columns outer keeps the results' strip, rows outer that of a.
        (WS, (320, 1, 320), (320, 768, 0, 960)),
        (WS, (319, 1, 320), (960, 768, 0, 960)),
        (WS, (80, 1, 960), (320, 768, 0, 960)),
        (WS, (80, 1, 959), (960, 768, 0, 960)),
        (WS, (79, 1, 960), (960, 768, 0, 960)),
        # M outer, in two pieces of results; a stays where it fits whole or in those pieces.
        (WS, (320, 1, 319), (320, 1536, 0, 960)),
        (WS, (160, 1, 160), (320, 1536, 0, 960)),
        (WS, (159, 1, 160), (960, 1536, 0, 960)),
        # More pieces than the results need, so that a stays; fewer, where it would not.
        (LONG, (1600, 1, 3200), (3200, 1536, 0, 9600)),
        (LONG, (1599, 1, 3200), (3200, 2304, 0, 9600)),
        (LONG, (1, 1, 1600), (9600, 1536, 0, 9600)),
        # 8 pieces cost 7 readings of b, 5376 bytes; that sums leave and come back costs 5760, less than the 9th.
        (WS, (320, 1, 40), (320, 6144, 0, 960)),
        (WS, (320, 1, 39), (320, 768, 2880, 3840)),
        (WS, (80, 1, 31), (320, 768, 2880, 3840)),
        (WS, (79, 1, 31), (960, 768, 2880, 3840)),
        # What fits is read once, in pieces of a line too.
        (WS, (32, 768, 32), (320, 768, 0, 960)),
        (WS, (31, 768, 32), (960, 768, 0, 960)),
        (WS, (320, 768, 31), (320, 768, 2880, 3840)),
        (WS, (320, 767, 32), (320, 768, 2880, 3840)),
        (IS, (1, 320, 320), (768, 320, 0, 960)),
        (IS, (1, 319, 320), (768, 960, 0, 960)),
        (IS, (1, 80, 960), (768, 320, 0, 960)),
        (IS, (1, 80, 959), (768, 960, 0, 960)),
        (IS, (1, 79, 960), (768, 960, 0, 960)),
        (IS, (1, 320, 319), (1536, 320, 0, 960)),
        (IS, (1, 160, 160), (1536, 320, 0, 960)),
        (IS, (1, 159, 160), (1536, 960, 0, 960)),
        (IS, (1, 320, 40), (6144, 320, 0, 960)),
        (IS, (1, 320, 39), (768, 320, 2880, 3840)),
        (IS, (1, 80, 31), (768, 320, 2880, 3840)),
        (IS, (1, 79, 31), (768, 960, 2880, 3840)),
        (IS, (768, 32, 32), (768, 320, 0, 960)),
        (IS, (767, 320, 32), (768, 320, 2880, 3840)),
    ],
)
def test_loop_orders_by_hand(case, memories, wanted):
    dataflow, m, n, k = case
    assert moved(priced(gemm(m, n, k), machine(dataflow=dataflow, **halves(*memories)))) == wanted


@pytest.mark.parametrize(
    ("memories", "wanted"),
    [
        # 2 x 2 folds; A and B are 1600 bytes, their strips 800; each of 256 bytes of results leaves P times.
        ((400, 800), (1600, 1600, 256, 512)),
        ((800, 400), (1600, 1600, 256, 512)),
        ((399, 800), (1600, 1600, 512, 768)),
        ((400, 799), (1600, 1600, 512, 768)),
        ((200, 400), (1600, 1600, 768, 1024)),
        ((160, 320), (1600, 1600, 1024, 1280)),
        # Five spills are 2560 bytes, more than a once again.
        ((159, 800), (3200, 1600, 0, 256)),
    ],
)
def test_k_outer_lets_small_sums_leave_instead_of_large_operands_twice(memories, wanted):
    assert moved(priced(gemm(16, 16, 100, bits_out=8), machine(**halves(*memories, 1)))) == wanted


def test_more_rows_of_pes_fewer_spills():
    # 8 x 3 folds of 4 x 8 PEs: 10 pieces of a line of results are 6912 bytes of b more, 7 spills 13440.
    base = {"rows": 4, "dataflow": "ws"}
    assert moved(priced(gemm(10, 24, 32), machine(**base, **halves(320, 1, 32)))) == (320, 7680, 0, 960)
    assert moved(priced(gemm(10, 24, 32), machine(**base, **halves(320, 1, 31)))) == (320, 768, 6720, 7680)


def test_partial_sums_leave_the_chip_where_that_moves_fewer_bytes():
    # 2 x 4 folds of 10 lines: to keep each strip of 20 results, all 640 bytes of a would be read four times.
    profile = machine(rows=32, cols=2, dataflow="ws", **halves(320, 1, 20))
    assert moved(priced(gemm(10, 8, 64, bits_out=8), profile)) == (640, 512, 80, 160)


@pytest.mark.parametrize(
    ("memories", "wanted"),
    [
        # 4 x 2 folds of 8 lanes; A, B, O are 160, 640, 256 bytes; strips of a 40, of b 320, of O 64 and 128.
        ((40, 640, 1), (160, 640, 0, 256)),
        ((39, 640, 1), (320, 640, 0, 256)),
        ((160, 320, 1), (160, 640, 0, 256)),
        ((160, 319, 1), (160, 640, 256, 512)),
        ((160, 319, 128), (160, 640, 0, 256)),
        ((39, 319, 127), (320, 640, 256, 512)),
        # Pieces of a line: 4 bytes of a row of a, 32 of a strip of b.
        ((4, 31, 64), (160, 2560, 0, 256)),
        ((3, 32, 128), (320, 640, 0, 256)),
        ((3, 31, 255), (320, 2560, 0, 256)),
    ],
)
def test_loop_orders_of_a_vector_unit_by_hand(memories, wanted):
    item = gemm(4, 16, 10, bits_a=32, bits_b=32)
    assert moved(priced(item, machine(vector_lanes=8, **halves(*memories)))) == wanted


def test_what_leaves_is_what_pooling_leaves_and_partial_sums_are_whole():
    pooled = {"elements_out": 60, "bits_out": 32}
    assert moved(priced(gemm(32, 24, 10, **pooled), machine(**halves(320, 240, 1)))) == (320, 240, 0, 240)
    spilled = machine(dataflow="ws", **halves(320, 1, 31))
    assert moved(priced(gemm(10, 24, 32, **pooled), spilled)) == (320, 768, 2880, 2880 + 240)
    float32 = gemm(4, 16, 10, bits_a=32, bits_b=32, elements_out=16)
    assert moved(priced(float32, machine(vector_lanes=8, **halves(160, 319, 1)))) == (160, 640, 256, 256 + 64)


@pytest.mark.parametrize("rows", [7, 13])
def test_a_strip_that_fills_its_half_fits(rows):
    # As floats, 7 / 12 * 780 is more than 455.
    found = priced(gemm(12, 16, 65), machine(rows=rows, **halves(min(rows, 12) * 65, 1, 1)))
    assert moved(found)[0] == 12 * 65
    turned = priced(gemm(16, 12, 65), machine(cols=rows, **halves(1, min(rows, 12) * 65, 1)))
    assert moved(turned)[1] == 12 * 65


def test_a_strip_is_that_of_a_whole_fold():
    # 9 rows of 100 bytes on 8 PEs: strips of 800 and of 100 bytes, and a half that holds their mean but not the first.
    item = gemm(9, 16, 100)
    for half, times in ((799, 2), (800, 1)):
        found = priced(item, **halves(half, 1, 1))
        assert int(found.traffic.ifmap_reads[0, 0]) == times * 900


def arrivals(visits, piece, half, *, stays):
    """How often pieces come into a half memory that holds those between two steps of the outermost loop that it can.

    `visits` are pairs of loop indices, outermost first, and a piece; one that `stays` in the PEs waits there for the
    next visit, whatever the memory.
    """
    for depth in range(4):
        slabs = [{piece for _, piece in group} for _, group in itertools.groupby(visits, lambda v, d=depth: v[0][:d])]
        if max(map(len, slabs)) * piece <= half:
            return len(slabs[0]) + sum(len(now - before) for before, now in itertools.pairwise(slabs))
    pieces = [piece for _, piece in visits]
    return 1 + sum(now != before for before, now in itertools.pairwise(pieces)) if stays else len(pieces)


def walk(order, counts, sides, layout, widths, memories):
    """Bytes that move if the GEMM is done piece by piece in the given order of loops; as `moved`."""
    side = dict(zip(layout, sides, strict=True))
    steps = list(itertools.product(*(range(counts[loop]) for loop in order)))
    at = [(step, {layout[loop]: index for loop, index in zip(order, step, strict=True)}) for step in steps]
    found = []
    for (i, j), width, half in zip(("mk", "kn", "mn"), widths, memories, strict=True):
        visits, piece = [(step, (index[i], index[j])) for step, index in at], side[i] * side[j] * width
        # Neither of its extents is the one through time.
        times = arrivals(visits, piece, half, stays=layout[2] not in (i, j))
        found.append((times * piece, len({piece for _, piece in visits}) * piece))
    (ifmap, _), (filters, _), (results, distinct) = found
    # A result that comes in leaves again; the first time, there is nothing to bring in.
    return ifmap, filters, results - distinct, results


def walks(layout, counts, sides, widths, memories):
    """(Order of loops 0 rows, 1 columns, 2 time; pieces of time; bytes) of every order and number of equal pieces."""
    for pieces in range(1, sides[2] + 1):
        # Equal pieces, of whole lines or not.
        cut = (sides[0], sides[1], Fraction(sides[2], pieces))
        for order in itertools.permutations(range(3)):
            yield order, pieces, walk(order, (*counts, pieces), cut, layout, widths, memories)


def is_modelled(layout, order, pieces, sums_stay, slabs, memories):
    """Whether the order is one of those that the model chooses from.

    It leaves out, in ws and is, to let sums leave in pieces of time, and pieces of time within a loop over the folds or
    outside of rows outer.
    """
    if layout == LAYOUTS["os"]:
        return True
    return pieces == 1 or (order == (2, 1, 0) and sums_stay)


def slabs_of_time(order, counts, sides, pieces, widths):
    """Bytes of a (os) that come between two steps of the second loop in a piece of time, and those of b.

    The innermost loop's operand comes whole, the other one strip by strip.
    """
    return [
        Fraction(sides[2], pieces) * sides[place] * widths[place] * (counts[place] if order[-1] == place else 1)
        for place in range(2)
    ]


PLANS = {
    "counts": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "sides": st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)),
    "bits": BITS,
    "memories": st.tuples(*[st.integers(1, 150)] * 3),
}


def check_walks(unit, dataflow, counts, sides, bits, memories):
    """The model's bytes are those of the best walk that it knows, and no fewer than those of the best of all."""
    layout, widths = LAYOUTS[dataflow], [-(-width // 8) for width in bits]
    extents = dict(zip(layout, (counts[0] * sides[0], counts[1] * sides[1], sides[2]), strict=True))
    every = list(walks(layout, counts, sides, widths, memories))
    known = []
    for order, pieces, moves in every:
        slabs = slabs_of_time(order, counts, sides, pieces, widths)
        if is_modelled(layout, order, pieces, moves[2] == 0, slabs, memories):
            known.append(moves)
    item = gemm(**extents, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    found = moved(priced(item, machine(dataflow=dataflow, **unit, **halves(*memories))))
    assert found in known
    assert sum(found) == min(map(sum, known)) >= min(sum(moves) for *_, moves in every)


@given(dataflow=st.sampled_from(DATAFLOWS), **PLANS)
def test_a_walk_over_all_loop_orders_moves_as_much(dataflow, counts, sides, bits, memories):
    check_walks({"rows": sides[0], "cols": sides[1], **FLOATS}, dataflow, counts, sides, bits, memories)


@given(wide=st.sampled_from([16, 32]), **PLANS)
def test_a_walk_of_a_vector_unit_moves_as_much(wide, counts, sides, bits, memories):
    check_walks({"vector_lanes": sides[1]}, "os", counts, (1, *sides[1:]), (wide, *bits[1:]), memories)
