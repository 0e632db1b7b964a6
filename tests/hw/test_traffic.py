import csv
import functools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from octo_exp.hw import CHOICES, DATAFLOWS
from tests.hw.helpers import GOLDEN, gemm, halves, machine, moved, priced

EXTENT = st.integers(1, 300)
SIDE = st.integers(1, 40)
HALVES = st.tuples(*[st.integers(1, 20000)] * 3)
BITS = st.tuples(*[st.sampled_from([4, 8, 16, 32])] * 3)
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


def larger(memories, more):
    """The memories with one of them greater, each in turn."""
    for place, extra in enumerate(more):
        yield [half + extra * (place == other) for other, half in enumerate(memories)]


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, small=HALVES, more=HALVES,
    dataflow=st.sampled_from(DATAFLOWS), on_vector=st.booleans(),
)  # fmt: skip
def test_more_memory_never_moves_more_bytes(m, n, k, rows, cols, bits, small, more, dataflow, on_vector):
    bits = (32, *bits[1:]) if on_vector else bits
    item = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    unit = {"vector_lanes": cols} if on_vector else {"rows": rows, "cols": cols, **FLOATS}
    before = priced(item, machine(dataflow=dataflow, **unit, **halves(*small)))
    assert before.on_vector.all() == on_vector
    for memories in larger(small, more):
        after = priced(item, machine(dataflow=dataflow, **unit, **halves(*memories)))
        assert sum(moved(after)) <= sum(moved(before))
        assert after.stall_cycles <= before.stall_cycles
        assert after.cycles == before.cycles


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, small=HALVES, more=HALVES,
    bandwidth=st.floats(0.1, 100),
)  # fmt: skip
def test_more_memory_is_never_slower_where_the_dataflow_is_free(m, n, k, rows, cols, bits, small, more, bandwidth):
    item = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2])
    array = {"rows": rows, "cols": cols, "dataflow": "per_gemm", "dram_bytes_per_cycle": bandwidth, **FLOATS}
    before = priced(item, machine(**array, **halves(*small)))
    for memories in larger(small, more):
        after = priced(item, machine(**array, **halves(*memories)))
        assert after.cycles + after.stall_cycles <= before.cycles + before.stall_cycles


@given(
    m=EXTENT, n=EXTENT, k=EXTENT, rows=SIDE, cols=SIDE, bits=BITS, memories=HALVES, dataflow=st.sampled_from(CHOICES),
    share=st.integers(1, 9), on_vector=st.booleans(),
)  # fmt: skip
def test_everything_moves_once_at_least_and_what_fits_half_no_more(
    m, n, k, rows, cols, bits, memories, dataflow, share, on_vector
):
    bits = (32, *bits[1:]) if on_vector else bits
    # Windows of a convolution overlap: fewer elements lie in memory than the GEMM reads. Pooling drops results.
    elements = (max(1, m * k // share), max(1, k * n // share), max(1, m * n // share))
    widths = [-(-width // 8) for width in bits]
    named = dict(zip(("elements_a", "elements_b", "elements_out"), elements, strict=True))
    item = gemm(m, n, k, bits_a=bits[0], bits_b=bits[1], bits_out=bits[2], **named)
    unit = {"vector_lanes": cols} if on_vector else {"rows": rows, "cols": cols, **FLOATS}
    prices = priced(item, machine(dataflow=dataflow, **unit, **halves(*memories)))
    ifmap, filters, sums, results = moved(prices)
    distinct = [count * width for count, width in zip(elements, widths, strict=True)]
    for found, once, half in zip((ifmap, filters), distinct, memories, strict=False):
        assert found >= once
        assert found % once == 0
        assert found == once or once > half
    # Partial sums are those of all results, whatever leaves in the end.
    whole = m * n * widths[2]
    assert sums == results - distinct[2]
    assert sums % whole == 0
    assert sums == 0 or whole > memories[2]


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
    wide = gemm(bits_a=32, bits_b=16, bits_out=32, elements_a=1000, elements_out=400)
    assert moved(priced(wide, convention="scalesim")) == (1000, 150 * 16, 0, 100 * 16)
