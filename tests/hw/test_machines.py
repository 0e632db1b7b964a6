import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import CHOICES, Machines, gemm_cycles
from octo_exp.hw.machines import field_names
from tests.hw.helpers import MACHINE, gemm, machine, priced
from tests.refusals import assert_names

FIELDS = {name for name in MACHINE if name not in ("frequency_mhz", "quoted_tops")}


def test_a_column_holds_what_each_profile_says():
    profiles = [
        machine(rows=4, cols=9, dataflow="per_gemm", vector_lanes=7, sram_ofmap_kib=0.5),
        machine(rows=5, dataflow="ws", dram_bytes_per_cycle=2.5, bf16_macs_per_pe_cycle=0.5, fp32_macs_per_pe_cycle=1),
    ]
    machines = Machines.of(profiles)
    assert len(machines) == 2
    assert set(field_names()) == FIELDS
    for name in field_names():
        column = getattr(machines, name)
        given = [getattr(profile, name) for profile in profiles]
        if name == "dataflow":
            given = [CHOICES.index(dataflow) for dataflow in given]
        assert column.shape == (2, 1)
        assert column.dtype == (np.int64 if name in ("rows", "cols", "dataflow") else np.float64)
        wanted = np.array([np.nan if value is None else value for value in given], np.float64)
        np.testing.assert_array_equal(column[:, 0], wanted)
    np.testing.assert_array_equal(machines.processing_elements, [[36], [40]])
    np.testing.assert_array_equal(machines.sram_kib, [[128.5], [192]])


def test_no_profile_is_no_machine():
    assert len(Machines.of([])) == 0


def test_axes_vary_and_the_rest_is_the_base():
    axes = {"rows": [1, 7, 63], "dataflow": ["is", "os", "ws"], "dram_bytes_per_cycle": [1, 0.5, np.inf]}
    machines, base = Machines.vary(machine(vector_lanes=16), axes), Machines.of([machine(vector_lanes=16)])
    assert len(machines) == 3
    np.testing.assert_array_equal(machines.rows, [[1], [7], [63]])
    np.testing.assert_array_equal(machines.dataflow, [[2], [0], [1]])
    np.testing.assert_array_equal(machines.dram_bytes_per_cycle, [[1], [0.5], [np.inf]])
    for name in set(field_names()) - set(axes):
        np.testing.assert_array_equal(getattr(machines, name), np.repeat(getattr(base, name), 3, 0))


def test_without_an_axis_there_is_the_base_alone():
    machines, base = Machines.vary(machine(), {}), Machines.of([machine()])
    for name in field_names():
        np.testing.assert_array_equal(getattr(machines, name), getattr(base, name))


def test_an_axis_may_switch_off_what_a_machine_may_lack():
    machines = Machines.vary(machine(vector_lanes=16), {"vector_lanes": [8, None], "bf16_macs_per_pe_cycle": [None, 1]})
    np.testing.assert_array_equal(machines.vector_lanes, [[8], [np.nan]])
    np.testing.assert_array_equal(machines.bf16_macs_per_pe_cycle, [[np.nan], [1]])


def test_dataflows_vary_by_index_too():
    machines = Machines.vary(machine(), {"dataflow": np.arange(4)})
    np.testing.assert_array_equal(machines.dataflow, np.arange(4).reshape(4, 1))


def test_each_machine_prices_as_itself():
    axes = {"rows": [4, 16], "cols": [8, 2], "dataflow": ["ws", "per_gemm"]}
    found = priced(gemm(7, 63, 65), **axes).cycles
    assert found.shape == (2, 1)
    for index, (rows, cols, dataflow) in enumerate(zip(*axes.values(), strict=True)):
        alone = gemm_cycles(7, 63, 65, rows=rows, cols=cols, dataflow=dataflow, convention="exact")
        assert int(found[index, 0]) == int(alone)


def test_rates_by_width():
    axes = {"bf16_macs_per_pe_cycle": [0.5, None], "fp32_macs_per_pe_cycle": [0.25, 0.125]}
    rates = Machines.vary(machine(), axes).rate(np.array([0, 1, 2, 1]))
    np.testing.assert_array_equal(rates, [[1, 0.5, 0.25, 0.5], [1, np.nan, 0.125, np.nan]])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"sram_kib": [1]}, "a machine cannot vary in 'sram_kib': choose among rows, cols, dataflow,"),
        ({"frequency_mhz": [1]}, "cannot vary in 'frequency_mhz'"),
        ({"rows": [1, 2], "cols": [1, 2, 3]}, "the axes must be of one length, got {'rows': 2, 'cols': 3}"),
        ({"rows": [8, 8.5]}, "rows ... whole number, got 8.0"),
        ({"cols": ["8"]}, "cols ... whole number, got '8'"),
        ({"dataflow": ["os", "rs"]}, "unknown dataflow 'rs'"),
        ({"dataflow": [4]}, "dataflow ... 0..3"),
        ({"sram_ifmap_kib": [64, 0]}, "sram_ifmap_kib must be greater than zero, got 0.0"),
        ({"dram_bytes_per_cycle": [-1]}, "dram_bytes_per_cycle must be greater than zero, got -1.0"),
        ({"sram_ofmap_kib": [np.nan]}, "sram_ofmap_kib must be greater than zero, got nan"),
        ({"vector_lanes": [8, None, -2]}, "vector_lanes must be greater than zero, got -2.0"),
    ],
)
def test_a_machine_that_cannot_be_is_one_line(axes, message):
    with pytest.raises(UserError) as caught:
        Machines.vary(machine(), axes)
    assert_names(caught.value, message)
