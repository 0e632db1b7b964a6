import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.hw import CHOICES
from octo_exp.hw.search.axes import axis_values
from octo_exp.hw.search.space import Space
from tests.hw.helpers import machine
from tests.refusals import assert_names

KIB = ("sram_ifmap_kib", "sram_filter_kib", "sram_ofmap_kib")


def space(constraints=None, **axes):
    return Space(machine(), axes, constraints or {})


def every(given_space):
    return np.arange(len(given_space))


@pytest.mark.parametrize(
    ("given_values", "wanted"),
    [
        ([8, 2, 4], [2, 4, 8]),
        ({"from": 3, "to": 5}, [3, 4, 5]),
        ({"from": 1, "to": 10, "step": 4}, [1, 5, 9]),
        ({"from": 7, "to": 7}, [7]),
        ({"powers_of_two": [1, 64]}, [1, 2, 4, 8, 16, 32, 64]),
        ({"powers_of_two": [3, 33]}, [4, 8, 16, 32]),
    ],
)
def test_every_form_of_an_axis_gives_its_values(given_values, wanted):
    values = axis_values("rows", given_values)
    assert values.dtype == np.int64
    assert values.tolist() == wanted


def test_a_quantity_may_be_a_fraction_and_a_last_step_may_round():
    values = axis_values("dram_bytes_per_cycle", {"from": 0.1, "to": 0.7, "step": 0.1})
    assert values.dtype == np.float64
    assert values.tolist() == [0.1 + i * 0.1 for i in range(7)]


def test_dataflows_are_named_and_stay_in_their_order():
    assert [CHOICES[code] for code in axis_values("dataflow", ["per_gemm", "ws", "os"])] == ["per_gemm", "ws", "os"]


LINES = [
    ({"rows": []}, {}, "space.rows has no value"),
    ({"rows": {"from": 5, "to": 4}}, {}, "space.rows has no value"),
    ({"rows": {"powers_of_two": [5, 7]}}, {}, "space.rows has no value"),
    ({"rows": [8, 8]}, {}, "space.rows names a value twice"),
    ({"rows": [8, 0]}, {}, "rows ... got 0"),
    ({"rows": [-8]}, {}, "rows ... got -8"),
    ({"rows": [1.5]}, {}, "rows ... got 1.5"),
    ({"rows": [True]}, {}, "rows ... got True"),
    ({"vector_lanes": [None]}, {}, "vector_lanes ... got None"),
    ({"sram_ifmap_kib": [0]}, {}, "sram_ifmap_kib ... got 0"),
    ({"bf16_macs_per_pe_cycle": [2]}, {}, "bf16_macs_per_pe_cycle ... at most 1, got 2"),
    ({"rows": 8}, {}, "space.rows must be a list of values, {from, to[, step]} or {powers_of_two: [low, high]}, got 8"),
    ({"rows": {"from": 1}}, {}, "space.rows must be a list of values"),
    ({"rows": {"from": 1, "to": 4, "by": 2}}, {}, "space.rows must be a list of values"),
    ({"rows": {"from": 1, "to": 4, "step": 0}}, {}, "space.rows ... step ... got 0"),
    ({"rows": {"from": 0, "to": 4}}, {}, "space.rows ... from ... got 0"),
    ({"rows": {"from": 1, "to": 10**9}}, {}, "space.rows has 1,000,000,000 values, more than 65,536"),
    ({"rows": {"powers_of_two": 8}}, {}, "powers_of_two must be [low, high], got 8"),
    ({"dataflow": ["rs"]}, {}, "unknown dataflow 'rs': choose one of os, ws, is, per_gemm"),
    ({"frequency_mhz": [100]}, {}, "'frequency_mhz' ... rows, cols"),
    ({}, {}, "the space is empty: give at least one axis"),
    ({"rows": [8]}, {"area": 3}, "unknown constraint 'area': choose among processing_elements, sram_kib"),
    ({"rows": [8]}, {"processing_elements": "x"}, "processing_elements ... got 'x'"),
    (
        {"rows": [8]},
        {"processing_elements": {}},
        "constraints.processing_elements must be a number or {min: .., max: ..}",
    ),
    ({"rows": [8]}, {"processing_elements": {"most": 3}}, "must be a number or {min: .., max: ..}"),
    ({"rows": [8]}, {"processing_elements": {"max": 0}}, "processing_elements.max ... got 0"),
    ({"rows": [8]}, {"processing_elements": {"min": 9, "max": 8}}, "min 9 is above max 8"),
    ({"rows": [7, 9]}, {"processing_elements": 64}, "none of the space's 2 designs has processing_elements in 64..64"),
    (
        {"rows": [8]},
        {"sram_kib": 5},
        "constraints.sram_kib: every design has the 192 of test, for none of sram_ifmap_kib",
    ),
    (
        {"rows": {"from": 1, "to": 8192}, "cols": {"from": 1, "to": 8192}},
        {"processing_elements": 64},
        "rows x cols has 67,108,864 combinations, more than 16,777,216",
    ),
    ({name: {"from": 1, "to": 65536} for name in ("rows", "cols", *KIB)}, {}, "the space has 1.2e+24 designs"),
]


@pytest.mark.parametrize(("axes", "constraints", "line"), LINES, ids=lambda value: str(value)[:40])
def test_what_cannot_be_searched_is_one_line(axes, constraints, line):
    with pytest.raises(UserError) as caught:
        Space(machine(), axes, constraints)
    assert_names(caught.value, line)


def test_points_come_in_the_order_of_nested_loops():
    axes = {"rows": [1, 2], "dataflow": ["ws", "os"], "sram_ofmap_kib": [0.5, 1]}
    columns = space(**axes).columns(np.arange(8))
    assert list(zip(*columns.values(), strict=True)) == list(itertools.product(*axes.values()))


@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 4),
    elements=st.one_of(st.none(), st.integers(1, 49), st.integers(1, 49).map(lambda n: {"max": n})),
    kib=st.one_of(st.none(), st.integers(66, 90).map(lambda n: {"min": n, "max": n + 5})),
)
def test_the_feasible_points_are_those_that_a_loop_would_find(sizes, elements, kib):
    rows, cols, ifmap, ofmap = sizes
    # The limited axes do not stand together.
    axes = {
        "sram_ifmap_kib": {"from": 1, "to": ifmap},
        "rows": {"from": 1, "to": rows},
        "sram_ofmap_kib": {"from": 1, "to": ofmap},
        "cols": {"from": 1, "to": cols},
    }

    def holds(design):
        low, high = (0, 10**9) if kib is None else (kib["min"], kib["max"])
        count = design[1] * design[3]
        fits = elements is None or (count <= elements["max"] if isinstance(elements, dict) else count == elements)
        return fits and low <= design[0] + design[2] + 64 <= high

    wanted = {d for d in itertools.product(*(range(1, 1 + n["to"]) for n in axes.values())) if holds(d)}
    constraints = {"processing_elements": elements, "sram_kib": kib}
    if not wanted:
        with pytest.raises(UserError, match="none of the space's"):
            space(constraints, **axes)
        return
    found = space(constraints, **axes)
    digits = found.decode(every(found))
    assert len(found) == len(wanted)
    assert {tuple(row) for row in (digits + 1).tolist()} == wanted
    assert np.array_equal(found.encode(digits), every(found))
    everything = np.array(list(itertools.product(*map(range, found.sizes))))
    is_feasible = np.array([tuple(row) in wanted for row in (everything + 1).tolist()])
    assert found.size == len(everything)
    assert np.array_equal(found.encode(everything) >= 0, is_feasible)
    assert np.array_equal(found.excess(everything) == 0, is_feasible)


def test_a_limit_on_one_axis_counts_what_the_base_has_of_the_other():
    found = space({"processing_elements": {"min": 17, "max": 40}}, rows={"from": 1, "to": 9})
    assert found.columns(every(found)) == {"rows": [3, 4, 5]}


def test_a_limit_that_the_base_meets_by_itself_changes_nothing():
    assert len(space({"processing_elements": 64}, sram_ifmap_kib=[1, 2])) == 2


def test_a_space_that_no_memory_could_hold_is_decoded_point_by_point():
    huge = space(
        {"processing_elements": {"max": 4096}}, **{name: {"from": 1, "to": 1024} for name in ("rows", "cols", *KIB)}
    )
    assert huge.size == 2**50
    points = np.array([0, 1, len(huge) - 1])
    assert np.array_equal(huge.encode(huge.decode(points)), points)
    assert huge.machines(huge.decode(points)).processing_elements.max() <= 4096


def test_a_point_is_a_machine_of_its_own():
    found = space(rows=[4, 16], vector_lanes=[32], dataflow=["per_gemm"])
    profile = found.profile(1, name="wide")
    assert (profile.name, profile.rows, profile.cols) == ("wide", 16, 8)
    assert (profile.dataflow, profile.vector_lanes) == ("per_gemm", 32)
    assert profile.sources["vector_lanes"] == profile.sources["rows"]
    assert profile.sources["cols"] == machine().sources["cols"]


def test_what_is_quoted_of_the_base_is_not_quoted_of_a_point():
    found = Space(machine(quoted_tops=1.0), {"rows": [4]}, {})
    assert found.profile(0, name="x").quoted_tops is None
