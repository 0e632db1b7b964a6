import csv
import math
from dataclasses import replace

import pytest

from octo_exp.hw import training_step_cost
from octo_exp.workload import ROLES, VectorWork
from tests.hw.helpers import GOLDEN, ROLE_OF, gemm, halves, lenet5_step, machine, moved, priced, table, workload

# Words of three memories, bytes of three operands.
COUNTED = ("cycles", "stall_cycles", "macs", "sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_reads")
COUNTED += ("sram_ofmap_writes", "dram_ifmap_read_bytes", "dram_filter_read_bytes", "dram_ofmap_read_bytes")
COUNTED += ("dram_ofmap_write_bytes", "dram_bytes")


def square(side, dataflow="os", **change):
    return machine(rows=side, cols=side, dataflow=dataflow, **change)


def vector(layer, operations, **change):
    given = {"role": "output", "kind": "elementwise", "bytes_read": 4 * operations, "bytes_written": operations}
    return VectorWork(layer=layer, operations=operations, **given | change)


def golden_step(side, dataflow):
    with (GOLDEN / "goldens.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["topology"].startswith("lenet5_train")]
    return {row["layer"]: row for row in rows if (row["rows"], row["dataflow"]) == (str(side), dataflow)}


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("side", [16, 32])
def test_every_row_of_a_training_step_equals_scalesim(side, dataflow):
    report = training_step_cost(lenet5_step(), square(side, dataflow), convention="scalesim")
    golden = golden_step(side, dataflow)
    part_of = {role: part for part, role in ROLE_OF.items()}
    assert len(report.rows) == len(golden) == 14
    for row in report.rows:
        want = golden[f"{row.layer}_{part_of[row.role]}"]
        assert (row.m, row.n, row.k) == tuple(int(want[name]) for name in "MNK")
        assert (row.cycles, row.stall_cycles) == (int(want["total_cycles"]), int(want["stall_cycles"]))
        for name in ("sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_writes"):
            assert getattr(row, name) == int(want[name])
        for name, column in (
            ("utilization", "overall_util_pct"),
            ("mapping_utilization", "mapping_eff_pct"),
            ("compute_utilization", "compute_util_pct"),
        ):
            assert 100 * getattr(row, name) == pytest.approx(float(want[column]), rel=1e-6)
        assert (row.unit, row.dataflow) == ("array", dataflow)


def test_totals_of_the_three_passes():
    report = training_step_cost(lenet5_step(), square(16), convention="scalesim")
    passes = tuple(report.cycles_of(role) for role in ROLES)
    assert passes == (19729, 16398, 19263)
    assert report.train_step_cycles == report.total_cycles == sum(passes) == 55390
    assert (report.batch_size, report.grad_input_form, report.convention) == (4, "col2im", "scalesim")


def test_exact_convention_adds_one_cycle_per_gemm():
    short = training_step_cost(lenet5_step(), square(16), convention="scalesim")
    true = training_step_cost(lenet5_step(), square(16), convention="exact")
    assert true.train_step_cycles == short.train_step_cycles + 14


@pytest.mark.parametrize("convention", ["exact", "scalesim"])
def test_the_choice_for_each_gemm_is_named_and_never_slower(convention):
    reports = [
        training_step_cost(lenet5_step(), square(16, name, dram_bytes_per_cycle=200), convention=convention)
        for name in ("per_gemm", "os", "ws", "is")
    ]
    for best, *others in zip(*[report.rows for report in reports], strict=True):
        total = [row.cycles + row.stall_cycles for row in (best, *others)]
        assert total[0] == min(total)
        assert best.dataflow == others[total.index(total[0], 1) - 1].dataflow
    assert {row.dataflow for row in reports[0].rows} == {"os", "ws", "is"}


def test_identical_gemms_cost_as_often_as_they_occur():
    base = square(8, "ws", **halves(1000, 1000, 31))
    one, many = (
        training_step_cost(workload(gemm(count=count)), base, convention="exact", energy=table()).rows[0]
        for count in (1, 7)
    )
    for name in COUNTED:
        assert getattr(many, name) == 7 * getattr(one, name) > 0, name
    assert many.energy_uj == pytest.approx(7 * one.energy_uj, rel=2**-52)
    assert many.milliseconds == pytest.approx(7 * one.milliseconds, rel=2**-52)
    for name in ("utilization", "mapping_utilization", "compute_utilization", "dram_ifmap_bytes_per_cycle"):
        assert getattr(many, name) == getattr(one, name)
    for name in ("ifmap", "filter", "ofmap"):
        assert getattr(many, f"sram_{name}_words_per_cycle") == getattr(one, f"sram_{name}_words_per_cycle") > 0
    assert one.utilization == pytest.approx(100 * 16 * 150 / (one.cycles * 64), rel=1e-12)


def test_a_row_is_the_price_of_its_gemm():
    # 13 x 2 folds: not one line of 32 bytes of results stays, a is read for both columns of folds.
    item, base = gemm(16, 13, 100, bits_a=4), square(8, "ws", **halves(70, 1, 31))
    row = training_step_cost(workload(item), base, convention="exact", energy=table()).rows[0]
    prices = priced(item, base, energy=table())
    found = (row.dram_ifmap_read_bytes, row.dram_filter_read_bytes, row.dram_ofmap_read_bytes)
    assert (*found, row.dram_ofmap_write_bytes) == moved(prices) == (3200, 1300, 12 * 832, 13 * 832)
    assert row.dram_bytes == 3200 + 1300 + 25 * 832
    assert (row.cycles, row.stall_cycles) == (26 * 38, int(prices.stall_cycles[0, 0]))
    assert row.stall_cycles == math.ceil(row.dram_bytes / 10 - row.cycles)
    total = row.cycles + row.stall_cycles
    rates = (row.dram_ifmap_bytes_per_cycle, row.dram_filter_bytes_per_cycle, row.dram_ofmap_bytes_per_cycle)
    assert rates == (3200 / total, 1300 / total, 25 * 832 / total)
    # An array of 8 x 8 reads a for both columns of folds, b once, and each result 12 times of 13.
    rates = (row.sram_ifmap_words_per_cycle, row.sram_filter_words_per_cycle, row.sram_ofmap_words_per_cycle)
    assert rates == (2 * 1600 / total, 1300 / total, 25 * 208 / total)
    assert (row.layer, row.role, row.count, row.bits_a, row.bits_b) == ("conv", "output", 1, 4, 8)
    assert (row.macs, row.sram_ofmap_reads, row.sram_ofmap_writes) == (16 * 13 * 100, 12 * 208, 13 * 208)
    assert row.energy_uj == float(prices.energy_pj[0, 0]) * 1e-6
    assert row.milliseconds == total / 200e3


def test_a_product_on_the_vector_unit_has_the_use_of_its_lanes():
    item = gemm(7, 16, 10, bits_a=16, count=3)
    row = training_step_cost(workload(item), square(8, vector_lanes=16), convention="exact").rows[0]
    assert (row.unit, row.dataflow, row.cycles) == ("vector", "-", 3 * 70)
    assert row.utilization == row.mapping_utilization == row.compute_utilization == 1
    row = training_step_cost(workload(item), square(8, vector_lanes=32), convention="exact").rows[0]
    assert (row.cycles, row.utilization) == (3 * 35, 1)
    row = training_step_cost(workload(item), square(8, vector_lanes=33), convention="exact").rows[0]
    assert (row.cycles, row.utilization) == (3 * 34, 1120 / (34 * 33))


VECTOR = (vector("C1", 63), vector("C3", 65, role="grad_weight", kind="optimizer"))


def test_totals_are_the_sums_of_the_rows():
    step = lenet5_step(vector=VECTOR)
    report = training_step_cost(step, square(16, vector_lanes=16), convention="exact", energy=table())
    assert [(row.layer, row.role, row.kind) for row in report.vector_rows] == [
        ("C1", "output", "elementwise"),
        ("C3", "grad_weight", "optimizer"),
    ]
    assert [(row.operations, row.dram_bytes) for row in report.vector_rows] == [(63, 315), (65, 325)]
    assert [(row.cycles, row.stall_cycles) for row in report.vector_rows] == [(4, 28), (5, 28)]
    energies = [(63 * 37 + 252 * 19 + 63 * 23) * 1e-6, (65 * 37 + 260 * 19 + 65 * 23) * 1e-6]
    assert [row.energy_uj for row in report.vector_rows] == energies
    cycles, stalls = sum(row.cycles for row in report.rows), sum(row.stall_cycles for row in report.rows)
    milliseconds = sum(row.milliseconds for row in report.rows) + 65 / 200e3
    totals = report.totals()
    assert totals.pop("total_ms") == pytest.approx(milliseconds, rel=1e-12)
    assert totals == {
        **{
            f"{name}_cycles": sum(row.cycles for row in report.rows if row.role == role)
            for name, role in (("forward", "output"), ("grad_input", "grad_input"), ("grad_weight", "grad_weight"))
        },
        "train_step_cycles": cycles,
        "vector_cycles": 9,
        "stall_cycles": stalls + 56,
        "total_cycles": cycles + stalls + 65,
        "utilization": step.macs / (cycles * 256),
        "dram_mib": (sum(row.dram_bytes for row in report.rows) + 640) / 2**20,
        "energy_uj": math.fsum([*(row.energy_uj for row in report.rows), *energies]),
    }


def test_vector_work_has_no_price_without_a_unit():
    with_work, without = (
        training_step_cost(lenet5_step(vector=work), square(16), convention="exact", energy=table())
        for work in (VECTOR, ())
    )
    for row, work in zip(with_work.vector_rows, VECTOR, strict=True):
        assert (row.layer, row.operations, row.dram_bytes) == (work.layer, work.operations, 5 * work.operations)
        assert (row.cycles, row.stall_cycles, row.energy_uj) == (None, None, None)
    assert (with_work.vector_cycles, without.vector_cycles) == (None, None)
    assert (with_work.is_whole, without.is_whole) == (False, True)
    assert (with_work.total_cycles, with_work.energy_uj) == (None, None)
    # What the machine can do keeps its figures; what would need all of it has none.
    whole = without.totals()
    for name in ("total_cycles", "total_ms", "energy_uj"):
        assert whole.pop(name) > 0
    assert with_work.totals() == whole
    assert "vector_cycles" not in whole


def test_the_scalesim_convention_has_neither_vector_work_nor_stalls_nor_energy():
    slow = square(16, vector_lanes=16, dram_bytes_per_cycle=0.001)
    report = training_step_cost(lenet5_step(vector=VECTOR), slow, convention="scalesim", energy=table())
    assert (report.vector_rows, report.stall_cycles) == ((), 0)
    assert not any(row.stall_cycles for row in report.rows)
    assert report.totals() == {
        "forward_cycles": 19729,
        "grad_input_cycles": 16398,
        "grad_weight_cycles": 19263,
        "train_step_cycles": 55390,
        "stall_cycles": 0,
        "total_cycles": 55390,
        "total_ms": 55390 / 200e3,
        "utilization": lenet5_step().macs / (55390 * 256),
        "dram_mib": sum(row.dram_bytes for row in report.rows) / 2**20,
    }
    assert report.energy_uj is None
    assert {row.energy_uj for row in report.rows} == {None}


def test_without_a_table_there_is_no_energy():
    report = training_step_cost(lenet5_step(vector=VECTOR), square(16, vector_lanes=1), convention="exact")
    assert {row.energy_uj for row in (*report.rows, *report.vector_rows)} == {None}
    assert "energy_uj" not in report.totals()


def test_milliseconds_follow_the_clock():
    profile = square(16)
    slow = training_step_cost(lenet5_step(), profile, convention="exact")
    fast = training_step_cost(lenet5_step(), replace(profile, frequency_mhz=400.0), convention="exact")
    assert slow.totals()["total_ms"] == slow.total_cycles / 200e3
    assert fast.totals()["total_ms"] == slow.totals()["total_ms"] / 2
    assert fast.total_cycles == slow.total_cycles


def test_an_empty_workload_costs_nothing():
    report = training_step_cost(workload(), machine(), convention="exact")
    assert (report.rows, report.vector_rows) == ((), ())
    assert set(report.totals().values()) == {0}


def test_a_unit_without_work_has_no_cycles_and_no_unit_has_no_figure():
    assert training_step_cost(workload(gemm()), machine(vector_lanes=4), convention="exact").vector_cycles == 0
    assert training_step_cost(workload(gemm()), machine(), convention="exact").vector_cycles is None
    assert training_step_cost(workload(gemm()), machine(vector_lanes=4), convention="scalesim").vector_cycles is None


def test_energy_of_vector_work_alone_counts():
    beside = VectorWork(layer="a", role="output", kind="norm", operations=10, bytes_read=4, bytes_written=4)
    report = training_step_cost(workload(vector=(beside,)), machine(vector_lanes=4), convention="exact", energy=table())
    assert report.energy_uj == report.vector_rows[0].energy_uj > 0
