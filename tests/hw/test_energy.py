from dataclasses import fields

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import CHOICES, EnergyTable, Machines, training_step_cost
from octo_exp.hw.price import price_vector
from octo_exp.workload import VectorWork
from tests.hw.helpers import TABLE, gemm, machine, priced, sourced, table, workload
from tests.refusals import assert_names

# Its halves hold 320, 1024 and 256 bytes.
SMALL = {"dataflow": "ws", "sram_ifmap_kib": 0.625, "sram_filter_kib": 2, "sram_ofmap_kib": 0.5}
SCALES = {"int8_mac_pj": 200, "dram_read_pj_per_byte": 100, "dram_write_pj_per_byte": 100, "vector_op_pj": 100}


def spent(item, base, energy, **change):
    return float(priced(item, base, energy=energy, **change).energy_pj[0, 0])


def test_every_term_of_one_gemm_by_hand():
    # 4 x 3 folds; not one line of 32 bytes of results stays: 2880 bytes of partial sums come back, 3840 leave.
    base = machine(**SMALL | {"sram_ofmap_kib": 31 / 1024})
    macs = 10 * 24 * 32 * 2
    ifmap = 3 * 320 * 7 + 320 * 11
    filters = 768 * 13 + 768 * 17
    results = (3 * 240 * 4 + 3840) * 3 + (4 * 240 * 4 + 2880) * 5
    off_chip = (320 + 768 + 2880) * 19 + 3840 * 23
    total = macs + ifmap + filters + results + off_chip
    assert spent(gemm(10, 24, 32), base, table()) == total
    assert spent(gemm(10, 24, 32, count=3), base, table()) == 3 * total


def test_every_term_of_a_product_on_the_vector_unit_by_hand():
    # No operand stays in a lane: each MAC reads both. Of the operands in 3 folds along the columns b stays, a does not.
    macs = 10 * 24 * 32
    ifmap = macs * 2 * 7 + 3 * 640 * 11
    filters = macs * 4 * 13 + 3072 * 17
    results = 960 * 3 + 960 * 5
    total = macs * 31 + ifmap + filters + results + (3 * 640 + 3072) * 19 + 960 * 23
    wide = gemm(10, 24, 32, bits_a=16, bits_b=32)
    assert spent(wide, machine(**SMALL, vector_lanes=8), table()) == total


@pytest.mark.parametrize(("bits", "mac"), [((8, 4), 2), ((8, 16), 29), ((32, 8), 31)])
def test_a_mac_costs_what_its_wider_operand_does(bits, mac):
    item = gemm(7, 63, 65, bits_a=bits[0], bits_b=bits[1])
    base = machine(bf16_macs_per_pe_cycle=1, fp32_macs_per_pe_cycle=1)
    without = table(int8_mac_pj=1, bf16_mac_pj=1, fp32_mac_pj=1)
    assert spent(item, base, table()) - spent(item, base, without) == (mac - 1) * 7 * 63 * 65


@pytest.mark.parametrize("dataflow", CHOICES)
def test_the_scalesim_convention_has_no_energy(dataflow):
    prices = priced(gemm(), machine(dataflow=dataflow), convention="scalesim", energy=table())
    assert prices.energy_pj is None


def test_vector_work_by_hand_and_none_without_a_unit():
    work = VectorWork(layer="a", role="output", kind="norm", operations=7, bytes_read=16, bytes_written=63)
    step = workload(vector=(work, work))
    machines = Machines.vary(machine(), {"vector_lanes": [2, None]})
    found = price_vector(step, machines, energy=table()).energy_pj
    np.testing.assert_array_equal(found, [[7 * 37 + 16 * 19 + 63 * 23] * 2, [0, 0]])


@pytest.mark.parametrize("name", [*SCALES, "sram"])
def test_another_table_changes_energy_alone(name):
    change = SCALES.get(name, [{"kib": 1, "read_pj_per_byte": 100, "write_pj_per_byte": 100}])
    work = VectorWork(layer="a", role="output", kind="norm", operations=7, bytes_read=16, bytes_written=63)
    step, base = workload(gemm(), gemm(count=2), vector=(work,)), machine(**SMALL, vector_lanes=8)
    reports = [
        training_step_cost(step, base, convention="exact", energy=energy)
        for energy in (None, table(), table(**{name: change}))
    ]
    totals = [report.totals() for report in reports]
    energies = [found.pop("energy_uj", None) for found in totals]
    assert energies[0] is None
    assert energies[1] < energies[2]
    assert totals[0] == totals[1] == totals[2]
    for one, other, third in zip(*[(*report.rows, *report.vector_rows) for report in reports], strict=True):
        for item in fields(one):
            if item.name != "energy_uj":
                assert getattr(one, item.name) == getattr(other, item.name) == getattr(third, item.name)


def test_memories_cost_by_the_logarithm_of_their_capacity():
    energy = table(
        sram=[
            {"kib": 8, "read_pj_per_byte": 2, "write_pj_per_byte": 10},
            {"kib": 32, "read_pj_per_byte": 4, "write_pj_per_byte": 12},
            {"kib": 1024, "read_pj_per_byte": 14, "write_pj_per_byte": 62},
        ]
    )
    # Rows; 16 is halfway between 8 and 32, 64 a fifth of the way from 32 to 1024; beyond the ends, the ends.
    kib = np.array([[8, 32, 1024], [16, 64, 512], [7.9, 0.001, 2**20]])
    read, write = energy.sram_pj_per_byte(kib)
    np.testing.assert_array_equal(read, [[2, 4, 14], [3, 6, 12], [2, 2, 14]])
    np.testing.assert_array_equal(write, [[10, 12, 62], [11, 22, 52], [10, 10, 62]])


def test_one_row_is_every_capacity():
    energy = table(sram=[{"kib": 8, "read_pj_per_byte": 2, "write_pj_per_byte": 3}])
    np.testing.assert_array_equal(energy.sram_pj_per_byte([1, 8, 64]), [[2, 2, 2], [3, 3, 3]])


def test_energies_come_in_the_order_of_widths():
    np.testing.assert_array_equal(table().mac_pj_by_width(), [2, 29, 31])
    np.testing.assert_array_equal(table(bf16_mac_pj=None).mac_pj_by_width(), [2, np.nan, 31])
    assert table(fp32_mac_pj=None).mac_pj("fp32") is None
    assert table().mac_pj("bf16") == 29


ROW = {"kib": 8, "read_pj_per_byte": 2, "write_pj_per_byte": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"int8_mac_pj": None}, "int8_mac_pj ... a number, got None"),
        ({"vector_op_pj": None}, "vector_op_pj ... a number, got None"),
        ({"dram_read_pj_per_byte": None}, "dram_read_pj_per_byte ... a number, got None"),
        ({"fp32_mac_pj": 0}, "fp32_mac_pj ... got 0"),
        ({"bf16_mac_pj": "2"}, "bf16_mac_pj ... a number, got '2'"),
        ({"dram_write_pj_per_byte": float("inf")}, "dram_write_pj_per_byte ... got inf"),
        ({"sram": []}, "sram must be a list of rows {kib, read_pj_per_byte, write_pj_per_byte}, got []"),
        ({"sram": "8"}, "sram must be a list of rows"),
        ({"sram": ROW}, "sram must be a list of rows"),
        ({"sram": [8]}, "a row of sram must be {kib, read_pj_per_byte, write_pj_per_byte}, got 8"),
        ({"sram": [ROW | {"bits": 8}]}, "a row of sram must be"),
        ({"sram": [{"kib": 8, "read_pj_per_byte": 2}]}, "a row of sram must be"),
        ({"sram": [ROW | {"kib": -8}]}, "sram.kib ... got -8"),
        ({"sram": [ROW | {"write_pj_per_byte": True}]}, "sram.write_pj_per_byte ... a number, got True"),
        ({"sram": [ROW | {"kib": 9}, ROW]}, "the rows of sram must come by rising capacity, got [9, 8] KiB"),
        ({"sram": [ROW, ROW]}, "by rising capacity"),
        ({"name": "4/5"}, "name must be made of letters, digits, '_', '.' and '-'"),
        ({"name": 45}, "name must be made of letters"),
        ({"sources": None}, "sources must map field names to {source, status}, got None"),
        ({"sources": {}}, "sources.sram must be {source: <text>, status: verified | assumed}"),
        ({"fp32_mac_pj": None}, "sources names 'fp32_mac_pj', which is no number given here"),
        ({"mac_pj": 1}, "field 'mac_pj' ... 'int8_mac_pj'?"),
    ],
)
def test_a_wrong_table_is_one_line(change, message):
    given = {"name": "test", "sources": sourced(TABLE), "notes": ""} | TABLE | change
    with pytest.raises(UserError) as caught:
        EnergyTable(**given)
    assert_names(caught.value, message)
    assert str(given["name"]) in str(caught.value)


@pytest.mark.parametrize("name", [*TABLE, "sources", "notes", "name"])
def test_a_table_says_everything(name):
    given = {"name": "test", "sources": sourced(TABLE), "notes": ""} | TABLE
    del given[name]
    with pytest.raises(UserError, match=f"missing field '{name}'"):
        EnergyTable(**given)
